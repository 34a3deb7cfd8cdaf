"""The figure of directions: cosine and relative variance against their number, averaged or projected.

Run   python -m figures.directions results/directions.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import xarray as xr
from matplotlib.lines import Line2D

from fgvar import plot
from fgvar.plot import Look, Sheet, datasets, drawing, intervals, looks
from figures import command
from figures.page import Figures, Page

DIMS = ("directions", "estimator")
QUANTITIES = {"cosine": "cosine to target", "relative_variance": "relative variance"}
NEEDED: dict[str, tuple[str, ...]] = {f"{name}{end}": DIMS for name in QUANTITIES for end in ("", "_se", "_theory")}
PAGE = Page("studies/directions.py", NEEDED, intervals.over_seeds)
LOOKS = {  # kinds are no schemes: Okabe & Ito's colours, with markers of their own
    "mean": Look("#0072B2", "s"),
    "orthogonal mean": Look("#D55E00", "^"),
    "projection": Look("#009E73", "o"),
    "projection, length corrected": Look("#CC79A7", "v"),
}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Both quantities against K, side by side over two columns: points drawn, lines closed forms."""
    panels = sheet.row(2, head=0.6, height=1.8)
    for axes, (name, title) in zip(panels, QUANTITIES.items(), strict=True):
        # K = d leaves an orthogonal frame no variance.
        ends = [f"{name}{end}" for end in ("", "_low", "_high") if f"{name}{end}" in dataset]
        shown = {end: xr.where(dataset[f"{name}_theory"] > 1e-9, dataset[end], 0) for end in ends}
        plot.sweep(dataset.assign(shown), x="directions", y=name, ax=axes, legend=False, looks=LOOKS)
        if name == "cosine":  # none is 0, and their powers of K are what is compared
            drawing.log(axes, "y", (float(dataset[name].min()) / 1.6, float(dataset[name].max()) * 1.6))
        axes.set(xlabel="directions K", ylabel=title)
    kinds = datasets.names(dataset, "estimator")
    sheet.legend([Line2D([], [], label=kind, **looks.line_style(LOOKS[kind])) for kind in kinds])


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    exact = dataset.isel(estimator=dataset["estimator"].values != "mean")
    off = {
        "cosine": (exact["cosine"] - exact["cosine_theory"]) / exact["cosine_se"],
        "relative_variance": (dataset["relative_variance"] - dataset["relative_variance_theory"])
        / dataset["relative_variance_se"],
    }
    worst = {name: abs(z.where(np.isfinite(z))) for name, z in off.items()}
    return [
        f"Weight perturbation with K directions, of a linear classifier of 4 × 4 digits (d = {get('d', '?')} "
        f"weights), given one batch of {get('batch_size', '?')}. Points: drawn, {get('draws', '?')} draws each, "
        f"{intervals.words(dataset, 'cosine')}, derivatives replayed from the known gradient. Lines: closed "
        "forms; of the mean's cosine an approximation for many directions, the root of its efficiency K/(K + d + 1).",
        "Relative variance is that of an estimate over the gradient's squared norm; projections have a slope of K/d, "
        "or √(K/d) where their length is corrected, so that their variance alone says nothing about progress; on "
        "the edge: 0, of all directions at once.",
        "From theory: "
        + "; ".join(
            f"{QUANTITIES[name]}, {int(z.count())} points, largest |z| {float(z.max()):.1f}"
            for name, z in worst.items()
        )
        + ".",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.directions", __doc__, FIGURES)
