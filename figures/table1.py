"""Table 1's figure: relative total variance against the layer's size and the batch, by four routes.

Run   python -m figures.table1 results/table1.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.lines import Line2D

from fgvar import plot
from fgvar.measurement import tabular
from fgvar.plot import Look, Sheet, intervals, looks
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
SPACES, NOISES = ("weight", "activity"), ("shared", "independent")
LOOKS = {  # spaces are blue and orange, darker where noise is independent
    "weight, shared": Look("#56B4E9", "s"),
    "weight, independent": Look("#0072B2", "D"),
    "activity, shared": Look("#E69F00", "o"),
    "activity, independent": Look("#D55E00", "^"),
}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Variance against size and against batch, side by side over two columns: the table's as lines, points drawn."""
    panels = sheet.row(2, head=0.55, height=1.8)
    for axes, (along, label) in zip(panels, {"size": "fan-in = fan-out", "batch": "batch size"}.items(), strict=True):
        plot.sweep(relative(along_axis(dataset, along), along), x=along, ax=axes, legend=False, looks=LOOKS)
        axes.set(xlabel=label, ylabel="relative variance" if along == "size" or not sheet.wide else "")
    sheet.legend([Line2D([], [], label=name, **looks.line_style(look)) for name, look in LOOKS.items()])


def along_axis(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """The cells in which the other coordinate has its most frequent value, in order."""
    other = dataset["batch" if name == "size" else "size"].values
    values, counts = np.unique(other, return_counts=True)
    return dataset.isel(cell=other == values[counts.argmax()]).sortby(name)


def relative(data: xr.Dataset, along: str) -> xr.Dataset:
    """What was drawn, and the table's, over the mean squared norm of a batch gradient; a line for each noise."""
    low, high = intervals.ends(data, "drawn")
    found = {"": data["drawn"], "_low": low, "_high": high, "_theory": data["variance"].sel(route="table", drop=True)}
    square = data["v"] / data["batch"] + data["s"]
    its = xr.Dataset({f"relative_variance{end}": values / square for end, values in found.items()})
    its = its.stack(estimator=("space", "noise"), create_index=False)
    names = [", ".join(pair) for pair in zip(its["space"].values, its["noise"].values, strict=True)]
    return its.drop_vars(("space", "noise")).assign_coords(estimator=names).swap_dims(cell=along)


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Of each size and batch: variance per weight of the four estimators by the table's formula, and drawn."""
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for index in range(dataset.sizes["cell"]):
        one = dataset.isel(cell=index)
        cells = rows[f"p = q = {one['size'].item()}, N = {one['batch'].item()}"] = {}
        for space in SPACES:
            for noise in NOISES:
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
        f"{dataset.attrs.get('population', '?')}, with replacement. Noise is shared by the batch, or "
        "independent for each example.",
        f"Lines: Table 1 of Ren et al. 2023. Points: drawn, {dataset.attrs.get('draws', '?')} draws of batch and "
        f"noise, {intervals.words(dataset, 'drawn')}.",
        f"Relative to the table, closed forms are off by at most {off.sel(route='closed form').item():.1e} and "
        f"enumerated values by {off.sel(route='enumerated').item():.1e}; of {z.size} drawn values the largest |z| is "
        f"{np.abs(z).max():.2f}.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.table1", __doc__, FIGURES, table)
