"""The figure of regularisation: errors of six rows against the number of images, and the rules that judge them.

Run   python -m figures.regularisation results/regularisation.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from fgvar.plot import Sheet, drawing
from figures import command
from figures.page import Figures, Page

DIMS = ("row", "images", "seed")
DIFFERENCE = ("difference_of", "images")
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("test_error", "train_error", "gap", "held_out_lowest", "noise"), DIMS),
    **dict.fromkeys(("best_lr", "best_decay"), DIMS[:2]),
    **{f"difference{end}": DIFFERENCE for end in ("", "_low", "_high")},
    "verdict": ("rule", "images"),
    "verdict_at": ("rate", "rule", "images"),
    "verdict_without": ("left_out", "rule", "images"),
    **dict.fromkeys(("seeds_done", "cells", "missing", "runs_diverged"), ("images",)),
}
PAGE = Page("studies/regularisation.py", NEEDED)
LOOKS = {  # filled: without noise; hollow: with isotropic noise in its place
    "BP": ("black", "o", "black"),
    "BP + noise": ("black", "s", "white"),
    "BP + decay": ("#009E73", "P", "#009E73"),
    "LG-BP": ("#0072B2", "^", "#0072B2"),
    "LG-BP + noise": ("#0072B2", "v", "white"),
    "LG-FG-A": ("#D55E00", "D", "#D55E00"),
}
PANELS = {"test_error": "test error (%)", "train_error": "train error (%)", "gap": "test − train error (points)"}
# Rules and their differences, as they stand at the panel's side; L is LG-FG-A − LG-BP.
NAMES = {
    "effect": "effect\nE = LG-FG-A − BP",
    "locality": "locality\nLG-BP − BP − E/2",
    "perturbation": "noise: that of LG-FG-A\nL − E/2",
    "noise on BP": "noise: matched, on BP\n(+ noise) − BP − L/2",
    "noise on LG-BP": "noise: matched, on LG-BP\n(+ noise) − LG-BP − L/2",
    "weight decay": "weight decay\n(+ decay) − BP − E/2",
}
VERDICTS = {1: "holds", 0: "undecided", -1: "fails", -2: "nothing to explain"}
SIZES = (("#882255", "o"), ("#E69F00", "s"), ("#56B4E9", "^"), ("#666666", "D"))  # numbers of images, from the least


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Three errors against images, a marker a row; and the differences of the rules on both sides of 0."""
    panels = sheet.grid(*((2, 2) if sheet.wide else (4, 1)), head=0.75, height=2.1).flat
    for axes, (name, title) in zip(panels, PANELS.items(), strict=False):
        _errors(axes, dataset, name)
        axes.set_title(title)
        axes.set_xlabel("training images")
    last = sheet.figure.axes[-1]
    _differences(last, dataset)
    last.set_title("differences of test errors (points)")
    last.set_xlabel("◂ the rule holds     it fails ▸")
    rows = [
        Line2D([], [], color=color, marker=marker, markerfacecolor=face, markeredgecolor=color, label=row)
        for row, (color, marker, face) in LOOKS.items()
    ]
    images = [
        Line2D([], [], color=color, marker=marker, linestyle="none", label=f"{int(count):,} images")
        for count, (color, marker) in zip(dataset["images"].values, SIZES, strict=False)
    ]
    sheet.legend([*rows, *images])


def _errors(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    """Means over seeds with bars from the lowest to the highest, rows side by side."""
    images = dataset["images"].values
    for place, (row, (color, marker, face)) in enumerate(LOOKS.items()):
        values = 100 * dataset[name].sel(row=row)
        mean = values.mean("seed")
        arms = abs(xr.concat([values.min("seed"), values.max("seed")], "end") - mean)
        axes.errorbar(
            images * 1.04 ** (place - 2.5), mean, yerr=arms, color=color, marker=marker, markerfacecolor=face,
            markeredgecolor=color, linewidth=0.7, elinewidth=0.7, zorder=3,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(images.min() / 1.3, images.max() * 1.3)
    drawing.ticks(axes.xaxis, images)
    axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))


