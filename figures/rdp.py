"""The figure of randomised dynamic programming: bias and variance of log Ẑ and the direction of its gradient.

Run   python -m figures.rdp results/rdp.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from fgvar.plot import Sheet, datasets, drawing, intervals, looks
from figures import command
from figures.page import Figures, Page

CHAIN, TREE = ("potentials", "top", "row"), ("tree_top", "law")
NEEDED: dict[str, tuple[str, ...]] = {
    **{f"{name}{end}": CHAIN for name in ("bias", "variance", "cosine", "spread") for end in ("", "_se")},
    **dict.fromkeys(("spread_exact", "fault_1_exact"), CHAIN[:2]),
    "relative_sq_bias": CHAIN,
    **{f"tree_{name}{end}": TREE for name in ("bias", "variance") for end in ("", "_se")},
    **dict.fromkeys(("tree_exact", "drawn_again", "published_bias", "published_variance"), TREE[:1]),
    "mean_weight": ("tree_top", "rank"),
}
LOOKS = {  # rows are no schemes: Okabe & Ito's colours, with markers of their own
    "released": ("#D55E00", "v"),
    "released, detached": ("#E69F00", "D"),
    "fault 1 alone": ("#56B4E9", "s"),
    "put back": ("#0072B2", "^"),
    "Des Raj": ("#009E73", "o"),
    "top-K alone": ("#CC79A7", ""),
    "proposal alone": ("#7f7f7f", ""),
}
LINES: dict[str, Any] = {"top-K alone": "-", "proposal alone": ":"}  # rows that draw nothing
PUBLISHED: dict[str, Any] = {
    "color": "black",
    "marker": "x",
    "linestyle": "none",
    "markeredgewidth": 0.9,
    "markersize": 4,
}
TITLES = {"peaked": "chain, peaked potentials", "flat": "chain, flat potentials"}
LINEAR = 1e-2  # biases below that are drawn to scale
DRAWN = ("released", "put back", "Des Raj")
LOG_Z = r"$\log\hat{Z}$"


def prepared(dataset: xr.Dataset) -> xr.Dataset:
    """Means over the networks, the trees' range over them, and how far draws are from what is exact."""
    dataset = dataset.sortby("tree_top")
    if "seed" not in dataset.dims:
        dataset = dataset.expand_dims("seed")
    tree, put_back = dataset["tree_bias"], dataset.sel(row="put back")
    small = put_back["spread_exact"] < SETTLED
    z = ((put_back["spread"] - put_back["spread_exact"]) / put_back["spread_se"]).where(small)
    off = {"lowest": tree.min("seed"), "highest": tree.max("seed"), "z": abs(z).max(), "compared": small.sum()}
    return intervals.over_seeds(dataset).assign(off).assign_attrs(networks=dataset.sizes["seed"])


