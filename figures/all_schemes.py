"""The figure of all schemes, ranked by their cosine to backprop.

Run   python -m figures.all_schemes results/all_schemes.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fgvar import plot
from fgvar.measurement import tabular
from fgvar.plot import Look, Sheet, datasets, intervals, looks, marks
from figures import command
from figures.page import Figures, Page

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


PANELS = {
    "cosine": "cosine to backprop",
    "relative_variance": "relative variance",
    "progress": "progress per forward pass",
}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each scheme: cosine to backprop, relative variance and progress a cost; in one column the cosine."""
    data = ranked(dataset)
    if unknown := set(datasets.names(data, "family")) - set(FAMILIES):
        raise ValueError(f"no colour for families {sorted(unknown)}; known are {', '.join(FAMILIES)}")
    rows, quantities = data.sizes["estimator"], list(PANELS)[: 3 if sheet.wide else 1]
    widths = (1.5, 1, 1)[: len(quantities)]
    panels = sheet.grid(1, len(widths), head=0.9, height=0.125 * rows, sharey=True, width_ratios=widths)[0]
    order = datasets.names(data, "estimator")
    families = {name: Look(*FAMILIES[str(data["family"].sel(estimator=name).values)]) for name in order}
    for axes, name in zip(panels, quantities, strict=True):
        plot.ranking(with_progress(dataset), by=name, order=order, ax=axes, legend=False, looks=families)
        axes.set_xlabel(PANELS[name])
    panels[0].tick_params(axis="y", labelsize="x-small")
    sheet.legend(_handles())


def with_progress(dataset: xr.Dataset) -> xr.Dataset:
    """Efficiency over cost, with its interval; estimates of 0 and below, and of rounding, are 0."""
    parts = zip(("", "_low", "_high"), (dataset["efficiency"], *intervals.ends(dataset, "efficiency")), strict=True)
    found = {f"progress{end}": its / dataset["cost"] for end, its in parts}
    return dataset.assign({name: xr.where(its > 1e-12, its, 0 * its) for name, its in found.items()})


def ranked(dataset: xr.Dataset) -> xr.Dataset:
    """The schemes, the largest cosine to backprop first."""
    data = dataset.sel(layer=LAYER)
    return data.isel(estimator=np.argsort(-data["cosine"].sel(reference="backprop").values, kind="stable"))


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """The schemes, best first: cosines, slope, relative variance, efficiency and cost in forward passes."""
    data = ranked(dataset)
    rows: dict[str, dict[str, str]] = {}
    for index, name in enumerate(datasets.names(data, "estimator")):
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


def _handles() -> list[Artist]:
    hollow = Line2D([], [], label="biased", **looks.point_style(Look("#000000", "o"), hollow=True))
    families = marks.legend({family: Look(*its) for family, its in FAMILIES.items()})
    return [*families, hollow, Patch(color="0.85", label="one random direction")]


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
        for row, name in enumerate(datasets.names(best, "estimator"))
    ]
    return [
        f"All schemes of fgvar.schemes() on one network and one batch of {get('batch_size', '?')} digits, after "
        f"{get('trained_steps', '?')} steps of backprop, in all perturbed parameters, ranked by their mean cosine to "
        f"the end-to-end gradient. Values are drawn ({get('draws', '?')} draws, equal noise where schemes need noise "
        f"of the same names and shapes); bars and the table: {intervals.words(data, 'cosine')}. Schemes "
        "without noise are evaluated once.",
        f"Hollow: biased for its target, or a finite difference. Grey: within ±{null:.2g}, where 95 % of single "
        "random directions lie (a mean over draws is told from 0 by its bar). Colour: what a scheme does.",
        "Relative variance: over the squared norm of each scheme's own target. Progress per forward "
        "pass: the share of the exact gradient's one-step progress (efficiency, to backprop), over the cost of one "
        "estimate in forward passes. On the left edge: 0 (no noise), or progress that is estimated at 0 or below.",
        f"The unbiased perturbations that come closest to backprop: {', '.join(leaders)}.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.all_schemes", __doc__, FIGURES, table)
