"""Checks of samples that are empty most of the time, and of problems that weigh their examples: what they look at."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from cases import randn
from torch import Tensor, nn

import fgvar
from fgvar import sampling, streams, transforms
from fgvar.testing import check_estimator, default_problems
from fgvar.testing.mutants.broken_streams import AliasedDiffGrad

RARE = sampling.Poisson(0.05)  # of two examples none is drawn in nine draws of ten
PROBLEM = {"linear": default_problems()["linear"]}
Gradient = Mapping[str, Tensor]


@dataclass(frozen=True)
class Changed:
    """A transform that does what it should not."""

    how: str

    linear: ClassVar[bool] = True
    bias_reason: ClassVar[str] = ""

    def leaves(self, problem: fgvar.Problem, shapes: object) -> dict[str, fgvar.Leaf]:  # noqa: ARG002
        return {}

    def __call__(self, gradient: Gradient, problem: fgvar.Problem, noise: Gradient) -> dict[str, Tensor]:  # noqa: ARG002
        if self.how == "hides NaN":
            return {name: g.nan_to_num() for name, g in gradient.items()}
        if self.how == "is coarse":
            return {name: 3 * g if g.dtype == torch.float32 else g for name, g in gradient.items()}
        return {name: g + g.any() for name, g in gradient.items()}


WRONG = {
    "linear_in_loss": fgvar.Stochastic(sample=RARE, each=(transforms.Clip(1e-3),)),
    "linear_in_loss, noise added": fgvar.Stochastic(
        sample=RARE, each=(transforms.Clip(1e-3),), then=(transforms.AddNoise(1.0),)
    ),
    "non_finite": fgvar.Stochastic(sample=RARE, each=(Changed("hides NaN"),)),
    "precision": fgvar.Stochastic(sample=RARE, each=(Changed("is coarse"),)),
    "stream": fgvar.History(fgvar.Stochastic(sample=RARE), streams.Adam(factor=AliasedDiffGrad()), 3),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_draw_whose_estimate_is_0_passes_no_check(name: str) -> None:
    check = name.partition(",")[0]
    (row,) = check_estimator(WRONG[name], PROBLEM, checks=[check]).rows
    assert row.outcome == "failed", row.note


def test_where_no_draw_tells_anything_nothing_is_said() -> None:
    never = fgvar.Stochastic(sample=sampling.Poisson(1e-9))
    checks = ["linear_in_loss", "batch_order", "non_finite", "precision"]
    for row in check_estimator(never, PROBLEM, checks=checks).rows:
        assert row.outcome == "undecided", row
        assert "the loss moves none of 64 estimates" in row.note


def test_weights_of_a_sampler_are_told_from_those_of_the_problem() -> None:
    net = nn.Linear(3, 2).double()
    plain = fgvar.Problem(net, "mse", (randn(4, 3), randn(4, 2, seed=1)))
    weighed = {"weighed": plain.weighted(torch.tensor([2.0, 0.5, 0.1, 1.4]))}
    samples = (sampling.Draw(2), sampling.Poisson(0.5), sampling.Draw(2, by=sampling.Losses(), replace=False))
    for sample in samples:
        for row in check_estimator(fgvar.Stochastic(sample=sample), weighed, checks=["weights", "unbiased"]).rows:
            assert row.outcome == "passed", row
    unseen = {"one counts nothing": plain.weighted(torch.tensor([2.0, 0.0, 0.1, 1.4]))}
    for row in check_estimator(fgvar.Stochastic(sample=samples[2]), unseen, checks=["weights", "unbiased"]).rows:
        assert row.outcome == "passed", row
    biased = fgvar.Stochastic(sample=sampling.Draw(2, by=sampling.Losses(), weigh="none"))
    assert [row.outcome for row in check_estimator(biased, weighed, checks=["weights"]).rows] == ["failed"]


def test_sensitivity_counts_the_factors_of_the_problem() -> None:
    factors = torch.tensor([1.0, 3.0, *[0.0] * 14])
    problem = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (randn(16, 3), randn(16, 2, seed=1))).weighted(factors)

    class Forgets(fgvar.Stochastic):
        def sensitivity(self, problem: fgvar.Problem) -> float | None:
            return super().sensitivity(problem.unweighted())

    for kind, outcome in ((fgvar.Stochastic, "passed"), (Forgets, "failed")):
        private = kind(each=(transforms.Clip(0.05),))
        (row,) = check_estimator(private, {"weighed": problem}, checks=["sensitivity"]).rows
        assert row.outcome == outcome, row


def test_an_example_without_a_gradient_need_not_be_drawn() -> None:
    def loss(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        return (outputs - targets).square().sum(1), torch.tensor([0.0, 2.0, 1.0, 0.5]).double()[targets[:, 1].long()]

    targets = torch.stack([randn(4), torch.arange(4).double()], 1)
    problem = fgvar.Problem(nn.Linear(3, 2).double(), loss, (randn(4, 3), targets))
    for sample in (sampling.Draw(2, by=sampling.GradientNorms()), sampling.Draw(1, top=1, by=sampling.Losses())):
        (row,) = check_estimator(fgvar.Stochastic(sample=sample), {"w": problem}, checks=["weights"]).rows
        assert row.outcome == "passed", row


def test_a_sample_within_is_asked_of_what_the_outer_one_hands_it() -> None:
    inner = fgvar.Stochastic(sample=sampling.Draw(5, replace=False))
    nested = fgvar.Stochastic(of=inner, sample=sampling.Draw(6))
    problem = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (randn(4, 3), randn(4, 2, seed=1)))
    (row,) = check_estimator(nested, {"four": problem}, checks=["weights"]).rows
    assert row.outcome == "passed", row


def test_factors_are_one_for_each_example() -> None:
    problem = fgvar.Problem(nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
    for wrong in (torch.ones(4, 1), torch.ones(1), torch.ones(3), torch.tensor(2.0)):
        with pytest.raises(ValueError, match=r"factors have shape .*, expected \(4,\)"):
            problem.weighted(wrong)
    with pytest.raises(TypeError, match="factors are list, expected a tensor"):
        problem.weighted([1.0] * 4)  # type: ignore[arg-type]
    for factors in (torch.tensor([1, 0, 2, 1]), torch.tensor([1.0, 0, 2, 1]).double()):
        clipped = fgvar.Stochastic(each=(transforms.Clip(1e9),)).estimate(problem.weighted(factors), {}).gradient
        for name, value in problem.weighted(factors).backprop().items():
            torch.testing.assert_close(clipped[name], value)
