"""Layer norm whose derivative along a direction costs one pass over memory."""

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional

from fgvar.dual import opened

EPS = 1e-5  # of every layer norm in the paper's networks


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
    at, along = opened(x)
    if along is None:
        return functional.layer_norm(x, shape, eps=EPS)
    normed, mean, r = torch.native_layer_norm(at, shape, None, None, EPS)
    # Under autocast the norm may be in another precision than what it norms.
    at, along = at.to(normed.dtype), along.to(normed.dtype)
    moved = torch.ops.aten.native_layer_norm_backward(along, at, shape, mean, r, None, None, [True, False, False])[0]
    return forward_ad.make_dual(normed, moved)
