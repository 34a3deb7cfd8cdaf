"""The figure of Table 4 and Fig. 4: InfoNCE with and without its stop-gradient, and read-outs beside the paper's.

Run   python -m figures.table4 figures/data/table4.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

import numpy as np
import pandas as pd
import xarray as xr

from fgvar import plot
from fgvar.plot import Sheet, datasets
from figures import command, published
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
    """Over (network, algorithm): errors of the last read-out, the paper's, and how the loss went."""
    found = published.final(dataset, dataset.isel(readout_epoch=-1, drop=True))
    there, ended = dataset["epochs"] > 0, dataset["epochs"]
    last = dataset["loss"].sel(epoch=ended).where(there).drop_vars("epoch")
    return found.assign(first=dataset["loss"].isel(epoch=0, drop=True).mean("seed"), last=last.mean("seed"))


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """For each network the training loss of each algorithm, and the test errors of their read-outs."""
    data = final(dataset)
    networks, rows = datasets.names(data, "network"), datasets.names(data, "algorithm")
    shape = (len(networks), 2) if sheet.wide else (2 * len(networks), 1)
    grid = sheet.grid(*shape, head=0.5, height=1.5).reshape(len(networks), 2)
    for (left, right), network in zip(grid, networks, strict=True):
        plot.training(windows(dataset.sel(network=network)), axes=[left], legend=False)
        left.set(
            title=f"{network}, {dataset['data'].sel(network=network).item()}",
            xlabel="update",
            ylabel="InfoNCE of the batch",
        )
        right.set_xlim(0, 1.08 * float(np.nanmax([data["test"], data["paper"]])))
        right.set_xlabel("test error of the read-out (%)")
        published.errors(right, data.sel(network=network))
    sheet.schemes(rows, published.handles("read-out, here"))


def windows(dataset: xr.Dataset) -> xr.Dataset:
    """Means of the batches' loss over `WINDOWS` equal pieces of the runs (fewer updates than that are left out)."""
    updates = np.arange(dataset.sizes["update"])
    loss = dataset["batch_loss"].assign_coords(update=updates).dropna("algorithm", how="all")
    pieces = loss.coarsen(update=max(1, len(updates) // WINDOWS), boundary="trim").mean()
    return pieces.rename(update="epoch").to_dataset(name="loss")


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Of each algorithm: the read-out's test error (n runs), the paper's, train error, InfoNCE before and after."""
    data = final(dataset)
    networks, frame = datasets.names(data, "network"), published.table(data)
    for network in networks:
        ends = [data.sel(network=network, algorithm=name) for name in frame.index]
        frame[network, "InfoNCE"] = [
            f"{one['first'].item():.3f} → {one['last'].item():.3f}" if one["n"] else "–" for one in ends
        ]
    return frame[networks]


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    data, get, seeds = final(dataset), dataset.attrs.get, dataset.sizes["seed"]
    runs = f"{seeds} runs, in bands from the lowest to the highest" if seeds > 1 else "one run"
    parts = [
        "Contrastive learning without labels, and linear read-outs of the frozen features. Shortened runs, far from "
        f"the paper's length: {int(dataset['epochs'].max())} epochs of {get('examples', '?')} images, batch "
        f"{get('train_batch', '?')}, {get('train_optimiser', '?')}, {get('train_decay', '?')} decay; read-outs: "
        f"{get('readout_epochs', '?')} epochs of {get('readout_examples', '?')} images, "
        f"{get('readout_optimiser', '?')}.",
        "Left: InfoNCE of the training batch, of which the query's own key is one among all of the second view; "
        f"means over {WINDOWS} windows of updates of {runs}, drawn (every update has new views, and perturbations "
        "have new noise). No-stop: the gradient flows through both views, and every perturbed number is credited "
        "with the sum over the batch. Right: test error of the read-out after its last epoch, with the paper's "
        "after its whole training; bars are ±1.96 standard errors over seeds; ? stands "
        "beside a single run, which has none.",
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
