"""Exact expectations and covariances: three enumerations, which share nothing, agree."""

from dataclasses import dataclass, replace

import pytest
import torch
from cases import CASES, randn
from torch import nn

import fgvar
from fgvar.estimators.oracles import derived
from fgvar.testing import covariance, expectation
from fgvar.testing.polynomials import require_quadratic


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
    assert expectation(replace(estimator, noise=fgvar.Rademacher()), tiny(), method="signs")


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


# ---- finite laws ---------------------------------------------------------------------------------------------------

FEW = fgvar.sampling.Draw(2)
SAMPLED = {
    "support": fgvar.Stochastic(sample=FEW),
    "support × nodes": fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=FEW),
    "nodes": fgvar.scheme("FG-W"),
}


@pytest.mark.parametrize("method", SAMPLED)
def test_one_rule_chooses_the_enumeration(method: str) -> None:
    estimator, problem = SAMPLED[method], tiny()
    found, said = expectation(estimator, problem), expectation(estimator, problem, method=method)
    second = {"nodes": "polarisation", "support × nodes": "support × hermite"}.get(method, method)
    found |= {f"Cov {name}": c for name, c in covariance(estimator, problem).items()}
    said |= {f"Cov {name}": c for name, c in covariance(estimator, problem, method=second).items()}
    for name, value in said.items():
        assert torch.equal(found[name], value), name
    for name, value in problem.backprop().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


def test_signs_of_a_minibatch_by_all_values_and_by_nodes() -> None:
    """2⁶ sign vectors at each of 4 minibatches, or 12 nodes of them: E uuᵀ = I is all that the mean needs."""
    estimator = fgvar.Stochastic(of=fgvar.scheme("FG-W", noise=fgvar.Rademacher()), sample=FEW)
    by_nodes, all_values = (expectation(estimator, tiny(), method=m) for m in (None, "support"))
    for name, value in all_values.items():
        torch.testing.assert_close(by_nodes[name], value, rtol=0, atol=1e-12)
    ways = (covariance(estimator, tiny(), method=m) for m in (None, "support", "support × hermite"))
    one, two, three = (torch.cat([c.flatten() for c in way.values()]) for way in ways)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    torch.testing.assert_close(three, two, rtol=0, atol=1e-12)


def test_added_noise_is_of_degree_two_and_of_no_even_function() -> None:
    """Its mean is by nodes, its variance, which polarisation refuses, by Hermite points: + std² an entry, exactly."""
    added = fgvar.Stochastic(of=fgvar.scheme("FG-W"), then=(fgvar.transforms.AddNoise(0.1),))
    problem = fgvar.Problem(nn.Linear(1, 1).double(), "mse", (randn(2, 1), randn(2, 1, seed=1)))
    for name, value in problem.backprop().items():
        torch.testing.assert_close(expectation(added, problem)[name], value, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="not even and quadratic in its noise"):
        covariance(added, problem, method="polarisation")
    plain = covariance(fgvar.scheme("FG-W"), problem)
    for name, matrix in covariance(added, problem, method="hermite").items():
        torch.testing.assert_close(matrix.diagonal(), plain[name].diagonal() + 0.01, rtol=0, atol=1e-12)


def test_an_estimate_has_to_be_quadratic_at_every_value_of_the_rest() -> None:
    class Clipped1(fgvar.Stochastic):
        """Clips where the second example is drawn."""

        def estimate(self, problem, noise):
            found = super().estimate(problem, noise).gradient
            clip = noise["sample"][-1] == 1
            return fgvar.Estimate({k: torch.where(clip, g.clamp(-1, 1), g) for k, g in found.items()})

    with pytest.raises(ValueError, match="not quadratic in its noise"):
        expectation(Clipped1(of=fgvar.scheme("FG-W"), sample=FEW), tiny())


@pytest.mark.parametrize("power", [1, 3], ids=["linear", "cubic"])
def test_an_odd_part_has_to_be_linear(power: int) -> None:
    """A law with E uuᵀ = I may have any third moment."""

    class Odd(fgvar.Estimator):
        def estimate(self, problem, noise):
            found = super().estimate(problem, noise).gradient
            return fgvar.Estimate({k: g + noise[k] ** power for k, g in found.items()})

    if power == 1:
        assert expectation(Odd(), tiny())
    else:
        with pytest.raises(ValueError, match="not quadratic in its noise"):
            expectation(Odd(), tiny())