SETTLED = 0.05  # Var Ẑ/Z² up to which 1,000 draws have a normal mean square
PAGE = Page("studies/rdp.py", NEEDED, prepared)


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each kind of potentials, then trees: bias, variance and direction; in one column the bias alone."""
    kinds = datasets.names(dataset, "potentials")
    grid = sheet.grid(len(kinds) + 1, 3 if sheet.wide else 1, head=0.65 if sheet.wide else 1.1, height=1.45)
    for row, kind in zip(grid, kinds, strict=False):
        its = dataset.sel(potentials=kind)
        for axes, panel in zip(row, (_bias, _variance, _cosine), strict=False):
            panel(axes, its)
            _splits(axes, its["top"].values, dataset.attrs.get("config_budget", "?"))
        row[0].set_title(TITLES.get(kind, kind), loc="left")
    for axes, of_trees in zip(grid[-1], (_tree_bias, _tree_variance, _weights), strict=False):
        of_trees(axes, dataset)
    grid[-1][0].set_title("tree, as published", loc="left")
    sheet.figure.align_ylabels()
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle=LINES.get(name, "none"), label=name)
        for name, (color, marker) in LOOKS.items()
    ]
    sheet.legend([*handles, Line2D([], [], label="published", **PUBLISHED)])


def _points(axes: Axes, its: xr.Dataset, name: str, rows: tuple[str, ...], dim: str = "row") -> None:
    """Means with their intervals, side by side at every split."""
    for row, shift in zip(rows, np.linspace(-0.2, 0.2, len(rows)), strict=True):
        one, (color, marker) = its.sel({dim: row}), LOOKS[row]
        error = intervals.bars(one[name], intervals.ends(one, name))
        axes.errorbar(
            np.arange(one[name].size) + shift, one[name], yerr=error, color=color, marker=marker, linestyle="none",
            elinewidth=0.7, markeredgecolor="white", zorder=3,
        )  # fmt: skip


def _line(axes: Axes, values: xr.DataArray, row: str, line: str = "-") -> None:
    axes.plot(np.arange(values.size), values, color=LOOKS[row][0], linestyle=LINES.get(row, line), zorder=2)


def _bias(axes: Axes, its: xr.Dataset) -> None:
    axes.axhline(0, **looks.THEORY)
    spread = its["spread_exact"]
    _line(axes, its["fault_1_exact"], "released")
    _line(axes, (-spread / 2).where(spread < 1), "put back", "--")
    _line(axes, its["bias"].sel(row="top-K alone"), "top-K alone")
    _points(axes, its, "bias", DRAWN)
    low = float(min(its["bias"].min(), its["fault_1_exact"].min()))
    drawing.symlog(axes, "y", LINEAR, (min(1.6 * low, -LINEAR), 0.8 * LINEAR))
    axes.set_ylabel(f"bias of {LOG_Z}")


def _variance(axes: Axes, its: xr.Dataset) -> None:
    drawn = its.sel(row=list(DRAWN))["variance"]
    _line(axes, its["spread_exact"], "put back")
    _points(axes, its, "variance", DRAWN)
    drawing.log(axes, "y", (float(drawn.min()) / 2, float(drawn.max()) * 4))
    axes.set_ylabel(f"variance of {LOG_Z}")


def _cosine(axes: Axes, its: xr.Dataset) -> None:
    distance = (1 - its["cosine"]).rename("distance")
    shown = xr.Dataset({"distance": distance, "distance_se": its["cosine_se"]})
    for row in LINES:
        _line(axes, distance.sel(row=row), row)
    _points(axes, shown, "distance", ("released", "released, detached", "put back", "Des Raj"))
    drawing.log(axes, "y", (float(distance.min()) / 2, float(distance.max()) * 2))
    axes.set_ylabel("marginals: 1 − cosine")


def _splits(axes: Axes, tops: NDArray[np.int64], budget: object) -> None:
    """Ticks at the splits, which are evenly spaced."""
    axes.set_xlim(-0.5, len(tops) - 0.5)
    axes.set_xticks(range(len(tops)), [str(top) for top in tops])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"$K_1$ of {budget} states")


def _tree_bias(axes: Axes, dataset: xr.Dataset) -> None:
    axes.axhline(0, **looks.THEORY)
    _line(axes, dataset["tree_exact"], "fault 1 alone")
    low, high = (dataset[name].sel(law="released").values for name in ("lowest", "highest"))
    places = np.arange(dataset.sizes["tree_top"]) - 0.2
    axes.vlines(places, low, high, colors=LOOKS["released"][0], alpha=0.25, linewidth=4, zorder=2)
    _points(axes, dataset, "tree_bias", LAWS, "law")
    _published(axes, dataset, "published_bias", dataset["published_variance"])
    axes.set_ylabel(f"bias of {LOG_Z}")


def _tree_variance(axes: Axes, dataset: xr.Dataset) -> None:
    _points(axes, dataset, "tree_variance", LAWS, "law")
    _published(axes, dataset, "published_variance")
    values = dataset["tree_variance"]
    drawing.log(axes, "y", (float(values.min()) / 2, max(float(values.max()), 4.0) * 3))
    axes.set_ylabel(f"variance of {LOG_Z}")


LAWS = ("released", "fault 1 alone", "Des Raj")


def _published(axes: Axes, dataset: xr.Dataset, name: str, variance: xr.DataArray | None = None) -> None:
    """The notebook's numbers; of means the errors that their variance says."""
    places, draws = np.arange(dataset.sizes["tree_top"]) + 0.36, dataset.attrs.get("published_draws", 1)
    error = None if variance is None else intervals.Z * np.sqrt(variance / draws)
    axes.errorbar(places, dataset[name], yerr=error, elinewidth=0.7, zorder=3, **PUBLISHED)
    _splits(axes, dataset["tree_top"].values, dataset.attrs.get("tree_budget", "?"))


