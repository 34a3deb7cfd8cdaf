"""Checks of problems in bfloat16 and float16: no false alarm, and no pass that could not have failed."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

import fgvar
from fgvar.testing import check_estimator, default_problems
from fgvar.testing.mutants.published_gradients import times

HALVES = (torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ["FG-W", "FG-A", "MeZO", "EGGROLL", "orthogonal-FG-W"])
def test_noise_of_half_precision_is_no_alarm(name: str, dtype: torch.dtype) -> None:
    """Its values are few, which is the dtype's doing. Seeds are fixed; the nominal rate is 1e-6 / 9."""
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    batch = torch.ones(4, 3, dtype=dtype), torch.tensor([0, 1, 1, 0])
    problem = fgvar.Problem(fgvar.with_sites(net).to(dtype), "cross_entropy", batch)
    assert check_estimator(fgvar.scheme(name), problem, checks=["structure", "noise"]).passed


@dataclass(frozen=True)
class Times:
    """Backprop, times a factor."""

    factor: float

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
        return fgvar.Randomness({})

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:  # noqa: ARG002
        return fgvar.Estimate(times(self.factor, problem.backprop()))

    def target(self, problem: fgvar.Problem) -> dict[str, torch.Tensor]:
        return problem.backprop()


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("factor", [1.0, 0.0, 2.0, -1.0, 3.0])
def test_a_wrong_factor_is_told_from_rounding(dtype: torch.dtype, factor: float) -> None:
    problem = default_problems()["linear"].to(dtype)
    right = factor == 1.0
    assert check_estimator(Times(factor), problem, checks=["unbiased", "scale"]).passed == right
    assert fgvar.testing.unbiased(Times(factor), problem).passed == right


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_turned_estimator_fails_and_the_right_one_passes(dtype: torch.dtype) -> None:
    """By an exact mean where that could tell them apart, else by drawing."""

    class Negative(fgvar.Estimator):
        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            return fgvar.Estimate(times(-1, super().estimate(problem, noise).gradient))

    problem = default_problems()["linear"].to(dtype)
    rows = check_estimator(Negative(), problem, checks=["unbiased", "scale"]).rows
    assert all(row.outcome == "failed" for row in rows)
    assert check_estimator(fgvar.scheme("FG-W"), problem, checks=["unbiased", "scale", "chunking"]).passed
