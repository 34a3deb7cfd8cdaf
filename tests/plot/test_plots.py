"""Figures of anybody's measurements: what is drawn, what is told, and that nothing is a silent gap."""

from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from pictures import clipped, words

import fgvar
from fgvar import plot
from fgvar.plot import theory_lines

LONG = "an estimator with a name that would not fit into a column of any venue"
PLACES = [("iclr", 2), ("icml", 1)]


def problem() -> fgvar.Problem:
    return fgvar.testing.default_problems()["linear"]


@pytest.fixture(scope="module")
def drawn() -> xr.Dataset:
    """A name of one's own, a replayed one, one without noise, and a biased one."""
    rows = {
        "mine": fgvar.scheme("FG-W"),
        "FG-A": fgvar.scheme("FG-A", oracle=fgvar.oracles.Replay()),
        "BP": fgvar.scheme("BP"),
        LONG: fgvar.Estimator(combine=fgvar.combine.Normalised()),
    }
    return fgvar.measure(rows, problem(), draws=64, keep_draws=True)


@pytest.fixture(scope="module")
def exact() -> xr.Dataset:
    rows = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A", "BP")}
    return fgvar.measure(rows, problem(), route="exact")


@pytest.fixture(scope="module")
def few() -> xr.Dataset:
    return fgvar.measure(
        {"mine": fgvar.scheme("FG-W"), "FG-A": fgvar.scheme("FG-A")}, problem(), draws=2, keep_draws=True
    )


@pytest.fixture(scope="module")
def many() -> xr.Dataset:
    """Twelve names of twenty letters."""
    rows = {f"estimator number {i:03}": fgvar.Estimator(directions=i + 1) for i in range(12)}
    return fgvar.measure(rows, problem(), draws=32, keep_draws=True)


def points(axes: Any) -> dict[str, Any]:
    """Name → the line of its points with error bars."""
    return {bars.get_label(): bars[0] for bars in axes.containers}


def panels(figure: Figure) -> dict[str, Any]:
    return {axes.get_title(): axes for axes in figure.axes}


@pytest.mark.parametrize("place", PLACES, ids=str)
@pytest.mark.parametrize("name", ["drawn", "exact", "few", "many"])
def test_every_fitting_figure_of_odd_data_is_whole(request, name: str, place: tuple[Any, Any]) -> None:
    dataset = request.getfixturevalue(name)
    with plot.venue(place[0], columns=place[1]) as page:
        found = plot.figures(dataset)
    assert set(found) == set(plot.kinds(dataset))
    for kind, figure in found.items():
        assert figure.get_figwidth() <= page.width + 1e-9
        assert not clipped(figure), (kind, clipped(figure))
        assert plot.caption(dataset, kind)
        assert plot.alternative(dataset, kind).endswith(".")


def test_kinds_that_fit(drawn: xr.Dataset, exact: xr.Dataset) -> None:
    assert plot.kinds(drawn) == ("layers", "ranking", "tradeoff", "draws")
    assert plot.kinds(exact) == ("layers", "ranking", "tradeoff")
    assert plot.kinds(drawn.isel(estimator=[0])) == ("layers", "tradeoff", "draws"), "one has no rank"
    assert plot.kinds(xr.Dataset({"anything": ("row", [1.0])})) == ()
    assert plot.kinds(3) == ()


def test_a_name_has_one_look_in_all_figures(drawn: xr.Dataset) -> None:
    colors = set()
    for figure in plot.figures(drawn).values():
        for axes in figure.axes:
            colors |= {line.get_color() for line in axes.lines if line.get_label() == "mine"}
    assert len(colors) == 1
    wanted = plot.layers(drawn, looks={"mine": "#123456"})
    assert any(line.get_color() == "#123456" for axes in wanted.axes for line in axes.lines)


def test_layers_say_what_is_missing(drawn: xr.Dataset, few: xr.Dataset, exact: xr.Dataset) -> None:
    titled = panels(plot.layers(drawn))
    assert "BP: no noise" in titled["$p$-value of bias"].get_xlabel()
    edge = [line for line in titled["relative variance"].lines if line.get_label().startswith("_")]
    low = titled["relative variance"].get_xlim()[0]
    assert any(np.allclose(line.get_xdata(), low) for line in edge), "a variance of 0 stands on the edge"
    told = words(plot.layers(few))
    assert "too few draws" in told
    assert "?" in told, "values without an interval"
    told = words(plot.layers(exact))
    assert "bias / target" in told
    assert "no closed form" in told
    broken = drawn.copy(deep=True)
    broken["cosine"].loc[{"estimator": "mine"}] = np.nan
    assert "mine: NaN" in words(plot.layers(broken)), "no flag says why"
    broken["flag"].loc[{"estimator": "mine"}] = fgvar.measurement.FLAGS["dead"]
    assert "mine: undefined" in words(plot.layers(broken))


