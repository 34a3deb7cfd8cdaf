"""Directions: the study's closed forms against enumeration, its run, and its figure."""

from pathlib import Path

import pytest
import torch

import fgvar
from fgvar.testing import covariance, expectation
from studies import directions


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_mean_has_the_variance_of_theory(count: int) -> None:
    layer = torch.nn.Linear(2, 2, bias=False, dtype=torch.float64)
    x, y = torch.randn(3, 2, dtype=torch.float64), torch.tensor([0, 1, 1])
    problem = fgvar.Problem(layer, "cross_entropy", (x, y))
    estimator = directions.estimators(count)["mean"]
    square = problem.backprop()["weight"].square().sum()
    assert float(covariance(estimator, problem)["weight"].trace() / square) == pytest.approx(
        directions.theory("mean", count, 4)[1]
    )
    assert torch.allclose(expectation(estimator, problem)["weight"], problem.backprop()["weight"])


def test_the_stored_dataset_agrees_with_theory() -> None:
    """57 drawn values: one beyond 4.5 errors has probability 4e-4; 12 % off in any of them is seen for K > 8."""
    found = fgvar.open_dataset(Path(__file__).parents[2] / "figures/data/directions.nc")
    for name in ("cosine", "relative_variance"):
        kinds = found["estimator"].values[1 if name == "cosine" else 0 :]
        its = found.sel(estimator=kinds)
        error = its[f"{name}_se"].where(its[f"{name}_theory"] > 1e-9)
        z = (its[name] - its[f"{name}_theory"]) / error
        assert float(abs(z.where(error > 0)).max()) < 4.5, name
