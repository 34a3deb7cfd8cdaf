"""Purity: networks and losses are functions of each example; draws, writes and coupled examples are found here."""

import random
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from fgvar.nn.failures import outside_of_table, raised_in
from fgvar.nn.structures import leaves, named

Pass = tuple[Any, Tensor]  # outputs and losses

DRAWS = {
    "network": "the network draws random numbers in its forward pass (functional dropout?), so its gradient is not "
    "defined; switch that off, for instance with module.eval(), or draw them beforehand and make them part of the "
    "batch's inputs (the ε of a variational autoencoder, a mask)",
    "loss": "the loss draws random numbers, so that no two calls are of one function; draw them beforehand and make "
    "them part of the batch, as inputs that the network hands on or as targets",
}


INTEGER = re.compile(r"\b(Long|Int|Short|Byte|Char|Bool|[Ii]nteger|long int|long long|int|unsigned char|bool)\b")
PRECISION = re.compile(r"not implemented for '|Expected mat_a to be|must have the same dtype|expected scalar type")
SIZES = re.compile(r"shapes cannot be multiplied|to have \d+ channels|normalized_shape|size of tensor a .* must ma")
STILL = "call module.eval() (and module.apply(torch.ao.quantization.disable_observer) where it is quantised)"


def undrawn(who: str, function: Callable[[], Any]) -> Any:
    """What a function of the network or of the loss (``who``) returns; drawing random numbers is a ValueError.

    Torch's are refused as they are drawn, all others are seen by their global states.
    """
    found, before = None, _states()

    def once(dummy: Tensor) -> Tensor:
        nonlocal found
        found = function()
        return dummy

    # Under vmap torch itself raises where a draw is made, so that the traceback shows the culprit. The dummy is there
    # to be mapped over; the function sees nothing of it.
    try:
        torch.func.vmap(once, randomness="error")(torch.zeros(1))
    except RuntimeError as error:
        if "randomness" in str(error):
            raise ValueError(DRAWS[who]) from error
        if "vmap" not in str(error) or "setup_context" in str(error):  # which no transform takes
            raise
        found = function()  # something in it has no rule for vmap, whatever is mapped: its states tell
    if _states() != before:
        raise ValueError(DRAWS[who])
    return found


def _states() -> tuple[object, ...]:
    numpy: Any = np.random.get_state()  # a tuple with an array, which == does not compare
    return numpy[1].tobytes(), numpy[2:], random.getstate(), torch.get_rng_state().numpy().tobytes()


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """Global random states, torch's, NumPy's and Python's, are afterwards as before, whoever draws from them."""
    numpy, python = np.random.get_state(), random.getstate()
    # Of the other CUDA devices nothing is saved: doing so would start a context on each.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            np.random.set_state(numpy)
            random.setstate(python)


@contextmanager
def unchanged(who: str, tensors: Mapping[str, Any], remedy: str) -> Iterator[None]:
    """Raise where one of these is written to, within."""
    # A version counts the writes to a tensor, and to any view of it, which costs nothing; values would take a copy.
    before = {name: tensor._version for name, tensor in tensors.items() if isinstance(tensor, Tensor)}
    yield
    if changed := [name for name, version in before.items() if tensors[name]._version != version]:
        raise ValueError(
            f"the {who} changes {', '.join(map(repr, changed))} in place, so that no two calls are of one function; "
            f"{remedy}"
        )


def coach(error: RuntimeError | IndexError, inputs: Any, dtype: torch.dtype) -> None:
    """Raise a ValueError that says what to do, if the error of a failed pass is a known one."""
    if isinstance(error, IndexError):
        if numbers := outside_of_table(error):
            raise ValueError(
                f"{raised_in(error)} {numbers}; give token numbers within that, and no more positions, or a larger "
                "embedding"
            ) from error
        return
    if any(part in str(error) for part in ("setup_context", "generate_vmap_rule", "requires_grad_()")):
        raise ValueError(underivable("network", error)) from error
    if "argument #1 'indices'" in str(error):
        raise ValueError(
            f"an embedding looks up what is no integer ({_first_line(error)}); give token numbers as integers, "
            "inputs.long()"
        ) from error
    for name, leaf in named("inputs", inputs).items():
        # Integers are what they should be, token ids and masks, unless the one input is what torch complains of.
        real = leaf.is_floating_point() or leaf.is_complex()
        blamed = real or (leaf is inputs and INTEGER.search(str(error)))
        if leaf.dtype != dtype and blamed:
            raise ValueError(
                f"{name} are {leaf.dtype}, the network's parameters {dtype}, and it does not take them "
                f"({_first_line(error)}); give {name}.to({dtype})"
            ) from error
    if SIZES.search(str(error)) and (where := raised_in(error)):
        shapes = ", ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in named("inputs", inputs).items())
        raise ValueError(
            f"{where} does not take tensors of this size ({_first_line(error)}), of {shapes}; give inputs of the "
            "width that the network is made for, or layers that fit each other"
        ) from error
    if PRECISION.search(str(error)):
        raise ValueError(
            f"{raised_in(error) or 'the network'} does not compute in {dtype} here ({_first_line(error)}); give the "
            "network, frozen parameters too, and the batch one precision that it takes, as module.to(torch.float32)"
        ) from error


