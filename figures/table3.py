"""The figure of Table 3: test errors of complete training runs, beside the paper's.

Run   python -m figures.table3 results/table3.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullLocator

from fgvar.plot import Sheet, datasets, intervals, looks
from figures import command
from figures.page import Figures, Page

NEEDED = {
    **dict.fromkeys(("loss", "train_error", "test_error"), ("network", "algorithm", "seed", "epoch")),
    **dict.fromkeys(("epochs", "lr"), ("network", "algorithm", "seed")),
    **dict.fromkeys(("paper_test_error", "paper_train_error"), ("network", "algorithm")),
    "data": ("network",),
}
PAGE = Page("studies/table3.py", NEEDED)
GOAL = 0.5  # points by which a cell may exceed the paper's


def final(dataset: xr.Dataset) -> xr.Dataset:
    """Over (network, algorithm): mean test and train error after the last epoch, per cent, and the paper's."""
    there, last = dataset["epochs"] > 0, dataset["epochs"]
    found: dict[str, Any] = {"n": there.sum("seed"), "epochs": last.max("seed"), "lr": dataset["lr"].max("seed")}
    for split in ("test", "train"):
        each = (100 * dataset[f"{split}_error"].sel(epoch=last)).where(there).drop_vars("epoch")
        found[split] = each.mean("seed")
        squares = ((each - found[split]) ** 2).sum("seed")
        several = found["n"].where(found["n"] > 1)
        found[f"{split}_se"] = np.sqrt(squares / (several - 1) / several)
        found[f"paper_{split}"] = 100 * dataset[f"paper_{split}_error"]
    return xr.Dataset(found)


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A panel for each network, a row for each algorithm: mean test error, with bars, and the paper's."""
    data = final(dataset)
    networks, rows = datasets.names(data, "network"), datasets.names(data, "algorithm")
    across = len(networks) if sheet.wide else 1
    down = -(-len(networks) // across)
    panels = sheet.grid(down, across, head=0.55, height=0.35 + 0.14 * len(rows), sharey=True).flat
    for axes, network in zip(panels, networks, strict=False):
        _errors(axes, data.sel(network=network), rows)
        axes.set_title(f"{network}, {dataset['data'].sel(network=network).item()}")
        axes.set_xlabel("test error, %")
    for axes in list(panels)[len(networks) :]:
        axes.set_visible(False)
    point: dict[str, Any] = {"linestyle": "none", "color": "black", "markersize": 3.5}
    handles = [
        Line2D([], [], marker="o", label="here: mean, ±1.96 standard errors", **point),
        Line2D([], [], marker="d", markerfacecolor="white", label="Ren et al. 2023", **point),
    ]
    sheet.legend(handles, wide=2, narrow=1)


def _errors(axes: Axes, data: xr.Dataset, rows: list[str]) -> None:
    for row, name in enumerate(rows):
        its = data.sel(algorithm=name)
        how = looks.look(name.removesuffix("-published"))
        published = its["paper_test"].item()
        axes.plot(published, row, marker="d", markersize=3.5, color="0.35", markerfacecolor="white", zorder=2)
        if its["n"].item():
            axes.errorbar(
                its["test"].item(), row, xerr=intervals.Z * float(its["test_se"].fillna(0)), marker="o",
                markersize=3.5,
                color=how.color, elinewidth=0.8, zorder=3,
            )  # fmt: skip
    shown = np.array([*data["test"].values, *data["paper_test"].values])
    low, high = np.nanmin(shown) / 1.15, np.nanmax(shown) * 1.15
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    places = [p for p in (1, 2, 3, 5, 10, 20, 30, 40, 50, 60, 80) if low <= p <= high]
    axes.set_xticks(places)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Of each algorithm and network: mean ± standard error (n runs) of the test error, the paper's, train error."""
    data = final(dataset)
    networks, rows = datasets.names(data, "network"), datasets.names(data, "algorithm")
    columns = pd.MultiIndex.from_product([networks, ["test", "paper", "train"]])
    cells = [[one for net in networks for one in _cells(data.sel(network=net, algorithm=name))] for name in rows]
    return pd.DataFrame(cells, rows, columns)


def _cells(its: xr.Dataset) -> tuple[str, str, str]:
    theirs = its["paper_test"].item()
    paper = f"{theirs:.2f}" if np.isfinite(theirs) else "–"
    n = int(its["n"])
    if not n:
        return "–", paper, "–"
    error = f" ± {its['test_se'].item():.2f}" if n > 1 else ""
    return f"{its['test'].item():.2f}{error} ({n})", paper, f"{its['train'].item():.2f}"


def worse(data: xr.Dataset) -> list[str]:
    """Cells whose mean test error is more than `GOAL` points above the paper's."""
    return [
        f"{network} {name} ({its['test'].item():.2f} against {its['paper_test'].item():.2f})"
        for network in datasets.names(data, "network")
        for name in datasets.names(data, "algorithm")
        if (its := data.sel(network=network, algorithm=name))["test"].item() > its["paper_test"].item() + GOAL
    ]


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    data = final(dataset)
    parts = [
        "Test errors of complete training runs of LocalMixers, from real runs, beside those that the paper reports."
    ]
    for network in datasets.names(data, "network"):
        its = data.sel(network=network)
        its = its.isel(algorithm=(its["n"] > 0).values)
        counts = sorted({int(n) for n in its["n"].values})
        lengths: dict[int, list[str]] = {}
        for name in datasets.names(its, "algorithm"):
            lengths.setdefault(int(its["epochs"].sel(algorithm=name)), []).append(name)
        epochs = "; ".join(f"{length} epochs: {', '.join(names)}" for length, names in lengths.items())
        runs = " to ".join(str(n) for n in dict.fromkeys((counts[0], counts[-1])))
        runs += " run" if counts[-1] == 1 else " runs"
        parts.append(f"{network} on {dataset['data'].sel(network=network).item()}: {runs} a cell ({epochs}).")
    late = worse(data)
    get = dataset.attrs.get
    return [
        *parts,
        f"Optimiser {get('train_optimiser')}, batch {get('train_batch')}, momentum {get('train_momentum')}, weight "
        f"decay {get('train_weight_decay')}, {get('train_decay')} decay of the rate, no augmentation. Bars are ±1.96 "
        "standard errors over seeds (of weights, data order and noise); a single run has none.",
        _rates(dataset),
        f"Cells more than {GOAL} points above the paper's: {'; '.join(late) if late else 'none'}.",
        "frozen: trunk at its initialisation, heads and read-out learn. LG-FG-W-published: credited as in the "
        "paper's code, which is biased.",
    ]


def _rates(dataset: xr.Dataset) -> str:
    """By which errors the learning rates were chosen."""
    if "validation_error" not in dataset:
        return ""
    tried = dataset["validation_error"]
    each = (
        f"{name} " + ", ".join(f"{error:.2%}" for error in tried.sel(tried=name).values)
        for name in [str(name) for name in tried["tried"].values]
    )
    rates = ", ".join(f"{rate:g}" for rate in tried["rate"].values)
    return (
        f"Learning rates of each family were chosen on held-out training examples ({tried.attrs['source']}), of "
        f"{rates}: {'; '.join(each)}."
    )


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.table3", __doc__, FIGURES, table)
