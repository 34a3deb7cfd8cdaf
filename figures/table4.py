"""The figure of Table 4 and Fig. 4: InfoNCE with and without its stop-gradient, and read-outs beside the paper's.

Run   python -m figures.table4 figures/data/table4.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fgvar.plot import Sheet, datasets, intervals, looks
from figures import command
from figures.page import Figures, Page

DIMS = ("network", "algorithm", "seed")
NEEDED = {
    "batch_loss": (*DIMS, "update"),
    **dict.fromkeys(("loss", "test_loss", "test_retrieval_error"), (*DIMS, "epoch")),
    **dict.fromkeys(("train_error", "test_error"), (*DIMS, "readout_epoch")),
    **dict.fromkeys(("epochs", "lr"), DIMS),
    "paper_test_error": DIMS[:2],
    "data": DIMS[:1],
}
PAGE = Page("studies/table4.py", NEEDED)
WINDOWS = 40  # of updates over a run, whose means make its line


def final(dataset: xr.Dataset) -> xr.Dataset:
    """Over (network, algorithm): mean read-out errors, per cent, with their errors, and how the loss went."""
    there, ended = dataset["epochs"] > 0, dataset["epochs"]
    found: dict[str, Any] = {"n": there.sum("seed"), "paper": 100 * dataset["paper_test_error"]}
    for split in ("test", "train"):
        each = (100 * dataset[f"{split}_error"].isel(readout_epoch=-1, drop=True)).where(there)
        found[split] = each.mean("seed")
        squares = ((each - found[split]) ** 2).sum("seed")
        several = found["n"].where(found["n"] > 1)
        found[f"{split}_se"] = np.sqrt(squares / (several - 1) / several)
    found["first"] = dataset["loss"].isel(epoch=0, drop=True).mean("seed")
    found["last"] = dataset["loss"].sel(epoch=ended).where(there).drop_vars("epoch").mean("seed")
    return xr.Dataset(found | {"lr": dataset["lr"].max("seed")})


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """For each network the training loss of each algorithm, and the test errors of their read-outs."""
    data = final(dataset)
    networks, rows = datasets.names(data, "network"), datasets.names(data, "algorithm")
    shape = (len(networks), 2) if sheet.wide else (2 * len(networks), 1)
    grid = sheet.grid(*shape, head=0.5, height=1.5).reshape(len(networks), 2)
    for (left, right), network in zip(grid, networks, strict=True):
        _losses(left, dataset.sel(network=network), rows)
        _errors(right, data.sel(network=network), rows)
        left.set_title(f"{network}, {dataset['data'].sel(network=network).item()}")
    point: dict[str, Any] = {"linestyle": "none", "color": "black", "markersize": 3.5}
    helpers = [
        Line2D([], [], marker="o", label="read-out, here", **point),
        Line2D([], [], marker="d", markerfacecolor="white", label="Ren et al. 2023", **point),
    ]
    sheet.schemes(rows, helpers, entry=1.3)


def _losses(axes: Axes, data: xr.Dataset, rows: list[str]) -> None:
    """Means of each algorithm's first run over windows of updates."""
    for name in looks.in_order(rows):
        its = data["batch_loss"].sel(algorithm=name)
        for seed in its["seed"].values[its.notnull().any("update").values][:1]:
            at, mean = windows(its.sel(seed=seed).values)
            axes.plot(at, mean, label=name, **looks.line_style(name) | {"markevery": max(1, len(at) // 6)})
    axes.set_xlabel("update")
    axes.set_ylabel("InfoNCE of the batch")


def windows(losses: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Middle and mean of `WINDOWS` equal pieces of a run (the rest, fewer than that many updates, is left out)."""
    losses = losses[np.isfinite(losses)]
    size = max(1, len(losses) // WINDOWS)
    pieces = losses[: len(losses) // size * size].reshape(-1, size)
    return np.arange(len(pieces)) * size + (size - 1) / 2, pieces.mean(1)


def _errors(axes: Axes, data: xr.Dataset, rows: list[str]) -> None:
    for row, name in enumerate(rows):
        its = data.sel(algorithm=name)
        axes.plot(its["paper"], row, marker="d", markersize=3.5, color="0.35", markerfacecolor="white", zorder=2)
        if its["n"].item():
            axes.errorbar(
                its["test"].item(), row, xerr=intervals.Z * float(its["test_se"].fillna(0)), marker="o",
                markersize=3.5,
                color=looks.look(name).color, elinewidth=0.8, zorder=3,
            )  # fmt: skip
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(left=0)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel("test error of the read-out, %")


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Of each algorithm: the read-out's test error (n runs), the paper's, train error, InfoNCE before and after."""
    data = final(dataset)
    networks, rows = datasets.names(data, "network"), datasets.names(data, "algorithm")
    columns = pd.MultiIndex.from_product([networks, ["test", "paper", "train", "InfoNCE"]])
    cells = [[one for net in networks for one in _cells(data.sel(network=net, algorithm=name))] for name in rows]
    return pd.DataFrame(cells, rows, columns)


def _cells(its: xr.Dataset) -> tuple[str, str, str, str]:
    paper = f"{its['paper'].item():.2f}" if np.isfinite(its["paper"]) else "–"
    n = int(its["n"])
    if not n:
        return "–", paper, "–", "–"
    error = f" ± {its['test_se'].item():.2f}" if n > 1 else ""
    loss = f"{its['first'].item():.3f} → {its['last'].item():.3f}"
    return f"{its['test'].item():.2f}{error} ({n})", paper, f"{its['train'].item():.2f}", loss


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    data, get = final(dataset), dataset.attrs.get
    parts = [
        "Contrastive learning without labels, and linear read-outs of the frozen features. Shortened runs, far from "
        f"the paper's length: {int(dataset['epochs'].max())} epochs of {get('examples', '?')} images, batch "
        f"{get('train_batch', '?')}, {get('train_optimiser', '?')}, {get('train_decay', '?')} decay; read-outs: "
        f"{get('readout_epochs', '?')} epochs of {get('readout_examples', '?')} images, "
        f"{get('readout_optimiser', '?')}.",
        "Left: InfoNCE of the training batch, of which the query's own key is one among all of the second view; "
        f"means over {WINDOWS} windows of updates of one run, drawn (every update has new views, and perturbations "
        "have new noise). No-stop: the gradient flows through both views, and every perturbed number is credited "
        "with the sum over the batch. Right: test error of the read-out after its last epoch, with the paper's "
        "after its whole training; bars are ±1.96 standard errors over seeds, a single run has none.",
    ]
    for network in datasets.names(data, "network"):
        its = data.sel(network=network)
        its = its.isel(algorithm=(its["n"] > 0).values)
        said = [_said(its.sel(algorithm=name), name) for name in datasets.names(its, "algorithm")]
        parts.append(f"{network} on {dataset['data'].sel(network=network).item()}: {'; '.join(said)}.")
    return parts


def _said(its: xr.Dataset, name: str) -> str:
    """How the loss went on fixed views, and the read-out's error."""
    return (
        f"{name} (n = {int(its['n'])}, rate {its['lr'].item():g}) InfoNCE on fixed views of training images "
        f"{its['first'].item():.3f} to {its['last'].item():.3f}, read-out {its['test'].item():.2f} %"
    )


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.table4", __doc__, FIGURES, table)
