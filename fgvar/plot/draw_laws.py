"""Laws of per-draw scalars: how cosines, slopes and squared lengths of single estimates scatter."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from fgvar.errors import unknown
from fgvar.measurement.stored import UNMEASURED, explained, flags, reason
from fgvar.plot import datasets, marks, panel
from fgvar.plot import looks as styles
from fgvar.plot.by_layer import stripes
from fgvar.plot.looks import Look, Wanted
from fgvar.plot.ranked import NULL

ROW, LINE = 0.3, 0.15  # inches of a row, and of a line of its name
BINS = 20  # of one histogram, over its own range
FINEST = 200  # bins that the whole axis would have
CALLED = {
    "square": "‖ĝ − target‖²",
    "along_target": "⟨ĝ − target, target⟩",
    "along_backprop": "⟨ĝ − target, backprop⟩",
    "cosine_target": "cosine to target of one draw",
    "cosine_backprop": "cosine to backprop of one draw",
}
MEAN: dict[str, Any] = {"color": "black", "marker": "|", "markersize": 7, "markeredgewidth": 0.9, "linestyle": "none"}


def draws(
    dataset: xr.Dataset,
    *,
    of: str = "cosine_target",
    layer: str = "perturbed",
    ax: Axes | None = None,
    legend: bool = True,
    looks: Mapping[str, Wanted] | None = None,
) -> Figure:
    """Draw the law of a per-draw scalar as a histogram in each estimator's row, with its mean.

    Cosines stand against the grey band where 95 % of single random directions lie.

    Args:
        dataset: of ``fgvar.measure(…, keep_draws=True)``.
        of: "cosine_target", "cosine_backprop", "square", "along_target" or "along_backprop".
        layer: "perturbed" is all that an estimator estimates.
        ax: to draw on in place of a figure of its own.
        legend: with what tells marks apart.
        looks: name → a colour, a colour and a marker, or a `Look`; default: `fgvar.plot.assign`.

    Raises:
        ValueError: a dataset without draws, or along other dims, too; no such scalar or layer.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=64, keep_draws=True)
        >>> draws(ds).axes[0].get_xlabel()
        'cosine to target of one draw'
    """
    data = kept(dataset, of, layer)
    styled = styles.of(data, looks)
    handles: list[Artist] = [Line2D([], [], label="mean", **MEAN)]
    if of.startswith("cosine"):
        handles.append(Patch(**NULL, label="95 % of random directions"))

    lines = max(label.count("\n") + 1 for label in panel.wrapped(datasets.names(data, "estimator")))
    row = max(ROW, LINE * lines)
    height = 0.4 + max(row * data.sizes["estimator"], 0.5)

    def draw(axes: Axes) -> None:
        _laws(axes, data, of, styled)
        axes.set_xlabel(CALLED[of])

    return panel.drawn(ax, draw, handles if legend else [], height=height)


def kept(dataset: xr.Dataset, of: str, layer: str) -> xr.Dataset:
    """The scalars of one layer's draws."""
    if of not in CALLED:
        raise ValueError(unknown("scalar", of, CALLED))
    if f"draw_{of}" not in dataset:
        raise ValueError(
            f"the dataset has no draw_{of}, as draws were not kept; measure again by "
            "fgvar.measure(…, keep_draws=True)"
        )
    data = datasets.of_layer(explained(dataset), layer)
    if more := [str(dim) for dim in data[f"draw_{of}"].dims if dim not in ("estimator", "draw")]:
        raise ValueError(
            f"the draws are of several measurements, along {', '.join(map(repr, more))}; choose one, as "
            f"dataset.isel({', '.join(f'{dim}=0' for dim in more)})"
        )
    return data


def unmeasured(data: xr.Dataset) -> dict[str, str]:
    """Estimators that a sweep's cell has no draws of → why."""
    bits = {name: flags(data.sel(estimator=name)) for name in datasets.names(data, "estimator")}
    none = sum(UNMEASURED.values())
    return {name: reason(int(its.max())) for name, its in bits.items() if (its & none).all()}


def _laws(axes: Axes, data: xr.Dataset, of: str, styled: Mapping[str, Look]) -> None:
    rows, whys = datasets.names(data, "estimator"), unmeasured(data)
    values = data[f"draw_{of}"].transpose("estimator", "draw").values
    low, high = _range(values, of)
    axes.set_xlim(low, high)
    if of.startswith("cosine"):
        null = float(data["cosine_null"].fillna(0))  # of a cell that failed nothing is known
        axes.axvspan(-null, null, **NULL)
    gaps: dict[float, dict[str, str]] = {}
    for row, (name, its) in enumerate(zip(rows, values, strict=True)):
        known = its[np.isfinite(its)]
        if not known.size:
            gaps[float(row)] = {name: whys.get(name) or "no draws: it needs no noise, or its reference is 0"}
            continue
        _law(axes, np.clip(known, low, high), row, styled[name], (low, high))
        axes.plot(np.clip(known.mean(), low, high), row + 0.3, zorder=4, **MEAN)
    marks.missing(axes, gaps, 1)
    stripes(axes, len(rows))
    axes.set_yticks(range(len(rows)), panel.wrapped(rows), fontsize="small")


def _law(axes: Axes, its: NDArray[np.float64], row: int, look: Look, ends: tuple[float, float]) -> None:
    """A histogram on the row's lower line, as high as the row; few draws, or equal ones, as ticks."""
    if len(its) < 16 or np.ptp(its) < 1e-9 * (ends[1] - ends[0]):
        axes.plot(its, np.full(len(its), row + 0.1), color=look.color, marker="|", markersize=9, linestyle="none")
        return
    bins = int(np.clip(np.ptp(its) / (ends[1] - ends[0]) * FINEST, 1, BINS))
    counts, edges = np.histogram(its, bins)
    height = 0.78 * counts / counts.max()
    base = np.full(len(counts) + 1, row + 0.38)
    tops = base - np.append(height, height[-1])
    axes.fill_between(edges, base, tops, step="post", color=look.color, alpha=0.45, linewidth=0, zorder=2)
    axes.step(edges, tops, where="post", color=look.color, linewidth=0.7, zorder=3)


def _range(values: NDArray[np.float64], of: str) -> tuple[float, float]:
    """What the axis shows: all cosines, and of other scalars the central 99 % with 0."""
    known = values[np.isfinite(values)]
    if not known.size:
        return -1.0, 1.0
    if of.startswith("cosine"):
        most = float(np.abs(known).max())
        return -min(1.05, 1.3 * most), min(1.05, 1.3 * most)
    low, high = np.quantile(known, [0.005, 0.995])
    room = 0.05 * (high - min(low, 0) or 1.0)
    return float(min(low, 0) - room), float(max(high, 0) + room)