def test_polarisation_refuses_finite_laws_and_names_what_to_use() -> None:
    with pytest.raises(ValueError, match=r"leaf 'sample', Choice.*use method='support' or 'support × hermite'"):
        covariance(SAMPLED["support × nodes"], tiny(), method="polarisation")


@pytest.mark.parametrize("method", [None, "nodes", "hermite"])
def test_a_seed_has_no_nodes(method: str | None) -> None:
    """A function that draws by itself would be called with seeds of ±1, and their mean taken for its expectation."""

    def rounded_down(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {k: (g + torch.rand((), generator=generator) / 8).floor() for k, g in problem.backprop().items()}

    with pytest.raises(ValueError, match=r"leaf 'seed' draws Seed\(\), which is no noise of mean 0"):
        expectation(fgvar.testing.from_function(rounded_down), tiny(), method=method)


# ---- points that stand for one law alone ---------------------------------------------------------------------------

OTHERS = [fgvar.noise.Uniform(), fgvar.noise.Sphere(), fgvar.noise.LowRank(1), fgvar.noise.Sparse(0.5)]


@pytest.mark.parametrize("law", OTHERS, ids=lambda law: type(law).__name__)
def test_hermite_points_and_signs_stand_for_no_other_law(law: object) -> None:
    plain, problem = fgvar.scheme("FG-W", noise=law), tiny(bias=False)
    sampled = fgvar.Stochastic(of=plain, sample=fgvar.sampling.Draw(1))
    kind = type(law).__name__
    with pytest.raises(ValueError, match=rf"leaf 'weight' has the law {kind}.*expected Gaussian.*draw instead"):
        covariance(sampled, problem)
    for estimator, method in ((sampled, "support × hermite"), (plain, "hermite"), (plain, "signs")):
        needed = "Rademacher" if method == "signs" else "Gaussian"
        with pytest.raises(ValueError, match=rf"has the law {kind}.*expected {needed}\(\).*use 'nodes' or"):
            expectation(estimator, problem, method=method)
        with pytest.raises(ValueError, match=rf"has the law {kind}.*expected {needed}\(\)"):
            covariance(estimator, problem, method=method)


def test_what_has_a_kurtosis_is_polarised() -> None:
    """tr Cov = (d − 1/5)‖∇‖² of uniform numbers, to which the sentence leads."""
    estimator, problem = fgvar.scheme("FG-W", noise=fgvar.noise.Uniform()), tiny(bias=False)
    with pytest.raises(ValueError, match=r"Uniform\(\), expected Gaussian\(\).*use method='polarisation'"):
        covariance(estimator, problem, method="hermite")
    found = covariance(estimator, problem, method="polarisation")["weight"].trace()
    square = problem.backprop()["weight"].square().sum()
    assert float(found / square) == pytest.approx(4 - 1 / 5, rel=1e-12)


def test_a_transform_that_is_not_quadratic_is_refused_beside_a_sample() -> None:
    problem, sample, t = tiny(bias=False), fgvar.sampling.Draw(1), fgvar.transforms
    with pytest.raises(ValueError, match=r"leaf 'then.0.weight' has the law Uniform\(\), expected Gaussian"):
        covariance(fgvar.Stochastic(sample=sample, then=(t.Quantise(2),)), problem)
    clipped = fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=sample, then=(t.Clip(0.3),))
    with pytest.raises(ValueError, match="'weight' is not quadratic in its noise"):
        covariance(clipped, problem)
    with pytest.raises(ValueError, match="'weight' is no polynomial of degree 5 in its noise"):
        expectation(clipped, problem, method="support × hermite")


@pytest.mark.parametrize("power", [4, 6])
def test_means_by_hermite_points_are_of_degree_five(power: int) -> None:
    """E u⁴ = 3, which three points know; E u⁶ = 15, for which they say 9."""

    class Power(fgvar.Estimator):
        def estimate(self, problem, noise):  # noqa: ARG002
            return fgvar.Estimate({k: u**power for k, u in noise.items()})

    if power == 4:
        found = expectation(Power(), tiny(bias=False), method="hermite")["weight"]
        torch.testing.assert_close(found, torch.full((2, 2), 3.0).double(), rtol=0, atol=1e-12)
    else:
        with pytest.raises(ValueError, match="no polynomial of degree 5"):
            expectation(Power(), tiny(bias=False), method="hermite")


@pytest.mark.parametrize("method", ["support × nodes", "support × hermite"])
def test_beside_finite_laws_there_may_be_nothing_else(method: str) -> None:
    found = expectation(SAMPLED["support"], tiny(), method=method)
    for name, value in tiny().backprop().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)
