"""The figure of private gradients: where their error comes from, and how efficient they are, against the rank.

Run   python -m figures.private results/private.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import command, intervals, style
from figures.page import Figures, Page, Sheet

BOTH, LEFT, FULL = "both carriers", "left carriers", "DP-SGD"
OF_RANK = ("seed", "kind", "rank")
NEEDED: dict[str, tuple[str, ...]] = {
    "energy": (*OF_RANK, "part", "layer"),
    "whole_energy": ("seed", "part", "layer"),
    "efficiency": (*OF_RANK, "sigma"),
    "whole_efficiency": ("seed", "sigma"),
    "gradient_square": ("seed", "layer"),
    "clip_norm": ("seed",),
    **dict.fromkeys(("drawn_error", "drawn_error_se"), ("seed", "rank", "layer")),
    **dict.fromkeys([f"drawn_efficiency{end}" for end in ("", "_low", "_high")], ("seed", "rank", "row")),
}
PAGE = Page("studies/private.py", NEEDED)
PARTS = {  # Okabe & Ito's colours, and hatches, so that nothing rests on colour alone
    "projection": ("#56B4E9", ""),
    "clip": ("#E69F00", "////"),
    "sampling": ("#000000", ""),
    "noise": ("#CC79A7", "...."),
}
LOOKS: dict[str, tuple[str, str, Any]] = {
    BOTH: ("#0072B2", "s", style.SOLID),
    LEFT: ("#D55E00", "v", style.DASHED),
    FULL: ("#000000", "", style.DOTTED),
    "top quarter": ("#009E73", "^", "none"),
    "random quarter": ("#666666", "o", "none"),
}
POINTS: dict[str, Any] = {"linestyle": "none", "elinewidth": 0.7, "markeredgecolor": "white", "zorder": 4}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Stacked parts of the error by layer; below, efficiency at each σ and of sparse carriers."""
    layers, sigmas = style.names(dataset, "layer"), dataset["sigma"].values
    down, across = (2, 4) if sheet.wide else (4, 2)
    panels = list(sheet.grid(down, across, head=0.62, height=1.55).flat)
    for axes, layer in zip(panels, layers, strict=False):
        _stack(axes, dataset, layer)
    for axes, sigma in zip(panels[len(layers) :], sigmas, strict=False):
        _efficiency(axes, dataset, float(sigma))
    _sparse(panels[-1], dataset)
    for index, axes in enumerate(panels):
        top = index < len(layers)
        if index % across == 0:
            axes.set_ylabel("error² / ‖∇L‖²" if top else "efficiency")
        axes.set_xlabel("rank r" if index >= (down - 1) * across else "")
    sheet.legend(_handles(), wide=5, narrow=3)


def _handles() -> list[Artist]:
    found: list[Artist] = [
        Patch(facecolor=color, hatch=hatch, edgecolor="white", label=part) for part, (color, hatch) in PARTS.items()
    ]
    found.append(Line2D([], [], color="black", marker="D", linestyle="none", label="sum, drawn"))
    for name, (color, marker, line) in LOOKS.items():
        found.append(Line2D([], [], color=color, marker=marker, linestyle=line, label=name))
    return found


def share(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """The mean over seeds, over that of ‖∇L‖²."""
    return dataset[name].mean("seed") / dataset["gradient_square"].mean("seed")


def _stack(axes: Axes, dataset: xr.Dataset, layer: str) -> None:
    """Bars of the parts with both carriers and, last, without any; the sum with the left ones as a line."""
    data, ranks = dataset.sel(layer=layer), dataset["rank"].values
    energy, whole = share(data, "energy"), share(data, "whole_energy")
    x, base = np.arange(len(ranks) + 1, dtype=float), np.zeros(len(ranks) + 1)
    for part, (color, hatch) in PARTS.items():
        heights = np.append(energy.sel(kind=BOTH, part=part).values, whole.sel(part=part).item())
        axes.bar(x, heights, 0.8, base, color=color, hatch=hatch, edgecolor="white", linewidth=0.2, zorder=2)
        base += heights
    color, marker, line = LOOKS[LEFT]
    left = energy.sel(kind=LEFT).sum("part")
    axes.plot(x[:-1], left, color=color, marker=marker, linestyle=line, markeredgecolor="white", zorder=3)
    drawn, half = share(data, "drawn_error"), style.Z * _error(data)
    axes.errorbar(x[:-1], drawn, yerr=half, color="black", marker="D", **POINTS | {"markersize": 2.4})
    axes.set_title(layer.removesuffix(".weight").removesuffix(".linear"))
    axes.set_ylim(0, 1.1 * max(base.max(), float(left.max())))
    _ranks(axes, ranks, full=True)


def _error(data: xr.Dataset) -> xr.DataArray:
    """Of the mean over seeds of what is drawn."""
    error = (data["drawn_error_se"] ** 2).sum("seed", skipna=False) ** 0.5 / data.sizes["seed"]
    return error / data["gradient_square"].mean("seed")


def _efficiency(axes: Axes, dataset: xr.Dataset, sigma: float) -> None:
    """Means over networks as lines, exact; their range as bands; points where it was drawn."""
    data, ranks = dataset.sel(sigma=sigma), dataset["rank"].values
    x = np.arange(len(ranks))
    for kind in (BOTH, LEFT):
        color, marker, line = LOOKS[kind]
        its = data["efficiency"].sel(kind=kind)
        axes.fill_between(x, its.min("seed"), its.max("seed"), color=color, alpha=0.15, linewidth=0)
        axes.plot(x, its.mean("seed"), color=color, linestyle=line, zorder=2)
        if sigma == dataset["sigma"].values[1]:
            _drawn(axes, dataset, kind)
        else:
            axes.plot(x, its.mean("seed"), color=color, marker=marker, markeredgecolor="white", linestyle="none")
    axes.axhline(data["whole_efficiency"].mean("seed").item(), color=LOOKS[FULL][0], linestyle=LOOKS[FULL][2])
    axes.set_title(f"σ = {sigma:g}")
    axes.set_ylim(0)
    _ranks(axes, ranks)


def _drawn(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    its = intervals.over_seeds(dataset[[f"drawn_efficiency{end}" for end in ("", "_low", "_high")]].sel(row=name))
    value, (color, marker, _) = its["drawn_efficiency"], LOOKS[name]
    error = intervals.bars(value, intervals.ends(its, "drawn_efficiency"))
    axes.errorbar(np.arange(its.sizes["rank"]), value, yerr=error, color=color, marker=marker, **POINTS)


def _sparse(axes: Axes, dataset: xr.Dataset) -> None:
    sigma, ranks = dataset["sigma"].values[1], dataset["rank"].values
    color, _, line = LOOKS[BOTH]
    exact = dataset["efficiency"].sel(kind=BOTH, sigma=sigma).mean("seed")
    axes.plot(np.arange(len(ranks)), exact, color=color, linestyle=line, zorder=2)
    for name in ("top quarter", "random quarter"):
        _drawn(axes, dataset, name)
    axes.set_title(f"quarter kept, σ = {sigma:g}")
    axes.set_ylim(0)
    _ranks(axes, ranks)


def _ranks(axes: Axes, ranks: Any, *, full: bool = False) -> None:
    names = [f"{rank}" for rank in ranks] + full * ["all"]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, count = dataset.attrs.get, dataset.sizes["seed"]
    return [
        f"{count} networks, {get('config_examples', '?')} examples.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.private", __doc__, FIGURES)
