"""Figures of training runs, sweeps and check reports, with numbers that are known beforehand."""

import re
from typing import Any

import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from pictures import clipped, words

import fgvar
from fgvar import plot
from fgvar.plot.from_file import chosen

WIDTHS = [4, 8, 16, 32]


def swept(seeds: int = 1) -> xr.Dataset:
    """Relative variances d and d², with errors of a tenth, over widths; exactly so for every seed but a factor."""
    width = xr.DataArray(WIDTHS, dims="width", coords={"width": WIDTHS}).astype(float)
    factor = xr.DataArray(
        np.linspace(0.9, 1.1, seeds) if seeds > 1 else [1.0], dims="seed", coords={"seed": range(seeds)}
    )
    value = xr.concat([width, width**2], xr.DataArray(["mine", "other"], dims="estimator", name="estimator")) * factor
    return xr.Dataset(
        {"relative_variance": value, "relative_variance_low": 0.9 * value, "relative_variance_high": 1.1 * value},
        attrs={"route": "drawn", "draws": 64},
    )


def run(**dims: Any) -> xr.Dataset:
    """Curves of five epochs."""
    error = np.linspace(0.9, 0.1, 5)
    found = xr.Dataset({"train_error": ("epoch", error), "test_error": ("epoch", error + 0.05)}, {"epoch": range(5)})
    return found.expand_dims(dims) if dims else found


@pytest.mark.parametrize("seeds", [1, 3])
def test_slopes_of_a_sweep_are_those_of_its_powers(seeds: int) -> None:
    dataset = swept(seeds)
    told = words(plot.sweep(dataset))
    assert "mine, slope 1.00" in told
    assert "other, slope 2.00" in told
    text = plot.caption(dataset, "sweep")
    assert "Slopes on log axes, with 95 % intervals where there are errors: mine 1.00" in text
    assert ("means of 3 seeds" in text) == (seeds == 3)


def test_an_interval_of_a_slope_is_that_of_independent_points() -> None:
    """Least squares: half-width √Σ(c·h)² of half-widths h = 0.1 of the logarithms, for c = (x − x̄)/Σ(x − x̄)²."""
    x = np.log(WIDTHS)
    half = 0.1 / np.sqrt(np.square(x - x.mean()).sum())
    assert f"mine, slope 1.00 ± {half:.2f}" in words(plot.sweep(swept()))


def test_seeds_have_students_interval() -> None:
    axes = plot.sweep(swept(3), hue="estimator").axes[0]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    half = 4.302653 * np.std([0.9, 1.0, 1.1], ddof=1) / 3**0.5  # Student's t of 2 degrees of freedom
    assert band.max() == pytest.approx(32 * (1 + half), rel=1e-5)


def test_exact_numbers_have_the_spread_of_their_seeds_alone() -> None:
    """Of one seed there is none."""
    exact = swept(3).drop_vars(["relative_variance_low", "relative_variance_high"]).assign_attrs(route="exact")
    assert len(plot.sweep(exact).axes[0].collections) == 2
    assert "Bands: 95 % intervals." in plot.caption(exact)
    assert not plot.sweep(exact.isel(seed=0)).axes[0].collections
    assert "Bands: none, as values are exact." in plot.caption(exact.isel(seed=0))


def test_a_prediction_is_a_line_under_points() -> None:
    dataset = swept().isel(seed=0)
    dataset = dataset.assign(relative_variance_theory=dataset["relative_variance"])
    figure = plot.sweep(dataset)
    lines = [line for line in figure.axes[0].lines if line.get_label() == "mine"]
    assert [line.get_linestyle() for line in lines] == ["None"], "points are not joined"
    assert "predicted" in words(figure)
    assert "Where there is a prediction it is the line" in plot.caption(dataset)


