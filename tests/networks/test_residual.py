"""The residual of Poisson's equation: against derivatives by torch.func, its solution, and how it is perturbed."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

import fgvar
from fgvar.networks import PoissonResidual
from fgvar.testing import expectation

X = torch.linspace(0.03, 0.98, 7, dtype=torch.float64)[:, None]


def plain(params: Mapping[str, Tensor], depth: int, x: Tensor) -> Tensor:
    """x(1 − x)·N(x) of one point, from the definition."""
    h = x[None]
    for index in range(depth):
        h = torch.tanh(params[f"layer{index}.weight"] @ h + params[f"layer{index}.bias"])
    network = params["readout.weight"] @ h + params["readout.bias"]
    return (x * (1 - x) * network)[0]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_derivatives_are_those_of_the_plain_function(depth: int) -> None:
    net = PoissonResidual(5, source=0.1, depth=depth, seed=1).double()
    params = dict(net.named_parameters())

    def u(x: Tensor) -> Tensor:
        return plain(params, depth, x)

    second = vmap(grad(grad(u)))(X[:, 0])
    f = torch.exp(-0.5 * ((X[:, 0] - 0.5) / 0.1) ** 2) / (0.1 * math.sqrt(2 * math.pi))
    torch.testing.assert_close(net.u(X), vmap(u)(X[:, 0]), rtol=0, atol=1e-14)
    torch.testing.assert_close(net(X), -second - f, rtol=0, atol=1e-11)
    ends = torch.tensor([[0.0], [1.0]]).double()
    assert net.u(ends).tolist() == [0, 0]


@pytest.mark.parametrize("source", [0.02, 0.1, 1.0])
def test_the_solution_solves_the_equation(source: float) -> None:
    """−u″ = f and u(0) = u(1) = 0; and it is ∫ G(x, s) f(s) ds, Green's function by Gauss's rule in 20 pieces."""
    net = PoissonResidual(1, source=source).double()
    second = vmap(grad(grad(lambda x: net.solution(x[None, None])[0])))(X[:, 0])
    torch.testing.assert_close(-second, net.density(X[:, 0]), rtol=0, atol=1e-10 / source)
    ends = net.solution(torch.tensor([[0.0], [1.0]]).double())
    torch.testing.assert_close(ends, torch.zeros(2).double(), rtol=0, atol=1e-15)
    for x, found in zip(X[:, 0].tolist(), net.solution(X).tolist(), strict=True):
        assert found == pytest.approx(green(x, source), rel=1e-10)


def green(x: float, source: float) -> float:
    """∫₀ˣ s(1 − x) f ds + ∫ₓ¹ x(1 − s) f ds."""
    nodes = 0.906179845938664, 0.538469310105683, 0.0, -0.538469310105683, -0.906179845938664
    weights = 0.236926885056189, 0.478628670499366, 0.568888888888889, 0.478628670499366, 0.236926885056189
    total = 0.0
    for low, high in ((0.0, x), (x, 1.0)):
        h = (high - low) / 400
        for piece in range(400):
            for node, weight in zip(nodes, weights, strict=True):
                s = low + h * (piece + (1 + node) / 2)
                f = math.exp(-0.5 * ((s - 0.5) / source) ** 2) / (source * math.sqrt(2 * math.pi))
                total += h / 2 * weight * f * (s * (1 - x) if s <= x else x * (1 - s))
    return total


def small() -> fgvar.Problem:
    net = PoissonResidual(1, source=0.3, depth=2, seed=2).double()
    return fgvar.Problem(net, "mse", (X[2:4], torch.zeros(2).double()))


def test_mse_against_zeros_is_the_loss_of_residuals() -> None:
    at = small()
    residual = functional_call(PoissonResidual(1, source=0.3).double(), at.params, (X[2:4],))
    torch.testing.assert_close(at.loss(), residual.square().mean())
    each = at.per_example(lambda one: one.backprop())
    for name, value in at.backprop().items():
        torch.testing.assert_close(each[name].mean(0), value, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("scheme", ["FG-W", "FG-A"])
def test_perturbing_weights_and_activities_is_unbiased(scheme: str) -> None:
    """Over all signs: of 4 weights, of 12 numbers at the sites (a value and two derivatives, 2 points, 2 layers)."""
    at = small()
    mean = expectation(fgvar.scheme(scheme, noise=fgvar.Rademacher()), at)
    for name, value in at.backprop().items():
        torch.testing.assert_close(mean[name], value, rtol=1e-12, atol=1e-12)


def test_refusals() -> None:
    with pytest.raises(ValueError, match="width is 0, expected an integer of at least 1"):
        PoissonResidual(0, source=0.1)
    with pytest.raises(ValueError, match="depth is 0, expected an integer of at least 1"):
        PoissonResidual(2, source=0.1, depth=0)
    with pytest.raises(ValueError, match=r"source is 0, expected a standard deviation above 0"):
        PoissonResidual(2, source=0)
    with pytest.raises(TypeError, match="source is 'narrow'"):
        PoissonResidual(2, source="narrow")