def require_derivative(who: str, function: Callable[[Mapping[str, Tensor]], Any], at: Mapping[str, Tensor]) -> None:
    """Raise where torch.func cannot follow a function of the parameters, or finds none that its value depends on."""
    depends = True

    def followed(params: Mapping[str, Tensor]) -> Tensor:
        nonlocal depends
        # Within the vjp, what depends on the parameters by a derivative requires a gradient.
        values = leaves(function(params))
        depends = any(value.requires_grad for value in values) or not values
        return torch.zeros(())  # whatever the function returns: an output may be no tensor

    try:
        torch.func.vjp(followed, dict(at))
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ValueError(underivable(who, error)) from error
    if who == "network" and not depends:  # a loss may have no derivative, and yet a value for finite differences
        raise ValueError(
            "no parameter leads to the network's outputs by a derivative (torch.no_grad(), integers, or those that "
            "do are frozen?), so that all gradients would be 0; take that out of its forward, or unfreeze them"
        )


def underivable(who: str, error: Exception) -> str:
    """Why torch.func cannot differentiate the network or the loss, and what to do."""
    text = str(error)
    if "saved tensor hooks" in text or "CheckpointFunction" in text:
        return (
            "the network checkpoints its activations, which torch.func cannot differentiate; switch that off, for "
            "instance by model.gradient_checkpointing_disable()"
        )
    if "requires_grad_()" in text:
        return (
            f"the {who} calls requires_grad_() in its forward (as torch.autograd.grad there needs, and Hugging "
            "Face's gradient checkpointing does), which torch.func cannot follow; take torch.func.grad for "
            "derivatives inside, and model.gradient_checkpointing_disable(), model.disable_input_require_grads()"
        )
    if "setup_context" in text or "generate_vmap_rule" in text:
        return (
            f"the {who} uses a torch.autograd.Function that torch.func cannot transform (or gradient checkpointing "
            "by one: switch that off); give it a setup_context, and generate_vmap_rule = True"
        )
    return (
        f"torch.func cannot differentiate the {who} ({_first_line(error)}); use torch's functions alone, without "
        "NumPy, .data or requires_grad_(), and torch.func.grad for derivatives inside"
    )


def refuse_foreign(outputs: Any) -> None:
    """Raise where outputs have a graph though the network's own parameters are constants."""
    if any(leaf.requires_grad for leaf in leaves(outputs)):
        raise ValueError(
            "the network uses parameters that it does not own (layers in a plain list, another network's, a tensor "
            "that requires a gradient), which would be constants; register them (nn.ModuleList, nn.Parameter), or "
            "freeze them with requires_grad_(False)"
        )


def require_independence(batch: Pass, first: Pass, part: Callable[[slice], Pass], eps: float) -> None:
    """Raise unless every example's loss is the same in other company, up to roundings of ``eps``.

    Examples of even and of odd number apart: all of them change neighbours, place and company, for the price of one
    pass in all. And the first one alone, of which a pass is there.
    """
    halves = (slice(1, None, 2), slice(0, None, 2))[: len(batch[1]) - 1]  # of two, the first one is a half
    for which, other in [(slice(1), first), *((half, part(half)) for half in halves)]:
        require_same(batch, which, other, lambda: part(slice(None)), eps)


def require_same(batch: Pass, which: slice, part: Pass, repeat: Callable[[], Pass], eps: float) -> None:
    """Raise where examples have other losses in a part of the batch than in all of it, and say by whose fault.

    Args:
        batch: outputs and losses of the batch.
        which: rows of the batch that are the part.
        part: outputs and losses of the part.
        repeat: makes those of the batch once more, to tell what draws from what couples.
        eps: of the lowest precision on the way: a loss may be in a higher one than the outputs it is made of.
    """
    (outputs, losses), (part_outputs, part_losses), count = batch, part, len(batch[1])
    different = (~close(losses[which], part_losses, eps)).nonzero()
    if not len(different):
        return
    # A pass that does not repeat itself would look like a coupling: that is asked first.
    repeated = repeat()
    if _agree(outputs, repeated[0], slice(None), count, eps) is False:
        raise ValueError(f"two passes of one batch differ: {DRAWS['network']}; nor may it remember passes")
    if not close(losses, repeated[1], eps).all():
        raise ValueError(f"two calls of one batch differ: {DRAWS['loss']}; nor may it remember calls")
    # The same outputs and another loss: then the loss couples. Different outputs: then the network does.
    agree = _agree(outputs, part_outputs, which, count, eps)
    who = "network or the loss" if agree is None else "loss" if agree else "network"
    remedy = {
        "network": "use a norm within the example, and layers whose first axis is the batch (batch_first=True)",
        "loss": "return each example's own loss, without statistics of the batch",
        "network or the loss": "return tensors from the network to see which",
    }
    row = int(different[0])
    raise ValueError(
        f"the loss of example {range(count)[which][row]} is {float(losses[which][row]):.6g} in the batch and "
        f"{float(part_losses[row]):.6g} among fewer: the {who} couples examples, so that no loss term credits one "
        f"example alone; {remedy[who]}"
    )


def close(one: Tensor, other: Tensor, eps: float) -> Tensor:
    """Number by number: equal but for rounding, to the square root of what the precision resolves?"""
    return torch.isclose(one, other, rtol=eps**0.5, atol=eps**0.5)


def _agree(outputs: Any, others: Any, which: slice, count: int, eps: float) -> bool | None:
    """Are the rows ``which`` of a batch's outputs those of another pass? None where none can be compared."""
    pairs = [
        (one[which], other)
        for one, other in zip(tree_leaves(outputs), tree_leaves(others), strict=True)
        if isinstance(one, Tensor)
        and one.ndim
        and len(one) == count  # else its rows are not the examples
        and (one.is_floating_point() or one.is_complex())
    ]
    return all(bool(close(one, other, eps).all()) for one, other in pairs) if pairs else None


def batch_only(error: Exception) -> str:
    """The sentence about a network that takes a batch alone."""
    return (
        f"the network takes the batch, and not its first example alone ({_first_line(error)}), so that no loss term "
        "credits one example alone; use a norm within the example, and take the batch's size from the inputs"
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
