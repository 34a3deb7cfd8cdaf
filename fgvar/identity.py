"""Identity: texts and hashes that tell one problem or run from another, and are the same in every process."""

from __future__ import annotations

import hashlib
import re
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fgvar.problem import Problem


def described(thing: object) -> str:
    """What an object says of itself, without where it happens to lie in memory."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, types.FunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))  # addresses differ from process to process


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(value):  # which have no values
            continue
        with torch._C._DisableFuncTorch():  # an error inside of a vmap or grad may tell what it is about
            # The bytes themselves, so that −0 and NaN count, and every dtype has them.
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_problem(problem: Problem) -> str:
    """Network, loss and sizes, and a hash of the network's own text and of all tensors."""
    network = problem.network.skeleton
    tensors = problem.tensors()
    if problem.origin is not None:  # probabilities of samplers are those there
        tensors |= {f"{name} of the origin": value for name, value in problem.origin.tensors().items()}
    digest = hashlib.blake2b(f"{described(network)} {fingerprint(tensors)}".encode(), digest_size=6).hexdigest()
    loss = getattr(problem.loss_function, "__name__", described(problem.loss_function)).lstrip("_")
    numbers = sum(p.numel() for p in problem.params.values())
    return (
        f"<{type(problem).__name__} {type(network).__name__}, {loss}, {problem.batch_size} examples, "
        f"{numbers} numbers, {digest}>"
    )
