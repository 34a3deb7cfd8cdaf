"""Dual numbers of forward mode: made, opened, and moved along."""

import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

_forward_mode = threading.RLock()


def jvp(
    function: Callable[..., Any], point: tuple[Any, ...], along: tuple[Any, ...], *, has_aux: bool = False
) -> Any:
    """`torch.func.jvp`, one thread at a time: torch counts its levels of forward mode for the whole process.

    Two threads within it get errors, wrong derivatives or a crash.

    Example:
        >>> [float(x) for x in jvp(torch.square, (torch.tensor(3.0),), (torch.tensor(1.0),))]
        [9.0, 6.0]
    """
    if torch.compiler.is_compiling():  # which traces the derivative, and knows no locks
        return torch.func.jvp(function, point, along, has_aux=has_aux)
    with _forward_mode:
        return torch.func.jvp(function, point, along, has_aux=has_aux)


def opened(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The value and the tangent of a tensor; no tangent where it has none, or inside a vmap inside a jvp."""
    if torch._C._functorch.is_batchedtensor(x):
        return x, None
    dual = forward_ad.unpack_dual(x)
    return dual.primal, dual.tangent


def at_rest(value: Any) -> Any:
    """A tensor without its tangent, and with its gradient; anything else as it is."""
    return forward_ad.unpack_dual(value).primal if isinstance(value, Tensor) else value


def pushed(output: Tensor, along: Tensor) -> Tensor:
    """``output`` without its gradient, moving along a direction more: a dual number, where detach stops both."""
    at, already = forward_ad.unpack_dual(output)
    moves = along.contiguous() if already is None else already.detach() + along
    return forward_ad.make_dual(at.detach().to(moves.dtype), moves)  # under autocast the direction is more precise