@pytest.mark.parametrize("kind", ["layers", "ranking", "tradeoff"])
@pytest.mark.parametrize("low", [1.0, np.inf], ids=["interval", "none"])
def test_what_is_infinite_says_so(drawn: xr.Dataset, kind: str, low: float) -> None:
    """Of a dataset of one's own, as a closed form of what has no second moment; no part of an axis shows it."""
    its, endless = {"estimator": "mine"}, drawn.copy(deep=True)
    for name, value in {
        "relative_variance": np.inf,
        "relative_variance_low": low,
        "relative_variance_high": np.inf,
    }.items():
        endless[name].loc[its] = value
    options = {"by": "relative_variance"} if kind == "ranking" else {}
    assert "infinite" in words(getattr(plot, kind)(endless, **options))
    assert "(infinite: no axis reaches it)" in plot.caption(endless, kind, **options)


def test_a_ranking_is_in_order_and_biased_ones_are_hollow(drawn: xr.Dataset) -> None:
    figure = plot.ranking(drawn)
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_yticklabels()]
    cosine = drawn["cosine"].sel(layer="perturbed", reference="backprop")
    best = [str(name) for name in cosine["estimator"].values[np.argsort(-cosine.values, kind="stable")]]
    assert [label.replace("\n", " ") for label in labels] == best
    assert [name for name, line in points(axes).items() if line.get_markerfacecolor() == "white"] == [LONG]
    assert "biased" in words(figure)
    assert f"Hollow: biased for its own target: {LONG} (refuted by the test of no bias)." in plot.caption(
        drawn, "ranking"
    )
    given = plot.ranking(drawn, by="relative_variance", order=["BP", "mine"]).axes[0]
    assert [label.get_text() for label in given.get_yticklabels()] == ["BP", "mine"]
    declared = drawn.assign(biased=("estimator", ["", "a finite difference", "", ""]))
    assert "FG-A (declared by the dataset)" in plot.caption(declared, "ranking")
    declared = drawn.assign(biased=("estimator", [False, True, False, False]))
    assert "Hollow: biased for its own target: FG-A (declared by the dataset)." in plot.caption(declared, "ranking")
    unbiased = drawn.assign(biased=("estimator", [False] * 4))
    assert "None is declared to be biased." in plot.caption(unbiased, "ranking")


def test_the_best_of_every_measured_variable_is_first() -> None:
    dataset = fgvar.measure(
        {"FG-W": fgvar.scheme("FG-W"), "BP": fgvar.scheme("BP")}, problem(), draws=64, paired=True
    )
    ranked = {name for name in plot.datasets.quantities(dataset) if "estimator" in dataset[name].dims}
    small = {"variance", "relative_variance", "data_variance", "sq_bias", "bias_z", "cost", "seconds"}
    small |= {"variance_difference", "relative_variance_difference"}
    large = {"cosine", "efficiency", "snr", "bias_p", "gradient_norm", "cosine_difference"}
    assert ranked == small | large | {"slope", "slope_difference"}
    for name in ranked:
        numbers = xr.zeros_like(dataset[name]) + xr.DataArray([1.0, 2.0], dims="estimator")
        axes = plot.ranking(dataset.assign({name: numbers}), by=name).axes[0]
        best = "FG-W" if name in {*small, "slope"} else "BP"
        assert axes.get_yticklabels()[0].get_text() == best, name


def test_the_slope_nearest_to_1_is_the_best(drawn: xr.Dataset) -> None:
    slopes = dict(zip(("mine", "FG-A", "BP", LONG), (10.0, 0.5, 0.9, np.nan), strict=True))
    numbers = xr.zeros_like(drawn["slope"]) + xr.DataArray([*slopes.values()], dims="estimator")
    exact = drawn.assign(slope=numbers).drop_vars(["slope_se", "slope_low", "slope_high"], errors="ignore")
    assert plot.caption(exact, "ranking", by="slope").endswith("Best: BP 0.9; last: mine 10.")


