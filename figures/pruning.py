"""The figure of pruning: live share and error, kept gradient energy, and noise of forward gradients, over epochs.

Run   python -m figures.pruning results/pruning.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, drawing, intervals
from figures import command
from figures.page import Figures, Page

DIMS = ("seed", "epoch")
NOISE = (*DIMS, "estimator")
NEEDED: dict[str, tuple[str, ...]] = {
    "share": DIMS,
    "live": DIMS,
    "test_error": (*DIMS, "network"),
    "energy": (*DIMS, "mask"),
    "energy_drawn": DIMS,
    "energy_drawn_se": DIMS,
    "relative_variance": NOISE,
    "relative_variance_drawn": NOISE,
    "relative_variance_drawn_se": NOISE,
    "law": NOISE,
    "status": ("seed",),
}
PAGE = Page("studies/pruning.py", NEEDED)
PRUNED, RANDOM, UNPRUNED = "#D55E00", "#0072B2", "#7f7f7f"
Curve = tuple[str, Any, str]
SHARES: dict[str, Curve] = {  # colour, line, and name in the legend
    "live": ("black", "-", "live share"),
    "pruned": (PRUNED, "-", "test error"),
    "dense": (UNPRUNED, "--", "test error, unpruned"),
}
MASKS: dict[str, Curve] = {
    "magnitude": (PRUNED, "-", "by magnitude"),
    "random": (RANDOM, "-", "at random places"),
    "magnitude of dense": (UNPRUNED, "--", "by magnitude, unpruned"),
}
LOOKS = {  # colour, marker, and name in the legend
    "FG-W, dense": (UNPRUNED, "s", "FG-W, unpruned"),
    "FG-W, masked": (RANDOM, "v", "FG-W, then masked"),
    "FG-W, live": (PRUNED, "o", "FG-W on live weights"),
    "FG-A, dense": ("#CC79A7", "^", "FG-A, unpruned"),
    "FG-A, masked": ("#009E73", "D", "FG-A, then masked"),
}
POINT: dict[str, Any] = {"linestyle": "none", "elinewidth": 0.7, "markeredgecolor": "white", "zorder": 4}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Per cent of weights and of errors, share of energy, and relative variance, each with names of its own."""
    panels = sheet.row(3, head=0.75, height=1.85)
    titles = ("live share and test error (%)", "share of gradient energy kept", "relative variance")
    for axes, panel, title in zip(panels, (_shares, _kept, _noise), titles, strict=True):
        panel(axes, dataset)
        axes.set_title(title)
        axes.set_xlabel("epoch")
        last = int(dataset["epoch"].max())
        drawing.ticks(axes.xaxis, [epoch for epoch in (1, 5, 10, 15, 20, 30, 40) if epoch <= last])
    lines = [Line2D([], [], color=c, linestyle=line, label=name) for c, line, name in SHARES.values()]
    for key, (color, line, name) in MASKS.items():
        marker = "s" if key == "random" else ""
        lines.append(Line2D([], [], color=color, linestyle=line, marker=marker, markeredgecolor="white", label=name))
    looks = [
        Line2D([], [], color=color, marker=marker, markeredgecolor="white", label=name)
        for color, marker, name in LOOKS.values()
    ]
    sheet.legend([*lines, *looks])


def _shares(axes: Axes, dataset: xr.Dataset) -> None:
    _line(axes, 100 * dataset["live"], *SHARES["live"][:2])
    for network in ("dense", "pruned"):
        _line(axes, 100 * dataset["test_error"].sel(network=network), *SHARES[network][:2])
    axes.set_yscale("log")
    low = 100 * min(float(dataset["test_error"].min()), float(dataset["live"].min()))
    axes.set_ylim(low / 1.2, 110)
    drawing.ticks(axes.yaxis, [place for place in (2, 5, 10, 20, 50, 100) if place > low / 1.2])


def _kept(axes: Axes, dataset: xr.Dataset) -> None:
    for mask, (color, line, _) in MASKS.items():
        _line(axes, dataset["energy"].sel(mask=mask), color, line)
    mean = intervals.over_seeds(dataset[["energy_drawn", "energy_drawn_se"]])
    axes.errorbar(
        mean["epoch"], mean["energy_drawn"], yerr=intervals.Z * mean["energy_drawn_se"], color=MASKS["random"][0],
        marker="s", **POINT,
    )  # fmt: skip
    axes.set_ylim(0, 1.1 * float(dataset["energy"].max()))


