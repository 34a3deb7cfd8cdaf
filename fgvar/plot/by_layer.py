"""Gradient quality layer by layer: bias, relative variance and both cosines of one measurement."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fgvar.plot import datasets, drawing, limits, marks, series, theory_lines
from fgvar.plot import looks as styles
from fgvar.plot.looks import Look, Wanted
from fgvar.plot.sheet import Sheet, given
from fgvar.plot.venues import here

TITLES = {
    ("bias_p", "target"): "$p$-value of bias",
    ("relative_bias", "target"): "bias / target",
    ("relative_variance", "target"): "relative variance",
    ("cosine", "target"): "cosine to target",
    ("cosine", "backprop"): "cosine to backprop",
}
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cosine", "cosine_se"), ("estimator", "reference", "layer")),
    **dict.fromkeys(("relative_variance", "relative_variance_se"), ("estimator", "layer")),
    **dict.fromkeys(("gradient_norm", "cosine_null", "size"), ("layer",)),
}
CERTAIN = ("bias_p", "relative_bias")  # quantities without an error
THRESHOLD: dict[str, Any] = {"color": "black", "linestyle": (0, (3, 1.5)), "linewidth": 0.6, "zorder": 1}
TICK: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 5, "markeredgewidth": 0.7, "zorder": 1.5}
STRIPE = 0.15  # inches of a row, where few estimators share it
ONE = 0.045  # inches of an estimator in a row


def layers(
    dataset: xr.Dataset, *, axes: Sequence[Axes] | None = None, looks: Mapping[str, Wanted] | None = None
) -> Figure:
    """Draw bias, relative variance and both cosines, a row for each layer, with 95 % intervals.

    The bias is the p-value of its test where numbers were drawn, and ‖E ĝ − target‖/‖target‖ where they are exact.
    Layers that all estimators learn exactly have no row. What is missing says why; grey ticks are the cosine of one
    random direction, black ones FG-W in theory.

    Args:
        dataset: of `fgvar.measure`; of several steps the last is drawn, of several seeds their mean.
        axes: four to draw on in place of a figure of its own.
        looks: name → a colour, a colour and a marker, or a `Look`; default: `fgvar.plot.assign`.

    Raises:
        TypeError: no dataset.
        ValueError: no measurement, or several along other dims; another number of axes.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=64)
        >>> len(layers(ds).axes)
        4
    """
    styled = styles.of(dataset, looks) if isinstance(dataset, xr.Dataset) else {}
    data = prepared(dataset)
    found = {name: styled[name] for name in styles.in_order(datasets.names(data, "estimator"))}
    columns = columns_of(data)
    if axes is not None:
        panels = given(axes, len(columns))
        _draw(panels, data, found, columns, labelled=[0])
        panels[0].legend(handles=_handles(data, found))
        return cast(Figure, panels[0].get_figure(root=True))
    with here() as place:
        sheet = Sheet(place)
        handles = _handles(data, {sheet.wrapped(name, sheet.share(len(found))): look for name, look in found.items()})
        down, across = (1, 4) if sheet.wide else (2, 2)
        height = 0.45 + data.sizes["layer"] * max(STRIPE, ONE * len(found))
        grid = sheet.grid(down, across, head=sheet.head(handles), height=height)
        _draw(list(grid.flat), data, found, columns, labelled=range(0, 4, across), narrow=not sheet.wide)
        sheet.legend(handles)
        return sheet.settle()


def prepared(dataset: xr.Dataset) -> xr.Dataset:
    """One measurement over the layers that have a row."""
    if isinstance(dataset, xr.Dataset):
        datasets.require(dataset, NEEDED, "fgvar.measure")
        dataset = dataset.assign(fg_w_theory=theory_lines.relative_variance(dataset))
    data = datasets.one(dataset)
    return data.sel(layer=estimated(data))


def columns_of(data: xr.Dataset) -> list[tuple[str, str]]:
    """The quantities that are drawn, each with its reference."""
    return [key for key in TITLES if key[0] != ("bias_p" if series.is_exact(data) else "relative_bias")]


def _draw(
    panels: Sequence[Axes],
    data: xr.Dataset,
    found: Mapping[str, Look],
    columns: Sequence[tuple[str, str]],
    *,
    labelled: Sequence[int],
    narrow: bool = False,
) -> None:
    rows = datasets.names(data, "layer")
    for j, (axes, (variable, reference)) in enumerate(zip(panels, columns, strict=True)):
        chosen = data.sel(reference=reference)
        if variable == "relative_bias":
            chosen = chosen.assign(relative_bias=chosen["relative_sq_bias"].clip(min=0) ** 0.5)
        _scale(axes, chosen, variable, found)
        _rows(axes, chosen, variable, found)
        axes.set_yticks(range(len(rows)), [_short(row, narrow) for row in rows] if j in labelled else [])
        title = TITLES[variable, reference]
        # Centred, they would be wider than a narrow panel.
        axes.set_title(title, loc="right", fontsize="small") if narrow else axes.set_title(title)


def _short(name: str, narrow: bool) -> str:
    """A layer's name without its middle, where it would leave no room for the panels."""
    most = 26 if narrow else 34
    return styles.plain(name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}")


