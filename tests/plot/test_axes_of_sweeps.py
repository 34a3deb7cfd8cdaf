"""Axes of sweeps: what they hold, how small a number is none, and where their numbers stand."""

import numpy as np
import pytest
import xarray as xr

from fgvar import plot

WIDTHS = [8, 16, 32]


def over_width(**values: list[float]) -> xr.Dataset:
    return xr.Dataset({name: ("width", its) for name, its in values.items()}, {"width": WIDTHS})


def test_a_linear_axis_holds_both_halves_of_every_band() -> None:
    dataset = over_width(cosine=[0.01, 0.02, 0.03], cosine_low=[-0.05, -0.04, -0.02], cosine_high=[0.07, 0.08, 0.08])
    low, high = plot.sweep(dataset, y="cosine", hue=None).axes[0].get_ylim()
    assert low < -0.05
    assert high > 0.08


@pytest.mark.parametrize("y", ["variance", "data_variance", "sq_bias"])
def test_small_numbers_with_a_unit_are_drawn_as_they_are(y: str) -> None:
    """Of gradients as small as theirs they may be large: what is 0 but for rounding is a relative variance."""
    values = [1e-12, 2e-12, 4e-12]
    dataset = over_width(**{y: values, f"{y}_theory": values})
    measured, predicted = plot.sweep(dataset, y=y, hue=None).axes[0].lines
    np.testing.assert_allclose(measured.get_ydata(), values)
    np.testing.assert_allclose(predicted.get_ydata(), values)
    told = plot.caption(dataset, "sweep", y=y, hue=None)
    assert f"where there are errors: {y} 1.00." in told
    assert "On the edge" not in told


def test_relative_variances_of_rounding_are_0() -> None:
    dataset = over_width(relative_variance=[1e-12, 2e-12, 4e-12])
    for its in (dataset, xr.concat([dataset, dataset], xr.Variable("seed", [0, 1]))):
        told = plot.caption(its, "sweep", hue=None)
        assert "On the edge of the log axis: 3 value(s) of 0 or less." in told
        assert "Slopes" not in told
