"""The figure of all schemes, ranked by their cosine to backprop.

Run   python -m figures.all_schemes results/all_schemes.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from figures import command, drawing, intervals, style, tabular
from figures.page import Figures, Page, Sheet

LAYER = "perturbed"  # all parameters that a scheme estimates
NEEDED = {
    **dict.fromkeys(("cosine", "cosine_se", "efficiency", "efficiency_se"), ("estimator", "reference", "layer")),
    **dict.fromkeys(("relative_variance", "relative_variance_se"), ("estimator", "layer")),
    **dict.fromkeys(("cost", "family", "biased"), ("estimator",)),
    "cosine_null": ("layer",),
}
PAGE = Page("studies/all_schemes.py", NEEDED)
# Families are no schemes: Okabe & Ito's colours, with markers of their own.
FAMILIES = {
    "exact": ("#000000", "o"),
    "weights": ("#0072B2", "s"),
    "activities": ("#D55E00", "^"),
    "guess": ("#009E73", "D"),
    "feedback": ("#CC79A7", "v"),
    "control": ("#7f7f7f", "h"),
}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each scheme: cosine to backprop, relative variance and progress a cost; in one column the cosine."""
    data = ranked(dataset)
    unknown = set(style.names(data, "family")) - set(FAMILIES)
    if unknown:
        raise ValueError(f"no colour for families {sorted(unknown)}; known are {', '.join(FAMILIES)}")
    rows, widths = data.sizes["estimator"], (1.5, 1, 1) if sheet.wide else (1,)
    panels = sheet.grid(1, len(widths), head=0.9, height=0.125 * rows, sharey=True, width_ratios=widths)[0]
    _cosines(panels[0], data, dataset["cosine_null"].sel(layer=LAYER).item())
    if sheet.wide:
        _positive(panels[1], data, data["relative_variance"], intervals.ends(data, "relative_variance"))
        panels[1].set_xlabel("relative variance")
        its = data.sel(reference="backprop")
        ends = [end / its["cost"] for end in intervals.ends(its, "efficiency")]
        _positive(panels[2], data, its["efficiency"] / its["cost"], ends)
        panels[2].set_xlabel("progress per forward pass")
    panels[0].set_yticks(range(rows), style.names(data, "estimator"), fontsize="x-small")
    panels[0].set_ylim(rows - 0.4, -0.6)
    for axes in panels:
        axes.tick_params(axis="y", length=0)
    sheet.legend(_handles())


def ranked(dataset: xr.Dataset) -> xr.Dataset:
    """The schemes, the largest cosine to backprop first."""
    data = dataset.sel(layer=LAYER)
    return data.isel(estimator=np.argsort(-data["cosine"].sel(reference="backprop").values, kind="stable"))


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """The schemes, best first: cosines, slope, relative variance, efficiency and cost in forward passes."""
    data = ranked(dataset)
    rows: dict[str, dict[str, str]] = {}
    for index, name in enumerate(style.names(data, "estimator")):
        its = data.isel(estimator=index)
        target, backprop = (its.sel(reference=reference) for reference in ("target", "backprop"))
        rows[name] = {
            "cosine to target": intervals.written(target, "cosine"),
            "to backprop": intervals.written(backprop, "cosine"),
            "slope": tabular.number(target["slope"].item()),
            "relative variance": intervals.written(its, "relative_variance"),
            "efficiency": tabular.number(backprop["efficiency"].item(), digits=2),
            "cost": f"{its['cost'].item():.1f}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _cosines(axes: Axes, data: xr.Dataset, null: float) -> None:
    """All cosines, on an axis that is linear around 0 and within the band of random directions."""
    its = data.sel(reference="backprop")
    cosine = its["cosine"]
    _points(axes, data, cosine, intervals.ends(its, "cosine"))
    axes.axvspan(-null, null, color="0.9", linewidth=0, zorder=0)
    axes.axvline(0, color="0.75", linewidth=0.5, zorder=1)
    drawing.symlog(axes, "x", 0.01, (min(-0.03, 1.5 * float(cosine.min())), 1.5))
    axes.set_xlabel("cosine to backprop")


def _positive(axes: Axes, data: xr.Dataset, value: xr.DataArray, ends: Sequence[xr.DataArray]) -> None:
    """Positive numbers on a log axis; what has no noise has a variance of rounding alone, and no point."""
    shown = value.where(value > 1e-12)
    _points(axes, data, shown, ends)
    drawing.log(axes, "x", (float(shown.min()) / 2, float(shown.max()) * 2))


def _points(axes: Axes, data: xr.Dataset, value: xr.DataArray, ends: Sequence[xr.DataArray]) -> None:
    bars = intervals.bars(value, ends)
    for row, (family, biased) in enumerate(zip(data["family"].values, data["biased"].values, strict=True)):
        color, marker = FAMILIES[str(family)]
        axes.errorbar(
            value[row], row, xerr=bars[:, row : row + 1], color=color, marker=marker, linestyle="none",
            markersize=3.2, markerfacecolor="white" if biased else color, markeredgecolor=color,
            markeredgewidth=0.7, elinewidth=0.7, zorder=3,
        )  # fmt: skip


def _handles() -> list[Artist]:
    some: dict[str, Any] = {"linestyle": "none", "markersize": 3.2, "markeredgewidth": 0.7}
    families = [
        Line2D([], [], color=color, marker=marker, label=family, **some)
        for family, (color, marker) in FAMILIES.items()
    ]
    hollow = Line2D([], [], color="black", marker="o", markerfacecolor="white", label="biased", **some)
    return [*families, hollow, Patch(color="0.9", label="one random direction")]


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    data, get = ranked(dataset), dataset.attrs.get
    null = dataset["cosine_null"].sel(layer=LAYER).item()
    fair = data.isel(
        estimator=(data["biased"] == "").values & (data["family"].isin(["weights", "activities"])).values
    )
    best = fair.isel(estimator=slice(3))
    its = best.sel(reference="backprop")
    leaders = [
        f"{name} {intervals.written(its.isel(estimator=row), 'cosine')} (cost {its['cost'][row].item():.1f})"
        for row, name in enumerate(style.names(best, "estimator"))
    ]
    return [
        f"All schemes of fgvar.schemes() on one network and one batch of {get('batch_size', '?')} digits, after "
        f"{get('trained_steps', '?')} steps of backprop, in all perturbed parameters, ranked by their mean cosine to "
        f"the end-to-end gradient. Values are drawn ({get('draws', '?')} draws, equal noise where schemes need noise "
        f"of the same names and shapes); bars and the table: {intervals.words(data, 'cosine')}. Schemes "
        "without noise are evaluated once.",
        f"Hollow: biased for its target, or a finite difference. Grey: within ±{null:.2g}, where 95 % of single "
        "random directions lie (a mean over draws is told from 0 by its bar). Colour: what a scheme does.",
        "Relative variance: over the squared norm of each scheme's own target; no point where there is no noise. "
        "Progress per forward pass: the share of the exact gradient's one-step progress (efficiency, to backprop), "
        "over the cost of one estimate in forward passes; no point where it is estimated at 0 or below.",
        f"The unbiased perturbations that come closest to backprop: {', '.join(leaders)}.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.all_schemes", __doc__, FIGURES, table)
