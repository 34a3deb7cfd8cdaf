"""Bounds and means that words of a sentence state of themselves, where a second word or law could break them."""

import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from cases import randn
from shaping import bowl, flat, line, rows
from torch import Tensor, nn

import fgvar
from fgvar import noise, points, sampling, transforms


def test_a_second_clip_keeps_a_smaller_bound_of_the_first() -> None:
    """The largest that is seen is by two opposite gradients of the bound's length, 2 C/N."""

    def sentence(*bounds: float) -> fgvar.Stochastic:
        return fgvar.Stochastic(each=tuple(transforms.Clip(bound) for bound in bounds))

    problem = line(3)
    alone = sentence(0.1).sensitivity(problem)
    assert alone == pytest.approx(2 * 0.1 / 3)
    for both in (sentence(0.1, 5.0), sentence(5.0, 0.1), sentence(0.1, 0.1)):
        assert both.sensitivity(problem) == alone
        assert flat(both.estimate(problem, {}).gradient).norm() <= 0.1
    # What may lengthen keeps no bound but its own.
    grown = fgvar.Stochastic(each=(transforms.Clip(0.1), transforms.Quantise(4), transforms.Clip(5.0)))
    assert grown.sensitivity(problem) == pytest.approx(2 * 5.0 / 3)


@dataclass(frozen=True)
class First:
    """All of the score is the first example's."""

    adapted: ClassVar[bool] = False
    of_loss: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def scores(self, problem: fgvar.Problem, over: str) -> Tensor:  # noqa: ARG002
        return torch.tensor([1.0, 0.0, 0.0]).double()


@pytest.mark.parametrize("replace", [True, False])
def test_a_mixture_bounds_the_factors(replace: bool) -> None:
    """Of m = 2 of N = 3 examples at η = 0.5: N/(η m) = 3 if they are put back, else (N/η + m − 1)/m = 3.5."""
    draw = sampling.Draw(2, by=sampling.Mixed(First(), uniform=0.5), replace=replace)
    law = draw.law(line(3), "batch").choice
    values, probabilities = law.support((2,))
    largest = law.weights(values)[probabilities > 0].max().item()
    assert largest == pytest.approx(3.0 if replace else 3.5)


def test_noise_in_place_of_a_gradient_has_mean_0() -> None:
    """Of Bernoulli(½) it would be ½, and the bias of a point ahead of order 1, where 2 is declared."""
    with pytest.raises(
        ValueError, match=r"Bernoulli\(.*\) may have another mean than 0, expected a law that declares"
    ):
        points.Noise(noise.Bernoulli(0.5))
    for law in (fgvar.Gaussian(), fgvar.Rademacher(), noise.Sparse(0.5)):
        assert points.Ahead(by=points.Noise(law), step=0.1).bias_order == 2


def test_a_site_is_tapped_by_each_example_s_own_noise_of_a_law_of_directions() -> None:
    """More examples than the site has numbers: directions that many could not be orthogonal."""
    problem = bowl()
    site = next(iter(problem.trace.sites))
    numbers = math.prod(problem.trace.sites[site][1:])
    assert problem.batch_size > numbers
    row = fgvar.Stochastic(at=points.Tapped(site, noise=noise.Orthogonal(), scale=0.1))
    drawn = row.randomness(problem).sample(0, range(500), dtype=torch.float64)["at"]
    assert drawn.shape == (500, 1, problem.batch_size, numbers)
    torch.testing.assert_close(
        drawn.square().sum(-1), torch.full((500, 1, problem.batch_size), float(numbers)).double()
    )
    # E (u₁·u₂)² = d for independent directions of length √d; the standard error of 500 is below 0.2.
    inner = (drawn[:, 0, 0] * drawn[:, 0, 1]).sum(-1).square().mean()
    assert 0.5 * numbers < inner < 1.5 * numbers
    row.estimate(problem, {"at": drawn[0]})


def test_the_quantile_of_no_weights_is_a_mask_of_none() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.Linear(3, 1), nn.Parameter(torch.zeros(0, 3))

        def forward(self, x: Tensor) -> Tensor:
            return self.used(x) + self.unused.sum()

    problem = fgvar.Problem(Padded().double(), "mse", (randn(4, 3), randn(4, 1, seed=1)))
    for keep in (transforms.Magnitude(0.5), transforms.Magnitude(0.5, shuffled=1)):
        row = fgvar.Stochastic(then=(transforms.Mask(keep),))
        assert row.estimate(problem, {}).gradient["unused"].shape == (0, 3)


# ---- lengths of projections --------------------------------------------------------------------------------------


def test_a_projection_is_no_longer_than_the_gradient_that_it_is_of() -> None:
    """One for all examples: the batch's. Each example's own: its, whose mean can be far longer where they cancel."""
    net = nn.Linear(2, 2).double()
    nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
    targets = torch.tensor([[3.0, 0.0], [-3.0, 0.1]]).double()
    problem = fgvar.Problem(net, "mse", (torch.tensor([[1.0, 2.0], [1.0, 2.0]]).double(), targets))
    whole, each = flat(problem.backprop()).norm(), rows(problem).norm(dim=1)
    for shared, bound in ((True, whole), (False, each.mean())):
        row = fgvar.Estimator(shared=shared, combine=fgvar.combine.Normalised())
        u = row.randomness(problem).sample(0, range(100), dtype=torch.float64)
        found = [flat(row.estimate(problem, {k: v[i] for k, v in u.items()}).gradient).norm() for i in range(100)]
        assert max(found) <= bound
        assert (max(found) > 2 * whole) == (not shared)


@pytest.mark.parametrize("scale", ["none", "norm", "mean"])
def test_the_mean_of_a_projection_is_the_share_that_its_reason_states(scale: str) -> None:
    """Of K directions in d numbers K/d, √(K/d) and 1, each draw by the same factor of the plain projection."""
    problem = line(4, 5)
    share = 2 / 6
    stated = {"none": "E ĝ = K/d ∇", "norm": "E ĝ = √(K/d) ∇", "mean": ""}[scale]
    row, mean = (fgvar.Estimator(directions=2, combine=fgvar.combine.Projection(name)) for name in (scale, "mean"))
    assert stated in row.bias_reason
    assert bool(stated) == bool(row.bias_reason)
    u = {name: value[0] for name, value in row.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    factor = {"none": share, "norm": share**0.5, "mean": 1.0}[scale]
    # "mean" has the mean ∇, as is shown elsewhere.
    torch.testing.assert_close(
        *(flat(one.estimate(problem, u).gradient) / f for one, f in ((row, factor), (mean, 1)))
    )


@pytest.mark.parametrize(
    "how", [{"shared": True}, {"guess": fgvar.guesses.BackpropGradient()}], ids=["shared", "still"]
)
def test_examples_of_one_direction_cannot_be_shuffled(how: dict) -> None:
    """E (c₂·u) u = c₂ is another example's gradient, not 0."""
    with pytest.raises(
        ValueError, match=r"credits an example's direction with another one's derivative, but all have"
    ):
        fgvar.scheme("sham", **how).randomness(bowl())
