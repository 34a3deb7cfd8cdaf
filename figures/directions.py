"""The figure of directions: cosine and relative variance against their number, averaged or projected.

Run   python -m figures.directions results/directions.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures import command, drawing, intervals, style
from figures.page import Figures, Page, Sheet

DIMS = ("directions", "estimator")
QUANTITIES = {"cosine": "cosine to target", "relative_variance": "relative variance"}
NEEDED: dict[str, tuple[str, ...]] = {f"{name}{end}": DIMS for name in QUANTITIES for end in ("", "_se", "_theory")}
PAGE = Page("studies/directions.py", NEEDED, intervals.over_seeds)
LOOKS = {  # kinds are no schemes: Okabe & Ito's colours, with markers of their own
    "mean": ("#0072B2", "s"),
    "orthogonal mean": ("#D55E00", "^"),
    "projection": ("#009E73", "o"),
    "projection, length corrected": ("#CC79A7", "v"),
}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Both quantities against K, side by side over two columns: points drawn, lines closed forms."""
    panels = sheet.row(2, head=0.6, height=1.8)
    for axes, (name, title) in zip(panels, QUANTITIES.items(), strict=True):
        _panel(axes, dataset, name)
        axes.set_ylabel(title)
        axes.set_xlabel("directions K")
    handles = [
        Line2D([], [], color=LOOKS[kind][0], marker=LOOKS[kind][1], label=kind)
        for kind in style.names(dataset, "estimator")
    ]
    sheet.legend(handles)


def _panel(axes: Axes, dataset: xr.Dataset, name: str) -> None:
    x = dataset["directions"].values
    shown = dataset[name].where(dataset[f"{name}_theory"] > 1e-9)  # K = d leaves an orthogonal frame no variance
    for kind in style.names(dataset, "estimator"):
        color, marker = LOOKS[kind]
        theory = dataset[f"{name}_theory"].sel(estimator=kind)
        axes.plot(x, theory.where(theory > 1e-9), color=color, zorder=2)
        its = dataset.sel(estimator=kind)
        error = intervals.bars(its[name], intervals.ends(its, name))
        axes.errorbar(
            x, shown.sel(estimator=kind), yerr=error, color=color, marker=marker, linestyle="none", elinewidth=0.7,
            markeredgecolor="white", zorder=3,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.4, x.max() * 1.4)
    drawing.ticks(axes.xaxis, [place for place in (1, 4, 16, 64, 160, 256, 1024) if place <= x.max()])
    drawing.log(axes, "y", (float(shown.min()) / 1.6, float(shown.max()) * 1.6))


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
        "or √(K/d) where their length is corrected, so that their variance alone says nothing about progress.",
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