def test_zeros_negatives_and_gaps_of_a_sweep_are_shown() -> None:
    dataset = swept().isel(seed=0).copy(deep=True)
    dataset["relative_variance"].loc[{"estimator": "mine", "width": 8}] = 0
    dataset["relative_variance"].loc[{"estimator": "mine", "width": 16}] = -3
    dataset["relative_variance"].loc[{"estimator": "other", "width": 8}] = np.nan
    figure = plot.sweep(dataset)
    axes = figure.axes[0]
    edge = [line for line in axes.lines if len(line.get_ydata()) and set(line.get_ydata()) == {axes.get_ylim()[0]}]
    assert [list(line.get_xdata()) for line in edge] == [[8, 16]]
    assert edge_label(axes) == "≤ 0", "its own place, below all numbers"
    assert "other: NaN" in words(figure)
    assert "1 (NaN: the dataset does not say why)" in plot.caption(dataset)
    assert "On the edge of the log axis: 2 value(s) of 0 or less." in plot.caption(dataset)


def edge_label(axes: Any) -> str:
    """What the lower end of a y axis stands for."""
    return next(
        tick.label1.get_text() for tick in axes.yaxis.get_major_ticks() if tick.get_loc() == axes.get_ylim()[0]
    )


def test_powers_of_ten_are_written_as_such() -> None:
    axes = Figure().add_subplot()
    plot.drawing.log(axes, "y", (0.05, 20))
    axes.figure.draw_without_rendering()
    told = [label.get_text() for label in axes.get_yticklabels()]
    assert told == [rf"$\mathdefault{{10^{{{power}}}}}$" for power in (-1, 0, 1)]


def probes(value: float = 1.0, steps: tuple[int, ...] = (1, 10, 100)) -> xr.Dataset:
    """Of two estimators, one of whom has this relative variance."""
    dims, count = ("step", "estimator", "reference"), len(steps)
    return xr.Dataset(
        {
            "cosine": (dims, np.full((count, 2, 2), 0.5)),
            "cosine_null": ("step", np.full(count, 0.1)),
            "relative_variance": (dims[:2], [[value, 5.0]] * count),
            "size": 100,
        },
        {"step": list(steps), "estimator": ["quiet", "noisy"], "reference": ["target", "backprop"]},
    )


@pytest.mark.parametrize(
    ("steps", "numbers"),
    [((0, 1, 10, 100), ["0", "1", "10", "100"]), ((0, 3, 7), ["0", "3", "7"]), ((0,), ["0", "1"])],
)
def test_a_probe_before_training_stands_at_0(steps: tuple[int, ...], numbers: list[str]) -> None:
    for axes in plot.training(probes(steps=steps)).axes:
        assert [label.get_text() for label in axes.get_xticklabels()] == numbers
        low, high = axes.get_xlim()
        assert low < 0 <= steps[-1] < high


@pytest.mark.parametrize(("value", "label"), [(0.0, "0"), (-1e-12, "0"), (-1.0, "≤ 0")])
def test_probes_without_noise_stand_on_a_labelled_edge(value: float, label: str) -> None:
    variance = plot.training(probes(value)).axes[2]
    assert edge_label(variance) == label
    shown = {line.get_ydata()[0] for line in variance.lines if list(line.get_xdata()) == [1, 10, 100]}
    assert variance.get_ylim()[0] in shown
    low = variance.get_ylim()[0]
    assert min(tick.get_loc() for tick in variance.yaxis.get_major_ticks() if tick.get_loc() > low) > 1.5 * low


def test_a_prediction_of_zero_is_on_the_edge() -> None:
    dataset = swept().isel(seed=0).copy(deep=True)
    dataset["relative_variance"].loc[{"estimator": "mine"}] = 0
    axes = plot.sweep(dataset.assign(relative_variance_theory=dataset["relative_variance"])).axes[0]
    dashes = [line for line in axes.lines if line.get_marker() == "_" and len(line.get_xdata())]
    assert [(list(line.get_xdata()), {*line.get_ydata()}) for line in dashes] == [(WIDTHS, {axes.get_ylim()[0]})]