def _scale(axes: Axes, data: xr.Dataset, variable: str, found: Mapping[str, Look]) -> None:
    """The x axis of one quantity, and what it is to be read against."""
    rows = np.arange(data.sizes["layer"])
    shown = [_series(data, name, variable).value for name in found]
    if variable == "bias_p":
        threshold = limits.bias(data)[0]
        low = np.fmin(np.nanmin(data["bias_p"].values, initial=1.0), threshold)
        drawing.log(axes, "x", (max(float(low), limits.FLOOR) / 3, 2.0))
        axes.axvline(threshold, label="threshold", **THRESHOLD)
    elif variable == "relative_bias":
        drawing.log(axes, "x", limits.positive(data[variable].values, floor=series.UNSEEN), shown)
    elif variable == "cosine":
        linear, around = limits.cosine(data)
        drawing.symlog(axes, "x", linear, around, sparse=True)
        defined = data["cosine"].notnull().any("estimator").values
        null = data["cosine_null"].values[defined]
        axes.plot(null, rows[defined], label="random direction", color=styles.GREY, **TICK)
    else:
        low, high = limits.variance(data)
        expected = data["fg_w_theory"].values
        drawing.log(axes, "x", (low, float(np.nanmax(expected, initial=high / 1.6)) * 1.6), shown)
        if np.isfinite(expected).any():
            at = rows + _shifts(found)[theory_lines.FG_W]
            axes.plot(expected, at, label="FG-W, theory", color="black", **TICK)


def _series(data: xr.Dataset, name: str, variable: str) -> series.Series:
    """Numbers of an estimator: those that are 0 but for rounding are 0."""
    its = series.of(data.sel(estimator=name), variable, certain=variable in CERTAIN)
    if variable == "bias_p":
        return its.at_least(limits.FLOOR)
    return its.without_rounding(variable)


def _rows(axes: Axes, data: xr.Dataset, variable: str, found: Mapping[str, Look]) -> None:
    """One row a layer, with every estimator's mean and error in it, each a little lower than the one before."""
    count = data.sizes["layer"]
    gaps: dict[float, dict[str, str]] = {}
    for name, shift in _shifts(found).items():
        its = _series(data, name, variable)
        marks.rows(axes, its, np.arange(count, dtype=float) + shift, found[name], label=name)
        for row, why in enumerate(its.missing):
            if why:
                gaps.setdefault(float(row), {})[name] = why
    stripes(axes, count)
    marks.missing(axes, gaps, len(found))


def stripes(axes: Axes, count: int) -> None:
    """Rows from above, every second one grey."""
    for row in range(0, count, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0, linewidth=0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines.left.set_visible(False)
    axes.set_ylim(count - 0.5, -0.5)


def _shifts(found: Mapping[str, Look]) -> dict[str, float]:
    """Where in its row each estimator is drawn."""
    places: NDArray[np.float64] = np.linspace(-0.33, 0.33, len(found)) if len(found) > 1 else np.zeros(1)
    return dict(zip(found, places.tolist(), strict=True))


def estimated(data: xr.Dataset) -> list[str]:
    """The layers where some estimator has noise, or where nothing is defined: not those that all learn exactly."""
    exact = (data["relative_variance"].fillna(1) < series.ROUNDING).all("estimator")
    rows = datasets.names(data.isel(layer=~exact.values), "layer")
    return rows or datasets.names(data, "layer")


def _handles(data: xr.Dataset, found: Mapping[str, Look]) -> list[Line2D]:
    made = [
        series.made(data.sel(estimator=name), "cosine") for name in styles.in_order(datasets.names(data, "estimator"))
    ]
    handles = [*marks.legend(found, dict(zip(found, made, strict=True))), *marks.legend_made(set(made))]
    if not series.is_exact(data):
        handles.append(Line2D([], [], label="threshold of the bias", **THRESHOLD))
    handles.append(Line2D([], [], label="random direction", color=styles.GREY, **TICK))
    if theory_lines.known(data):
        handles.append(Line2D([], [], label="FG-W, theory", color="black", **TICK))
    return handles
