"""Directions: the study's closed forms against enumeration, its run, and its figure."""

from pathlib import Path

import pytest
import torch
import tyro

import fgvar
from fgvar.testing import covariance, expectation
from figures import directions as figure
from studies import directions


def test_smoke_run(tmp_path: Path) -> None:
    directions.main(tyro.cli(directions.Config, args=["--smoke", "--out", str(tmp_path / "directions.nc")]))
    found = fgvar.open_dataset(tmp_path / "directions_smoke.nc")
    assert dict(found.sizes) == {"directions": 3, "seed": 1, "estimator": 4}
    assert (found["status"] == "done").all()
    assert str(tmp_path) not in str(found.attrs)
    assert len(figure.draw(found, columns=1).axes) == 2
    with pytest.raises(ValueError, match="expected numbers from 1 to 160"):
        directions.main(directions.Config(directions=(161,)))


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
