"""Weight sharing's figure: ρ over the fan-in, and the exact variance ratio, against the positions that share weights.

Run   python -m figures.weight_sharing results/weight_sharing.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fgvar.plot import Sheet, datasets, drawing, looks
from figures import command
from figures.page import Figures, Page

DIMS = ("kind", "loss", "positions", "example")
NEEDED: dict[str, tuple[str, ...]] = {"ratio": DIMS, "variance_ratio": DIMS, "fan_in": ("kind",)}
PAGE = Page("studies/weight_sharing.py", NEEDED)
TITLES = {"linear": "linear layer over tokens", "convolution": "convolution over pixels"}
UNITS = {"linear": "tokens", "convolution": "pixels"}
LOOKS = {"each position": ("#0072B2", "o"), "pooled": ("#D55E00", "s")}  # losses are no schemes


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A panel for each kind of layer: medians over the examples, in bands of all of them."""
    kinds = datasets.names(dataset, "kind")
    panels = sheet.row(len(kinds), head=0.5, height=1.75 if sheet.wide else 1.6, sharey=True)
    for axes, kind in zip(panels, kinds, strict=True):
        _panel(axes, dataset.sel(kind=kind), kind)
        axes.set_ylabel("FG-A relative to FG-W" if axes is panels[0] or not sheet.wide else "")
    handles = [
        *(
            Line2D(
                [],
                [],
                color=color,
                marker=marker,
                linestyle="none",
                markeredgecolor="white",
                label=f"loss: {loss}",
            )
            for loss, (color, marker) in LOOKS.items()
        ),
        Line2D([], [], color=looks.GREY, label="ρ / fan-in"),
        Line2D([], [], color=looks.GREY, marker="o", linestyle="none", label="variance ratio, exact"),
    ]
    sheet.legend(handles)


def _panel(axes: Axes, data: xr.Dataset, kind: str) -> None:
    positions = data["positions"].values
    axes.axhline(1, **looks.NULL)
    for loss in datasets.names(data, "loss"):
        its = data.sel(loss=loss).transpose("positions", "example")
        color, marker = LOOKS[loss]
        line: dict[str, Any] = {"color": color, "label": f"ρ / fan-in, {loss}"}
        ratio = its["ratio"] / its["fan_in"]
        drawing.repeated(axes, its["positions"], ratio, estimator="median", errorbar=("pi", 100), **line)
        points: dict[str, Any] = {"linestyle": "none", "marker": marker, "markeredgecolor": "white"}
        axes.plot(
            positions, np.nanmedian(its["variance_ratio"], axis=1), color=color, label=f"variance, {loss}", **points
        )
    axes.set(
        xscale="log",
        yscale="log",
        title=TITLES.get(kind, kind),
        xlabel=f"{UNITS.get(kind, 'positions')} that share the weights",
    )
    axes.set_xlim(positions.min() / 1.3, positions.max() * 1.3)
    drawing.ticks(axes.xaxis, positions, set(positions[::2]))
    for height, scheme, where in ((1.08, "FG-W", "bottom"), (0.92, "FG-A", "top")):
        axes.text(
            positions.min(), height, f"{scheme} is less noisy", color=looks.GREY, fontsize="x-small",
            verticalalignment=where,
        )  # fmt: skip
    drawing.ticks(axes.yaxis, [0.03, 0.1, 0.3, 1, 3, 10])


def agreement(dataset: xr.Dataset) -> NDArray[np.bool_]:
    """Where both are defined: do ρ and the variances stand on the same side of their crossovers?"""
    ratio, variances = xr.broadcast(dataset["ratio"] / dataset["fan_in"], dataset["variance_ratio"])
    defined = ratio.notnull() & variances.notnull()
    same: NDArray[np.bool_] = ((ratio < 1) == (variances < 1)).values[defined.values]
    return same


def crossing(data: xr.Dataset) -> float:
    """Positions at which the median of ρ over the fan-in reaches 1, between measured ones log-linearly; else NaN."""
    x = np.log(data["positions"].values)
    y = np.log(np.nanmedian((data["ratio"] / data["fan_in"]).transpose("positions", "example"), axis=1))
    above = np.flatnonzero((y[:-1] < 0) & (y[1:] >= 0))
    if not len(above):
        return float("nan")
    i = above[-1]
    return float(np.exp(x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i])))


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    same = agreement(dataset)
    sizes = ", ".join(f"{kind} {int(dataset['fan_in'].sel(kind=kind))}" for kind in datasets.names(dataset, "kind"))
    crossings = []
    for kind in datasets.names(dataset, "kind"):
        for loss in datasets.names(dataset, "loss"):
            where = crossing(dataset.sel(kind=kind, loss=loss))
            word = f"at {where:.0f} positions" if np.isfinite(where) else "nowhere"
            crossings.append(f"{kind}, loss {loss}: {word}")
    get = dataset.attrs.get
    return [
        "Weight sharing: activity perturbation (FG-A) against weight perturbation (FG-W) of one layer that a number "
        "of tokens or pixels share. All values are exact: closed forms for Gaussian noise given one example, without "
        "draws.",
        "Lines: ρ = ‖X‖² ‖∂L/∂Z‖² / ‖G‖² over the fan-in, from inputs, credits and gradient alone "
        "(fgvar.theory.activity_ratio). Points: variance of FG-A over that of FG-W (fgvar.theory.trace). Medians "
        f"over {dataset.sizes['example']} examples at random weights, lines in bands of all of them. Fan-in: {sizes}"
        f"; fan-out {get('fan_out', '?')}; data: {get('data', '?')}.",
        f"Above 1 perturbing weights is less noisy. In {int(same.sum())} of {same.size} problems ρ < fan-in says "
        f"which scheme has the smaller variance. The median of ρ reaches the fan-in: {'; '.join(crossings)}.",
        "With a loss at each position credits disagree, and ρ grows with their number; pooled, all positions share "
        "the credit of one loss of their mean, and ρ levels off.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.weight_sharing", __doc__, FIGURES)
