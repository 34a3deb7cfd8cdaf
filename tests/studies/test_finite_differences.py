"""The study of finite differences as a user runs it, its stored evidence, and its figure."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import intervals, venues
from figures import finite_differences as figure
from studies import finite_differences as study

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "figures" / "data" / "finite_differences.nc"


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return intervals.over_seeds(fgvar.open_dataset(STORED))


def slope(values: xr.DataArray, low: float, high: float) -> float:
    """Of the logarithms, between two steps."""
    some = values.sel(step=slice(low * 0.9, high * 1.1))
    return float(np.polyfit(np.log(some["step"]), np.log(some), 1)[0])


def test_squared_norm_is_unbiased_and_its_error_covers() -> None:
    """Over 2,000 runs: the mean of estimates, and the share of z beyond 3, which calls a bias resolved."""
    rng = np.random.default_rng(0)
    for bias in (0.0, 0.5):
        value, error = study.squared_norm(rng.standard_normal((2000, 32, 40)) + bias / 40**0.5)
        assert abs(value.mean() - bias**2) < 4 * value.std() / 2000**0.5
        assert (abs(value - bias**2) > 3 * error).mean() < 0.02


@pytest.mark.parametrize("space", ["weights", "activities"])
def test_orders_on_a_smooth_network(stored: xr.Dataset, space: str) -> None:
    """Forward differences: distance of order step. Central: distance and bias of order step²."""
    its = stored.sel(network="tanh", dtype="float64", space=space)
    assert slope(its["distance"].sel(oracle="forward"), 1e-5, 1e-3) == pytest.approx(1, abs=0.02)
    assert slope(its["distance"].sel(oracle="central"), 1e-4, 1e-2) == pytest.approx(2, abs=0.05)
    assert slope(its["sq_bias"].sel(oracle="central"), 1e-4, 1e-2) == pytest.approx(4, abs=0.1)


@pytest.mark.parametrize("oracle", ["forward", "central"])
def test_cancellation_grows_as_the_step_shrinks(stored: xr.Dataset, oracle: str) -> None:
    its = stored["distance"].sel(network="tanh", dtype="float32", oracle=oracle)
    for space in ("weights", "activities"):
        assert slope(its.sel(space=space), 1e-7, 1e-5) == pytest.approx(-1, abs=0.1)
    # A thousandfold shorter step is worse than none at all.
    assert (its.sel(step=1e-8, method="nearest") > 1).all()


def test_forward_differences_share_the_bias_of_central_ones(stored: xr.Dataset) -> None:
    """Their first-order error averages out under symmetric noise, where draws resolve it."""
    its = stored.sel(network="tanh", dtype="float64", space="activities").isel(step=[-2, -1])
    forward, central = (figure.resolved(its.sel(oracle=name)) for name in ("forward", "central"))
    assert (abs(forward[0] / central[0] - 1) < 0.25).all()


def test_a_narrow_local_mixer_needs_shorter_steps(stored: xr.Dataset) -> None:
    """At the usual step of 1e-3, a LocalMixer of 4 channels a group is off by percents, an MLP with tanh is not."""
    its = stored["distance"].sel(dtype="float64", space="weights", oracle="central").sel(step=1e-3, method="nearest")
    assert its.sel(network="mixer") > 0.03
    assert its.sel(network="tanh") < 1e-3


def test_units_on_their_kinks_have_no_derivative_to_come_close_to() -> None:
    """An untrained LocalMixer's dead groups leave pre-activations of exactly 0, and no step is short enough."""
    at = study.problem("mixer", "float64", width=16, epochs=0, batch=32, seed=0)
    found = study.compared(at, fgvar.WeightSpace(), np.array([1e-8, 1e-7]), draws=16, blocks=4, seed=0)
    assert (found["distance"].sel(oracle="central") > 0.3).all()


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(stored: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    drawn = figure.draw(stored, venue=venue, columns=columns)
    titles = [axes.get_title() for axes in drawn.axes if axes.get_title()]
    assert titles == ["MLP, tanh", "MLP, ReLU", "LocalMixer"][: 3 if columns == 2 else 1]
    assert drawn.get_figwidth() == venues.width(venue, columns)
    (line,) = [line for line in drawn.axes[0].lines if line.get_marker() == "o" and line.get_color() == "#D55E00"]
    expected = stored["distance"].sel(network="tanh", dtype="float32", space="activities", oracle="central")
    np.testing.assert_allclose(line.get_ydata(orig=False), expected)
