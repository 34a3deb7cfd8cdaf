"""Forward mode: dual numbers x + ε·ẋ, and maps whose derivative along ẋ costs no more than it has to."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from fgvar.nn.failures import coached_derivatives

Product = Callable[[Tensor, Tensor, Tensor | None], Tensor]

EPS = 1e-5  # of every layer norm in the paper's networks
LEVEL = 0  # the only one. Torch's own count, asked for outside of a derivative, would stay that in a compiled graph.

_forward_mode = threading.RLock()  # reentrant: one jvp may lie inside another


def jvp(
    function: Callable[..., Any], point: tuple[Any, ...], along: tuple[Any, ...], *, has_aux: bool = False
) -> Any:
    """`torch.func.jvp`, one thread at a time: torch counts its levels of forward mode for the whole process.

    Two threads within it get errors, wrong derivatives or a crash.

    Raises:
        NotImplementedError: an operation without forward mode; the sentence names it, its module and what to do.

    Example:
        >>> [float(x) for x in jvp(torch.square, (torch.tensor(3.0),), (torch.tensor(1.0),))]
        [9.0, 6.0]
    """
    if torch.compiler.is_compiling():  # which traces the derivative, and knows no locks
        return torch.func.jvp(function, point, along, has_aux=has_aux)
    with _forward_mode, coached_derivatives():
        return torch.func.jvp(function, point, along, has_aux=has_aux)


def unpack_dual(x: Tensor) -> tuple[Tensor, Tensor | None]:
    """The value and the tangent of a tensor; no tangent where it has none, or inside a vmap inside a jvp."""
    # For that nesting torch has no rule to unpack by; without a tangent, layers fall back on torch's forward mode.
    if torch._C._functorch.is_batchedtensor(x):
        return x, None
    dual = forward_ad.unpack_dual(x, level=LEVEL)
    return dual.primal, dual.tangent


def primal(value: Any) -> Any:
    """A tensor without its tangent, and with its gradient; anything else as it is."""
    return forward_ad.unpack_dual(value, level=LEVEL).primal if isinstance(value, Tensor) else value


def add_tangent(output: Tensor, along: Tensor) -> Tensor:
    """``output`` without its gradient, moving along a direction more: a dual number, where detach stops both."""
    value, tangent = forward_ad.unpack_dual(output, level=LEVEL)
    moved = along.contiguous() if tangent is None else tangent.detach() + along
    return forward_ad.make_dual(value.detach().to(moved.dtype), moved)  # under autocast the direction is more precise


def linear_jvp(product: Product, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``product(x, weight, bias)``, where no bias (None) makes it linear in x.

    W(x + εu) + b = (Wx + b) + ε·Wu: where the input moves alone, its tangent is the product of the direction. Torch's
    forward mode multiplies the input by the weight's tangent of zeros, too, eagerly and compiled.

    Example:
        >>> import torch
        >>> x, u, w, b = torch.ones(1, 3), torch.tensor([[1.0, 0.0, 0.0]]), torch.full((2, 3), 2.0), torch.ones(2)
        >>> torch.func.jvp(lambda x: linear_jvp(functional.linear, x, w, b), (x,), (u,))[1]
        tensor([[2., 2.]])
    """
    at, along = unpack_dual(x)
    # Where weights move as well (weight perturbation), the product rule has two terms: torch's own.
    if along is None or any(unpack_dual(tensor)[1] is not None for tensor in (weight, bias) if tensor is not None):
        return product(x, weight, bias)
    value = product(at, weight, bias)
    return forward_ad.make_dual(value, product(along, weight, None).to(value.dtype))  # autocast may keep one precise


