"""The figure of finite differences: distance from the exact derivative, and bias, against the step.

Run   python -m figures.finite_differences results/finite_differences.nc [--venue iclr] [--columns 2] [--out STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, datasets, drawing, intervals, looks
from figures import command
from figures.page import Figures, Page

NEEDED = dict.fromkeys(
    ("distance", "distance_se", "sq_bias", "sq_bias_se"), ("network", "dtype", "space", "oracle", "step")
)
PAGE = Page("studies/finite_differences.py", NEEDED, intervals.over_seeds)
SURE = 3.0  # standard errors from which a squared bias counts as resolved
LIMITS = (1e-12, 1e2)
TITLES = {"tanh": "MLP, tanh", "relu": "MLP, ReLU", "mixer": "LocalMixer"}
# Oracles and spaces are no schemes: Okabe & Ito's colours; lines as for schemes, activities solid, weights dashed.
ORACLES = {"forward": "#0072B2", "central": "#D55E00"}
SPACES: dict[str, tuple[str, Any]] = {"weights": ("s", looks.DASHED), "activities": ("o", looks.SOLID)}
EPS = {"float32": 2.0**-23, "float64": 2.0**-52}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Rows: the distance in each dtype, and the bias in all. Columns: networks; in one column, the first alone."""
    networks, dtypes = datasets.names(dataset, "network"), datasets.names(dataset, "dtype")
    networks = networks if sheet.wide else networks[:1]
    grid = sheet.grid(len(dtypes) + 1, len(networks), head=0.7, height=1.3, sharex=True, sharey=True)
    for column, network in zip(grid.T, networks, strict=True):
        data = dataset.sel(network=network)
        for axes, dtype in zip(column, dtypes, strict=False):
            _distances(axes, data.sel(dtype=dtype), EPS.get(dtype, 0))
        _biases(column[-1], data)
        column[0].set_title(TITLES.get(network, network))
        column[-1].set_xlabel("step")
    for axes, label in zip(grid[:, 0], [*(f"distance, {dtype}" for dtype in dtypes), "bias"], strict=True):
        axes.set_ylabel(label)
    sheet.legend(_handles(dtypes))


def _distances(axes: Axes, data: xr.Dataset, eps: float) -> None:
    """A line for each oracle and space, between guides: eps/step, step and step²."""
    steps = data["step"].values
    for oracle, color in ORACLES.items():
        for space, (marker, line) in SPACES.items():
            its = data.sel(oracle=oracle, space=space)
            axes.errorbar(
                steps, its["distance"].where(its["distance"] > 0), intervals.Z * its["distance_se"], color=color,
                marker=marker, markersize=2.2, linestyle=line, markeredgewidth=0, elinewidth=0.5, zorder=3,
            )  # fmt: skip
    _axes(axes, steps)
    for guide in (eps / steps, steps, steps**2):
        axes.plot(steps, np.where(guide > 0, guide, np.nan), **looks.NULL)


def _biases(axes: Axes, data: xr.Dataset) -> None:
    """Resolved biases: lines of the last dtype, hollow points of the others."""
    steps, dtypes = data["step"].values, datasets.names(data, "dtype")
    for oracle, color in ORACLES.items():
        for space, (marker, line) in SPACES.items():
            for dtype in dtypes:
                bias, error = resolved(data.sel(oracle=oracle, space=space, dtype=dtype))
                last = dtype == dtypes[-1]
                axes.errorbar(
                    steps, bias, intervals.Z * error, color=color, marker=marker, linestyle=line if last else "none",
                    markersize=2.2 if last else 3.4, markeredgewidth=0 if last else 0.5, elinewidth=0.5,
                    markerfacecolor=color if last else "none", zorder=3 if last else 4,
                )  # fmt: skip
    _axes(axes, steps)
    axes.plot(steps, steps**2, **looks.NULL)


def _axes(axes: Axes, steps: Any) -> None:
    drawing.log(axes, "y", LIMITS)
    drawing.log(axes, "x", (steps.min() / 1.5, steps.max() * 1.5))
    axes.axhline(1, color="0.75", linewidth=0.5, zorder=1)


def resolved(its: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """Relative bias and its error, where the squared bias is more than `SURE` errors above 0; NaN elsewhere."""
    sure = its["sq_bias"] > SURE * its["sq_bias_se"]
    bias = its["sq_bias"].where(sure) ** 0.5
    return bias, its["sq_bias_se"] / (2 * bias)


def _handles(dtypes: list[str]) -> list[Line2D]:
    lines = [
        Line2D([], [], color=color, marker=marker, markersize=2.2, linestyle=line, label=f"{oracle}, {space}")
        for oracle, color in ORACLES.items()
        for space, (marker, line) in SPACES.items()
    ]
    hollow: dict[str, Any] = {"color": "black", "marker": "o", "markerfacecolor": "none", "linestyle": "none"}
    others = [Line2D([], [], markeredgewidth=0.5, label=f"bias, {', '.join(dtypes[:-1])}", **hollow)]
    guides = Line2D([], [], **looks.NULL, label="eps/step, step, step²")
    return [*lines, guides, *(others if len(dtypes) > 1 else [])]


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    return [
        "Finite differences against the exact directional derivative, by step (in units of the direction). All "
        f"values are drawn: {get('draws', '?')} draws, the same noise for all steps and for the exact derivative, "
        f"given one batch of {get('batch_size', '?')} digits. Bars: ±{intervals.Z} standard errors. One column shows "
        "the first network alone.",
        "Distance: √(E‖ĝ_step − ĝ‖² / E‖ĝ‖²), with ĝ of the exact derivative; averaged before dividing, as the "
        "length of a weight perturbation's estimate has no mean reciprocal. Dotted: eps/step (cancellation), step "
        "and step²; grey line: 1, as far as 0 is.",
        f"Bias: ‖E(ĝ_step − ĝ)‖/‖target‖, where its square is more than {SURE:g} standard errors above 0. "
        f"Lines: {datasets.names(dataset, 'dtype')[-1]}. Dotted: step².",
        *(_best(dataset.sel(network=name), name) for name in datasets.names(dataset, "network")),
    ]


def _best(data: xr.Dataset, network: str) -> str:
    """The step of the least distance for each oracle, worst of the spaces, in each dtype."""
    found = []
    for dtype in datasets.names(data, "dtype"):
        for oracle in datasets.names(data, "oracle"):
            worst = data["distance"].sel(dtype=dtype, oracle=oracle).max("space")
            best = worst.isel(step=int(worst.argmin("step")))
            found.append(f"{oracle} in {dtype} {best.item():.1e} at step {best['step'].item():.0e}")
    return f"{TITLES.get(network, network)}: least distance, of the worse space, {', '.join(found)}."


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.finite_differences", __doc__, FIGURES)
