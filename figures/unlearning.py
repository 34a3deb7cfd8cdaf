"""The figure of unlearning: cosine to Newton's direction against steps on what is retained, and by what shapes it.

Run   python -m figures.unlearning results/unlearning.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, datasets, drawing
from figures import command
from figures.page import Figures, Page

DIMS = ("forgotten", "seed")
PATHS = (*DIMS, "way", "steps", "toward")
NEEDED: dict[str, tuple[str, ...]] = {
    "cosine": PATHS,
    "drawn": PATHS,
    "drawn_se": PATHS,
    "theory": (*DIMS, "way", "time", "toward"),
    "off": (*DIMS, "way", "steps"),
    "shaped": (*DIMS, "end", "shaping", "toward"),
    "kept": (*DIMS, "shaping"),
    "curvature": (*DIMS, "extreme"),
    "status": DIMS,
}
PAGE = Page("studies/unlearning.py", NEEDED)
LOOKS: dict[tuple[str, str], tuple[str, str, str]] = {  # colour, marker, label of a path and what it is held against
    ("once", "Newton"): ("#0072B2", "s", "one step, then K: to Newton"),
    ("rounds", "Newton"): ("#D55E00", "o", "rounds of one and five: to Newton"),
    ("once", "gradient"): ("#7f7f7f", "^", "one step, then K: to the gradient"),
}
ALONE: dict[str, Any] = {"color": "black", "marker": "D", "markerfacecolor": "white", "markeredgecolor": "black"}
RING: dict[str, Any] = {
    "marker": "o", "linestyle": "none", "markersize": 6, "markerfacecolor": "none", "markeredgecolor": "black",
    "markeredgewidth": 0.5,
}  # fmt: skip
DODGE = {"once": 0.96, "rounds": 1.04}  # of steps, so that bars stand side by side
ROWS = {
    "none": "plain",
    "weights": "weighed, λ = ½",
    "mask of 1": "mask of 1",
    "mask of 10": "mask of 10",
    "mask of all": "mask of all",
    "random mask": "random mask",
    "weights and mask of 10": "weighed, mask of 10",
}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Cosines against steps for each part that is forgotten, and rows of what shapes the gradient of the first."""
    parts = datasets.names(dataset, "forgotten")
    panels = sheet.row(len(parts) + 1, head=0.72, height=1.85)
    for axes, part in zip(panels, parts, strict=False):
        _paths(axes, dataset.sel(forgotten=part))
        axes.set_title(f"{part} forgotten")
        axes.set_xlabel("steps K on what is retained")
    panels[0].set_ylabel("cosine")
    _rows(panels[-1], dataset.isel(forgotten=0))
    panels[-1].set_title(f"{parts[0]} forgotten, shaped")
    panels[-1].set_xlabel("cosine to Newton")
    handles = [
        Line2D([], [], color=color, marker=marker, markeredgecolor="white", label=label)
        for color, marker, label in LOOKS.values()
    ]
    minibatches = Line2D([], [], label="the same on minibatches", **RING)
    alone = Line2D([], [], linestyle="none", label="without steps on what is retained", **ALONE)
    sheet.legend([*handles, minibatches, alone])


def _paths(axes: Axes, data: xr.Dataset) -> None:
    """Lines exact, points steps that were made with bars over seeds, rings drawn."""
    steps = data["steps"].values
    for (way, toward), (color, marker, _) in LOOKS.items():
        at = {"way": way, "toward": toward}
        exact = data["theory"].sel(at).mean("seed").dropna("time")
        axes.plot(exact["time"], exact, color=color, zorder=2)
        made = data["cosine"].sel(at)
        at_steps = steps * DODGE[way]
        axes.errorbar(
            at_steps, made.mean("seed"), yerr=_reach(made), color=color, marker=marker, linestyle="none",
            elinewidth=0.7, markeredgecolor="white", zorder=3,
        )  # fmt: skip
        axes.plot(at_steps, data["drawn"].sel(at).mean("seed"), zorder=4, **RING)
    drawing.symlog(axes, "x", 10, (-1.5, 1.5 * max(steps.max(), 10)))
    drawing.ticks(axes.xaxis, steps)
    axes.set_ylim(0, 1.04)


