"""The weight-sharing study as a user runs it, its stored evidence, and its figure."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import venues
from figures import weight_sharing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(ROOT / "figures" / "data" / "weight_sharing.nc")


def test_the_stored_dataset_is_of_the_full_run(stored: xr.Dataset) -> None:
    assert "smoke=False" in stored.attrs["configuration"]
    assert stored.attrs["route"] == "exact"
    assert list(stored["positions"].values) == [1, 2, 4, 8, 16, 32, 64, 128, 256]


def test_variances_cross_where_the_ratio_does(stored: xr.Dataset) -> None:
    """In every problem, and by the closed form (qρ + 1)/(qp + 1)."""
    same = weight_sharing.agreement(stored)
    assert same.size == stored["ratio"].size
    assert same.all()
    q = stored.attrs["fan_out"]
    expected = (q * stored["ratio"] + 1) / (q * stored["fan_in"] + 1)
    xr.testing.assert_allclose(stored["variance_ratio"], expected.transpose(*stored["ratio"].dims), rtol=1e-6)


def test_sharing_makes_activity_perturbation_lose_where_credits_disagree(stored: xr.Dataset) -> None:
    middle = stored["variance_ratio"].median("example")
    assert (middle.sel(positions=1) < 0.2).all()
    assert (middle.sel(positions=256, loss="each position") > 2).all()
    assert middle.sel(positions=256, loss="pooled", kind="linear") < 1, "it levels off below"
    for kind in ("linear", "convolution"):
        assert 8 < weight_sharing.crossing(stored.sel(kind=kind, loss="each position")) < 64
    assert np.isnan(weight_sharing.crossing(stored.sel(kind="linear", loss="pooled")))


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(stored: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    figure = weight_sharing.draw(stored, venue=venue, columns=columns)
    assert [axes.get_title() for axes in figure.axes] == ["linear layer over tokens", "convolution over pixels"]
    assert figure.get_figwidth() == venues.width(venue, columns)
    lines = {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}
    assert lines["ρ / fan-in, pooled"][0] == pytest.approx(1 / 16)
    assert len(lines["variance, each position"]) == 9
