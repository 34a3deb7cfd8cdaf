"""The figure of scaling: relative variance and cosine against width, depth and groups.

Run   python -m figures.scaling results/scaling.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

import math
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, datasets, drawing, intervals, looks, swept
from figures import command
from figures.page import Figures, Page

AXES = ("place", "point", "epochs", "seed")
NEEDED = {
    **dict.fromkeys(("relative_variance", "snr"), (*AXES, "estimator")),
    **dict.fromkeys(("cosine", "cosine_se"), (*AXES, "estimator", "reference")),
    **dict.fromkeys(("weights", "activities"), AXES),
    "size": ("place", "point"),
}
PAGE = Page("studies/scaling.py", NEEDED)
ROWS = {"relative_variance": "relative variance", "cosine": "cosine to target"}
NETWORKS = {"mixer": "LocalMixer", "mlp": "MLP"}
LAW: dict[str, Any] = {"color": "0.35", "linewidth": 0.7, "linestyle": (0, (1, 1.5)), "zorder": 1.5}


def of_place(dataset: xr.Dataset, place: str) -> xr.Dataset:
    """One axis over its own points."""
    one = dataset.sel(place=place)
    return one.isel(point=one["size"].notnull().values)


def slope(dataset: xr.Dataset, place: str, scheme: str, epochs: int) -> tuple[float, float]:
    """Exponent of the relative variance as a power of the size, and the half-width of its 95 % interval.

    Of several seeds the mean of their slopes, and Student's interval; NaN of one.
    """
    one = of_place(dataset, place).sel(estimator=scheme, epochs=epochs).swap_dims(point="size")
    return swept.slope(one.mean("seed"), one, "size", "relative_variance")


def predicted(dataset: xr.Dataset, place: str, scheme: str) -> float:
    """The slope of what the scheme's law counts; NaN where there is no law."""
    one = of_place(dataset, place).isel(epochs=0, seed=0)
    network, along = place.split(", ")
    numbers = one["activities"] if scheme.endswith("A") else one["weights"]
    if scheme.startswith("LG"):
        if along == "depth":
            return 0.0
        if network != "mlp":
            return math.nan
    counted = numbers if scheme.endswith("A") else numbers + 1
    return float(np.polyfit(np.log(one["size"].values), np.log(counted.values), 1)[0])


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Slopes of the relative variance: fitted with 95 % intervals, in each state of training, and predicted."""
    rows: dict[str, dict[str, str]] = {}
    for place in datasets.names(dataset, "place"):
        for scheme in looks.in_order(datasets.names(dataset, "estimator")):
            cells = rows[f"{place}, {scheme}"] = {}
            for epochs in dataset["epochs"].values:
                value, half = slope(dataset, place, scheme, epochs)
                cells[called(epochs)] = f"{value:z.2f}" + (f" ± {half:.2f}" if np.isfinite(half) else "")
            law = predicted(dataset, place, scheme)
            cells["predicted"] = f"{law:z.2f}" if np.isfinite(law) else "–"
    return pd.DataFrame.from_dict(rows, orient="index")


def called(epochs: int) -> str:
    """The state of training."""
    return f"after {epochs} epochs" if epochs else "at initialisation"


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A column for each network and axis (one column: a row), with relative variance and cosine."""
    places, schemes = datasets.names(dataset, "place"), looks.in_order(datasets.names(dataset, "estimator"))
    epochs = dataset["epochs"].values
    panels = sheet.columns(len(places), len(ROWS), head=0.7, height=1.25)
    for row, (several, place) in enumerate(zip(panels, places, strict=True)):
        network, along = place.split(", ")
        for axes, (name, title) in zip(several, ROWS.items(), strict=True):
            _panel(axes, of_place(dataset, place), name, schemes)
            axes.set_xlabel(along)
            if not sheet.wide and row == 0:
                axes.set_title(title)
        several[0].set(**{"title" if sheet.wide else "ylabel": NETWORKS[network]})
    if sheet.wide:
        for axes, title in zip(panels[0], ROWS.values(), strict=True):
            axes.set_ylabel(title)
    sheet.figure.align_labels()
    grey: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.5, "color": "0.35"}
    states = [Line2D([], [], label=called(value), **grey | _filled(value, epochs, "0.35")) for value in epochs]
    sheet.schemes(schemes, [*states, Line2D([], [], label="predicted slope", **LAW)])


def _panel(axes: Axes, one: xr.Dataset, name: str, schemes: list[str]) -> None:
    """Means over seeds: a line with filled markers at first, hollow ones where the network has learned."""
    sizes, highest, lowest = one["size"].values, 0.0, np.inf
    for scheme in schemes:
        for epochs in one["epochs"].values:
            values = one[name].sel(estimator=scheme, epochs=epochs)
            values = values.sel(reference="target") if name == "cosine" else values
            how = looks.line_style(scheme) | _filled(epochs, one["epochs"].values, looks.look(scheme).color)
            drawing.repeated(axes, one["size"], values, estimator="mean", errorbar=("se", intervals.Z), **how)
            mean = values.mean("seed")
            highest, lowest = max(highest, float(mean.max())), min(lowest, float(mean.where(mean > 0).min()))
        law = predicted(one.expand_dims("place"), one["place"].item(), scheme)
        if name == "relative_variance" and np.isfinite(law):
            first = float(one[name].sel(estimator=scheme).isel(epochs=0, point=0).mean())
            axes.plot(sizes, first * (sizes / sizes[0]) ** law, **LAW)
    axes.set_xscale("log")
    axes.set_xlim(sizes.min() / 1.25, sizes.max() * 1.25)
    drawing.ticks(axes.xaxis, sizes.astype(int))
    drawing.log(axes, "y", (lowest / 1.5, highest * 1.5))


def _filled(epochs: int, all_epochs: Any, color: str) -> dict[str, Any]:
    """Markers are filled at the first state, hollow at later ones."""
    hollow = {"markerfacecolor": "white", "markeredgecolor": color, "markeredgewidth": 0.6, "alpha": 0.75}
    return {} if epochs == all_epochs[0] else hollow


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, first = dataset.attrs.get, dataset["epochs"].values[0]
    fitted = []
    for place in datasets.names(dataset, "place"):
        each = []
        for scheme in looks.in_order(datasets.names(dataset, "estimator")):
            (value, half), law = slope(dataset, place, scheme, first), predicted(dataset, place, scheme)
            each.append(f"{scheme} {value:z.2f} ± {half:.2f}" + (f" ({law:z.2f})" if np.isfinite(law) else ""))
        fitted.append(f"{place}: {', '.join(each)}.")
    parts = [
        "How relative variance and cosine to the target change with the size of the network; all parameters that "
        f"schemes perturb, batches of {get('batch_size', '?')} digits, means over {dataset.sizes['seed']} seeds. "
        "MLPs have square layers and a local head behind each.",
        "Relative variance: exact; its inverse is the SNR, as no scheme here is biased. Cosines: drawn, "
        f"{get('draws', '?')} draws (replayed) a seed. Bands: ±1.96 standard errors over seeds. Hollow: after a "
        "little backprop. Dotted: the predicted slopes, from the first point.",
        f"Fitted slopes of the relative variance before training, 95 % intervals over seeds (predicted): "
        f"{' '.join(fitted)}",
    ]
    failed = int((dataset["status"] == "failed").sum()) if "status" in dataset else 0
    return [*parts, f"{failed} cells failed."] if failed else parts


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.scaling", __doc__, FIGURES, table)
