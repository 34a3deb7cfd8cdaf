"""Fused losses: naive and fused copies agree, memory is counted, and what the figure draws."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from fgvar.plot import venues
from figures import fused_losses as figure
from studies import fused_losses as study

STORED = Path(__file__).parents[2] / "figures/data/fused_losses.nc"


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_naive_and_fused_agree_and_sum_to_the_ordinary_loss(groups: int) -> None:
    ways = study.ways(groups, 0, batch=3, patches=2, channels=8, classes=5, double=True)
    naive, fused, ordinary = (ways[name]() for name in study.WAYS)
    assert naive.shape == fused.shape == (3, 2, groups)
    torch.testing.assert_close(naive, fused, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(fused.sum((1, 2)), ordinary, rtol=1e-12, atol=1e-14)


def test_peak_counts_what_lives_at_a_time() -> None:
    def way() -> torch.Tensor:
        one = torch.ones(1000)
        two = one * 2
        del one
        return two + torch.ones(500)[:1]

    assert study.peak(way) == 4000 + 4000 + 2000, "two of 1000 floats, then two more beside 500"


def test_the_stored_dataset_keeps_the_claim(stored: xr.Dataset) -> None:
    peak = stored["peak"].max("seed")
    naive, fused = (peak.sel(way=way) for way in ("naive", "fused"))
    assert float(stored["difference"].max()) < 1e-5, "float32"
    assert float(naive[-1] / naive[0]) > 30
    assert float(fused[-1] / fused[0]) < 1.3
    ratio = figure.measured(stored, "ratio").median("run")
    assert ratio.sel(way="naive", groups=64) > 20


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(stored: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    drawn = figure.draw(stored, venue=venue, columns=columns)
    assert drawn.get_figwidth() == venues.width(venue, columns)
    assert [axes.get_ylabel() for axes in drawn.axes] == list(figure.PANELS.values())
    assert all((axes.get_xscale(), axes.get_yscale()) == ("log", "log") for axes in drawn.axes)
    assert [len(axes.lines) for axes in drawn.axes] == [3, 2, 3], "fused relative to itself is 1"
    lines = {line.get_label(): line for line in drawn.axes[0].lines}
    median = 1e3 * np.median(stored["time"].sel(way="naive"), axis=(1, 2))
    np.testing.assert_allclose(lines["replicated, naive"].get_ydata(), median)
    np.testing.assert_array_equal(lines["one copy"].get_xdata(), stored["groups"])
