"""Axes of sweeps: what they hold, how small a number is none, and where their numbers stand."""

from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pictures import words

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


def test_a_caption_says_drawn_of_what_is_drawn_alone() -> None:
    attrs = {"draws": 64, "batch_size": 16, "seed": 3}
    dataset = over_width(test_error=[3.0, 2.0, 1.0], gradient_norm=[3.0, 2.0, 1.0], cosine=[0.1, 0.2, 0.3])
    dataset = dataset.assign_attrs(attrs)
    seeds = xr.concat([dataset, dataset], xr.Variable("seed", [0, 1])).assign_attrs(attrs)
    drawn = "Values are drawn (Monte Carlo, n = 64 draws of each estimator's noise"
    for its, seed, each in ((dataset, ", seed 3", ""), (seeds, "", " for each seed")):
        batch = f"given one batch of 16 examples{each}."
        for y, told in (
            ("test_error", ""),
            ("gradient_norm", f" Values are computed without a draw, {batch}"),
            ("cosine", f" {drawn}{seed}), {batch}"),
        ):
            more = " Values are means of 2 seeds, with intervals by Student's t of their spread." if each else ""
            first = plot.caption(its, "sweep", y=y, hue=None).splitlines()[0]
            assert first == f"{plot.swept.called(its[y]).capitalize()} over width.{told}{more}"


def test_an_estimate_of_0_keeps_its_interval() -> None:
    one = over_width(snr=[0.0, 2.0, 3.0], snr_low=[-1.0, 1.0, 2.0], snr_high=[1.0, 3.0, 4.0])
    its = plot.series.of(one, "snr").without_rounding("snr")
    assert (list(its.low), list(its.high)) == ([-1.0, 1.0, 2.0], [1.0, 3.0, 4.0])


def test_relative_variances_of_rounding_are_0() -> None:
    dataset = over_width(relative_variance=[1e-12, 2e-12, 4e-12])
    for its in (dataset, xr.concat([dataset, dataset], xr.Variable("seed", [0, 1]))):
        told = plot.caption(its, "sweep", hue=None)
        assert "On the edge of the log axis: 3 value(s) of 0 or less." in told
        assert "Slopes" not in told


def labels(axes: Axes) -> list[str]:
    """Numbers at the x axis, where they are shown."""
    shown = axes.xaxis.get_tick_params()["labelbottom"]
    return [label.get_text() for label in axes.get_xticklabels() if label.get_text()] if shown else []


@pytest.mark.parametrize("places", [[10000, 20000, 30000, 40000, 50000], [1000, 1001, 1002, 1003, 10000]], ids=str)
@pytest.mark.parametrize("place", [("icml", 1), ("iclr", 2)], ids=str)
def test_numbers_of_an_axis_do_not_lie_on_each_other(places: list[int], place: tuple[Any, Any]) -> None:
    dataset = xr.Dataset(
        {"snr": (("width", "act"), np.ones((5, 3)))}, {"width": places, "act": ["relu", "tanh", "gelu"]}
    )
    with plot.venue(place[0], columns=place[1]):
        figure = plot.sweep(dataset, y="snr", hue=None, col="act")
    for axes in figure.axes[:3]:
        ends = -np.inf
        for label in axes.get_xticklabels():
            box = label.get_window_extent()
            if label.get_text() and axes.xaxis.get_tick_params()["labelbottom"]:
                assert box.x0 > ends
                ends = box.x1
    assert labels(figure.axes[2])[0] == str(places[0])
    assert len(labels(figure.axes[2])) > 1


def test_numbers_with_a_gap_between_them_stay() -> None:
    with plot.venue("icml", columns=1):
        figure = Figure((1.0, 1.0), dpi=72)
        axes = figure.add_axes((0.0, 0.5, 1.0, 0.5))
        axes.tick_params(labelsize=7)
        axes.set_xlim(0, 72)
        plot.drawing.ticks(axes.xaxis, [-0.01, 14, 18])
        figure.draw_without_rendering()
    assert [label.get_text() for label in axes.get_xticklabels()] == ["−0.01", "14", ""]


def test_the_lowest_panel_of_each_column_has_the_numbers_of_x() -> None:
    dataset = xr.Dataset({"snr": (("width", "act"), np.ones((3, 3)))}, {"width": WIDTHS, "act": list("abc")})
    with plot.venue("icml", columns=1):
        top, *lowest, hidden = plot.sweep(dataset, y="snr", hue=None, col="act").axes
    assert (labels(top), top.get_xlabel(), hidden.get_visible()) == ([], "", False)
    for axes in lowest:
        assert (labels(axes), axes.get_xlabel()) == (["8", "16", "32"], "width")


@pytest.mark.parametrize("clip", [np.inf, np.nan], ids=str)
def test_what_is_no_place_on_an_axis_says_so(clip: float) -> None:
    dataset = xr.Dataset({"variance": ("clip", [1.0, 2.0, 4.0])}, {"clip": [0.1, 1.0, clip]})
    (figure,) = plot.figures(dataset).values()
    (line,) = figure.axes[0].lines
    assert list(line.get_xdata()) == [0.1, 1.0]
    assert f"clip {clip}: no place on the axis" in words(figure)
    assert f"No place on the axis: clip {clip}." in plot.caption(dataset)
    assert plot.alternative(dataset).endswith("from 1 to 2.")
    with pytest.raises(ValueError, match="x='clip' has no finite number along it"):
        plot.sweep(dataset.isel(clip=[2]), x="clip", y="variance", hue=None)


def test_a_line_without_a_prediction_is_one_in_the_legend() -> None:
    dataset = over_width(snr=[1.0, 2.0, 3.0]).expand_dims(estimator=["mine", "other"])
    theory = dataset["snr"].where(dataset["estimator"] == "other")
    figure = plot.sweep(dataset.assign(snr_theory=theory), y="snr")
    drawn = {line.get_label(): line.get_linestyle() for line in figure.axes[0].lines}
    told = {str(handle.get_label()).split(",")[0]: handle.get_linestyle() for handle in figure.legends[0].get_lines()}
    assert (told["mine"], told["other"]) == (drawn["mine"], drawn["other"]) == ("-", "None")