def _differences(axes: Axes, dataset: xr.Dataset) -> None:
    """Each with its 95 % interval, from top to bottom, a marker a number of images."""
    shown = 100 * dataset[["difference", "difference_low", "difference_high"]].sel(difference_of=list(NAMES))
    count = dataset.sizes["images"]
    for place, (color, marker) in enumerate(SIZES[:count]):
        its = shown.isel(images=place)
        y = np.arange(len(NAMES)) + 0.22 * (place - (count - 1) / 2)
        arms = abs(xr.concat([its["difference_low"], its["difference_high"]], "end") - its["difference"])
        axes.errorbar(its["difference"], y, xerr=arms, color=color, marker=marker, linestyle="none", elinewidth=0.9)
    axes.axvline(0, color="black", linewidth=0.5, zorder=1)
    axes.set_yticks(range(len(NAMES)), list(NAMES.values()), linespacing=1.0)
    axes.set_ylim(len(NAMES) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    config = {name: get(f"config_{name}", "?") for name in ("blocks", "patches", "channels", "groups", "batch")}
    seeds = ", ".join(f"{int(n)}" for n in dataset["seeds_done"])
    cells, missing, several = (int(dataset[name].sum()) for name in ("cells", "missing", "runs_diverged"))
    diverged = f" {several} runs diverged." if several else ""
    return [
        f"Where backprop overfits, does noise or locality bring LG-FG-A below it? A LocalMixer of {config['blocks']} "
        f"blocks with {config['patches']} × {config['patches']} patches, {config['channels']} channels and "
        f"{config['groups']} groups, {get('config_updates', '?')} updates of {config['batch']} images. Noise: "
        "isotropic, in every tensor and at every step of LG-FG-A's variance.",
        f"Errors are those of complete runs. Points: means over seeds ({seeds} of {dataset.sizes['seed']}, by number "
        "of images: another subset, network, order and noise each); bars: from the lowest to the highest. Each row "
        "at the rate, and decay, with the lowest mean error on held-out training images: "
        f"{'; '.join(_settings(dataset, row) for row in LOOKS)}. {missing} of {cells} cells are "
        f"missing.{diverged}",
        "Below right: differences of test errors paired over seeds, 95 % t-intervals; E = LG-FG-A − BP, L = LG-FG-A "
        "− LG-BP, and what was subtracted is half of what is to be explained. A rule holds where all of its "
        f"intervals are below 0, fails where one is above. Verdicts: {'; '.join(_verdicts(dataset))}.",
        f"By the lowest of some 15 held-out errors on the way (stopping early, held-out images): {_early(dataset)}.",
        _elsewhere(dataset),
    ]


def _settings(dataset: xr.Dataset, row: str) -> str:
    its = dataset.sel(row=row)
    rates = ", ".join(f"{float(rate):g}" for rate in its["best_lr"])
    decays = ", ".join(f"{float(decay):g}" for decay in its["best_decay"])
    return f"{row} {rates}" + (f" (decay {decays})" if float(its["best_decay"].fillna(0).max()) else "")


def _verdicts(dataset: xr.Dataset) -> list[str]:
    """A part for each number of images; of nothing to explain, that alone."""
    found = []
    for images in dataset["images"].values:
        its = dataset["verdict"].sel(images=images)
        rules = {str(rule): VERDICTS[int(its.sel(rule=rule))] for rule in its["rule"].values}
        e = 100 * float(dataset["difference"].sel(images=images, difference_of="effect"))
        first = f"{int(images):,} images: E = {e:+.1f} points, {rules.pop('effect')}"
        rest = ", ".join(f"{rule} {verdict}" for rule, verdict in rules.items() if verdict != "nothing to explain")
        found.append(", ".join(filter(None, (first, rest))).replace("-", "−"))
    return found


def _early(dataset: xr.Dataset) -> str:
    means = 100 * dataset["held_out_lowest"].mean("seed")
    return "; ".join(
        f"{row} {', '.join(f'{float(value):.1f} %' for value in means.sel(row=row))}"
        for row in ("BP", "LG-BP", "LG-FG-A")
    )


def _elsewhere(dataset: xr.Dataset) -> str:
    """What would change with another seed, rate or network, counted as far as it can be."""
    verdict = dataset["verdict"]
    rates = dataset["verdict_at"] != verdict
    seeds = dataset["verdict_without"] != verdict
    lr = dataset["rate"].values
    edges = ((dataset["best_lr"] == lr.min()) | (dataset["best_lr"] == lr.max())).sum()
    by_rate = ", ".join(f"{rate:g} {int(rates.sel(rate=rate).sum())}" for rate in lr)
    return (
        f"Of {verdict.size} verdicts would change: with one rate for all rows, {by_rate}; with a seed left out, "
        f"{int(seeds.any('left_out').sum())}. {int(edges)} of {dataset['best_lr'].size} rates chosen are the lowest "
        "or the highest tried. Another network, longer training and augmentation were not tried: the paper's network "
        "is 8 times as wide, and trains for hundreds of epochs on 50,000 images."
    )


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.regularisation", __doc__, FIGURES)
