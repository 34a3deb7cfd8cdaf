"""The figure of randomised dynamic programming: bias and variance of log Ẑ and the direction of its gradient.

Run   python -m figures.rdp results/rdp.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from figures import command, drawing, intervals, style
from figures.page import Figures, Page, Sheet

CHAIN, TREE = ("potentials", "top", "row"), ("tree_top", "law")
NEEDED: dict[str, tuple[str, ...]] = {
    **{f"{name}{end}": CHAIN for name in ("bias", "variance", "cosine") for end in ("", "_se")},
    **dict.fromkeys(("spread_exact", "fault_1_exact"), CHAIN[:2]),
    **{f"tree_{name}{end}": TREE for name in ("bias", "variance") for end in ("", "_se")},
    **dict.fromkeys(("tree_exact", "published_bias", "published_variance"), TREE[:1]),
    "mean_weight": ("tree_top", "rank"),
}
LOOKS = {  # rows are no schemes: Okabe & Ito's colours, with markers of their own
    "released": ("#D55E00", "v"),
    "released, detached": ("#E69F00", "D"),
    "fault 1 alone": ("#56B4E9", "s"),
    "put back": ("#0072B2", "^"),
    "Des Raj": ("#009E73", "o"),
    "top-K alone": ("#CC79A7", "P"),
}
PUBLISHED = {"color": "black", "marker": "x", "linestyle": "none", "markeredgewidth": 0.9, "markersize": 4}
NAMES = {"peaked": "chain, peaked", "flat": "chain, flat"}
LINEAR = 1e-2  # biases below that are drawn to scale


def prepared(dataset: xr.Dataset) -> xr.Dataset:
    """Means over the networks, and from where to where the trees' biases of single ones reach."""
    found = intervals.over_seeds(dataset)
    if "seed" not in dataset.dims:
        return found.assign(lowest=dataset["tree_bias"], highest=dataset["tree_bias"])
    return found.assign(lowest=dataset["tree_bias"].min("seed"), highest=dataset["tree_bias"].max("seed"))


