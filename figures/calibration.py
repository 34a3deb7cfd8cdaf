"""The calibration's figure: false alarms, power, and the coverage of intervals.

Run   python -m figures.calibration results/check_calibration.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, datasets, drawing, looks
from figures import alarms, command
from figures.page import Figures, Page

SHARES = ("below", "above", "shown")
NEEDED = {
    **alarms.NEEDED,
    **dict.fromkeys(SHARES, ("cell", "statistic", "reference", "draws")),
    "rejected": ("cell", "rule", "level", "draws"),
    "group": ("cell",),
}
PAGE = Page("studies/check_calibration.py", NEEDED)
# Panel → statistics.
SHOWN = {
    "variance": ("variance", "variance of one number"),
    "slope": ("slope",),
    "cosine": ("cosine",),
    "signal to noise": ("snr",),
    "efficiency": ("efficiency",),
    "squared bias, limit": ("sq_bias",),
    "differences": ("variance_difference", "slope_difference", "cosine_difference"),
}
NAMES = {f"{name}_difference": name for name in ("variance", "slope", "cosine")} | {
    "variance": "8 directions",
    "variance of one number": "one",
}
SEEN = 0.02  # share of runs with an interval from which a cell counts
RIGHT = (0.93, 0.975)
LEAST = 0.85  # of the axes of coverage
BLACK, BLUE, ORANGE, GREEN = alarms.LOOKS[:4]
GROUPS = {"law": BLACK, "weights": ORANGE, "network": BLUE, "difference": GREEN}
TESTED = ("Gaussian, d = 1", "Gaussian, d = 4", "Gaussian, d = 20", "Gaussian, d = 100")
PLANTED, RARE = "planted", "coordinate, d = 20"


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """False alarms in 2 × 2 places; power, p-values, misses and coverage in one each: 4 × 4 (one column: 8 × 2)."""
    across = 4 if sheet.wide else 2
    down = 16 // across
    figure = sheet.empty(0.3 + 1.5 * down)
    grid = figure.add_gridspec(down, across)
    wide = grid[:2, :2].subgridspec(1, 2, width_ratios=(4, 1))
    alarms.alarms(figure.add_subplot(wide[0]), dataset)
    alarms.undecided(figure.add_subplot(wide[1]), dataset)
    places = [(row, column) for row in range(down) for column in range(across) if row > 1 or column > 1]
    panels = [figure.add_subplot(grid[place]) for place in places[: len(SHOWN) + 4]]
    alarms.power(panels[0], dataset)
    _rejected(panels[1], dataset)
    _shown(panels[2], dataset)
    _misses(panels[3], dataset.sel(statistic="variance", reference="target"))
    for axes, (title, statistics) in zip(panels[4:], SHOWN.items(), strict=True):
        _coverage(axes, dataset.sel(statistic=list(statistics)))
        axes.set(title=title, ylabel="coverage")
    handles = [
        Line2D([], [], color=color, marker=marker, linestyle="none", label=group)
        for group, (color, marker) in GROUPS.items()
    ]
    sheet.legend(handles)


def _rejected(axes: Axes, dataset: xr.Dataset) -> None:
    """Share of runs without a bias whose p-value is below a level, over the level; grey where none is given."""
    draws = dataset["draws"].values
    axes.axhline(1, **looks.NULL)
    axes.axvspan(draws.min() / 1.5, 48, color="0.9", linewidth=0, zorder=0)
    for cell, (color, marker) in zip(tested(dataset), alarms.LOOKS, strict=False):
        for level, line in ((0.05, "-"), (0.01, looks.DASHED)):
            its = dataset["rejected"].sel(rule="shown", cell=cell, level=level) / level
            label = cell.removeprefix("Gaussian, ") if line == "-" else None
            axes.plot(draws, its, color=color, marker=marker, linestyle=line, label=label, markersize=2.4)
    axes.set(xscale="log", xlabel="draws", ylabel="observed / nominal", title="$p$-values of bias", ylim=(0, 2.6))
    axes.set_xlim(draws.min() / 1.5, draws.max() * 1.5)
    drawing.ticks(axes.xaxis, draws)
    axes.legend(loc="upper right", handlelength=1.2, fontsize="x-small", ncols=2)


def tested(dataset: xr.Dataset) -> list[str]:
    return [cell for cell in TESTED if cell in dataset["cell"]]


def _shown(axes: Axes, dataset: xr.Dataset) -> None:
    """Share of runs with an interval, a point for each cell, statistic and number of draws."""
    _points(axes, dataset, dataset["shown"])
    axes.set(ylim=(-0.03, 1.05), title="intervals shown", ylabel="share of runs")


def _misses(axes: Axes, data: xr.Dataset) -> None:
    """Misses on either side: filled, the interval lies below the truth; hollow, above."""
    axes.axhline(0.025, **looks.NULL)
    _points(axes, data, data["below"].where(data["shown"] >= SEEN).clip(max=0.15))
    _points(axes, data, data["above"].where(data["shown"] >= SEEN).clip(max=0.15), hollow=True)
    axes.set(ylim=(-0.004, 0.155), title="misses, variance", ylabel="share of runs")


def _coverage(axes: Axes, data: xr.Dataset) -> None:
    axes.axhspan(*RIGHT, color="0.9", linewidth=0, zorder=0)
    axes.axhline(0.95, **looks.NULL)
    _points(axes, data, covered(data).clip(min=LEAST + 0.005))
    axes.set_ylim(LEAST, 1.005)


def _points(axes: Axes, data: xr.Dataset, values: xr.DataArray, *, hollow: bool = False) -> None:
    """A point for each cell and number of draws, cells side by side, in the look of their group."""
    draws, spread = data["draws"].values, np.exp(np.linspace(-0.24, 0.24, data.sizes["cell"]))
    for place, cell in zip(spread, range(data.sizes["cell"]), strict=True):
        color, marker = GROUPS[str(data["group"].values[cell])]
        its = values.isel(cell=cell).transpose("draws", ...).values.reshape(len(draws), -1)
        how: dict[str, Any] = {"markerfacecolor": "none", "markeredgecolor": color} if hollow else {"color": color}
        axes.plot(
            np.repeat(draws * place, its.shape[1]), its.ravel(), linestyle="none", marker=marker, markersize=1.7,
            markeredgewidth=0.3 * hollow, zorder=2 + (not hollow), **how,
        )  # fmt: skip
    axes.set(xscale="log", xlim=(draws.min() / 1.6, draws.max() * 1.6), xlabel="draws")
    drawing.ticks(axes.xaxis, draws)


def covered(dataset: xr.Dataset) -> xr.DataArray:
    """Share of the intervals shown that hold the truth, where enough runs show one."""
    return (1 - dataset["below"] - dataset["above"]).where(dataset["shown"] >= SEEN)


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    groups = dataset["group"].values
    numbers = ", ".join(f"{int((groups == group).sum())} {words}" for group, words in COUNTED.items())
    return [
        "Calibration of the statistical verdicts (fgvar.testing) and of the intervals of fgvar.measure. Values are "
        "drawn, shares of simulated runs, but for false alarms of rare events, which are exact.",
        *alarms.caption(dataset),
        f"Intervals: a point is a cell ({numbers}) with one reference, at 32, 64, 256 and 1024 draws, where at least "
        f"{SEEN:.0%} of the runs show an interval. Laws: of a scalar, as that of ⟨ĝ, r⟩ (slope) and of ‖ĝ − E ĝ‖² in "
        "8 random directions and in one (variance). Networks: layers of a LocalMixer (LG-FG-A, FG-A) and an MLP "
        f"(FG-W) with exact statistics. Grey: {RIGHT[0]:.1%} to {RIGHT[1]:.1%}; lower values are at {LEAST}. "
        f"Binomial 95 % margin at most ± {_margin(dataset):.3f} (fewest runs: {int(dataset['runs'].min())}). Misses: "
        "filled, the interval lies below the truth; hollow, above.",
        *(_spread(dataset, title, list(statistics)) for title, statistics in SHOWN.items()),
        _p_values(dataset),
    ]


COUNTED = {
    "law": "laws of per-draw scalars",
    "weights": "of perturbed weights",
    "network": "layers of networks",
    "difference": "of differences",
}


def _margin(dataset: xr.Dataset) -> float:
    return float(1.96 * np.sqrt(0.95 * 0.05 / max(float(dataset["runs"].min()), 1)))


def _spread(dataset: xr.Dataset, title: str, statistics: list[str]) -> str:
    """Least and most coverage over cells, and where it leaves the range by more than the binomial margin."""
    its = (
        covered(dataset.sel(statistic=statistics)).stack(at=("cell", "statistic", "reference", "draws")).dropna("at")
    )
    if not its.size:
        return f"{title}: no interval."
    least, most = (0.975, 1.0) if statistics == ["sq_bias"] else RIGHT
    sure = int(((its >= least) & (its <= most)).sum())
    text = f"{title}: {its.min():.3f} to {its.max():.3f}, {sure} of {its.size} within {least:.1%} to {most:.1%}"
    worst = its.sortby(its)[:4]
    low = [
        f"{cell}{f' ({NAMES.get(one, one)})' if len(statistics) > 1 else ''}"
        f"{', to backprop' if reference == 'backprop' else ''}, {draws} draws {value:.3f}"
        for (cell, one, reference, draws), value in zip(worst["at"].values, worst.values, strict=True)
        if value < least
    ]
    return text + (f"; least: {'; '.join(low)}." if low else ".")


def _p_values(dataset: xr.Dataset) -> str:
    """Rejections where nothing is wrong, and of planted biases beside those of Student's t alone."""
    given = dataset["rejected"].sel(draws=dataset["draws"] >= 64)
    rates = given.sel(cell=tested(dataset), rule="shown")
    most = "; ".join(f"{float(rates.sel(level=v).max()):.4f} at {v:g}" for v in dataset["level"].values)
    text = (
        "p-values of bias: solid at the level 0.05, dashed at 0.01; grey, where none is given. From 64 draws on, of "
        f"{', '.join(tested(dataset))} at most {most}."
    )
    planted = [cell for cell in datasets.names(dataset, "cell") if cell.startswith(PLANTED)]
    level = float(dataset["level"].max())
    for cells, words in (
        ([RARE] if RARE in dataset["cell"] else [], "Of rare events, which few draws may lack"),
        (planted, "Biases planted across 20 weights, in lengths of the target"),
    ):
        shares = [
            f"{cell.removeprefix(PLANTED).strip()} at {draws} draws "
            f"{given.sel(cell=cell, level=level, draws=draws, rule='shown').item():.3f} "
            f"({given.sel(cell=cell, level=level, draws=draws, rule='plain').item():.3f})"
            for cell in cells
            for draws in given["draws"].values[:2]
        ]
        if shares:
            text += f" {words}, at {level:g} (and by Student's t alone): {', '.join(shares)}."
    return text


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.calibration", __doc__, FIGURES)
