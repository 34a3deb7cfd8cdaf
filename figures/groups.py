"""The figure of groups: error, noise and direction against the number of channel groups.

Run   python -m figures.groups results/groups.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, drawing, looks
from figures import command, local_losses
from figures.page import Figures, Page

PAGE = Page("studies/groups.py", local_losses.NEEDED)
ONE, ALL = "block", "block + patch + group"
SERIES = (("frozen", ONE), ("LG-BP", ONE), ("LG-FG-A", ONE), ("LG-FG-A", ALL))
SHIFT = {"frozen": 1 / 1.05, "LG-BP": 1.05}  # factors along x, or bars would hide each other


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Error, relative variance and cosine against groups, side by side; one below the other in one column."""
    panels = sheet.row(3, head=0.55, height=1.5, sharex=not sheet.wide)
    for axes, (name, title) in zip(panels, local_losses.PANELS.items(), strict=True):
        _panel(axes, dataset, name)
        axes.set_ylabel(title)
        if sheet.wide or name == "cosine":
            axes.set_xlabel("groups")
    handles = [
        Line2D([], [], label=f"{scheme}, {'in one copy' if losses == ONE else 'replicated'}", **_look(scheme, losses))
        for scheme, losses in SERIES[2:]
    ]
    others = [Line2D([], [], label=scheme, **_look(scheme, losses)) for scheme, losses in SERIES[:2]]
    sheet.legend(handles + others)
    sheet.figure.align_labels()


def _panel(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    x, shown = dataset["groups"].values, []
    for scheme, losses in SERIES if name == "error" else SERIES[2:]:
        values = dataset[name].sel(scheme=scheme, losses=losses)
        values = values.sel(reference="target") if name == "cosine" else values
        at = x * SHIFT.get(scheme, 1.0)
        local_losses.bars(axes, values, "groups", scheme, horizontal=False, at=at, **_look(scheme, losses))
        shown.append(values)
    highest = max(float(values.max()) for values in shown)
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.3, x.max() * 1.3)
    drawing.ticks(axes.xaxis, x)
    lowest = min(float(values.min()) for values in shown)
    if name == "cosine":
        axes.set_ylim(0, 1.08 * highest)
    else:
        drawing.log(axes, "y", (lowest / 1.3, highest * 1.3))
    if name == "error":  # errors lie within two powers of ten
        axes.set_ylim(lowest / 1.15, highest * 1.15)
        drawing.ticks(axes.yaxis, [place for place in (0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if place > lowest / 1.15])


def _look(scheme: str, losses: str) -> dict[str, Any]:
    """The scheme's line and marker; hollow where LG-FG-A has one copy of each loss."""
    how = looks.line_style(scheme)
    hollow = {"markerfacecolor": "white", "markeredgecolor": how["color"], "markeredgewidth": 0.7}
    return how | (hollow if (scheme, losses) == ("LG-FG-A", ONE) else {})


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, means = dataset.attrs.get, dataset[["error", "relative_variance"]].mean("seed")
    rates = dataset["best_lr"].sel(scheme="LG-FG-A")
    ours = means.sel(scheme="LG-FG-A", losses=ALL)
    best, ends = ours.isel(groups=int(ours["error"].argmin("groups"))), ours.isel(groups=[0, -1])
    chosen = "; ".join(
        f"{', '.join(f'{r:g}' for r in rates.sel(losses=losses).values)} {words}"
        for losses, words in ((ONE, "in one copy"), (ALL, "replicated"))
    )
    return [
        f"More and more channel groups, on {local_losses.network(dataset)}. A small proxy of Fig. 7 of Ren et al. "
        "2023. Local losses stand at every block, in one copy or replicated over patches and groups.",
        f"Left: test error after {get('config_epochs', '?')} epochs, each at the rate (of {get('config_lr', '?')}) "
        f"with the lowest final training loss; for LG-FG-A from few to many groups {chosen}. "
        + local_losses.MEASURED.format(draws=get("config_draws", "?"), error=float(dataset["cosine_se"].max())),
        f"{local_losses.seeds(dataset)} frozen: a frozen trunk under trained heads. The network changes with its "
        "groups: grouped layers of more groups have fewer weights.",
        f"With replicated losses LG-FG-A has an error of {ends['error'][0].item():.1%} with "
        f"{int(ends['groups'][0])} and {ends['error'][1].item():.1%} with {int(ends['groups'][1])} groups, the "
        f"lowest ({best['error'].item():.1%}) with {int(best['groups'])}; relative variance "
        f"{ends['relative_variance'][0].item():.3g} and {ends['relative_variance'][1].item():.3g}.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.groups", __doc__, FIGURES)
