"""Gradient quality layer by layer: bias, relative variance and both cosines of one measurement."""

import math
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from figures import drawing, intervals, style
from figures.page import Page, Sheet

LEVEL = 0.01  # of the test of no bias, over all cells of a dataset together
FLOOR = 1e-12  # smaller p-values are drawn here
COLUMNS = (
    ("bias_p", "target", "$p$-value of bias"),
    ("relative_variance", "target", "relative variance"),
    ("cosine", "target", "cosine to target"),
    ("cosine", "backprop", "cosine to backprop"),
)
NEEDED = {
    **dict.fromkeys(("bias_p", "cosine", "cosine_se"), ("estimator", "reference", "layer")),
    **dict.fromkeys(("relative_variance", "relative_variance_se"), ("estimator", "layer")),
    **dict.fromkeys(("gradient_norm", "cosine_null", "size"), ("layer",)),
}
PAGE = Page("fgvar.measure", NEEDED)
THRESHOLD: dict[str, Any] = {"color": "black", "linestyle": (0, (3, 1.5)), "linewidth": 0.6, "zorder": 1}
ONE_GAUSSIAN = ("noise=Gaussian(", "shared=None", "directions=1,")  # the field's FG-W, as its repr says it
TICK: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 5, "markeredgewidth": 0.7, "zorder": 1.5}
EXPLAINED = (
    "Cosine: mean over draws of each draw's cosine to the scheme's own target (of local schemes the local gradient) "
    "and to the end-to-end gradient by backpropagation. Relative variance: trace of the covariance of the estimate "
    "given the batch / ‖target‖². Bands and bars: {} over the draws, given the batch."
)


@PAGE.figure
def draw(sheet: Sheet, data: xr.Dataset) -> None:
    """A row for each layer where some scheme has noise, a panel for each quantity; with 95 % intervals."""
    threshold = bias(data)[0]
    rows = estimated(data)
    data = data.sel(layer=rows)
    down, across = (1, 4) if sheet.wide else (2, 2)
    grid = sheet.grid(down, across, head=0.35, height=0.45 + 0.155 * len(rows))
    for j, (axes, (variable, reference, title)) in enumerate(zip(grid.flat, COLUMNS, strict=True)):
        chosen = data.sel(reference=reference)
        _scale(axes, chosen, variable, threshold)
        _rows(axes, chosen, variable)
        axes.set_yticks(range(len(rows)), rows if j % across == 0 else [])
        # Centred, they would be wider than a narrow panel.
        axes.set_title(title) if sheet.wide else axes.set_title(title, loc="right", fontsize="small")
    helpers = [
        Line2D([], [], label="threshold of the bias", **THRESHOLD),
        Line2D([], [], label="random direction", color=style.GREY, **TICK),
    ]
    helpers += [Line2D([], [], label="FG-W, theory", color="black", **TICK)] if has_theory(data) else []
    sheet.schemes(style.names(data, "estimator"), helpers, entry=1.3, points=True)


