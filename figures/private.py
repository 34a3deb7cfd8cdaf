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

from fgvar.plot import Sheet, datasets, intervals, looks
from figures import command
from figures.page import Figures, Page

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
    BOTH: ("#0072B2", "s", looks.SOLID),
    LEFT: ("#D55E00", "v", looks.DASHED),
    FULL: ("#000000", "", looks.DOTTED),
    "top quarter": ("#009E73", "^", "none"),
    "random quarter": ("#666666", "o", "none"),
}
SPARSE = ("top quarter", "random quarter")
POINTS: dict[str, Any] = {"linestyle": "none", "elinewidth": 0.7, "markeredgecolor": "white", "zorder": 4}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Stacked parts of the error by layer; below, efficiency at each σ and of sparse carriers."""
    layers, sigmas = datasets.names(dataset, "layer"), dataset["sigma"].values
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
            axes.set_ylabel("error² / ‖∇L‖²" if top else "efficiency / DP-SGD's")
        axes.set_xlabel("rank r" if index >= (down - 1) * across else "")
    sheet.legend(_handles())


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
    drawn, half = share(data, "drawn_error"), intervals.Z * _error(data)
    axes.errorbar(x[:-1], drawn, yerr=half, color="black", marker="D", **POINTS | {"markersize": 2.4})
    axes.set_title(layer.removesuffix(".weight").removesuffix(".linear"))
    axes.set_ylim(0, 1.1 * max(base.max(), float(left.max())))
    _ranks(axes, ranks, full=True)


def _error(data: xr.Dataset) -> xr.DataArray:
    """Of the mean over seeds of what is drawn."""
    error = (data["drawn_error_se"] ** 2).sum("seed", skipna=False) ** 0.5 / data.sizes["seed"]
    return error / data["gradient_square"].mean("seed")


def gain(dataset: xr.Dataset) -> xr.DataArray:
    """Efficiency over that of DP-SGD at the same network, clip and noise."""
    return dataset["efficiency"] / dataset["whole_efficiency"]


def _efficiency(axes: Axes, dataset: xr.Dataset, sigma: float) -> None:
    """Means over networks as lines, exact; their range as bands; points where it was drawn."""
    its, x = gain(dataset).sel(sigma=sigma), np.arange(dataset.sizes["rank"])
    for kind in (BOTH, LEFT):
        color, marker, line = LOOKS[kind]
        one = its.sel(kind=kind)
        axes.fill_between(x, one.min("seed"), one.max("seed"), color=color, alpha=0.13, linewidth=0)
        axes.plot(x, one.mean("seed"), color=color, linestyle=line, zorder=2)
        if sigma == drawn_sigma(dataset):
            _drawn(axes, dataset, kind)
        else:
            axes.plot(x, one.mean("seed"), color=color, marker=marker, markeredgecolor="white", linestyle="none")
    _like_dp_sgd(axes, dataset, f"σ = {sigma:g}")


def _sparse(axes: Axes, dataset: xr.Dataset) -> None:
    """A quarter of the noisy numbers, drawn, beside all of them."""
    sigma, (color, _, line) = drawn_sigma(dataset), LOOKS[BOTH]
    exact = gain(dataset).sel(kind=BOTH, sigma=sigma).mean("seed")
    axes.plot(np.arange(exact.size), exact, color=color, linestyle=line, zorder=2)
    for name in SPARSE:
        _drawn(axes, dataset, name)
    _like_dp_sgd(axes, dataset, f"quarter kept, σ = {sigma:g}")


def drawn_sigma(dataset: xr.Dataset) -> float:
    """The σ of what is drawn, and of the parts."""
    return float(dataset["sigma"].values[1])


def drawn_gain(dataset: xr.Dataset, name: str) -> xr.Dataset:
    """Drawn efficiency over the exact one of DP-SGD, a mean over networks with its interval."""
    whole = dataset["whole_efficiency"].sel(sigma=drawn_sigma(dataset), drop=True)
    ends = [f"drawn_efficiency{end}" for end in ("", "_low", "_high")]
    return intervals.over_seeds(dataset[ends].sel(row=name) / whole)


def _drawn(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    its, (color, marker, _) = drawn_gain(dataset, name), LOOKS[name]
    value = its["drawn_efficiency"]
    error = intervals.bars(value, intervals.ends(its, "drawn_efficiency"))
    axes.errorbar(np.arange(value.size), value, yerr=error, color=color, marker=marker, **POINTS)


def _like_dp_sgd(axes: Axes, dataset: xr.Dataset, title: str) -> None:
    color, _, line = LOOKS[FULL]
    axes.axhline(1, color=color, linestyle=line, zorder=1)
    axes.set_title(title)
    axes.set_ylim(0, 1.05 * float(gain(dataset).max()))
    _ranks(axes, dataset["rank"].values)


def _ranks(axes: Axes, ranks: Any, *, full: bool = False) -> None:
    names = [f"{rank}" for rank in ranks] + full * ["all"]
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, total, sigma = dataset.attrs.get, dataset.sel(layer="total"), drawn_sigma(dataset)
    ranks, mean = dataset["rank"].values, gain(dataset).mean("seed")
    drawn, exact = share(total, "drawn_error"), share(total, "energy").sel(kind=BOTH).sum("part")
    best = [
        f"σ = {s:g}: {mean.sel(kind=BOTH, sigma=s).max().item():.2f} at rank {_best(dataset, BOTH, s)} with both, "
        f"{mean.sel(kind=LEFT, sigma=s).max().item():.2f} at {_best(dataset, LEFT, s)} with the left ones (DP-SGD's "
        f"efficiency: {dataset['whole_efficiency'].sel(sigma=s).mean('seed').item():.3g})"
        for s in dataset["sigma"].values
    ]
    sparse = "; ".join(f"{name} {drawn_gain(dataset, name)['drawn_efficiency'].max().item():.2f}" for name in SPARSE)
    return [
        f"Private gradients of LocalMixers of two blocks, {dataset.sizes['seed']} of them, after 60 steps of SGD on "
        f"digits: {get('config_examples', '?')} examples, each drawn with probability {get('rate', '?')}, seen from "
        "r rows and columns of every matrix (two carriers, by one power iteration on the weight), clipped to the "
        "median norm of the examples' gradients, with normal noise of σ times that on the sum.",
        f"Above, σ = {sigma:g}: parts of the squared error, exact, over ‖∇L‖² of that layer, means over networks; "
        "last bar: DP-SGD, without carriers. Dashed: their sum with the left carriers alone, as RGP's code returns. "
        f"Diamonds: with both, drawn ({get('draws', '?')} draws a network), 95 % intervals; largest |z| of the total "
        f"{float((abs(drawn - exact) / _error(total)).max()):.1f}.",
        "Below: efficiency ⟨E ĝ, ∇L⟩²/(‖∇L‖² E‖ĝ‖²) over that of DP-SGD at the same σ: exact, mean and range of "
        f"networks, points at σ = {sigma:g} drawn. Best of ranks {ranks[0]} to {ranks[-1]}: {'; '.join(best)}. "
        f"{_falls(dataset)}",
        f"Right: a quarter of the noisy numbers of both carriers, largest or random, drawn; best: {sparse}.",
        "σ and the clip are the same for all ranks, and with them what one release gives away; no ε is claimed. "
        "Ito et al. 2022 keep few numbers by a strategy unknown to us (abstract read, no code found), which none of "
        "these is.",
    ]


def _falls(dataset: xr.Dataset) -> str:
    """In how many networks the best rank is lower at the largest σ than at the smallest."""
    its = gain(dataset)
    ranks = its["rank"][its.argmax("rank")]
    falls = (ranks.isel(sigma=-1) < ranks.isel(sigma=0)).sum("seed")
    both, left = (int(falls.sel(kind=kind)) for kind in (BOTH, LEFT))
    return (
        f"From the smallest σ to the largest a network's own best rank falls in {both} of {dataset.sizes['seed']} "
        f"with both, in {left} with the left ones, which are shorter, at the same clip."
    )


def _best(dataset: xr.Dataset, kind: str, sigma: float) -> int:
    """The rank of the highest mean gain."""
    mean = gain(dataset).mean("seed").sel(kind=kind, sigma=sigma)
    return int(mean["rank"][int(mean.argmax("rank"))])


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.private", __doc__, FIGURES)
