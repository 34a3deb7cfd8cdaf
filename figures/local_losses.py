"""The figure of local losses: error, noise and direction with every combination of block, patch and group losses.

Run   python -m figures.local_losses results/local_losses.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, datasets, drawing, looks, marks, series
from figures import command
from figures.page import Figures, Page

DIMS = ("losses", "groups", "seed", "scheme")
NEEDED: dict[str, tuple[str, ...]] = {
    "error": DIMS,
    "relative_variance": DIMS,
    "cosine": (*DIMS, "reference"),
    "cosine_se": (*DIMS, "reference"),
    "best_lr": ("losses", "groups", "scheme"),
    "status": ("losses", "groups", "seed"),
}
PAGE = Page("studies/local_losses.py", NEEDED)
PANELS = {"error": "test error (%)", "relative_variance": "relative variance", "cosine": "cosine to target"}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each combination; error, relative variance and cosine side by side; in one column the error."""
    data = ranged(dataset.isel(groups=0))
    names, panels = datasets.names(data, "losses"), list(PANELS)[: 3 if sheet.wide else 1]
    widths = [1.3, 1, 1][: len(panels)]
    drawn = sheet.grid(1, len(panels), head=0.75, height=0.16 * len(names), sharey=True, width_ratios=widths)[0]
    for axes, name in zip(drawn, panels, strict=True):
        PANEL[name](axes, data)
        axes.set_xlabel(PANELS[name])
        axes.tick_params(axis="y", length=0)
    drawn[0].set_yticks(range(len(names)), names)
    drawn[0].set_ylim(len(names) - 0.5, -0.5)
    helper = Line2D([], [], color=looks.look("frozen").color, linestyle=looks.look("frozen").line)
    helper.set_label("frozen")
    sheet.schemes(["LG-FG-A", "LG-BP"], [helper], points=True)
    sheet.figure.align_labels()


def ranged(dataset: xr.Dataset) -> xr.Dataset:
    """What is drawn: means over seeds, from the lowest to the highest, as few seeds have no normal interval."""
    data = dataset[list(PANELS)].sel(reference="target", drop=True)
    data["error"] = 100 * data["error"]
    ends = {"": data.mean("seed"), "_low": data.min("seed"), "_high": data.max("seed")}
    return xr.merge([its.rename({name: f"{name}{end}" for name in PANELS}) for end, its in ends.items()])


def _error(axes: Axes, data: xr.Dataset) -> None:
    axes.set_xlim(0, 1.08 * float(data["error_high"].max()))
    for scheme, shift in (("LG-BP", 0.16), ("LG-FG-A", 0.0)):
        _rows(axes, data, "error", scheme, shift)
    frozen = data["error"].sel(scheme="frozen").mean().item()
    axes.axvline(frozen, color=looks.look("frozen").color, linestyle=looks.look("frozen").line, zorder=1)


def _variance(axes: Axes, data: xr.Dataset) -> None:
    its = data.sel(scheme="LG-FG-A")
    low, high = its["relative_variance_low"].min(), its["relative_variance_high"].max()
    drawing.log(axes, "x", (float(low) / 1.6, float(high) * 1.6))
    _rows(axes, data, "relative_variance", "LG-FG-A")


def _cosine(axes: Axes, data: xr.Dataset) -> None:
    axes.set_xlim(0, 1.1 * float(data["cosine_high"].sel(scheme="LG-FG-A").max()))
    _rows(axes, data, "cosine", "LG-FG-A")


PANEL = {"error": _error, "relative_variance": _variance, "cosine": _cosine}


def _rows(axes: Axes, data: xr.Dataset, name: str, scheme: str, shift: float = 0.0) -> None:
    at = np.arange(data.sizes["losses"], dtype=float) + shift
    marks.rows(axes, series.of(data.sel(scheme=scheme), name), at, looks.look(scheme), label=scheme)


MEASURED = (
    "Middle and right: noise at initialisation given one batch, over the squared norm of the target, exact; mean "
    "cosine to the target, drawn ({draws} draws, replayed), with a standard error of at most {error:.2g} for a "
    "network."
)


def network(dataset: xr.Dataset) -> str:
    """What all runs have in common."""
    blocks, patches, channels, data = (
        dataset.attrs.get(f"config_{name}", "?") for name in ("blocks", "patches", "channels", "data")
    )
    return f"{data}: a LocalMixer of {blocks} blocks with {patches} × {patches} patches, {channels} channels"


def seeds(dataset: xr.Dataset, shown: str = "bars") -> str:
    """What points and bars, or bands, are, and how many cells are not there."""
    lacking = int((dataset["status"] != "done").sum())
    told = f" {lacking} of {dataset['status'].size} cells failed or are missing." if lacking else ""
    return (
        f"Points: means of {dataset.sizes['seed']} seeds (network, order and noise); {shown}: from the lowest "
        f"to the highest.{told}"
    )


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, data = dataset.attrs.get, dataset.isel(groups=0)
    rates = data["best_lr"].sel(scheme="LG-FG-A")
    means = data.mean("seed")
    ours = means.sel(scheme="LG-FG-A")
    whole, none = ours.isel(losses=-1), ours.isel(losses=0)
    return [
        "Local losses at every block, for every patch, for every channel group, and all combinations (none: the last "
        f"block's alone, in one copy), on {network(dataset)} and {int(data['groups'])} groups. A small proxy of "
        "Fig. 6 of Ren et al. 2023.",
        f"Left: test error after {get('config_epochs', '?')} epochs, each at the rate (of {get('config_lr', '?')}) "
        f"with the lowest final training loss: {', '.join(f'{r:g}' for r in rates.values)} for LG-FG-A from top to "
        f"bottom. {MEASURED.format(draws=get('config_draws', '?'), error=float(data['cosine_se'].max()))}",
        f"{seeds(dataset)} LG-BP is drawn where losses are not replicated: replicating leaves its gradient as it is. "
        "Line: a frozen trunk under trained heads.",
        f"LG-FG-A has an error of {none['error'].item():.1%} with no local loss and {whole['error'].item():.1%} with "
        f"{whole['losses'].item()}; relative variance {none['relative_variance'].item():.3g} and "
        f"{whole['relative_variance'].item():.3g}; a frozen trunk has an error of "
        f"{means['error'].sel(scheme='frozen').mean().item():.1%}.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.local_losses", __doc__, FIGURES)