def test_a_ranking_says_to_which_reference_its_numbers_are(drawn: xr.Dataset) -> None:
    """Biases are for the estimator's own target, unless another reference is asked for."""
    for name in plot.datasets.quantities(drawn):
        if "estimator" not in drawn[name].dims:
            continue
        given = "target" if "bias" in name else "backprop"
        for how, reference in (({}, given), ({"reference": "target"}, "target")):
            label = plot.ranking(drawn, by=name, **how).axes[0].get_xlabel()
            assert label.endswith(f" {reference}") == ("reference" in drawn[name].dims), (name, label)
            assert f"ranked by {label}, in" in plot.caption(drawn, "ranking", by=name, **how)
            assert f"estimators by {label}. " in plot.alternative(drawn, "ranking", by=name, **how)
    target = drawn["bias_p"].sel(layer="perturbed", reference="target")
    best = target.isel(estimator=int(target.argmax("estimator")))
    assert f"Best: {best['estimator'].item()} {best.item():.3g};" in plot.caption(drawn, "ranking", by="bias_p")


def test_exact_drawn_and_replayed_look_different(drawn: xr.Dataset) -> None:
    figure = plot.ranking(drawn)
    axes = figure.axes[0]
    edges = {name: line.get_markeredgecolor() for name, line in points(axes).items()}
    assert (edges["BP"], edges["mine"]) == ("black", "white")
    styles = [bars.get_linestyle()[0][1] for bars in axes.collections if hasattr(bars, "get_segments")]
    assert any(style is not None for style in styles), "bars of replayed ones are dotted"
    assert any(style is None for style in styles)
    assert {"drawn", "replayed", "exact"} <= set(words(figure).splitlines())
    text = plot.caption(drawn, "ranking")
    assert "evaluated once and exact (black edges): BP" in text
    assert "Derivatives replayed from the known gradient (dotted bars): FG-A" in text


def test_a_name_that_begins_like_another_has_its_own_description() -> None:
    plain, replayed = fgvar.scheme("FG-W"), fgvar.scheme("FG-W", oracle=fgvar.oracles.Replay())
    dataset = fgvar.measure({"mine: Replay()": replayed, "mine": plain, "mine: jvp": plain}, problem(), draws=64)
    for few in (dataset, dataset.sel(estimator=["mine", "mine: Replay()"])):
        text = plot.caption(few, "ranking")
        assert "Derivatives replayed from the known gradient (dotted bars): mine: Replay().\n" in f"{text}\n"


def test_replayed_is_what_an_oracle_replays(drawn: xr.Dataset) -> None:
    described = {"mine": "ReplayBuffer()", "FG-A": "Mine(of=Estimator(oracle=Replay()))", "BP": "ExactGradient()"}
    lines = "\n".join(f"{name}: {words}" for name, words in described.items())
    text = plot.caption(drawn.assign_attrs(estimators=lines), "ranking")
    assert "Derivatives replayed from the known gradient (dotted bars): FG-A.\n" in text


def test_a_tradeoff_knows_limits_zeros_and_what_is_no_number(
    drawn: xr.Dataset, exact: xr.Dataset, few: xr.Dataset
) -> None:
    text = plot.caption(drawn, "tradeoff")
    assert "is at most so large: mine, FG-A." in text
    assert "On an edge: 0." in text
    axes = plot.tradeoff(drawn).axes[0]
    at = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    assert at["BP"] == (axes.get_xlim()[0], axes.get_ylim()[0])
    target = drawn.sel(estimator=LONG, layer="perturbed", reference="target")
    assert at[LONG][1] == pytest.approx(float(target["sq_bias"] / target["gradient_norm"] ** 2))
    axes = plot.tradeoff(exact).axes[0]
    at = {line.get_label(): (line.get_xdata()[0], line.get_ydata()[0]) for line in axes.lines}
    assert at["FG-W"] == pytest.approx((7.0, axes.get_ylim()[0]))
    assert "mine: too few draws" in words(plot.tradeoff(few))


@pytest.mark.parametrize(
    ("estimator", "known"),
    [
        (fgvar.scheme("FG-W"), True),
        (fgvar.scheme("FG-W", oracle=fgvar.oracles.Replay()), True),
        (fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=fgvar.sampling.Draw(2)), False),
        (fgvar.scheme("FG-W", space=fgvar.WeightSpace(per_tensor=True)), False),
        (fgvar.scheme("FG-W", space=fgvar.WeightSpace(keep=fgvar.transforms.Magnitude(0.4))), False),
        (fgvar.scheme("FG-W", oracle=fgvar.oracles.CentralDifference()), False),
        (fgvar.scheme("FG-W", combine=fgvar.combine.Normalised()), False),
        (fgvar.scheme("FG-W", noise=fgvar.Rademacher()), False),
        (fgvar.scheme("LG-FG-W"), False),
        (fgvar.scheme("FG-A"), False),
    ],
)
def test_theory_is_of_the_fields_own_fg_w_alone(estimator: Any, known: bool) -> None:
    measured = xr.Dataset(coords={"estimator": ["FG-W"]}, attrs={"estimators": f"FG-W: {estimator!r}"})
    assert theory_lines.known(measured) == known
    assert not theory_lines.known(measured.assign_coords(estimator=["mine"]))