@PAGE.caption
def caption(data: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    rows = estimated(data)
    exact = [name for name in style.names(data, "layer") if name not in rows]
    where = f" of training by {data['algorithm'].item()}, step {data['step'].item()}" if "step" in data.coords else ""
    left_out = f" No row: {', '.join(exact)} (learnt exactly by all)." if exact else ""
    return [
        f"Gradient quality layer by layer{where}. {measured(data)}.",
        f"perturbed: all parameters that a scheme estimates; total: with those learnt exactly.{left_out}",
        explained(data),
        f"p-value of bias: that a scheme is unbiased for its own target in that layer; dashed: the threshold "
        f"{bias(data)[0]:.2g}, at which all cells together reject unbiased schemes with probability {LEVEL:g}."
        + (f" Values below {FLOOR:g} are drawn there." if (data["bias_p"] < FLOOR).any() else ""),
        f"Axes of cosines are linear within ±{cosine_limits(data)[0]:g}. Grey ticks: 95 % half-width of the cosine "
        "of one random direction in the layer's dimension.",
        theory(data),
        undefined(data.sel(layer=rows)),
        unbiased(data),
    ]


def _scale(axes: Axes, data: xr.Dataset, variable: str, threshold: float) -> None:
    """The x axis of one quantity, and what it is to be read against."""
    rows = np.arange(data.sizes["layer"])
    if variable == "bias_p":
        low = np.fmin(np.nanmin(data["bias_p"].values, initial=1.0), threshold)
        drawing.log(axes, "x", (max(float(low), FLOOR) / 3, 2.0))
        axes.axvline(threshold, label="threshold", **THRESHOLD)
    elif variable == "cosine":
        linear, limits = cosine_limits(data)
        drawing.symlog(axes, "x", linear, limits, sparse=True)
        defined = data["cosine"].notnull().any("estimator").values
        null = data["cosine_null"].values[defined]
        axes.plot(null, rows[defined], label="random direction", color=style.GREY, **TICK)
    else:
        low, high = variance_limits(data)
        expected = _expected(data)
        drawing.log(axes, "x", (low, float(np.nanmax(expected, initial=high / 1.6)) * 1.6))
        if np.isfinite(expected).any():
            axes.plot(expected, rows + _shifts(data)["FG-W"], label="FG-W, theory", color="black", **TICK)


def _rows(axes: Axes, data: xr.Dataset, variable: str) -> None:
    """One row a layer, with every scheme's mean and error in it, each a little lower than the one before."""
    count = data.sizes["layer"]
    for scheme, shift in _shifts(data).items():
        its = data.sel(estimator=scheme)
        mean, rows = its[variable].values, np.arange(count) + shift
        error = np.zeros((2, count)) if variable == "bias_p" else intervals.bars(mean, intervals.ends(its, variable))
        mean = np.maximum(mean, FLOOR) if variable == "bias_p" else mean
        shown = np.isfinite(mean) & ((mean > 0) | (axes.get_xscale() != "log"))
        if shown.any():
            how = style.point_style(scheme) | {"label": scheme, "elinewidth": 0.7, "zorder": 3}
            axes.errorbar(mean[shown], rows[shown], xerr=error[:, shown], **how)
    for row in np.flatnonzero(data[variable].isnull().all("estimator")).tolist():
        where: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
        axes.text(0.5, row, "undefined", color=style.GREY, fontsize="small", **where)
    for row in range(0, count, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0, linewidth=0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines.left.set_visible(False)
    axes.set_ylim(count - 0.5, -0.5)


def _shifts(data: xr.Dataset) -> dict[str, float]:
    """Where in its row each scheme is drawn."""
    schemes = style.in_order(style.names(data, "estimator"))
    return dict(zip(schemes, np.linspace(-0.3, 0.3, len(schemes)).tolist(), strict=True))


def estimated(data: xr.Dataset) -> list[str]:
    """The layers where some scheme has noise, or where nothing is defined: not those that all learn exactly."""
    variance = data["relative_variance"]
    exact = (variance.fillna(1) < 1e-9).all("estimator")
    return style.names(data.isel(layer=~exact.values), "layer")


def cosine_limits(data: xr.Dataset) -> tuple[float, tuple[float, float]]:
    """Where the cosines' axes turn linear (the power of ten below a random direction's), and their limits."""
    linear = float(10 ** np.floor(np.log10(data["cosine_null"].min())))
    low = float(np.nanmin(intervals.ends(data, "cosine")[0].fillna(data["cosine"]).values, initial=0))
    return linear, (1.2 * low - 0.15 * linear, 1.4)


def variance_limits(data: xr.Dataset) -> tuple[float, float]:
    """Limits of a log axis that holds every positive mean with its band, and FG-W's theory."""
    mean = data["relative_variance"].values
    below, above = intervals.bars(mean, intervals.ends(data, "relative_variance"))
    shown = mean > 1e-9  # heads, which learn exactly, vary by rounding
    if not shown.any():
        return 0.1, 10.0
    mean, below, above = mean[shown], below[shown], above[shown]
    low, high = np.maximum(mean - below, mean / 10).min(), (mean + above).max()  # a band may reach to 0
    return float(low / 1.6), float(max(high, data["size"].max() if has_theory(data) else 0) * 1.6)


def has_theory(data: xr.Dataset) -> bool:
    """Is there an FG-W of one Gaussian direction shared by the batch, whose theory is drawn?"""
    described = [line for line in str(data.attrs.get("estimators", "")).splitlines() if line.startswith("FG-W: ")]
    return "FG-W" in data["estimator"] and any(all(part in line for part in ONE_GAUSSIAN) for line in described)


def _expected(data: xr.Dataset) -> NDArray[np.float64]:
    """FG-W's relative variance in each layer, 1 + d_layer ‖g‖²/‖g_layer‖²: every layer hears the noise of all.

    ``g`` is of all perturbed parameters. NaN for the total, where exact layers count, too, and where undefined.
    """
    if not has_theory(data):
        return np.full(data.sizes["layer"], np.nan)
    its = data.sel(estimator="FG-W")
    norm = (
        its["gradient_norm"].sel(reference="target")
        if "reference" in its["gradient_norm"].dims
        else its["gradient_norm"]
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = 1 + data["size"].values * (norm.sel(layer="perturbed") / norm).values ** 2
    return np.where(its["relative_variance"].isnull() | (its["layer"] == "total"), np.nan, expected)


def bias(dataset: xr.Dataset) -> tuple[float, xr.DataArray]:
    """The threshold at which all tests of bias together have `LEVEL`, and their p-values [cell].

    The total is left out: its test is that of ``perturbed``.
    """
    p = dataset["bias_p"].sel(reference="target")
    p = p.sel(layer=[name for name in style.names(dataset, "layer") if name != "total"])
    p = p.stack(cell=p.dims)
    p = p[np.isfinite(p.values)]
    return float(-np.expm1(np.log1p(-LEVEL) / max(p.size, 1))), p


def unbiased(dataset: xr.Dataset) -> str:
    """All tests of bias in one sentence."""
    threshold, p = bias(dataset)
    if not p.size:
        return ""
    least = p[int(np.argmin(p.values))]
    named = {"estimator": "", "layer": "", "step": "step ", "algorithm": "trained by "}
    cell = ", ".join(f"{word}{least[name].item()}" for name, word in named.items() if name in least["cell"].coords)
    corrected = -np.expm1(p.size * np.log1p(-min(float(least), 1 - 1e-16)))
    return (
        f"Bias against each scheme's own target, tested in {p.size} cells: smallest p = {float(least):.2g} ({cell}), "
        f"Šidák-corrected over the cells {corrected:.2g}; {int((p < threshold).sum())} cells are below the threshold "
        f"{threshold:.2g} (level {LEVEL:g} over all)."
    )


def explained(dataset: xr.Dataset) -> str:
    """What is drawn, and what its bands and bars are."""
    return EXPLAINED.format(intervals.words(dataset, "cosine"))


def measured(dataset: xr.Dataset) -> str:
    """By which route, how many draws, at which batch."""
    get = dataset.attrs.get
    return (
        f"Values are {get('route', 'drawn')} (Monte Carlo, n = {get('draws', '?')} draws of each scheme's noise, "
        f"seed {get('seed', '?')}), given one fixed probe batch of {get('batch_size', '?')} examples"
    )


def theory(data: xr.Dataset) -> str:
    """What FG-W's lines or ticks are."""
    if not has_theory(data):
        return ""
    d = int(data["size"].max() if "layer" not in data.dims else data["size"].sel(layer="perturbed"))
    return (
        "Black, FG-W in theory: relative variance 1 + d‖g‖²/‖g_layer‖², mean cosine over all perturbed numbers "
        f"Γ(d/2)/(√π Γ((d + 1)/2)): {d + 1} and {mean_cosine(d):.2g} for d = {d}."
    )


def mean_cosine(d: int) -> float:
    """E|cos| of one random direction to a gradient in d dimensions, Γ(d/2)/(√π Γ((d + 1)/2)) ≈ √(2/πd)."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def undefined(data: xr.Dataset) -> str:
    """What is not drawn, and why."""
    variance, schemes = data["relative_variance"], style.names(data, "estimator")
    exact = [name for name in schemes if (variance.sel(estimator=name).fillna(0) < 1e-9).all()]
    text = f"Without noise, so with relative variance 0 and no test of bias: {', '.join(exact)}." if exact else ""
    if missing := int(data["cosine"].isnull().sum() + variance.isnull().sum()):
        text += f" {missing} values are undefined (NaN: their reference is 0 within rounding) and left out."
    return text.strip()
