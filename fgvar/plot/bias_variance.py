"""Squared bias against variance: what one estimate's error is made of."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fgvar.plot import datasets, drawing, intervals, limits, marks, panel, series
from fgvar.plot import looks as styles
from fgvar.plot.looks import Look, Wanted

EQUAL: dict[str, Any] = {"color": "0.6", "linewidth": 0.5, "linestyle": (0, (4, 2)), "zorder": 1}
LARGER = 1.6  # markers, which stand alone


def tradeoff(
    dataset: xr.Dataset,
    *,
    layer: str = "perturbed",
    ax: Axes | None = None,
    legend: bool = True,
    looks: Mapping[str, Wanted] | None = None,
) -> Figure:
    """Draw squared bias against variance, both over the target's squared norm, with lines of equal error.

    The expected squared error of an estimate is their sum. Hollow points with an arrow are limits: their bias is not
    told from 0, and at most so large. What is 0, or no number, stands on the edge of the axis.

    Args:
        dataset: of `fgvar.measure`; of several steps the last is drawn, of several seeds their mean.
        layer: "perturbed" is all that an estimator estimates.
        ax: to draw on in place of a figure of its own.
        legend: with what tells marks apart.
        looks: name → a colour, a colour and a marker, or a `Look`; default: `fgvar.plot.assign`.

    Raises:
        TypeError: no dataset.
        ValueError: no measurement, or several; without squared biases, or such a layer.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> rows = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A")}
        >>> tradeoff(fgvar.measure(rows, problem, route="exact")).axes[0].get_xlabel()
        'variance / ‖target‖²'
    """
    data = split(dataset, layer)
    styled = {name: look for name, look in styles.of(dataset, looks).items() if name in data["estimator"]}
    made = {name: series.made(data.sel(estimator=name), "relative_variance") for name in styled}
    handles: list[Artist] = [
        *marks.legend(styled, made),
        *marks.legend_made(set(made.values())),
        Line2D([], [], label="equal error", **EQUAL),
    ]
    if bool(data["limited"].any()):
        limit = styles.point_style(Look("0.35", "v"), hollow=True)
        handles.append(Line2D([], [], label="bias at most (97.5 %)", **limit))
    return panel.drawn(ax, lambda axes: _draw(axes, data, styled), handles if legend else [], height=2.3)


def split(dataset: xr.Dataset, layer: str) -> xr.Dataset:
    """Relative variance and squared bias of each estimator, and whether the bias is a limit alone.

    Raises:
        ValueError: a dataset without squared biases.
    """
    data = datasets.one(dataset, layer=layer)
    datasets.require(data, {"sq_bias": ("estimator", "reference"), "gradient_norm": ()}, "fgvar.measure")
    refuted = series.biased(data)
    data = data.sel(reference="target")
    bias = data["relative_sq_bias"]
    high = data.get("relative_sq_bias_high", bias)
    names = datasets.names(data, "estimator")
    seen = xr.DataArray([series.is_exact(data) or name in refuted for name in names], dims="estimator") | (
        high == bias
    )
    shown = xr.where(seen, bias, high)
    shown = shown.where(shown.isnull() | (shown > series.UNSEEN**2), 0.0)
    return data.assign(bias_drawn=shown, bias_high=high, limited=(~seen & shown.notnull() & (shown > 0)))


def _draw(axes: Axes, data: xr.Dataset, styled: Mapping[str, Look]) -> None:
    variance = "relative_variance"
    found = {name: series.of(data.sel(estimator=name), variance).without_rounding(variance) for name in styled}
    x = np.array([one.value[0] for one in found.values()])
    y = np.array([float(data["bias_drawn"].sel(estimator=name)) for name in styled])
    ends = np.array([(o.value, o.low, o.high) for o in found.values()]).ravel()
    drawing.log(axes, "x", limits.positive(ends, room=3), x)
    drawing.log(axes, "y", limits.positive(y, room=5), y)
    _equal(axes)
    told: list[str] = []
    for (name, its), bias in zip(found.items(), y, strict=True):
        one = data.sel(estimator=name)
        if why := its.missing[0] or series.of(one, "bias_drawn").missing[0]:
            told.append(f"{styles.plain(name)}: {why}")
            continue
        _point(axes, its, bias, one, styled[name], name)
    if told:
        axes.text(0.98, 0.98, "\n".join(told), transform=axes.transAxes, va="top", ha="right", **marks.WORD)
    axes.set(xlabel="variance / ‖target‖²", ylabel="squared bias / ‖target‖²")


def _point(axes: Axes, its: series.Series, bias: float, one: xr.Dataset, look: Look, name: str) -> None:
    """A point with the interval of its variance; an arrow down from a limit."""
    limited = bool(one["limited"])
    x = max(its.value[0], axes.get_xlim()[0]) if its.value[0] <= 0 else its.value[0]
    y = max(bias, axes.get_ylim()[0]) if bias <= 0 else bias
    how = marks.style(look, its.made, hollow=limited) | {"label": name, "zorder": 3, "clip_on": False}
    how["markersize"] *= LARGER
    axes.plot(x, y, **how)
    arms = its.bars[:, 0]
    if arms.any() and its.value[0] > 0:
        axes.errorbar(x, y, xerr=arms[:, None], fmt="none", ecolor=look.color, elinewidth=0.7, zorder=2.5)
    if limited:
        axes.annotate(
            "", (x, y), (0, -11), textcoords="offset points", annotation_clip=False,
            arrowprops={"arrowstyle": "<-", "color": look.color, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 1},
        )  # fmt: skip
    elif "relative_sq_bias_se" in one and not series.is_exact(one) and bias > 0:
        half = intervals.Z * float(one["relative_sq_bias_se"])
        if np.isfinite(half):
            axes.errorbar(x, y, yerr=[[min(half, 0.999 * y)], [half]], fmt="none", ecolor=look.color, elinewidth=0.7)


def _equal(axes: Axes) -> None:
    """Lines along which squared bias and variance have one sum, a power of ten."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    powers = np.arange(np.floor(np.log10(max(left, low))), np.ceil(np.log10(right + high)) + 1)
    if len(powers) > 7:
        powers = powers[:: int(np.ceil(len(powers) / 7))]
    for total in 10.0**powers:
        x = np.sort(np.concatenate([np.geomspace(left, right, 400), total - np.geomspace(low, high, 400)]))
        y = total - x
        shown = (x >= left) & (x <= right) & (y >= low) & (y <= high)
        if shown.any():
            axes.plot(x[shown], y[shown], **EQUAL)
            axes.text(x[shown][0], y[shown][0], f" {total:g}", ha="left", va="top", **marks.WORD)
