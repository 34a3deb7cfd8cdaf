"""Carriers: what is left out, what noise on them amounts to, and what clipping and projection cost together."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import mixer, randn
from shaping import bowl, exact, flat
from torch import Tensor, nn
from torch.func import vmap

import fgvar
from fgvar import sampling
from fgvar import transforms as t
from fgvar.measurement.draws import estimates


def projected(g: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """g − (1 − LLᵀ) g (1 − RᵀR)."""
    m, n = g.shape
    return g - (torch.eye(m).double() - left @ left.T) @ g @ (torch.eye(n).double() - right.T @ right)


def through(rank: int, *between: t.Clip, **words: object) -> fgvar.Stochastic:
    """Carriers of each example, what is done to them, and the way back of their sum."""
    carriers = t.Carriers(rank)
    return fgvar.Stochastic(each=(carriers, *between), then=(carriers.back,), **words)


def estimated(estimator: fgvar.Stochastic, problem: fgvar.Problem, **noise: Tensor) -> dict[str, Tensor]:
    return estimator.estimate(problem, noise).gradient


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_bases_are_orthonormal_and_the_mean_is_the_projected_gradient(rank: int) -> None:
    problem = bowl(width=5)
    found, g = estimated(through(rank), problem), problem.backprop()
    for name, value in g.items():
        expected = value
        if value.ndim > 1:
            left, right = t.Carriers(rank).bases(name, problem.params[name])
            for gram in (left.T @ left, right @ right.T):
                torch.testing.assert_close(gram, torch.eye(len(gram)).double(), rtol=0, atol=1e-12)
            assert left.shape[1] == right.shape[0] == min(rank, *value.shape)
            expected = projected(value, left, right)
            # One power iteration: L spans W times normal numbers, R the rows of LᵀW.
            seen = left.T @ problem.params[name]
            torch.testing.assert_close(seen @ right.T @ right, seen, rtol=0, atol=1e-12)
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-12)
    whole = fgvar.Stochastic(then=(t.Carriers(rank), t.Carriers(rank).back))
    torch.testing.assert_close(flat(estimated(whole, problem)), flat(found), rtol=0, atol=1e-12)


def test_noise_on_carriers_has_the_energy_of_the_numbers_that_they_stand_for() -> None:
    """Exactly, one number of noise at a time: r(m + n − r)s² for a matrix, not r(m + n)s²."""
    problem, std = bowl(width=5), 0.3
    for rank in (1, 2, 3, 9):
        for left_only in (False, True):
            carriers = t.Carriers(rank, left_only)
            estimator = fgvar.Stochastic(each=(carriers,), then=(t.AddNoise(std), carriers.back))
            randomness = estimator.randomness(problem)
            leaves, units = randomness.leaves, torch.eye(randomness.size, dtype=torch.float64)
            found = estimates(estimator, problem, randomness.unflatten(torch.cat([0 * units[:1], units])))
            for name, p in problem.params.items():
                energy = float((found[name][1:] - found[name][0]).square().sum())
                numbers = p.numel()
                if p.ndim > 1:
                    (m, n), r = p.shape, min(rank, *p.shape)
                    numbers = r * m if left_only else r * (m + n - r)
                    assert sum(leaf.size for k, leaf in leaves.items() if name in k) == r * (m + (not left_only) * n)
                assert energy == pytest.approx(numbers * std**2, rel=1e-12)


def test_full_rank_without_clip_noise_and_sampling_is_backprop() -> None:
    """r = min(m, n), C = ∞, σ = 0, q = 1."""
    problem, carriers = bowl(width=5), t.Carriers(99)
    estimator = fgvar.Stochastic(
        sample=sampling.Poisson(1.0),
        each=(carriers, t.Clip(math.inf)),
        then=(t.AddNoise(0.0), carriers.back),
    )
    noise = {k: u[0] for k, u in estimator.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    found = flat(estimator.estimate(problem, noise).gradient)
    torch.testing.assert_close(found, flat(problem.backprop()), rtol=0, atol=1e-12)


def test_squared_bias_is_that_of_the_projection_plus_that_of_the_clip() -> None:
    """Exactly, for what is left out is at right angles to all that carriers can say; both are there."""
    for problem in (bowl(width=5), mixer()):
        g, seen = flat(problem.backprop()), flat(estimated(through(1), problem))
        clipped = flat(estimated(through(1, t.Clip(0.3)), problem))
        bias, projection, clip = ((a - b).square().sum() for a, b in ((g, clipped), (g, seen), (seen, clipped)))
        assert min(projection, clip) > 1e-3 * bias
        torch.testing.assert_close(bias, projection + clip, rtol=1e-12, atol=0)
        assert abs(float((g - seen) @ (seen - clipped))) < 1e-14


def test_carriers_are_longer_than_what_they_stand_for() -> None:
    """They hold LᵀgRᵀ twice: ‖carriers‖² = ‖projected‖² + ‖LᵀgRᵀ‖², so that they are clipped harder."""
    problem = bowl(width=5)
    g = {name: value for name, value in problem.backprop().items() if value.ndim > 1}
    both = 0.0
    for name, value in g.items():
        left, right = t.Carriers(1).bases(name, problem.params[name])
        both += float(projected(value, left, right).square().sum() + (left.T @ value @ right.T).square().sum())
    assert float(flat(t.Carriers(1)(g, problem, {})).square().sum()) == pytest.approx(both, rel=1e-12)


def test_left_carriers_alone() -> None:
    problem, carriers = bowl(width=5), t.Carriers(2, left_only=True)
    found = estimated(fgvar.Stochastic(then=(carriers, carriers.back)), problem)
    for name, value in problem.backprop().items():
        right = carriers.bases(name, problem.params[name])[1] if value.ndim > 1 else None
        torch.testing.assert_close(
            found[name], value if right is None else value @ right.T @ right, rtol=0, atol=1e-12
        )


class Convolutions(nn.Module):
    """A kernel of four axes, a scale of one and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.scale = nn.Conv2d(2, 3, 2), nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.kernel(x).tanh().flatten(1)


