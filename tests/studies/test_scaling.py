"""Scaling: what is counted and predicted, the study's run, its evidence and its figure."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import looks, venues
from figures import scaling as figure
from studies import scaling as study

STORED = Path(__file__).parents[2] / "figures/data/scaling.nc"


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


def made(values: np.ndarray, sizes: tuple[int, ...] = (1, 2, 4)) -> xr.Dataset:
    """A dataset of one place; ``values`` [point, seed]."""
    shape = (1, len(sizes), 1, values.shape[1], 1)
    dims = (*figure.AXES, "estimator")
    found = xr.Dataset(
        {"relative_variance": (dims, values.reshape(shape)), "size": (("place", "point"), [list(sizes)])},
        coords={"place": ["mlp, depth"], "epochs": [0], "estimator": ["FG-W"]},
    )
    return found.assign(
        weights=(figure.AXES, np.broadcast_to(np.reshape(sizes, (1, -1, 1, 1)), shape[:-1]) * 10 - 1.0)
    )


def test_slopes_are_exponents_with_students_interval() -> None:
    sizes = np.array([1.0, 2.0, 4.0])
    value, half = figure.slope(made(np.stack([sizes**2, 3 * sizes**2.5], 1)), "mlp, depth", "FG-W", 0)
    assert value == pytest.approx(2.25)
    assert half == pytest.approx(12.706 * 0.25, rel=1e-3)  # t with one degree of freedom, standard error 0.25
    value, half = figure.slope(made(sizes[:, None] ** 2), "mlp, depth", "FG-W", 0)
    assert value == pytest.approx(2)
    assert np.isnan(half)
    assert figure.predicted(made(sizes[:, None]), "mlp, depth", "FG-W") == pytest.approx(1)


def test_the_stored_runs_keep_the_claim(stored: xr.Dataset) -> None:
    """FG-W to rounding; FG-A, whose law holds on average over networks, within what three seeds show."""
    assert not stored.attrs["commit"].endswith("+"), "made from a clean commit"
    assert STORED.stat().st_size < 5e6
    for place in stored["place"].values:
        one = figure.of_place(stored, place)
        assert (one["status"] == "done").all()
        ours = one.sel(estimator="FG-W")
        np.testing.assert_allclose(ours["relative_variance"], ours["weights"] + 1, rtol=1e-9)
        for epochs in stored["epochs"].values:
            value, _ = figure.slope(stored, place, "FG-W", epochs)
            assert value == pytest.approx(figure.predicted(stored, place, "FG-W"), abs=1e-9)
    assert figure.slope(stored, "mlp, width", "FG-W", 0)[0] == pytest.approx(2, abs=0.1), "square layers"


def test_what_is_drawn(stored: xr.Dataset) -> None:
    drawn = figure.draw(stored)
    assert drawn.get_figwidth() == venues.width("iclr", 2)
    assert len(drawn.axes) == 2 * stored.sizes["place"]
    assert {(axes.get_xscale(), axes.get_yscale()) for axes in drawn.axes} == {("log", "log")}
    first = drawn.axes[0]
    assert first.get_xlabel() == "width"
    lines = [line for line in first.lines if line.get_marker() == looks.look("FG-A").marker]
    assert [line.get_markerfacecolor() == "white" for line in lines] == [False, True]
    one = figure.of_place(stored, "mixer, width")
    for line, epochs in zip(lines, stored["epochs"].values, strict=True):
        mean = one["relative_variance"].sel(estimator="FG-A", epochs=epochs).mean("seed")
        np.testing.assert_allclose(line.get_ydata(), mean)
    assert len(first.collections) == 2 * len(study.SCHEMES), "a band for each line"
    laws = [line for line in first.lines if line.get_marker() == "None"]
    assert len(laws) == 2, "FG-W and FG-A; nothing predicts replicas"


def test_the_caption_counts_what_failed(stored: xr.Dataset) -> None:
    status = stored["status"].astype("U8")
    status[0, 0, 0, 0] = "failed"
    assert "1 cells failed" in figure.caption(stored.assign(status=status))
