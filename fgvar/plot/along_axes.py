"""Sweeps: one quantity over a numeric axis, for each value of another, with fitted slopes and predicted lines."""

import textwrap
from collections.abc import Mapping
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fgvar.plot import drawing, limits, marks, panel, series, swept
from fgvar.plot import looks as styles
from fgvar.plot.looks import Look, Wanted
from fgvar.plot.sheet import Sheet
from fgvar.plot.swept import Swept
from fgvar.plot.venues import here

PREDICTED: dict[str, Any] = {"linewidth": 0.8, "zorder": 1.5}


def sweep(
    dataset: xr.Dataset,
    *,
    x: str | None = None,
    y: str = "relative_variance",
    hue: str | None = "estimator",
    col: str | None = None,
    reference: str = "target",
    layer: str = "perturbed",
    ax: Axes | None = None,
    legend: bool = True,
    looks: Mapping[str, Wanted] | None = None,
) -> Figure:
    """Draw a quantity over an axis of a sweep, a line for each estimator, in bands of 95 % intervals.

    Several seeds are averaged, in intervals by Student's t of their spread. On two log axes the legend has the slope
    of each line, with its 95 % interval; of several panels `fgvar.plot.caption` has them. Where there is a
    prediction, a variable ``<y>_theory`` of the dataset, or d + 1 of FG-W's relative variance, it is the line, and
    what was measured are points with bars. What is not above 0 stands on the edge of a log axis.

    Args:
        dataset: of `fgvar.sweep` over cells that return measurements, or any over a numeric dim.
        x: a dim with numbers; default: the one with the most values.
        y: the variable.
        hue: the dim whose values are lines; None where there is none.
        col: one more dim, a panel for each value.
        reference: of cosines, slopes, biases and efficiencies: "target" or "backprop".
        layer: "perturbed" is all that an estimator estimates.
        ax: to draw on in place of a figure of its own, of one panel.
        legend: with what tells marks apart.
        looks: name → a colour, a colour and a marker, or a `Look`; default: `fgvar.plot.assign`.

    Raises:
        TypeError: no dataset.
        ValueError: no such variable, dim, reference or layer; no numeric axis; dims that are neither x, hue, col nor
            seed; axes for several panels.

    Example:
        >>> import xarray as xr
        >>> ds = xr.Dataset({"snr": ("width", [1.0, 0.5, 0.25])}, {"width": [8, 16, 32]})
        >>> sweep(ds, y="snr", hue=None).axes[0].get_xlabel()
        'width'
    """
    its = swept.of(dataset, x=x, y=y, hue=hue, col=col, reference=reference, layer=layer)
    styled = its.looks(looks)
    if ax is not None and len(its.panels) > 1:
        raise ValueError(f"col={col!r} makes {len(its.panels)} panels, and ax is one; choose by dataset.sel({col}=…)")
    handles = _handles(its, styled) if legend else []
    if len(its.panels) == 1:
        return panel.drawn(ax, lambda axes: _draw(axes, its, its.data, styled), handles, height=2.1)
    with here() as place:
        sheet = Sheet(place)
        across = min(len(its.panels), 3 if place.wide else 2)
        down = -(-len(its.panels) // across)
        grid = sheet.grid(down, across, head=sheet.head(handles), height=1.65, sharey=True, sharex=True)
        for i, (axes, (title, data)) in enumerate(zip(grid.flat, its.panels, strict=False)):
            _draw(cast(Axes, axes), its, data, styled)
            axes.set_title(styles.plain(title))
            axes.label_outer()
            if i + across >= len(its.panels):  # also above a place without a panel, which counts as an inner one
                axes.tick_params(labelbottom=True)
                axes.set_xlabel(_x(its))
        for axes in list(grid.flat)[len(its.panels) :]:
            axes.set_visible(False)
        sheet.legend(handles)
        return sheet.settle()


def _draw(axes: Axes, its: Swept, data: xr.Dataset, styled: Mapping[str, Look]) -> None:
    places = data[its.x].values.astype(float)
    _scale(axes, its, places)
    gaps: dict[str, list[str]] = {}
    for name, one in its.lines(data):
        found, theory = its.series(one), its.theory(one)
        marks.band(axes, places, found, styled[name], label=name, joined=theory is None)
        if theory is not None:
            _predict(axes, places, series.without_rounding(theory, its.y), styled[name])
        for why in dict.fromkeys(filter(None, found.missing)):
            gaps.setdefault(why, []).append(its.named(name))
    told = [f"{styles.plain(', '.join(filter(None, names))) or its.y}: {why}" for why, names in gaps.items()]
    told += [f"{styles.plain(its.placeless)}: no place on the axis"] if its.placeless else []
    if told:
        words = "\n".join(textwrap.fill(one, 44) for one in told)
        axes.text(0.02, 0.98, words, transform=axes.transAxes, va="top", **marks.WORD)
    axes.set(xlabel=_x(its), ylabel=styles.plain(its.called))


def _x(its: Swept) -> str:
    return styles.plain(its.x.replace("_", " "))


def _predict(axes: Axes, places: NDArray[np.float64], theory: NDArray[np.float64], look: Look) -> None:
    """A line; what a log axis cannot show, as dashes on its edge."""
    on_edge = (theory <= 0) & (axes.get_yscale() == "log")
    how = PREDICTED | {"color": look.color}
    axes.plot(places, np.where(on_edge, np.nan, theory), **how)
    if on_edge.any():  # an empty line that is not clipped would take room in the layout
        low = np.full(on_edge.sum(), axes.get_ylim()[0])
        axes.plot(
            places[on_edge], low, **how | {"linestyle": "none", "marker": "_", "markersize": 9, "clip_on": False}
        )


def _scale(axes: Axes, its: Swept, places: NDArray[np.float64]) -> None:
    """A log axis of positive places; of quantities as `fgvar.plot.limits.linear` says."""
    if its.log_x:
        room = max((places.max() / places.min()) ** 0.06, 1.1)
        axes.set_xscale("log")
        axes.set_xlim(places.min() / room, places.max() * room)
        few = places if len(places) <= 5 else places[:: -(-len(places) // 5)]
        drawing.ticks(axes.xaxis, few)
    drawn = its.drawn()
    if its.log_y:
        around = limits.positive(np.concatenate([one.extent for one in drawn]))
        drawing.log(axes, "y", around, np.concatenate([one.value for one in drawn]))
        return
    values = np.concatenate([one.ends for one in drawn])
    known = values[np.isfinite(values)]
    if known.size:
        low, high = min(float(known.min()), 0.0), max(float(known.max()), 0.0)
        room = 0.05 * (high - low or 1.0)
        axes.set_ylim(low - (room if low < 0 else 0), high + room)


def _handles(its: Swept, styled: Mapping[str, Look]) -> list[Artist]:
    """Estimators with their slopes; what is drawn, exact or replayed; predictions."""
    slopes = its.slopes().get("", {})  # of several panels the caption says them
    handles: list[Artist] = []
    for name, look in styled.items():
        told = f"{its.named(name)}, slope {slopes[name]}" if name in slopes else its.named(name)
        if name:
            how = styles.point_style(look) if name in its.predicted else styles.line_style(look)
            handles.append(Line2D([], [], label=styles.plain(told), **how))
    made = {series.made(one, its.y) for _, data in its.panels for _, one in its.lines(data)}
    handles += marks.legend_made(made, lines=True)
    if its.predicted:
        handles.append(Line2D([], [], label="predicted", **PREDICTED | {"color": "0.35"}))
    return handles