def test_kernels_are_matrices_of_their_rows() -> None:
    problem = fgvar.Problem(
        Convolutions().double(), "mse", (torch.ones(2, 2, 3, 3).double(), torch.ones(2, 12).double())
    )
    shapes = t.Carriers(1).shapes(problem, {name: tuple(p.shape) for name, p in problem.params.items()})
    assert shapes == {"kernel.weight.left": (3, 1), "kernel.weight.right": (1, 8), "kernel.bias": (3,), "scale": ()}
    g, found = problem.backprop(), estimated(through(1), problem)
    left, right = t.Carriers(1).bases("kernel.weight", problem.params["kernel.weight"])
    expected = projected(g["kernel.weight"].flatten(1), left, right).reshape(3, 2, 2, 2)
    torch.testing.assert_close(found["kernel.weight"], expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(found["scale"], g["scale"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_other_precisions_and_weights_of_zeros(dtype) -> None:
    problem = bowl(width=5).to(dtype)
    still = problem.at({name: torch.zeros_like(p) for name, p in problem.params.items()})
    for one in (problem, still):
        g = {name: torch.ones_like(p) for name, p in one.params.items()}
        found = t.Carriers(4).back(t.Carriers(4)(g, one, {}), one, {})
        for name, value in found.items():
            assert value.dtype == dtype
            torch.testing.assert_close(value.float(), g[name].float(), rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_bases_are_those_of_the_parameters_where_the_gradient_is_taken_elsewhere() -> None:
    """Both ways by the same L and R: what comes back has been projected, wherever each gradient was taken."""

    class Away:
        bias_reason = "elsewhere"

        def leaves(self, problem):  # noqa: ARG002
            return {}

        def view(self, problem, noise):  # noqa: ARG002
            return problem.moved({name: 2 * p + 0.1 for name, p in problem.params.items()})

    problem = bowl(width=5)
    there = Away().view(problem, {}).backprop()
    found = estimated(through(1, at=Away()), problem)
    for name, value in there.items():
        bases = t.Carriers(1).bases(name, problem.params[name]) if value.ndim > 1 else None
        torch.testing.assert_close(found[name], projected(value, *bases) if bases else value, rtol=0, atol=1e-12)


def test_carriers_are_measured_and_run_under_vmap_over_parameters() -> None:
    problem, carriers = bowl(width=5), t.Carriers(1)
    private = fgvar.Stochastic(
        sample=sampling.Poisson(0.5), each=(carriers, t.Clip(0.5)), then=(t.AddNoise(0.1), carriers.back)
    )
    ds = fgvar.measure({"private": private}, problem, draws=64)
    assert np.isfinite(ds["cosine"].sel(layer="total", reference="target")).all()
    params = {name: torch.stack([p, 2 * p + 0.1]) for name, p in problem.params.items()}
    g = problem.backprop()
    found = vmap(lambda p: carriers(g, problem.at(p), {}))(params)
    for i in range(2):
        one = carriers(g, problem.at({name: p[i] for name, p in params.items()}), {})
        torch.testing.assert_close({k: v[i] for k, v in found.items()}, one, rtol=0, atol=1e-12)


def test_refusals() -> None:
    problem, carriers = bowl(), t.Carriers(1)
    with pytest.raises(ValueError, match="rank is 0, expected an integer of at least 1"):
        t.Carriers(0)
    with pytest.raises(
        ValueError, match=r"FromCarriers\(.*\) is given 0.weight, .*; put Carriers\(rank=1, .*before it"
    ):
        fgvar.Stochastic(then=(carriers.back,)).randomness(problem)
    for second in (carriers, t.Mask(t.Magnitude(0.4)), t.Retained(problem, 1, 0.1)):
        with pytest.raises(ValueError, match=r"is given 0\.weight\.left, .*, expected gradients of the parameters"):
            fgvar.Stochastic(then=(carriers, second)).randomness(problem)
    assert carriers.bias_reason
    assert eval(repr(carriers.back), vars(fgvar.stochastic.carriers)) == carriers.back


@pytest.mark.parametrize("left_only", [False, True])
def test_noise_on_carriers_in_closed_form(left_only: bool) -> None:
    """Carried, clipped, sampled, noised and brought back: mean and variance of every number, by enumeration."""
    torch.manual_seed(3)
    problem = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (randn(2, 3), randn(2, 2, seed=1)))
    carriers, mask = t.Carriers(1, left_only), t.Mask(t.Magnitude(0.4))
    estimator = fgvar.Stochastic(
        sample=sampling.Poisson(0.3),
        each=(carriers, t.Clip(0.5)),
        then=(t.AddNoise(0.2), carriers.back, mask, t.AddNoise(0.0)),
    )
    found = replace(estimator, then=(t.AddNoise(0.2), carriers.back, mask))  # without numbers that change nothing
    mean, variance = exact(found, problem, "support × hermite")
    torch.testing.assert_close(flat(fgvar.theory.mean(estimator, problem)), mean[""], rtol=0, atol=1e-12)
    torch.testing.assert_close(flat(fgvar.theory.variance(estimator, problem)), variance[""], rtol=0, atol=1e-12)
    ds = fgvar.measure({"private": estimator}, problem, route="exact").sel(layer="total", estimator="private")
    assert float(ds["variance"]) == pytest.approx(float(variance[""].sum()), rel=1e-12)


def test_energy_of_noise_on_carriers_in_closed_form() -> None:
    """r(m + n − r)s², of all that is exact otherwise; of sums that are not shaped one by one there is a reason."""
    problem, carriers = bowl(width=5), t.Carriers(2)
    words = (t.AddNoise(0.1), carriers.back)
    found = fgvar.theory.trace(fgvar.Stochastic(each=(carriers,), then=words), problem)
    expected = {"0.weight": 2 * (5 + 4 - 2), "2.weight": 2 * (2 + 5 - 2), "0.bias": 5, "2.bias": 2}
    for name, numbers in expected.items():
        assert float(found[name]) == pytest.approx(numbers * 0.01, rel=1e-12)
    with pytest.raises(ValueError, match=r"what FromCarriers\(.*of a random gradient does not follow"):
        fgvar.theory.trace(fgvar.Stochastic(then=(carriers, *words)), problem)


def test_private_carriers_keep_what_they_declare_and_are_biased() -> None:
    """Sensitivity and variance hold; its mean is not the gradient, nor is it linear in the loss."""
    carriers, problems = t.Carriers(1), {"linear": fgvar.testing.default_problems()["linear"]}
    estimator = fgvar.Stochastic(
        sample=sampling.Poisson(0.5), each=(carriers, t.Clip(0.5)), then=(t.AddNoise(0.1), carriers.back)
    )
    for check in ("sensitivity", "variance", "precision", "zero_gradient", "repr"):
        fgvar.testing.CHECKS[check](estimator, problems)
    for check in ("unbiased", "linear_in_loss"):
        with pytest.raises(AssertionError, match="off"):
            fgvar.testing.CHECKS[check](estimator, problems)
