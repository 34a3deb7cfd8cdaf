"""Exact expectations and covariances: three enumerations, which share nothing, agree."""

from dataclasses import dataclass

import pytest
import torch
from cases import CASES, randn
from torch import nn

import fgvar
from fgvar.estimators.oracles import derived
from fgvar.testing import covariance, expectation
from fgvar.testing.enumeration import require_quadratic


def tiny(bias: bool = True) -> fgvar.Problem:
    """Six random numbers for weights (four without a bias), four for activities."""
    net = nn.Linear(2, 2, bias=bias).double()
    for index, p in enumerate(net.parameters()):
        p.data = randn(*p.shape, seed=index)
    return fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(2, 2, seed=9), torch.arange(2)))


NOISES = [fgvar.Gaussian, fgvar.Rademacher]
SPACES = [fgvar.WeightSpace(), fgvar.ActivitySpace()]


@pytest.mark.parametrize("space", SPACES, ids=["weights", "activities"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("noise", "method"), list(zip(NOISES, ["hermite", "signs"], strict=True)))
@pytest.mark.parametrize("directions", [1, 2])
def test_polarisation_equals_the_enumerated_law(space, shared, noise, method, directions) -> None:
    estimator = fgvar.Estimator(space, noise(), shared=shared, directions=directions)
    problem = tiny(bias=False)
    if estimator.randomness(problem).size > 11:
        pytest.skip("too many numbers for 3^d")
    found, law = (covariance(estimator, problem, method=one) for one in ("polarisation", method))
    for name, matrix in law.items():
        torch.testing.assert_close(found[name], matrix, rtol=0, atol=1e-12)
    assert max(float(matrix.abs().max()) for matrix in law.values()) > 1e-3


@pytest.mark.parametrize(("noise", "excess"), list(zip(NOISES, [1, -1], strict=True)))
def test_one_loss_over_d_numbers(noise, excess) -> None:
    """The closed form: relative total variance d + 1 (Gaussian), d - 1 (Rademacher)."""
    problem = tiny()
    square = sum(float(g.square().sum()) for g in problem.backprop().values())
    total = sum(float(c.trace()) for c in covariance(fgvar.scheme("FG-W", noise=noise()), problem).values())
    assert total / square == pytest.approx(6 + excess, rel=1e-12)


def test_exact_gradients_have_no_covariance() -> None:
    assert not any(bool(c.any()) for c in covariance(fgvar.scheme("BP"), tiny()).values())


@dataclass(frozen=True)
class Clipped:
    """A directional derivative kept within a limit."""

    limit: float
    bias_order = None

    def terms(self, here, direction):
        return derived(self, here, direction)

    def __call__(self, function, point, direction):
        value, derivative = fgvar.Jvp()(function, point, direction)
        return value, {name: d.clamp(-self.limit, self.limit) for name, d in derivative.items()}


@pytest.mark.parametrize(
    "oracle",
    [Clipped(5.0), Clipped(1e-2), fgvar.oracles.ForwardDifference(), fgvar.oracles.CentralDifference(1e-2)],
    ids=["clipped at 5", "clipped at 0.01", "forward", "central"],
)
def test_what_is_not_quadratic_is_refused(oracle) -> None:
    estimator = fgvar.Estimator(oracle=oracle)
    with pytest.raises(ValueError, match=r"'weight' is not quadratic.*method='support'.*unbiased"):
        expectation(estimator, tiny())
    with pytest.raises(ValueError, match="not even and quadratic in its noise"):
        covariance(estimator, tiny())
    assert expectation(estimator, tiny(), method="signs")


@pytest.mark.parametrize("name", list(CASES))
def test_what_is_quadratic_is_not_refused(name: str) -> None:
    for scheme in ("FG-W", "FG-A"):
        require_quadratic(fgvar.scheme(scheme), CASES[name]())


def test_finite_differences_under_gaussian_noise() -> None:
    """Three Gauss-Hermite points are exact up to degree 5: the error of a bias of order step is gone with it."""
    estimator = fgvar.Estimator(oracle=fgvar.oracles.CentralDifference(1e-3))
    mean, target = expectation(estimator, tiny(), method="hermite"), estimator.target(tiny())
    for name, value in target.items():
        off = float((mean[name] - value).abs().max())
        assert 1e-12 < off < 1e-5, (name, off)


def test_errors() -> None:
    @dataclass(frozen=True)
    class Odd(fgvar.Gaussian):
        kurtosis = None

    with pytest.raises(ValueError, match="unknown method 'sings'; did you mean 'signs'"):
        covariance(fgvar.scheme("FG-W"), tiny(), method="sings")
    with pytest.raises(ValueError, match=r"leaf 'weight'.*Odd.*declares no kurtosis"):
        covariance(fgvar.scheme("FG-W", noise=Odd()), tiny())