def test_what_is_surely_negative_has_a_linear_axis() -> None:
    """Beyond its interval; a drawn number that may be 0 does not take the logarithm from the others."""
    value = ("width", [-1.0, 20.0, 300.0])
    sure = xr.Dataset({"margin": value}, {"width": WIDTHS[:3]})
    maybe = sure.assign(margin_low=sure["margin"] - 2, margin_high=sure["margin"] + 2)
    assert plot.sweep(sure, y="margin", hue=None).axes[0].get_yscale() == "linear"
    assert plot.sweep(maybe, y="margin", hue=None).axes[0].get_yscale() == "log"


@pytest.mark.parametrize("place", [("icml", 1), ("iclr", 2)], ids=str)
def test_panels_of_a_second_axis(place: tuple[Any, Any]) -> None:
    dataset = xr.concat([swept(2), 2 * swept(2)], xr.DataArray([1, 2], dims="batch", name="batch"))
    with plot.venue(place[0], columns=place[1]):
        figure = plot.sweep(dataset, col="batch")
    assert [axes.get_title() for axes in figure.axes if axes.get_visible()] == ["batch 1", "batch 2"]
    assert not clipped(figure)
    assert "a panel for each batch" in plot.caption(dataset)
    slopes = plot.caption(dataset).partition("intervals where there are errors: ")[2].splitlines()[0]
    assert re.sub(r" ± \d\.\d\d", "", slopes) == ("batch 1: mine 1.00, other 2.00; batch 2: mine 1.00, other 2.00.")
    assert "mine at batch 2 from 8 to 64" in plot.alternative(dataset, "sweep")
    with pytest.raises(ValueError, match=r"is along 'batch', too; give hue='batch' or col='batch', or choose one"):
        plot.sweep(dataset)
    with pytest.raises(ValueError, match=r"makes 2 panels, and ax is one; choose by dataset\.sel\(batch=…\)"):
        plot.sweep(dataset, col="batch", ax=figure.axes[0])
    with pytest.raises(ValueError, match="col='depth' is no dim of 'relative_variance': unknown dim 'depth'"):
        plot.sweep(dataset, col="depth")
    with pytest.raises(ValueError, match="x='estimator' has no numbers along it"):
        plot.sweep(dataset, x="estimator", hue=None, col="batch")


def test_one_run_of_curves_alone() -> None:
    figure = plot.training(run())
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("epoch", "error (%)")
    assert "of one run: no band" in plot.caption(run())
    assert plot.training(run(), axes=[axes], legend=False) is figure
    assert axes.get_legend() is None
    plot.training(run(), axes=[axes])
    assert axes.get_legend() is not None


def test_several_runs_share_a_panel_and_seeds_have_a_band() -> None:
    dataset = run(algorithm=["mine", "BP"], seed=[0, 1]).copy(deep=True)
    dataset["test_error"].loc[{"seed": 1}] *= 2
    figure = plot.training(dataset)
    (axes,) = figure.axes
    assert {"mine", "BP"} <= set(words(figure).splitlines())
    assert len(axes.collections) == 4, "bands of two curves of two runs"
    assert "means of 2 seeds, in bands from the lowest to the highest" in plot.caption(dataset)
    with pytest.raises(ValueError, match=r"several runs, along 'network', 'algorithm'; choose along all but one"):
        plot.training(dataset.expand_dims(network=["a", "b"]))


