"""The layer norm with a derivative of its own along directions, against the same norm in plain operations."""

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.nn import functional

from fgvar.norms import EPS, layer_norm

X, U, V = torch.randn(3, 4, 3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def plain(x: Tensor) -> Tensor:
    """By definition, in operations whose derivatives of every order torch composes."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()


def cubed(norm):
    return lambda x: (V * norm(x) ** 3).sum()


DERIVATIVES = {
    "value": lambda norm: norm(X),
    "along": lambda norm: jvp(norm, (X,), (U,))[1],
    "back": lambda norm: vjp(norm, X)[1](U)[0],
    "gradient beside a tangent": lambda norm: grad(lambda x: (jvp(norm, (x,), (U,))[0] ** 3).sum())(X),
    "gradient of a tangent": lambda norm: grad(lambda x: (jvp(norm, (x,), (U,))[1] ** 2).sum())(X),
    "gradient by the direction": lambda norm: grad(lambda u: (jvp(norm, (X,), (u,))[1] ** 2).sum())(U),
    "tangent of a tangent": lambda norm: jvp(lambda x: jvp(norm, (x,), (U,))[1], (X,), (V,))[1],
    "tangent by the direction": lambda norm: jvp(lambda u: jvp(norm, (X,), (u,))[1], (U,), (V,))[1],
    "tangent of a gradient": lambda norm: jvp(grad(cubed(norm)), (X,), (U,))[1],
    "gradient of a gradient": lambda norm: grad(lambda x: (grad(cubed(norm))(x) ** 2).sum())(X),
    "forward over reverse": lambda norm: hessian(cubed(norm))(X),
    "forward over forward": lambda norm: jacfwd(jacfwd(cubed(norm)))(X),
    "reverse over forward": lambda norm: jacrev(jacfwd(cubed(norm)))(X),
    "vmap over directions": lambda norm: vmap(lambda u: jvp(norm, (X,), (u,))[1])(torch.stack([U, V])),
    "vmap over both": lambda norm: vmap(lambda x, u: jvp(norm, (x,), (u,))[1])(X, U),
    "vmap inside": lambda norm: jvp(vmap(norm), (X,), (U,))[1],
    "vmap on both sides": lambda norm: vmap(lambda u: jvp(vmap(norm), (X,), (u,))[1])(torch.stack([U, V])),
    "vmap of second derivatives": lambda norm: vmap(
        lambda u: grad(lambda x: (jvp(norm, (x,), (u,))[1] ** 2).sum())(X)
    )(torch.stack([U, V])),
    "transposed": lambda norm: jvp(lambda x: norm(x.mT), (X,), (U,))[1],
    "autograd": lambda norm: torch.autograd.grad(cubed(norm)(x := X.clone().requires_grad_()), x)[0],
}


@pytest.mark.parametrize("name", DERIVATIVES)
def test_derivatives_up_to_the_second(name: str) -> None:
    torch.testing.assert_close(DERIVATIVES[name](layer_norm), DERIVATIVES[name](plain), rtol=1e-12, atol=1e-12)


@pytest.mark.xfail(strict=True, reason="torch 2.13: tangents of its layer norm take mean and variance for constants")
def test_torch_s_own_norm_does_the_same() -> None:
    """Why there is one here: the day this passes, torch's is right."""
    found, expected = (
        DERIVATIVES["gradient of a tangent"](norm)
        for norm in (lambda x: functional.layer_norm(x, (6,), eps=EPS), plain)
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_tangents_are_those_of_torch_s_own_norm(dtype: torch.dtype) -> None:
    """The slow twin, in every precision."""
    x, u = (value.to(dtype) for value in (X, U))
    found, expected = (
        jvp(norm, (x,), (u,)) for norm in (layer_norm, lambda z: functional.layer_norm(z, z.shape[-1:], eps=EPS))
    )
    tolerance = {torch.float32: 1e-6, torch.float64: 1e-12, torch.bfloat16: 2**-6}[dtype]
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype == dtype
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