def _noise(axes: Axes, dataset: xr.Dataset) -> None:
    names = [f"relative_variance_drawn{end}" for end in ("", "_se", "_low", "_high")]
    mean = intervals.over_seeds(dataset[[name for name in names if name in dataset]])
    low, high = intervals.ends(mean, "relative_variance_drawn")
    for estimator, (color, marker, _) in LOOKS.items():
        at = {"estimator": estimator}
        exact, drawn = (one.sel(at) for one in (dataset["relative_variance"], mean["relative_variance_drawn"]))
        _line(axes, exact, color, "-")
        arms = intervals.bars(drawn, (low.sel(at), high.sel(at)))
        axes.errorbar(drawn["epoch"], drawn, yerr=arms, color=color, marker=marker, **POINT)
    values = dataset["relative_variance"]
    drawing.log(axes, "y", (float(values.min()) / 1.2, float(values.max()) * 2))


def _line(axes: Axes, values: xr.DataArray, color: str, line: str) -> None:
    """The mean over seeds, in a band from the lowest to the highest."""
    epoch = values["epoch"]
    axes.plot(epoch, values.mean("seed"), color=color, linestyle=line, zorder=3)
    axes.fill_between(epoch, values.min("seed"), values.max("seed"), color=color, alpha=0.2, linewidth=0, zorder=2)


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, seeds = dataset.attrs.get, dataset.sizes["seed"]
    lacking = int((dataset["status"] != "done").sum())
    told = f" {lacking} of {seeds} cells failed or are missing." if lacking else ""
    end = dataset.isel(epoch=-1).drop_vars(["status", "traceback"], errors="ignore")
    last, mean = int(end["epoch"]), end.mean("seed")
    error, energy, variance = mean["test_error"], mean["energy"], mean["relative_variance"]
    worse = int((end["test_error"].sel(network="pruned") > end["test_error"].sel(network="dense")).sum())
    above = dataset["energy"].sel(mask="magnitude") / dataset["energy"].sel(mask="random")
    again = int(
        (dataset["share"].where(dataset["epoch"] > 3) > float(get("config_share", 0.4)) / 2).any("epoch").sum()
    )
    numbers = ", ".join(f"{look[2]} {float(variance.sel(estimator=name)):,.0f}" for name, look in LOOKS.items())
    return [
        f"Occam gradient descent on digits (an MLP with {get('config_width', '?')} hidden units, Adam, rate "
        f"{get('config_lr', '?')}, batches of {get('config_batch', '?')}), by the schedule of the author's script: "
        "after each epoch the smallest weights of each kernel go, a share λ of the live ones, λ₀ = "
        f"{get('config_share', '?')} and then clip(ζλ, 0.1 λ₀, λ₀) by the loss. Bands: {seeds} seeds, from the "
        f"lowest to the highest; curves and points: means.{told}",
        f"Left, counted: after {last} epochs {float(mean['live']):.1%} of all parameters are live "
        f"({float(end['live'].min()):.1%} to {float(end['live'].max()):.1%}); the test error is "
        f"{float(error.sel(network='pruned')):.1%}, unpruned {float(error.sel(network='dense')):.1%}, and lower "
        f"unpruned for {worse} of {seeds} seeds. In {again} of them λ is above λ₀/2 again after the third epoch: ζ, "
        "a ratio of changes, is noise where the loss stands still.",
        "Middle: ‖Mg‖²/‖g‖² of the gradient of all training examples, after pruning. Lines exact, for random masks "
        f"of the same share their mean; squares drawn, {get('config_shuffles', '?')} masks a seed, 95 % intervals. "
        f"In the last epoch magnitude keeps {float(energy.sel(mask='magnitude')):.3f}, random places "
        f"{float(energy.sel(mask='random')):.3f} (ratio of each epoch, mean over seeds: "
        f"{_range(above.mean('seed'))}); of the unpruned network's gradient its largest weights, as many, have "
        f"{float(energy.sel(mask='magnitude of dense')):.3f}.",
        f"Right: given {get('config_probe', '?')} examples, over the squared norm of the gradient of the live "
        "weights (unpruned: of all), hidden layer, as the read-out learns exactly. Lines exact: on live weights "
        "d_live + 1, masked afterwards d_live‖g‖²/‖Mg‖² + 1, unpruned d + 1; of FG-A by its closed form. Points "
        f"drawn and replayed, {get('config_draws', '?')} draws a seed, "
        f"{intervals.words(dataset, 'relative_variance_drawn')}. "
        f"At the end: {numbers}.",
        "Not the script's setting: digits for MNIST, 44 updates in an epoch for 1,875, no dropout.",
    ]


def _range(values: xr.DataArray) -> str:
    return f"{float(np.min(values)):.2f} to {float(np.max(values)):.2f}"


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.pruning", __doc__, FIGURES)
