"""What the figures of the paper's tables share: errors after complete runs, beside those that it reports."""

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import datasets, looks, marks, series

PAPER = "Ren et al. 2023"


def final(dataset: xr.Dataset, ended: xr.Dataset) -> xr.Dataset:
    """Over (network, algorithm): mean test and train error, per cent, their standard errors, and the paper's.

    Args:
        dataset: of all runs; those of no epoch are not there.
        ended: its errors at the end of each run.
    """
    there = dataset["epochs"] > 0
    n = there.sum("seed")
    found = {"n": n, "paper": 100 * dataset["paper_test_error"]}
    found |= {name: dataset[name].max("seed") for name in ("epochs", "lr")}
    for split in ("test", "train"):
        each = 100 * ended[f"{split}_error"].where(there)
        found |= {split: each.mean("seed"), f"{split}_se": each.std("seed", ddof=1) / np.sqrt(n)}
    return xr.Dataset(found)


def errors(axes: Axes, data: xr.Dataset) -> None:
    """A row for each algorithm: the mean test error of its runs, and the paper's."""
    rows = datasets.names(data, "algorithm")
    marks.beside(axes, data["paper"].values, np.arange(float(len(rows))))
    for row, name in enumerate(rows):
        look = looks.look(name.removesuffix("-published"))
        marks.rows(axes, series.of(data.sel(algorithm=name), "test"), np.array([float(row)]), look, label=name)
    axes.set_yticks(range(len(rows)), rows)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


def handles(here: str) -> list[Line2D]:
    """What both kinds of marks are."""
    point = looks.Look("black", "o")
    return [
        Line2D([], [], label=here, **looks.point_style(point)),
        Line2D([], [], label=PAPER, **marks.BESIDE),
    ]


def table(data: xr.Dataset) -> pd.DataFrame:
    """Of each algorithm and network: mean ± standard error (n runs) of the test error, the paper's, train error."""
    networks, rows = datasets.names(data, "network"), datasets.names(data, "algorithm")
    columns = pd.MultiIndex.from_product([networks, ["test", "paper", "train"]])
    cells = [[one for net in networks for one in _cells(data.sel(network=net, algorithm=name))] for name in rows]
    return pd.DataFrame(cells, rows, columns)


def _cells(its: xr.Dataset) -> tuple[str, str, str]:
    paper = f"{its['paper'].item():.2f}" if np.isfinite(its["paper"]) else "–"
    n = int(its["n"])
    if not n:
        return "–", paper, "–"
    error = f" ± {its['test_se'].item():.2f}" if n > 1 else ""
    return f"{its['test'].item():.2f}{error} ({n})", paper, f"{its['train'].item():.2f}"
