"""Failures: in which module of a network torch gave up, and what it lacks there, in words."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from torch import Tensor, nn

FORWARD_MODE = re.compile(r"forward AD with (\S+) that does not support|forward mode AD|forward-mode AD")
NO_DERIVATIVE = re.compile(r"derivative for '?([\w:.]+)'? is not implemented")


def raised_in(error: BaseException) -> str:
    """The innermost module whose forward raised an error, or the loss; empty where it was neither.

    Example:
        >>> try:
        ...     nn.Sequential(nn.Tanh(), nn.Linear(3, 2))(None)
        ... except TypeError as error:
        ...     raised_in(error)
        "'0' (Tanh)"
    """
    modules: list[nn.Module] = []
    # A traceback costs nothing until something is raised, where hooks would cost in every pass.
    for frame in _frames(error):
        if frame.f_code.co_name == "raw_losses":  # of a `Problem`: what follows, modules too, belongs to the loss
            return "the loss"
        if isinstance(owner := frame.f_locals.get("self"), nn.Module):
            modules.append(owner)
    if not modules:
        return ""
    inner, names = modules[-1], modules[0].named_modules()  # the outermost one knows all by name
    name = next((name for name, module in names if module is inner), "")
    return f"{name!r} ({type(inner).__name__})" if name else f"the network ({type(inner).__name__})"


def outside_of_table(error: IndexError) -> str:
    """Which numbers an embedding was asked for, and which ones it has; empty where the error is no embedding's."""
    for frame in _frames(error):
        table, asked = frame.f_locals.get("self"), frame.f_locals.get("input")
        if isinstance(table, nn.Embedding | nn.EmbeddingBag) and isinstance(asked, Tensor):
            last = table.num_embeddings - 1
            return f"looks up numbers from {int(asked.min())} to {int(asked.max())} and has those from 0 to {last}"
    return ""


def _frames(error: BaseException) -> Iterator[FrameType]:
    traceback = error.__traceback__
    while traceback is not None:
        yield traceback.tb_frame
        traceback = traceback.tb_next


@contextmanager
def coached_derivatives() -> Iterator[None]:
    """Within, an operation that torch cannot differentiate, forward or at all, is an error that says so.

    Raises:
        NotImplementedError: torch lacks one; the sentence names the operation, its module and what to do.
        ValueError: a tensor that the gradient needs was written to.
    """
    try:
        yield
    except (NotImplementedError, RuntimeError) as error:
        where = f" in {place}" if (place := raised_in(error)) else ""
        if found := FORWARD_MODE.search(str(error)):
            what = f"of {found[1]}{where}" if found[1] else f"of the torch.autograd.Function{where}"
            own = "" if found[1] else ", or give the Function a jvp"
            raise NotImplementedError(
                f"torch has no forward mode {what}, so that no derivative along a direction passes it; take finite "
                f'differences, scheme("MeZO") or oracle=CentralDifference(), or backward passes, oracle=Replay(){own}'
            ) from error
        if found := NO_DERIVATIVE.search(str(error)):
            raise NotImplementedError(
                f"torch has no derivative of {found[1]}{where}, which a derivative inside the forward pass "
                "(torch.func.grad) or an operation without one asks for; take another operation there"
            ) from error
        if "modified by an inplace operation" in str(error):
            raise ValueError(
                "the network or the loss changes a tensor in place that its own gradient needs, so that torch's "
                "backward() fails, too; compute a new one there, as h * 2 for h.mul_(2)"
            ) from error
        raise
