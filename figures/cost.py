"""The figure of cost: time and memory of a measurement against draws, batch, parameters and groups.

Run   python -m figures.cost results/cost.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.measurement import tabular
from fgvar.plot import Sheet, datasets, drawing, looks
from figures import command
from figures.page import Figures, Page

NEEDED = {
    "time": ("along", "point", "seed", "repeat", "estimator"),
    "peak": ("along", "point", "seed", "estimator"),
    "parameters": ("along", "point", "seed"),
    "size": ("along", "point"),
}
PAGE = Page("studies/cost.py", NEEDED)
ROWS = {"time": "time (s)", "peak": "peak memory (MB)"}
CHUNK = 64  # draws, at most (`fgvar.measure`)
LABELS = {"width": "parameters"}
GUIDE: dict[str, Any] = {"color": "0.35", "linewidth": 0.7, "linestyle": (0, (1, 1.5)), "zorder": 1.5}


def of_axis(dataset: xr.Dataset, along: str) -> xr.Dataset:
    """One axis over its own points, whose sizes are parameters where the width grows."""
    one = dataset.sel(along=along)
    one = one.isel(point=one["size"].notnull().values)
    return one.assign(size=one["parameters"].isel(seed=0)) if along == "width" else one


def measured(one: xr.Dataset, name: str) -> xr.DataArray:
    """Seconds or megabytes, of every ``run``: a repeat of a seed."""
    values = one["time"] if name == "time" else one["peak"] / 1e6
    return values.stack(run=[dim for dim in ("seed", "repeat") if dim in values.dims])


def slope(dataset: xr.Dataset, along: str, name: str, scheme: str) -> float:
    """Exponent of the medians as a power of the size."""
    one = of_axis(dataset, along)
    values = measured(one, name).sel(estimator=scheme).median("run")
    return float(np.polyfit(np.log(one["size"].values), np.log(values.values), 1)[0])


def growth(dataset: xr.Dataset, scheme: str) -> float:
    """Memory of the most draws over that of a chunk."""
    one = of_axis(dataset, "draws").sel(estimator=scheme).isel(seed=0)
    chunk = one["size"].values.clip(max=CHUNK).argmax()
    return float(one["peak"][-1] / one["peak"][int(chunk)])


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Slopes of time and memory along each axis."""
    schemes = looks.in_order(datasets.names(dataset, "estimator"))
    rows = {
        LABELS.get(along, along): {
            (name, scheme): tabular.number(slope(dataset, along, name, scheme), digits=2)
            for name in ROWS
            for scheme in schemes
        }
        for along in datasets.names(dataset, "along")
    }
    return pd.DataFrame.from_dict(rows, orient="index")


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A column for each axis (one column: a row), with time and memory."""
    axis, schemes = datasets.names(dataset, "along"), looks.in_order(datasets.names(dataset, "estimator"))
    columns = sheet.columns(len(axis), len(ROWS), head=0.5, height=1.3)
    for several, along in zip(columns, axis, strict=True):
        for panel, (name, title) in zip(several, ROWS.items(), strict=True):
            _panel(panel, of_axis(dataset, along), name, schemes)
            panel.set_xlabel(LABELS.get(along, along))
            if along == axis[0] or not sheet.wide:
                panel.set_ylabel(title)
    sheet.figure.align_labels()
    sheet.schemes(schemes, [Line2D([], [], label="proportional", **GUIDE)])


def _panel(axes: Axes, one: xr.Dataset, name: str, schemes: list[str]) -> None:
    sizes, found = one["size"].values, measured(one, name)
    for scheme in schemes:
        its = found.sel(estimator=scheme)
        drawing.repeated(axes, one["size"], its, estimator="median", errorbar=("pi", 50), **looks.line_style(scheme))
        if one["along"].item() != "groups" and not (name == "peak" and one["along"].item() == "draws"):
            axes.plot(sizes, float(its.isel(point=-1).median()) * sizes / sizes[-1], **GUIDE)
    axes.set_xscale("log")
    axes.set_xlim(sizes.min() / 1.25, sizes.max() * 1.25)
    if sizes.max() < 1e4:
        drawing.ticks(axes.xaxis, sizes.astype(int))
    else:
        drawing.log(axes, "x", (sizes.min() / 1.25, sizes.max() * 1.25))
    drawing.log(axes, "y", (float(found.min()) / 1.6, float(found.max()) * 1.6))


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, schemes = dataset.attrs.get, looks.in_order(datasets.names(dataset, "estimator"))
    fitted = "; ".join(
        f"{LABELS.get(along, along)} "
        + ", ".join(f"{slope(dataset, along, 'time', scheme):z.2f} ({scheme})" for scheme in schemes)
        for along in datasets.names(dataset, "along")
    )
    memory = ", ".join(f"{growth(dataset, scheme):.2f} ({scheme})" for scheme in schemes)
    return [
        "What a measurement costs by forward-mode differentiation, on LocalMixers of two blocks with 16 patches of "
        f"digits. Wall time on {get('threads', '?')} thread(s), medians of {dataset.sizes['repeat']} repeats in "
        "bands of quartiles; memory is the largest sum of tensors allocated at a time. Dotted: in proportion to the "
        "size, through the last point.",
        f"Slopes of the time: {fitted}. Memory of the most draws over that of {CHUNK}, the most that are worked on "
        f"at a time: {memory}.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.cost", __doc__, FIGURES, table)
