"""Table 1's figure: relative total variance against the layer's size and the batch, by four routes.

Run   python -m figures.table1 results/table1.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.measurement import tabular
from fgvar.plot import Sheet, drawing, intervals, looks
from figures import command
from figures.page import Figures, Page

DIMS = ("cell", "space", "noise")
NEEDED: dict[str, tuple[str, ...]] = {
    "variance": (*DIMS, "route"),
    "drawn": DIMS,
    "drawn_se": DIMS,
    "v": DIMS,
    "s": DIMS,
    **dict.fromkeys(("size", "batch"), ("cell",)),
}
PAGE = Page("studies/table1.py", NEEDED, intervals.over_seeds)
SCHEME = {"weight": "FG-W", "activity": "FG-A"}  # whose colour and marker it has
LINES = {"shared": "-", "independent": (0, (3.5, 1.2))}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Variance against size and against batch, side by side over two columns: the table's as lines, points drawn."""
    panels = sheet.row(2, head=0.55, height=1.8)
    for axes, (along, label) in zip(panels, {"size": "fan-in = fan-out", "batch": "batch size"}.items(), strict=True):
        _panel(axes, along_axis(dataset, along), along)
        axes.set_xlabel(label)
        axes.set_ylabel("relative variance" if along == "size" or not sheet.wide else "")
    handles = [
        Line2D([], [], label=f"{space}, {noise}", **_points(scheme, noise) | {"linestyle": line})
        for space, scheme in SCHEME.items()
        for noise, line in LINES.items()
    ]
    sheet.legend(handles)


def along_axis(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """The cells in which the other coordinate has its most frequent value, in order."""
    other = dataset["batch" if name == "size" else "size"].values
    values, counts = np.unique(other, return_counts=True)
    return dataset.isel(cell=other == values[counts.argmax()]).sortby(name)


def _panel(axes: Axes, data: xr.Dataset, along: str) -> None:
    x, square = data[along].values, data["v"] / data["batch"] + data["s"]
    shown = data["drawn"] / square
    for space, scheme in SCHEME.items():
        for noise, line in LINES.items():
            its = data.sel(space=space, noise=noise)
            here = square.sel(space=space, noise=noise)
            axes.plot(
                x,
                its["variance"].sel(route="table") / here,
                color=looks.look(scheme).color,
                linestyle=line,
                zorder=2,
            )
            error = intervals.bars(its["drawn"], intervals.ends(its, "drawn")) / here.values
            axes.errorbar(x, its["drawn"] / here, yerr=error, elinewidth=0.7, zorder=3, **_points(scheme, noise))
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.2, x.max() * 1.2)
    drawing.ticks(axes.xaxis, x)
    drawing.log(axes, "y", (float(shown.min()) / 2, float(shown.max()) * 2))


def _points(scheme: str, noise: str) -> dict[str, Any]:
    """Hollow where noise is independent."""
    how = looks.point_style(scheme)
    face = "white" if noise == "independent" else how["color"]
    return how | {"markerfacecolor": face, "markeredgecolor": how["color"], "markeredgewidth": 0.7}


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Of each size and batch: variance per weight of the four estimators by the table's formula, and drawn."""
    rows: dict[str, dict[Any, str]] = {}
    for index in range(dataset.sizes["cell"]):
        one = dataset.isel(cell=index)
        cells = rows[f"p = q = {one['size'].item()}, N = {one['batch'].item()}"] = {}
        for space in SCHEME:
            for noise in LINES:
                its = one.sel(space=space, noise=noise)
                name = f"{space}, {noise}"
                cells[name, "formula"] = tabular.number(its["variance"].sel(route="table").item(), digits=4)
                cells[name, "drawn"] = tabular.number(its["drawn"].item(), its["drawn_se"].item())
    return pd.DataFrame.from_dict(rows, orient="index")


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    table = dataset["variance"].sel(route="table")
    off = abs(dataset["variance"] / table - 1).max(DIMS)
    z = ((dataset["drawn"] - table) / dataset["drawn_se"]).values
    sizes, batches = along_axis(dataset, "size"), along_axis(dataset, "batch")
    return [
        "Total variance (noise and data) of the estimated gradient of a linear layer with per-example losses, over "
        "the mean squared norm of a batch gradient, V/N + S; Gaussian noise; against the layer's size (left, batch "
        f"of {int(sizes['batch'][0])}) and the batch size (right, {int(batches['size'][0])} × "
        f"{int(batches['size'][0])}). Examples are drawn from "
        f"{dataset.attrs.get('population', '?')}, with replacement. Solid, filled: noise shared by the batch; "
        "dashed, hollow: independent.",
        f"Lines: Table 1 of Ren et al. 2023. Points: drawn, {dataset.attrs.get('draws', '?')} draws of batch and "
        f"noise, {intervals.words(dataset, 'drawn')}.",
        f"Relative to the table, closed forms are off by at most {off.sel(route='closed form').item():.1e} and "
        f"enumerated values by {off.sel(route='enumerated').item():.1e}; of {z.size} drawn values the largest |z| is "
        f"{np.abs(z).max():.2f}.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.table1", __doc__, FIGURES, table)
