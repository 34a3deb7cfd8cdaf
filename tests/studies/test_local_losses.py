"""Local losses and groups: what exact gradients cannot see, the studies' runs, their evidence and figures."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from fgvar.plot import venues
from fgvar.testing import default_problems
from figures import groups as groups_figure
from figures import local_losses as figure
from studies import groups as groups_study
from studies import local_losses as study

DATA = Path(__file__).parents[2] / "figures/data"
STUDIES = {"local_losses": study, "groups": groups_study}
SIZES = [("iclr", 2), ("icml", 1)]


@pytest.fixture(scope="module")
def stored() -> dict[str, xr.Dataset]:
    return {name: fgvar.open_dataset(DATA / f"{name}.nc") for name in STUDIES}


def test_replicating_a_loss_leaves_its_exact_gradient() -> None:
    """So that LG-BP is trained once for all copies."""
    problem = default_problems()["mixer"]
    for kinds in (("none", "group", "patch", "patch + group"), study.LOSSES[4:]):
        targets = [study.estimators_of(losses)["LG-FG-A"].target(problem) for losses in kinds]
        exact = study.estimators_of(kinds[0])["LG-BP"].target(problem)
        for target in targets:
            for name, value in exact.items():
                assert torch.equal(target[name], value), (kinds, name)


def test_losses_of_no_such_kind_are_told() -> None:
    with pytest.raises(ValueError, match=r"losses has \['layer'\], expected one of: none, group"):
        study.estimators_of("block + layer")


def test_the_best_rate_is_that_of_the_training_loss() -> None:
    loss = xr.DataArray([[[9.0, 3.0], [9.0, 1.0]]], dims=("seed", "lr", "epoch"))
    dataset = xr.Dataset({"loss": loss, "test_error": loss / 100}, coords={"lr": [0.1, 0.5]})
    found = study.chosen(dataset)
    assert found["best_lr"].item() == 0.5
    assert found["error"].item() == pytest.approx(0.01)


def test_the_stored_runs_keep_the_claim(stored: dict[str, xr.Dataset]) -> None:
    for dataset in stored.values():
        assert (dataset["status"] == "done").all()
        assert not dataset.attrs["commit"].endswith("+"), "made from a clean commit"
    ours = stored["local_losses"].sel(groups=8, scheme="LG-FG-A")
    noise, error = ours["relative_variance"], ours["error"].mean("seed")
    assert (noise.sel(losses="block + patch + group") < noise.sel(losses="none") / 10).all(), "by every seed"
    assert error.sel(losses="block + patch + group") < error.sel(losses="none") / 2
    exact = stored["local_losses"]["relative_variance"].sel(scheme="LG-BP", losses="block")
    assert float(exact.max()) == 0


@pytest.mark.parametrize(("venue", "columns"), SIZES)
def test_what_is_drawn_of_losses(stored: dict[str, xr.Dataset], venue: venues.Venue, columns: venues.Columns) -> None:
    dataset = stored["local_losses"]
    drawn = figure.draw(dataset, venue=venue, columns=columns)
    assert drawn.get_figwidth() == venues.width(venue, columns)
    assert [axes.get_xlabel() for axes in drawn.axes] == list(figure.PANELS.values())[: len(drawn.axes)]
    error = drawn.axes[0]
    assert [label.get_text() for label in error.get_yticklabels()] == list(study.LOSSES)
    points = {line.get_marker(): line for line in error.lines if line.get_marker() in "*^"}
    mean = dataset["error"].isel(groups=0).sel(scheme="LG-FG-A").mean("seed")
    np.testing.assert_allclose(points["^"].get_xdata(), 100 * mean)
    assert int(np.isfinite(points["*"].get_xdata()).sum()) == 2, "LG-BP with none and block"
    if columns == 2:
        assert drawn.axes[1].get_xscale() == "log"


@pytest.mark.parametrize(("venue", "columns"), SIZES)
def test_what_is_drawn_of_groups(stored: dict[str, xr.Dataset], venue: venues.Venue, columns: venues.Columns) -> None:
    dataset = stored["groups"]
    drawn = groups_figure.draw(dataset, venue=venue, columns=columns)
    assert drawn.get_figwidth() == venues.width(venue, columns)
    assert [axes.get_ylabel() for axes in drawn.axes] == list(figure.PANELS.values())
    assert [axes.get_yscale() for axes in drawn.axes] == ["log", "log", "linear"]
    assert all(axes.get_xscale() == "log" for axes in drawn.axes)
    whole = dataset["relative_variance"].sel(scheme="LG-FG-A", losses=groups_figure.ALL)
    (variance,) = (line for line in drawn.axes[1].lines if line.get_marker() == "^")
    np.testing.assert_allclose(variance.get_ydata(), whole.mean("seed"))
    np.testing.assert_array_equal(variance.get_xdata(), dataset["groups"])
    band = drawn.axes[1].collections[-1].get_paths()[0].vertices[:, 1]
    assert (band.min(), band.max()) == pytest.approx((whole.min().item(), whole.max().item()))


def test_captions_count_what_failed(stored: dict[str, xr.Dataset]) -> None:
    for name, module in (("local_losses", figure), ("groups", groups_figure)):
        status = stored[name]["status"].copy()
        status[0, 0, 0] = "failed"
        assert f"1 of {status.size} cells failed" in module.caption(stored[name].assign(status=status))