def test_lines_of_equal_error_have_one_sum(drawn: xr.Dataset) -> None:
    axes = plot.tradeoff(drawn).axes[0]
    lines = [line for line in axes.lines if line.get_linestyle() == "--"]
    assert lines
    for line in lines:
        total = line.get_xdata() + line.get_ydata()
        np.testing.assert_allclose(total, total[0])


def test_laws_of_draws_are_their_histograms(drawn: xr.Dataset, few: xr.Dataset) -> None:
    figure = plot.draws(drawn)
    axes = figure.axes[0]
    means = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "|" and line.get_color() == "black"]
    expected = drawn["draw_cosine_target"].sel(layer="perturbed").mean("draw").values
    assert means == pytest.approx(expected)
    assert plot.draws(few, of="square").axes[0].get_xlabel() == "‖ĝ − target‖²"
    broken = drawn.copy(deep=True)
    broken["draw_cosine_target"].loc[{"estimator": "mine"}] = np.nan
    assert "no draws" in words(plot.draws(broken))


def test_axes_that_are_given_are_drawn_on(drawn: xr.Dataset) -> None:
    figure = Figure((6, 4))
    left, right = figure.subplots(1, 2)
    assert plot.ranking(drawn, ax=left) is figure
    assert plot.draws(drawn, ax=right, legend=False) is figure
    assert left.get_legend() is not None
    assert right.get_legend() is None
    four = Figure((8, 4))
    assert plot.layers(drawn, axes=four.subplots(1, 4)) is four
    with pytest.raises(ValueError, match=r"got 2 axes, expected 4: make them by plt\.subplots\(1, 4\)"):
        plot.layers(drawn, axes=[left, right])


def test_settings_are_back_and_notebooks_see_a_picture(drawn: xr.Dataset) -> None:
    before = dict(mpl.rcParams)
    figure = plot.ranking(drawn)
    assert dict(mpl.rcParams) == before
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_files_have_equal_bytes(drawn: xr.Dataset, tmp_path) -> None:
    for name in ("one", "two"):
        for kind in ("pdf", "svg", "png"):
            plot.save(plot.tradeoff(drawn), tmp_path / f"{name}.{kind}", "A caption.")
    for kind in ("pdf", "svg", "png", "txt"):
        assert (tmp_path / f"one.{kind}").read_bytes() == (tmp_path / f"two.{kind}").read_bytes(), kind
    pdf = (tmp_path / "one.pdf").read_bytes()
    assert b"/FontFile2" in pdf
    assert b"/Type3" not in pdf
    assert plot.svg(plot.tradeoff(drawn)).startswith("<svg")
    assert [path.name for path in plot.save(Figure((1, 1)), tmp_path / "both")] == ["both.pdf", "both.png"]
    with pytest.raises(ValueError, match="unknown format 'jpg'; did you mean 'png'"):
        plot.save(Figure((1, 1)), tmp_path / "a.jpg")


@pytest.mark.parametrize("count", [1, 5, 13])
@pytest.mark.parametrize("place", [("icml", 1), ("iclr", 2)], ids=str)
def test_a_legend_is_as_wide_as_its_sheet_at_most_and_its_rows_are_even(place: tuple[Any, Any], count: int) -> None:
    names = [f"estimator {'i' * (7 * k % 23)}{k}" for k in range(count)]
    with plot.venue(place[0], columns=place[1]) as here:
        sheet = plot.Sheet(here)
        handles = [Line2D([], [], label=name) for name in names]
        sheet.grid(1, 1, head=sheet.head(handles), height=1.0)
        sheet.legend(handles)
        figure = sheet.settle()
        (legend,) = figure.legends
        assert legend.get_window_extent().width <= figure.bbox.width
        columns = legend._ncols
        assert columns * -(-count // columns) - count < columns, "a column more would not be filled"
        assert columns > 1 or count == 1
