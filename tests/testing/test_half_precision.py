"""Checks of problems in bfloat16 and float16: no false alarm, and no pass that could not have failed."""

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


def test_an_exact_mean_that_could_tell_nothing_is_drawn_instead() -> None:
    """What rounding allows in bfloat16 is larger than the gradient, so that a turned sign would pass."""

    class Negative(fgvar.Estimator):
        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            return fgvar.Estimate(times(-1, super().estimate(problem, noise).gradient))

    problem = default_problems()["linear"].to(torch.bfloat16)
    rows = check_estimator(Negative(), problem, checks=["unbiased", "scale"]).rows
    assert all("exact" not in row.note and row.outcome != "passed" for row in rows)
