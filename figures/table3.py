"""The figures of Table 3: errors of complete training runs at their ends, beside the paper's, and over epochs.

Run   python -m figures.table3 results/table3.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table), and <stem>_curves.*.
"""

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes

from fgvar.plot import Sheet, datasets, drawing, looks
from figures import command, published
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
    """Over (network, algorithm): errors after the last epoch of each run, and the paper's."""
    return published.final(dataset, dataset.sel(epoch=dataset["epochs"]).drop_vars("epoch"))


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A panel for each network, a row for each algorithm: mean test error, with bars, and the paper's."""
    data = final(dataset)
    networks, rows = datasets.names(data, "network"), datasets.names(data, "algorithm")
    across = len(networks) if sheet.wide else 1
    down = -(-len(networks) // across)
    panels = sheet.grid(down, across, head=0.55, height=0.35 + 0.14 * len(rows), sharey=True).flat
    for axes, network in zip(panels, networks, strict=False):
        _panel(axes, data.sel(network=network))
        axes.set_title(f"{network}, {dataset['data'].sel(network=network).item()}")
        axes.set_xlabel("test error (%)")
    for axes in list(panels)[len(networks) :]:
        axes.set_visible(False)
    sheet.legend(published.handles("here: mean, ±1.96 standard errors"))


def _panel(axes: Axes, data: xr.Dataset) -> None:
    shown = np.array([*data["test"].values, *data["paper"].values])
    low, high = np.nanmin(shown) / 1.15, np.nanmax(shown) * 1.15
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    drawing.ticks(axes.xaxis, _between(low, high))
    published.errors(axes, data)


def _between(low: float, high: float) -> list[float]:
    """Per cents to write on a log axis."""
    return [p for p in (1, 2, 3, 5, 10, 20, 30, 40, 50, 60, 80) if low <= p <= high]


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Of each algorithm and network: mean ± standard error (n runs) of the test error, the paper's, train error."""
    return published.table(final(dataset))


def worse(data: xr.Dataset) -> list[str]:
    """Cells whose mean test error is more than `GOAL` points above the paper's."""
    return [
        f"{network} {name} ({its['test'].item():.2f} against {its['paper'].item():.2f})"
        for network in datasets.names(data, "network")
        for name in datasets.names(data, "algorithm")
        if (its := data.sel(network=network, algorithm=name))["test"].item() > its["paper"].item() + GOAL
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
        "standard errors over seeds (of weights, data order and noise), which of two runs cover the mean in 70 % of "
        "cases, of three in 81 %; ? stands beside a single run, which has none.",
        _rates(dataset),
        f"Cells more than {GOAL} points above the paper's: {'; '.join(late) if late else 'none'}.",
        "frozen: trunk at its initialisation, heads and read-out learn. LG-FG-W-published: credited as in the "
        "paper's code, which is biased.",
        "Matrix products in bfloat16, parameters in float32." * ("True" in get("train_autocast", "")),
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


# ---- over epochs ---------------------------------------------------------------------------------------------

CURVES = {"test_error": "test error (%)", "train_error": "train error (%)"}


@PAGE.figure
def draw_curves(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A column for each network, a row for each error: means over seeds, a line for each algorithm."""
    networks = datasets.names(dataset, "network")
    grid = sheet.columns(len(networks), len(CURVES), head=0.85, height=1.5)
    for column, network in zip(grid, networks, strict=True):
        its = dataset.sel(network=network)
        for axes, (error, title) in zip(column, CURVES.items(), strict=True):
            _curves(axes, 100 * its[error].where(its["epochs"] > 0))
            axes.set_ylabel(title)
            axes.set_xlabel("epoch")
        column[0].set_title(f"{network}, {its['data'].item()}")
    sheet.schemes([name for name in datasets.names(dataset, "algorithm") if name in looks.SCHEMES], [])


def _curves(axes: Axes, each: xr.DataArray) -> None:
    """Of each algorithm the mean over seeds after every epoch that has errors, but the one before training."""
    there = each.isel(epoch=slice(1, None)).dropna("epoch", how="all").mean("seed")
    low, high = float(there.min()) / 1.15, float(there.max()) * 1.15
    if low < 0.1:
        drawing.symlog(axes, "y", 0.1, (0, high))
    else:
        axes.set_yscale("log")
        axes.set_ylim(low, high)
        drawing.ticks(axes.yaxis, _between(low, high))
    for name in map(str, there["algorithm"].values):
        if name in looks.SCHEMES:
            its = there.sel(algorithm=name).dropna("epoch")
            how = looks.line_style(name) | {"markevery": max(1, its.sizes["epoch"] // 8)}
            axes.plot(its["epoch"], its, **how)


@PAGE.caption
def caption_curves(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, and the order of test errors on the way and at the end of the runs of one length."""
    return [
        "Errors after the epochs of complete training runs, from real runs: means over seeds. The rate decays over "
        "a run's own length, so that a curve of a longer run is no continuation of a shorter one's. "
        "LG-FG-W-published is not drawn.",
        *(_orders(dataset.sel(network=name), name) for name in datasets.names(dataset, "network")),
    ]


def _orders(its: xr.Dataset, network: str) -> str:
    """Of the longest runs, from the least test error up: after a tenth of their epochs, at half, at the end."""
    length = int(its["epochs"].max())
    errors = 100 * its["test_error"].where(its["epochs"] == length).mean("seed").dropna("algorithm", how="all")
    known = errors["epoch"].values[errors.notnull().all("algorithm").values]
    parts = []
    for epoch in dict.fromkeys(int(known[known >= share * length][0]) for share in (0.1, 0.5, 1.0)):
        then = errors.sel(epoch=epoch)
        then = then.isel(algorithm=np.argsort(then.values, kind="stable"))
        listed = ", ".join(
            f"{name} {value:.2f}" for name, value in zip(then["algorithm"].values, then.values, strict=True)
        )
        parts.append(f"epoch {epoch}: {listed}")
    return f"{network}, runs of {length} epochs, test errors from the least: {'; '.join(parts)}."


FIGURES: Figures = {"": (draw, caption), "_curves": (draw_curves, caption_curves)}

if __name__ == "__main__":
    command.run("figures.table3", __doc__, FIGURES, table)