@pytest.mark.parametrize("along", [{"lr": [0.1, 0.2, 0.3]}, {"twice": [False, True]}], ids=str)
def test_runs_that_numbers_tell_apart_have_looks(along: dict[str, Any]) -> None:
    (dim, values), dataset = *along.items(), run(**along)
    figure = plot.training(dataset, looks={str(values[0]): "#123456"})
    curves = {line.get_color() for line in figure.axes[0].lines if line.get_label() == "test error"}
    assert len(curves) == len(values)
    assert "#123456" in curves
    assert {f"{dim} {value}" for value in values} <= set(words(figure).splitlines())
    assert f"over training of {dim} {values[0]}, {dim} {values[1]}" in plot.caption(dataset)
    assert f"{dim} {values[0]}: test error from" in plot.alternative(dataset)
    given = plot.training(dataset, axes=[Figure().subplots()]).axes[0].get_legend().get_texts()
    assert f"{dim} {values[0]}" in [text.get_text() for text in given]


def test_runs_that_numbers_tell_apart_look_unlike_their_probes() -> None:
    dataset = xr.merge([run(lr=[1, 2]), probes()])
    looks = {line.get_label(): line.get_color() for line in plot.training(dataset).legends[0].get_lines()}
    assert len({looks[name] for name in ("quiet", "noisy", "lr 1", "lr 2")}) == 4
    alone = {line.get_label(): line.get_color() for line in plot.training(probes()).legends[0].get_lines()}
    assert (alone["quiet"], alone["noisy"]) == (looks["quiet"], looks["noisy"]), "as in other figures"


def test_thirteen_runs_in_a_column_are_whole() -> None:
    names = [f"algorithm {i}" for i in range(13)]
    with plot.venue("icml", columns=1):
        figure = plot.training(run(algorithm=names))
    assert not clipped(figure)


@pytest.fixture(scope="module")
def report() -> Any:
    class Off:
        """Half of the gradient."""

        def randomness(self, problem):  # noqa: ARG002
            return fgvar.Randomness({})

        def estimate(self, problem, noise):  # noqa: ARG002
            return fgvar.Estimate({name: 0.5 * g for name, g in problem.backprop().items()})

        def target(self, problem):
            return problem.backprop()

    problem = fgvar.testing.default_problems()["linear"]
    return fgvar.testing.check_estimator(Off(), problem, checks=["structure", "unbiased", "linear_in_loss"])


def test_sizes_that_checks_would_have_caught(report: Any) -> None:
    """Exact ones are caught from rounding on; what failed, or compares bits, has no size."""
    sizes = {row.check: (row.outcome, row.caught, row.exact) for row in report.rows}
    assert sizes["structure"] == ("passed", None, False)
    assert sizes["unbiased"] == ("failed", None, False)
    assert sizes["linear_in_loss"] == ("passed", (1e-9, 1e-9), True)
    drawn = fgvar.testing.check_estimator(
        fgvar.testing.from_function(lambda problem, _: problem.backprop()),
        fgvar.testing.default_problems()["linear"],
        checks=["noise", "unbiased"],
    )
    assert all(row.caught is None or row.caught[0] <= row.caught[1] for row in drawn.rows)


def test_a_report_as_a_picture(report: Any) -> None:
    figure = plot.check(report)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["structure", "unbiased", "linear_in_loss"]
    assert any(line.get_marker() == "X" and list(line.get_ydata()) == [1] for line in left.lines), "failed"
    assert [line.get_xdata()[0] for line in right.lines if line.get_marker() == "o"] == [1e-9]
    assert plot.kinds(report) == ("check",)
    assert "Failed: unbiased." in plot.caption(report)
    assert "failed unbiased" in plot.alternative(report)
    assert set(plot.figures(report)) == {"check"}
    with pytest.raises(ValueError, match="got 1 axes, expected 2"):
        plot.check(report, axes=[left])


def test_question_marks_stand_where_the_caption_says() -> None:
    """Beside numbers whose interval is missing, and not beside those that have no error by their nature."""
    few = swept().isel(seed=0).copy(deep=True)
    for end in ("low", "high"):
        few[f"relative_variance_{end}"].loc[{"estimator": "mine"}] = np.nan
    assert words(plot.sweep(few)).splitlines().count("?") == len(WIDTHS)
    assert "A question mark stands beside" in plot.caption(few, "sweep")
    bare = swept()[["relative_variance"]]
    assert "?" not in words(plot.sweep(bare))
    assert "question mark" not in plot.caption(bare, "sweep")


