"""The figure of fused losses: time and memory of the copies of a local loss, one by one and fused, against groups.

Run   python -m figures.fused_losses results/fused_losses.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, drawing
from figures import command
from figures.page import Figures, Page

NEEDED: dict[str, tuple[str, ...]] = {
    "time": ("groups", "seed", "repeat", "way"),
    "peak": ("groups", "seed", "way"),
    "difference": ("groups", "seed"),
}
PAGE = Page("studies/fused_losses.py", NEEDED)
LOOKS = {  # ways are no schemes: Okabe & Ito's colours, with markers of their own
    "naive": ("#D55E00", "^", "replicated, naive"),
    "fused": ("#0072B2", "o", "replicated, fused"),
    "ordinary": ("#7f7f7f", "s", "one copy"),
}
PANELS = {"time": "time (ms)", "ratio": "time relative to fused", "peak": "peak memory (MB)"}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Time, ratios of times and memory, side by side; one below the other in one column."""
    panels = sheet.row(3, head=0.5, height=1.5, sharex=not sheet.wide)
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        _panel(axes, measured(dataset, name))
        axes.set_ylabel(title)
        if sheet.wide or name == "peak":
            axes.set_xlabel("groups")
    handles = [Line2D([], [], color=color, marker=marker, label=label) for color, marker, label in LOOKS.values()]
    sheet.legend(handles)
    sheet.figure.align_labels()


def measured(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """What a panel shows, in its units, of every ``run``: a repeat of a seed (memory: a seed)."""
    if name == "peak":
        return (dataset["peak"] / 1e6).stack(run=["seed"])
    time = dataset["time"].stack(run=["seed", "repeat"])
    return 1e3 * time if name == "time" else (time / time.sel(way="fused")).drop_sel(way="fused")


def _panel(axes: Axes, values: xr.DataArray) -> None:
    x = values["groups"].values
    for way in map(str, values["way"].values):
        color, marker, label = LOOKS[way]
        how: dict[str, Any] = {"color": color, "marker": marker, "label": label, "markeredgecolor": "white"}
        drawing.repeated(axes, values["groups"], values.sel(way=way), estimator="median", errorbar=("pi", 50), **how)
    low, high = values.quantile([0.25, 0.75], "run")
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.3, x.max() * 1.3)
    drawing.ticks(axes.xaxis, x if len(x) < 5 else x[::2])
    drawing.log(axes, "y", (float(low.min()) / 1.4, float(high.max()) * 1.4))


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    time, ratio, peak = (measured(dataset, name).median("run") for name in PANELS)
    first, last = (int(dataset["groups"][place]) for place in (0, -1))
    return [
        "Directional derivatives of the loss of one block, replicated over patches and groups: by copies with "
        "stop-gradients (naive), by one gradient and an inner product for each copy (fused), and of the ordinary "
        f"loss in one copy. Batch {get('config_batch', '?')}, {get('config_patches', '?')} patches, "
        f"{get('config_channels', '?')} channels; both ways differ by at most "
        f"{float(np.max(dataset['difference'])):.1e} of the derivatives' norm.",
        f"Left and middle: wall time on {get('threads', '?')} thread(s) of a machine with other work, medians of "
        f"{dataset.sizes['repeat'] * dataset.sizes['seed']} repeats in bands of quartiles; the ways take turns, and "
        "ratios are taken within a repeat. Right: largest sum of tensors allocated at a time, beyond the inputs.",
        f"From {first} to {last} groups: naive {_from_to(time, 'naive')} ms and {_from_to(peak, 'naive')} MB, fused "
        f"{_from_to(time, 'fused')} ms and {_from_to(peak, 'fused')} MB; naive takes {_from_to(ratio, 'naive')} "
        f"times as long as fused, one copy {_from_to(ratio, 'ordinary')} times.",
    ]


def _from_to(values: xr.DataArray, way: str) -> str:
    its = values.sel(way=way).values
    return f"{its[0]:.3g} to {its[-1]:.3g}"


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.fused_losses", __doc__, FIGURES)
