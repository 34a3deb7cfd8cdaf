"""Parts of panels: repeats in their band, and logarithmic axes with few plain numbers."""

from collections.abc import Collection
from typing import Any, Literal, cast

import numpy as np
import seaborn
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis, XAxis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike

CLEAR = {"x": 0.18, "y": 0.12}  # of an axis: where its numbers begin, if 0 stands on its edge
DIGIT = 0.5  # width of one, in font sizes; a point has half of it
EDGE = 0.1  # of an axis: room between what stands for 0 and the numbers


class Apart(FuncFormatter):
    """Numbers side by side: one that would lie on the one before it is left out."""

    def format_ticks(self, values: list[float]) -> list[str]:
        labels: list[str] = super().format_ticks(values)
        axes = cast(Axis, self.axis).axes
        size = float(axes.xaxis.get_major_ticks(1)[0].label1.get_fontsize())
        letter = DIGIT * size * cast(Figure, axes.get_figure(root=True)).dpi / 72
        middles = axes.get_xaxis_transform().transform([(value, 0.0) for value in values])[:, 0]
        end, shown = -np.inf, []
        for middle, label in zip(middles, labels, strict=True):
            half = (len(label) - label.count(".") / 2) * letter / 2
            shown.append(label if middle - half > end + letter / 2 else "")
            end = middle + half if shown[-1] else end
        return shown


def repeated(
    axes: Axes, x: xr.DataArray, values: xr.DataArray, *, estimator: str, errorbar: tuple[str, float], **how: Any
) -> None:
    """Draw repeats of a measurement: seaborn's line through their ``estimator``, in its band, over the other dims.

    ``x`` has some of the dims of ``values``; see `seaborn.lineplot` for ``estimator`` and ``errorbar``. What
    comes with an interval of its own is drawn by `fgvar.plot.marks`.
    """
    at = x.broadcast_like(values).transpose(*values.dims)
    seaborn.lineplot(
        x=at.values.ravel(), y=values.values.ravel(), ax=axes, legend=False, estimator=estimator, errorbar=errorbar,
        err_kws={"linewidth": 0, "alpha": 0.25}, **how,
    )  # fmt: skip


def symlog(
    axes: Axes, which: Literal["x", "y"], linear: float, limits: tuple[float, float], *, sparse: bool = False
) -> None:
    """Make an axis logarithmic, but linear within ±``linear`` (a power of ten), so that 0 is on it.

    ``sparse`` writes numbers at 0 and the outermost powers of ten alone.
    """
    (axes.set_xscale if which == "x" else axes.set_yscale)("symlog", linthresh=linear, linscale=0.6)
    axes.set(**{f"{which}lim": limits})
    reach = max(limits[1], -limits[0]) / linear
    decades = linear * 10.0 ** np.arange(0, np.ceil(np.log10(reach)) + 1)
    axis = axes.xaxis if which == "x" else axes.yaxis
    labelled = np.array([*-decades[::-1], 0.0, *decades])
    labelled = labelled[(labelled >= limits[0]) & (labelled <= limits[1])]
    ticks(axis, labelled, {0, labelled.min(), labelled.max()} if sparse else None)


def log(axes: Axes, which: Literal["x", "y"], limits: tuple[float, float], values: ArrayLike = ()) -> None:
    """Make an axis logarithmic; limits without two powers of ten between them widen to the next ones.

    Where some of the ``values`` that it shows are 0 or less, its lower edge stands for them, is away from all powers
    of ten, and says so.
    """
    low, high = np.log10(limits)
    if np.floor(high) - np.ceil(low) < 1:
        low, high = np.floor(low), np.ceil(high)
    least = np.fmin.reduce(np.asarray(values, float), axis=None, initial=np.inf)
    edge = "" if least > 0 else "0" if least == 0 else "≤ 0"
    low -= EDGE * (high - low) if edge else 0.0
    axes.set(**{f"{which}scale": "log", f"{which}lim": (10**low, 10**high)})
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    apart = powers[powers > low + CLEAR[which] * (high - low)] if edge else powers  # or its label would lie on the 0
    powers = apart if apart.size else powers
    most = 5 if which == "y" else 3  # labels stand side by side on an x axis
    powers = powers[:: -(-len(powers) // most)]
    labels = {10.0**power: rf"$\mathdefault{{10^{{{int(power)}}}}}$" for power in powers}
    labels |= {10**low: edge} if edge else {}
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(list(labels)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: labels.get(value, "")))
    axis.set_minor_locator(NullLocator())  # minor ticks would take most of the time of drawing


def log_steps(axes: Axes, steps: ArrayLike) -> None:
    """Make the x axis a log axis of training steps, with plain numbers at it.

    Where 0 is one of them (before training), it is linear up to the first step above 0.
    """
    steps = np.asarray(steps, float)
    after = steps[steps > 0] if (steps > 0).any() else np.ones(1)
    low, high = after.min() / 1.4, after.max() * 1.4
    decades = 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    numbers = decades if len(decades) > 1 else np.unique([after.min(), after.max()])
    if steps.min() > 0:
        axes.set_xscale("log")
        axes.set_xlim(low, high)
    else:
        axes.set_xscale("symlog", linthresh=after.min(), linscale=0.6)
        axes.set_xlim(steps.min() - 0.25 * after.min(), high)
        numbers = np.concatenate([[0.0], numbers])
    ticks(axes.xaxis, numbers)


def ticks(axis: Axis, places: ArrayLike, written: Collection[float] | None = None) -> None:
    """Ticks at these places, ascending, with plain numbers at those that are ``written`` (default: all)."""

    def number(value: float, _position: int) -> str:
        return f"{value:g}".replace("-", "−") if written is None or value in written else ""

    axis.set_major_locator(FixedLocator(np.asarray(places, float).tolist()))
    axis.set_major_formatter((Apart if isinstance(axis, XAxis) else FuncFormatter)(number))
    axis.set_minor_locator(NullLocator())