def _weights(axes: Axes, dataset: xr.Dataset) -> None:
    """E ω of every state, each line named where it leaves 1."""
    for place, top in enumerate(dataset["tree_top"].values):
        its = dataset["mean_weight"].sel(tree_top=top)
        axes.plot(its["rank"], its, color=LOOKS["fault 1 alone"][0], linewidth=0.5 + 0.25 * place, zorder=2)
        lowest = int(its.values.argmin())
        if float(its.min()) < 0.92:  # the others hardly leave 1
            axes.annotate(
                f"$K_1$ = {top}", (its["rank"][lowest], its[lowest]), (-4, 0), textcoords="offset points", ha="right",
                va="center", fontsize="xx-small",
            )  # fmt: skip
    axes.set_xscale("log")
    drawing.ticks(axes.xaxis, [x for x in (1, 10, 100, 1000) if x <= int(dataset["rank"].max())])
    axes.set_xlabel("state, by its potential")
    axes.set_ylabel(r"fault 1: E $\omega$")


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    splits = [int(top) for top in dataset["tree_top"].values]

    def of_trees(name: str, law: str = "", digits: int = 2) -> str:
        values = dataset[name].sel(law=law) if law else dataset[name]
        return ", ".join(f"{float(x):.{digits}f}".replace("-", "−").replace("−0.00", "0.00") for x in values)

    return [
        "Randomised dynamic programming (Fu et al. 2022): K1 states of the highest proposal are summed exactly, the "
        f"rest of the budget is drawn from the others. Points: drawn, {get('config_draws', '?')} draws of log Ẑ and "
        f"{get('config_gradients', '?')} of its gradient for each of {get('networks', '?')} networks, means over "
        f"them with {intervals.words(dataset, 'bias')} of the draws. Released: the published code, which draws "
        "without putting back but weighs as if (fault 1), can draw top states again with enormous weights (fault 2) "
        "and differentiates its proposal (fault 3, absent where detached). Des Raj: weighed so that E ω = 1.",
        f"Top and middle: chains of {get('config_states', '?')} states and {get('config_steps', '?')} steps, "
        "potentials by the law of the paper's notebook (range 10) or of a new LinearChain. Lines are exact, but for "
        "the dashed one: log E Ẑ − log Z of fault 1 alone (the forward recursion with potentials times E ω); dashed "
        "−Var Ẑ/2Z² of what is put back, an approximation to second order, drawn below 1/2; Var Ẑ/Z² of what is put "
        "back (pair recursion), to which the variance of log Ẑ tends where it is small. Right: one draw's gradient "
        "against the marginals; top-K alone and the proposal itself draw nothing. The mean square of Ẑ/Z − 1 is "
        f"within {float(dataset['z']):.1f} standard errors of the recursion in all {int(dataset['compared'])} pairs "
        f"of a network and a split where that is below {SETTLED:g}.",
        f"Bottom: trees of {get('tree_states', '?')} states and {get('tree_steps', '?')} words at K1 = "
        f"{', '.join(map(str, splits))} of {get('tree_budget', '?')}, {get('tree_draws', '?')} draws each. Crosses: "
        f"the notebook's one network ({get('published_draws', '?')} draws), whose potentials are not published; ours "
        "are others by the same law, pale bars from the lowest to the highest of them. Bias published: "
        f"{of_trees('published_bias')}; released: {of_trees('tree_bias', 'released')}; fault 1 alone: "
        f"{of_trees('tree_bias', 'fault 1 alone')}, exactly {of_trees('tree_exact')}; Des Raj: "
        f"{of_trees('tree_bias', 'Des Raj')}. Top states drawn again in one pass, exactly: "
        f"{of_trees('drawn_again', digits=3)}: rare events, whose errors so few draws do not show "
        "fully, and which leave biases at K1 of 100 and more open. Right: E ω by fault 1, exact, of states in the "
        "order of their potentials; the thicker a line, the larger K1.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.rdp", __doc__, FIGURES)