PAGE = Page("studies/rdp.py", NEEDED, prepared)


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each kind of potentials, then the trees: bias, variance and direction; in one column the bias alone."""
    kinds = style.names(dataset, "potentials")
    across = 3 if sheet.wide else 1
    grid = sheet.grid(len(kinds) + 1, across, head=0.75, height=1.35)
    for row, kind in zip(grid, kinds, strict=False):
        its = dataset.sel(potentials=kind)
        for axes, panel in zip(row, (_bias, _variance, _cosine), strict=False):
            panel(axes, its)
            _splits(axes, its["top"].values, dataset.attrs.get("config_budget", "?"))
        row[0].set_title(NAMES.get(kind, kind), loc="left")
    for axes, panel in zip(grid[-1], (_tree_bias, _tree_variance, _weights), strict=False):
        panel(axes, dataset)
    grid[-1][0].set_title("tree, published and run anew", loc="left")
    sheet.figure.align_ylabels()
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", label=name) for name, (c, m) in LOOKS.items()]
    sheet.legend([*handles, Line2D([], [], label="published", **PUBLISHED)])


def _points(axes: Axes, its: xr.Dataset, name: str, rows: tuple[str, ...], dim: str, along: str) -> None:
    """Means with their intervals, side by side at every split."""
    shifts = np.linspace(-0.2, 0.2, len(rows)) if len(rows) > 1 else [0.0]
    for row, shift in zip(rows, shifts, strict=True):
        one, (color, marker) = its.sel({dim: row}), LOOKS[row]
        error = intervals.bars(one[name], intervals.ends(one, name))
        axes.errorbar(
            np.arange(one.sizes[along]) + shift, one[name], yerr=error, color=color, marker=marker, linestyle="none",
            elinewidth=0.7, markeredgecolor="white", zorder=3,
        )  # fmt: skip


def _line(axes: Axes, values: xr.DataArray, row: str, **how: object) -> None:
    axes.plot(np.arange(values.size), values, color=LOOKS[row][0], zorder=2, **how)


def _bias(axes: Axes, its: xr.Dataset) -> None:
    axes.axhline(0, **style.THEORY)
    spread = its["spread_exact"]
    _line(axes, its["fault_1_exact"], "released")
    _line(axes, (-spread / 2).where(spread < 1), "put back", linestyle="--")
    _line(axes, its["bias"].sel(row="top-K alone"), "top-K alone")
    _points(axes, its, "bias", ("released", "put back", "Des Raj"), "row", "top")
    low = float(min(its["bias"].min(), its["fault_1_exact"].min()))
    drawing.symlog(axes, "y", LINEAR, (1.6 * low, 2 * LINEAR), sparse=True)
    axes.set_ylabel("bias of log Ẑ")


def _variance(axes: Axes, its: xr.Dataset) -> None:
    drawn = its.sel(row=["released", "put back", "Des Raj"])["variance"]
    _line(axes, its["spread_exact"], "put back")
    _points(axes, its, "variance", ("released", "put back", "Des Raj"), "row", "top")
    drawing.log(axes, "y", (float(drawn.min()) / 2, float(drawn.max()) * 4))
    axes.set_ylabel("variance of log Ẑ")


def _cosine(axes: Axes, its: xr.Dataset) -> None:
    distance = (1 - its["cosine"]).rename("distance")
    shown = xr.Dataset({"distance": distance, "distance_se": its["cosine_se"]})
    _line(axes, distance.sel(row="top-K alone"), "top-K alone")
    _points(axes, shown, "distance", ("released", "released, detached", "put back", "Des Raj"), "row", "top")
    drawing.log(axes, "y", (float(distance.min()) / 2, float(distance.max()) * 2))
    axes.set_ylabel("1 − cosine of marginals")


def _splits(axes: Axes, tops: np.ndarray, budget: object) -> None:
    """Ticks at the splits, which are evenly spaced."""
    axes.set_xlim(-0.5, len(tops) - 0.5)
    axes.xaxis.set_major_locator(FixedLocator(list(range(len(tops)))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(top) for top in tops])
    axes.set_xlabel(f"K1 of {budget} summed exactly")


def _tree_bias(axes: Axes, dataset: xr.Dataset) -> None:
    axes.axhline(0, **style.THEORY)
    _line(axes, dataset["tree_exact"], "fault 1 alone")
    _points(axes, dataset, "tree_bias", ("released", "fault 1 alone", "Des Raj"), "law", "tree_top")
    _published(axes, dataset, "published_bias", dataset["published_variance"])
    axes.set_ylabel("bias of log Ẑ")


def _tree_variance(axes: Axes, dataset: xr.Dataset) -> None:
    _points(axes, dataset, "tree_variance", ("released", "fault 1 alone", "Des Raj"), "law", "tree_top")
    _published(axes, dataset, "published_variance")
    values = dataset["tree_variance"]
    drawing.log(axes, "y", (float(values.min()) / 2, float(max(values.max(), 4)) * 3))
    axes.set_ylabel("variance of log Ẑ")


def _published(axes: Axes, dataset: xr.Dataset, name: str, variance: xr.DataArray | None = None) -> None:
    """The notebook's numbers; of means the errors that their variance says."""
    at = np.arange(dataset.sizes["tree_top"]) + 0.33
    draws = dataset.attrs.get("published_draws", 1)
    error = None if variance is None else style.Z * np.sqrt(variance / draws)
    axes.errorbar(at, dataset[name], yerr=error, elinewidth=0.7, zorder=3, **PUBLISHED)
    _splits(axes, dataset["tree_top"].values, dataset.attrs.get("tree_budget", "?"))


def _weights(axes: Axes, dataset: xr.Dataset) -> None:
    tops = dataset["tree_top"].values
    for place, top in enumerate(tops):
        its = dataset["mean_weight"].sel(tree_top=top)
        color = str(0.75 * place / max(len(tops) - 1, 1))
        axes.plot(its["rank"], its, color=color, label=f"K1 = {top}", zorder=2)
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("state, by its potential")
    axes.set_ylabel("E ω by fault 1")


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    return ["TODO"]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.rdp", __doc__, FIGURES)