def test_a_seed_that_is_left_alone_has_no_interval() -> None:
    """The other one failed; warnings are errors here."""
    dataset = swept(2).copy(deep=True)
    for name in dataset:
        dataset[name].loc[{"seed": 1, "width": 8}] = np.nan
    assert words(plot.sweep(dataset)).splitlines().count("?") == 2
    assert "one seed." in plot.caption(dataset, "sweep")


def test_numbers_that_tell_lines_apart_say_of_what() -> None:
    one = swept().sel(estimator="mine")
    for values, told in (
        ([0.1 + 0.2, 1e-5], ["rate 0.3", "rate 1e-05"]),
        ([False, True], ["rate False", "rate True"]),
    ):
        dataset = xr.concat([one, 2 * one], xr.DataArray(values, dims="rate", name="rate"))
        assert {f"{name}, slope 1.00 ± 0.06" for name in told} <= set(
            words(plot.sweep(dataset, hue="rate")).splitlines()
        )
        assert f"over width of {told[0]}, {told[1]}." in plot.caption(dataset, "sweep", hue="rate")
        assert plot.alternative(dataset, "sweep").endswith(f"{told[0]} from 4 to 32, {told[1]} from 8 to 64.")
        assert told == [axes.get_title() for axes in plot.sweep(dataset, hue=None, col="rate").axes]


@pytest.mark.parametrize(("layer", "height"), [("perturbed", 101.0), ("weight", None), ("total", None)])
def test_theory_of_fg_w_is_of_all_that_it_perturbs(layer: str, height: float | None) -> None:
    """A layer alone hears the noise of all others: d + 1 is not its variance, of no sweep and of no run."""
    layers = xr.DataArray(["weight", "perturbed", "total"], dims="layer", name="layer")
    attrs = {"estimators": f"FG-W: {fgvar.scheme('FG-W')!r}"}
    dataset = probes().assign_coords(estimator=["FG-W", "other"]).expand_dims(layer=layers).assign_attrs(attrs)
    lines = plot.training(dataset, layer=layer).axes[2].lines
    assert [line.get_ydata()[0] for line in lines if line.get_label() == "FG-W, theory"] == [height][
        : height is not None
    ]
    assert ("FG-W in theory" in plot.caption(dataset, "training", layer=layer)) == (height is not None)
    told = plot.caption(dataset.rename(step="width"), "sweep", layer=layer)
    assert ("Where there is a prediction" in told) == (height is not None)


def test_a_probe_that_is_missing_ends_no_curve() -> None:
    dataset = probes().copy(deep=True)
    dataset["cosine"].loc[{"step": 1}] = np.nan
    dataset["cosine"].loc[{"step": 10}] = 0.25
    assert "quiet's cosine to its target from 0.25 to 0.5" in plot.alternative(dataset)


def test_labels_are_chosen_as_they_are_written_or_as_the_number_that_they_are() -> None:
    one = xr.Dataset({"y": ("lr", [1, 2, 3])}, {"lr": [0.001, 0.01, 0.1]})
    for text in ("lr=0.001", "lr=1e-3", "lr=.001"):
        assert chosen(one, [text])["y"] == 1
    named = xr.Dataset({"y": ("estimator", [1, 2, 3])}, {"estimator": ["1000", "1e3", "nan"]})
    for place, name in enumerate(named["estimator"].values, 1):
        assert chosen(named, [f"estimator={name}"])["y"] == place
    assert chosen(named, ["estimator=1000.0"])["y"] == 1
    with pytest.raises(ValueError, match=r"unknown lr '1' \(valid: 0\.001, 0\.01, 0\.1\)"):
        chosen(one, ["lr=1"])