def _rows(axes: Axes, data: xr.Dataset) -> None:
    """What shapes the gradient from top to bottom: by itself, and followed by rounds."""
    names = datasets.names(data, "shaping")
    color, marker, _ = LOOKS["rounds", "Newton"]
    looks = {"alone": ALONE, "followed": {"color": color, "marker": marker, "markeredgecolor": "white"}}
    for end, look in looks.items():
        its = data["shaped"].sel(end=end, toward="Newton").transpose("shaping", "seed")
        axes.errorbar(
            its.mean("seed"), range(len(names)), xerr=_reach(its), linestyle="none", elinewidth=0.7, zorder=3, **look
        )
    kept = data["kept"].mean("seed")
    shares = {name: f" ({float(kept.sel(shaping=name)):.0%})" for name in ("mask of 1", "mask of 10", "mask of all")}
    axes.set_yticks(range(len(names)), [ROWS[name] + shares.get(name, "") for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlim(0, 1)
    axes.tick_params(axis="y", length=0)


def _reach(values: xr.DataArray) -> Any:
    """From the mean to the lowest and to the highest seed."""
    mean = values.mean("seed")
    return np.stack([mean - values.min("seed"), values.max("seed") - mean])


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, first = dataset.attrs.get, dataset.isel(forgotten=0)
    size, last = get("config_size", "?"), int(dataset["steps"].max())
    lacking = int((dataset["status"] != "done").sum())
    told = f" {lacking} of {dataset['status'].size} cells failed or are missing." if lacking else ""
    toward = first["shaped"].sel(toward="Newton").mean("seed")
    kept = first["kept"].mean("seed")
    said = [
        f"{ROWS[name]} {_of(toward, name, 'alone')}, then {_of(toward, name, 'followed')}"
        + (f" ({float(kept.sel(shaping=name)):.0%} kept)" if "mask" in name else "")
        for name in datasets.names(dataset, "shaping")
    ]
    return [
        f"Directions of unlearning, at MLPs of {get('d', '?')} parameters trained for {get('config_epochs', '?')} "
        "epochs on digits of 4 × 4 pixels: cosines to Newton's direction (H + μ)⁻¹ g_f and to the gradient g_f of "
        f"what is forgotten, with the Hessian H of what is retained and μ = {get('config_damping', '?')}, no other; "
        "angles are Euclidean.",
        "Lines: exact, from H alone: (I − hH)ᴷ g_f for one step of forgetting and K on what is retained, and "
        f"Σ_r (I − hH)^(5r) g_f for rounds of one and five, as released, h = {get('config_lr', '?')}. Points: such "
        "steps made, on all of what is retained, without noise. Rings: drawn, on minibatches of "
        f"{size}, {get('config_draws', '?')} draws for each seed, standard errors of at most "
        f"{float(dataset['drawn_se'].max()):.1g}. Means of {dataset.sizes['seed']} seeds (network and what is "
        f"forgotten); bars: from the lowest to the highest.{told}",
        "Right: the gradient weighed by ℓ^(−½) or masked by saliency (F_f ≥ F_r, by minibatches of 1, of 10, or of "
        f"all; in parentheses the share kept), by itself (diamonds) and then in rounds of five up to {last} steps "
        f"(circles): {'; '.join(said)}. The random mask keeps as many of each tensor as the mask of 10, at random "
        f"places, a mean over {get('config_shuffles', '?')}.",
        _limits(dataset),
        "Not the paper's setting: no momentum, weight decay or clip, which the released code has in both kinds of "
        "steps; the gradient of what is forgotten is taken once; its slow average (ema_beta = 1.0) is off there, and "
        "not here at all. How well anything is forgotten was not measured.",
    ]


def _of(values: xr.DataArray, name: str, end: str) -> str:
    return f"{float(values.sel(shaping=name, end=end)):.2f}"


def _limits(dataset: xr.Dataset) -> str:
    """Where first order ends: how far steps are from it, and where H + μ is not positive definite."""
    damping, said = float(dataset.attrs.get("config_damping", 0)), []
    for part in datasets.names(dataset, "forgotten"):
        its = dataset.sel(forgotten=part)
        off = its["off"].max("seed").isel(steps=-1)
        bent = int((its["curvature"].sel(extreme="lowest") <= -damping).sum())
        ways = " and ".join(f"{float(off.sel(way=way)):.0%} ({way})" for way in datasets.names(dataset, "way"))
        said.append(
            f"{part}: steps are off the line's direction by up to {ways} of their length, H + μ has a negative "
            f"curvature in {bent} of {its.sizes['seed']} networks"
        )
    return f"First order ends. {'; '.join(said)}."


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.unlearning", __doc__, FIGURES)
