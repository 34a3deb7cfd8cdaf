"""The figure of local losses: error, noise and direction with every combination of block, patch and group losses.

Run   python -m figures.local_losses results/local_losses.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, datasets, drawing, looks
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
PANELS = {"error": "test error", "relative_variance": "relative variance", "cosine": "cosine to target"}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each combination; error, relative variance and cosine side by side; in one column the error."""
    data = dataset.isel(groups=0)
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
    sheet.schemes(["LG-FG-A", "LG-BP"], [helper], entry=1.0, points=True)
    sheet.figure.align_labels()


def _error(axes: Axes, data: xr.Dataset) -> None:
    for scheme, shift in (("LG-BP", 0.16), ("LG-FG-A", 0.0)):
        _rows(axes, data["error"].sel(scheme=scheme), scheme, shift)
    frozen = data["error"].sel(scheme="frozen").mean().item()
    axes.axvline(frozen, color=looks.look("frozen").color, linestyle=looks.look("frozen").line, zorder=1)
    axes.set_xlim(0, 1.08 * float(data["error"].max()))


def _variance(axes: Axes, data: xr.Dataset) -> None:
    values = data["relative_variance"].sel(scheme="LG-FG-A")
    _rows(axes, values, "LG-FG-A")
    drawing.log(axes, "x", (float(values.min()) / 1.6, float(values.max()) * 1.6))


def _cosine(axes: Axes, data: xr.Dataset) -> None:
    values = data["cosine"].sel(scheme="LG-FG-A", reference="target")
    _rows(axes, values, "LG-FG-A")
    axes.set_xlim(0, 1.1 * float(values.max()))


PANEL = {"error": _error, "relative_variance": _variance, "cosine": _cosine}


def _rows(axes: Axes, values: xr.DataArray, scheme: str, shift: float = 0.0) -> None:
    """Means over seeds at their rows, and bars from the lowest to the highest seed."""
    bars(axes, values, "losses", scheme, horizontal=True, at=[row + shift for row in range(values.sizes["losses"])])


def bars(axes: Axes, values: xr.DataArray, along: str, scheme: str, *, horizontal: bool, at: Any, **how: Any) -> None:
    """Means over seeds, with bars from the lowest to the highest one: few seeds have no normal interval."""
    values = values.transpose(along, "seed")
    mean = values.mean("seed").values
    reach = abs(xr.concat([values.min("seed"), values.max("seed")], "end").values - mean)
    where = {"y": at, "x": mean, "xerr": reach} if horizontal else {"x": at, "y": mean, "yerr": reach}
    axes.errorbar(**where, elinewidth=0.7, zorder=3, **looks.point_style(scheme) | how)


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


def seeds(dataset: xr.Dataset) -> str:
    """What points and bars are, and how many cells are not there."""
    lacking = int((dataset["status"] != "done").sum())
    told = f" {lacking} of {dataset['status'].size} cells failed or are missing." if lacking else ""
    return (
        f"Points: means of {dataset.sizes['seed']} seeds (network, order and noise); bars: from the lowest to the "
        f"highest.{told}"
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