def layer_norm(x: Tensor) -> Tensor:
    """Zero mean and unit variance over the last axis, without gain or bias.

    y = r(x − x̄) has the Jacobian J = r(I − 11ᵀ/n − yyᵀ/n), which is symmetric: the kernel of the backward pass, Jᵀg,
    computes the directional derivative Ju as well, in one pass where torch's own forward mode makes a dozen. (That
    takes mean and r for constants, so that second derivatives through it are wrong; through this they are right.)

    Shapes: any, of at least one axis.

    Source: Ren et al. 2023, Sec. 5 (the norm); torch 2.13, ``native_layer_norm_backward`` (the kernel).

    Example:
        >>> x, u = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 0.0, 0.0]])
        >>> along = torch.func.jvp(layer_norm, (x,), (u,))[1]
        >>> bool(torch.allclose(along, torch.func.vjp(layer_norm, x)[1](u)[0]))
        True
    """
    shape = x.shape[-1:]
    if torch.compiler.is_compiling():  # compilers take the plain norm apart themselves
        return functional.layer_norm(x, shape, eps=EPS)
    x = x.contiguous()  # once, where the kernels of forward, tangent and backward pass would each copy it
    at, along = unpack_dual(x)
    if along is None:
        return functional.layer_norm(x, shape, eps=EPS)
    normed, mean, r = torch.native_layer_norm(at, shape, None, None, EPS)
    # Under autocast the norm may be in another precision than what it norms.
    at, along = at.to(normed.dtype), along.to(normed.dtype)
    moved = torch.ops.aten.native_layer_norm_backward(along, at, shape, mean, r, None, None, [True, False, False])[0]
    return forward_ad.make_dual(normed, moved)


def weight_norm(length: Tensor, along: Tensor, dim: int) -> Tensor:
    """g·v/‖v‖, with a norm for each index of axis ``dim`` (-1: one for all).

    Example:
        >>> import torch
        >>> weight_norm(torch.tensor([[2.0]]), torch.tensor([[3.0, 4.0]]), 0)
        tensor([[1.2000, 1.6000]])
    """
    if dim == -1:
        return along * (length / along.norm())
    # In plain operations: torch's fused kernel has no forward-mode derivative.
    norms = along.movedim(dim, 0).reshape(along.shape[dim], -1).norm(dim=1)
    return along * (length / norms.reshape(length.shape))


class _Parametrization(_WeightNorm):
    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return weight_norm(weight_g, weight_v, self.dim)


class _Hook(WeightNorm):
    def compute_weight(self, module: nn.Module) -> Tensor:
        return weight_norm(getattr(module, f"{self.name}_g"), getattr(module, f"{self.name}_v"), self.dim)


def use_plain_weight_norm(module: nn.Module) -> None:
    """Let torch's weight norm in ``module``, by parametrization or by the older hook, compute by `weight_norm`."""
    for child in module.modules():
        if type(child) is _WeightNorm:
            child.__class__ = _Parametrization
        for hook in child._forward_pre_hooks.values():
            if type(hook) is WeightNorm:
                hook.__class__ = _Hook


def use_plain_experts(module: nn.Module) -> None:
    """Let mixtures of experts in ``module`` by Hugging Face's classes call one expert after the other.

    The kernel that multiplies all at once knows neither forward mode nor float64.
    """
    for child in module.modules():
        config: Any = getattr(child, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "eager"


class _PlainOperations:
    """How many threads are within `plain_operations`, and how the choice before is put back."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.threads = 0
        self.undo: Callable[[], object] = lambda: None


_plain_operations = _PlainOperations()


@contextmanager
def plain_operations() -> Iterator[None]:
    """Within, attention computes in plain operations, and what torch.compile has wrapped as it is written.

    Fused kernels have no forward-mode derivative, and compilers trace neither hooks nor the transforms around a pass.
    The choice belongs to the process: the first thread to come in makes it, the last to leave undoes it.
    """
    state = _plain_operations
    with state.lock:
        if not state.threads:
            state.undo = _choose_plain_operations()
        state.threads += 1
    try:
        yield
    finally:
        with state.lock:
            state.threads -= 1
            if not state.threads:
                state.undo()


def _choose_plain_operations() -> Callable[[], object]:
    """Choose the plain kernels; what is returned puts back the choice before."""
    fast = torch.backends.mha.get_fastpath_enabled()
    kernels = sdpa_kernel(SDPBackend.MATH)
    torch.backends.mha.set_fastpath_enabled(False)
    kernels.__enter__()
    stance = _eager_stance()

    def undo() -> None:
        stance.__exit__(None, None, None)
        kernels.__exit__(None, None, None)
        torch.backends.mha.set_fastpath_enabled(fast)

    return undo


def _eager_stance() -> AbstractContextManager[None]:
    """What makes compiled functions run as they are written; its exit ends that."""
    if "torch._dynamo.eval_frame" not in sys.modules:  # whose import takes long, and without which none is compiled
        return nullcontext()
    try:
        return torch.compiler.set_stance("force_eager")
    except RuntimeError:  # within a compiled function, between two of its graphs
        return nullcontext()
