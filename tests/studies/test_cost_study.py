"""The study of cost: its slopes, its run, its evidence and its figure. Nothing is timed here."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import looks, venues
from figures import cost as figure
from studies import cost as study

STORED = Path(__file__).parents[2] / "figures/data/cost.nc"


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


def test_slopes_are_those_of_medians() -> None:
    sizes = np.array([1.0, 2.0, 4.0])
    time = np.stack([3 * sizes, 3 * sizes, 100 * sizes**0], 1)  # [point, repeat]: the last is an outlier
    dataset = xr.Dataset(
        {
            "time": (("along", "point", "seed", "repeat", "estimator"), time[None, :, None, :, None]),
            "size": (("along", "point"), sizes[None]),
        },
        coords={"along": ["draws"], "estimator": ["FG-W"]},
    )
    assert figure.slope(dataset, "draws", "time", "FG-W") == pytest.approx(1)


def test_the_stored_runs_keep_the_claim(stored: xr.Dataset) -> None:
    """At most in proportion; groups and, for memory, draws cost nothing. A quadratic cost would have slope 2."""
    assert not stored.attrs["commit"].endswith("+"), "made from a clean commit"
    for scheme in study.SCHEMES:
        for along in ("draws", "batch", "width"):
            assert figure.slope(stored, along, "time", scheme) < 1.15
        assert figure.slope(stored, "draws", "time", scheme) > 0.8
        assert figure.slope(stored, "groups", "time", scheme) < 0.15
        assert figure.growth(stored, scheme) < 1.15


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(stored: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    drawn = figure.draw(stored, venue=venue, columns=columns)
    assert drawn.get_figwidth() == venues.width(venue, columns)
    assert [axes.get_xlabel() for axes in drawn.axes[:2]] == (["draws", "batch"] if columns == 2 else ["draws"] * 2)
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in drawn.axes} == {("log", "log")}
    (line,) = [line for line in drawn.axes[0].lines if line.get_marker() == looks.look("FG-W").marker]
    one = stored["time"].sel(along="draws", estimator="FG-W").median(("seed", "repeat")).dropna("point")
    np.testing.assert_allclose(line.get_ydata(), one)
