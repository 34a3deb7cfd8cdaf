"""The layer norm with a derivative of its own along directions, against the same norm in plain operations."""

import derivatives
import pytest
import torch
from derivatives import U, X
from torch import Tensor
from torch.func import jvp
from torch.nn import functional

from fgvar.nn.forward_mode import EPS, layer_norm


def plain(x: Tensor) -> Tensor:
    """By definition, in operations whose derivatives of every order torch composes."""
    centred = x - x.mean(-1, keepdim=True)
    return centred * (centred.square().mean(-1, keepdim=True) + EPS).rsqrt()


DERIVATIVES = {**derivatives.DERIVATIVES, "transposed": lambda norm: jvp(lambda x: norm(x.mT), (X,), (U,))[1]}


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
