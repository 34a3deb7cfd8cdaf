"""The figure of collocation: bias and variance of sampled residual points, and the error of u in training by them.

Run   python -m figures.collocation results/collocation.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, drawing, intervals, looks
from figures import command
from figures.page import Figures, Page

LAW, TRAINED = ("source", "seed", "law", "share"), ("source", "seed", "sampler")
ENDS = ("_low", "_high", "_exact")
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(["relative_bias", "relative_bias_se", "relative_bias_exact", "cosine_of_mean"], LAW),
    **{
        f"{name}{end}": LAW for name in ("relative_variance", "efficiency") for end in ("", "_low", "_high", "_exact")
    },
    "error": (*TRAINED, "step"),
    "final": TRAINED,
    "status": ("source", "seed"),
}
PAGE = Page("studies/collocation.py", NEEDED)
Look = tuple[str, str, Any, str]
LOOKS: dict[str, Look] = {  # Okabe & Ito's colours, with markers and lines of their own, and what they are called
    "bias": ("#E69F00", "^", looks.DOTTED, "published: bias²"),
    "variance": ("#CC79A7", "s", looks.DASHED, "published: variance"),
    "published": ("#D55E00", "v", looks.SOLID, "published (left: bias² + variance)"),
    "published, kept": ("#56B4E9", "P", looks.DASHED, "published, points kept"),
    "weighted": ("#0072B2", "o", looks.SOLID, "weighted (no bias)"),
    "uniform": ("#009E73", "D", looks.MIXED, "uniform"),
    "fixed points": ("#000000", "X", looks.DOTTED, "fixed points"),
}
SAMPLERS = ("fixed points", "uniform", "published, kept", "published", "weighted")
NOTHING = 1e-12  # of ‖g‖²: a bias that is rounding


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each source: the squared error of a gradient against η, as it is and scaled; u's over training."""
    sources = dataset["source"].values
    shape = (len(sources), 3) if sheet.wide else (3 * len(sources), 1)
    panels = sheet.grid(*shape, head=0.8, height=1.5).reshape(len(sources), 3)
    for (left, middle, right), source in zip(panels, sources, strict=True):
        its = dataset.sel(source=source)
        _gradients(left, its.isel(seed=0))
        _scaled(middle, its.isel(seed=0))
        _training(right, its)
        left.set_ylabel(f"source width {source:g}\nsquared error / ‖g‖²")
        middle.set_ylabel("the same, best scaled")
        for axes in (left, middle):
            drawing.ticks(axes.xaxis, [0, 0.25, 0.5, 0.75, 1])
        right.set_ylabel("relative error of u")
    for axes, name in zip(
        panels[-1], ("share η of uniform points", "share η of uniform points", "updates"), strict=True
    ):
        axes.set_xlabel(name)
    sheet.legend([_handle(name) for name in LOOKS])


def _handle(name: str) -> Line2D:
    color, marker, line, label = LOOKS[name]
    return Line2D([], [], color=color, marker=marker, linestyle=line, markeredgecolor="white", label=label)


def _gradients(axes: Axes, data: xr.Dataset) -> None:
    """Squared bias and variance over ‖g‖², of one network: lines exact, points drawn."""
    both = {"published": data.sel(law="published"), "weighted": data.sel(law="weighted")}
    for law, name, what in (
        ("published", "bias", "relative_bias"),
        ("published", "variance", "relative_variance"),
        ("weighted", "weighted", "relative_variance"),
    ):
        its = both[law]
        exact = its[f"{what}_exact"].where(its[f"{what}_exact"] > NOTHING)
        _line(axes, exact, name)
        _points(axes, its[what].where(np.isfinite(exact)), intervals.ends(its, what), name)
    _line(axes, _squared_error(both["published"]), "published")
    _log(axes, [*_squared_error(data).values.flat, float(data["relative_variance_exact"].min())])


def _squared_error(data: xr.Dataset) -> xr.DataArray:
    return data["relative_bias_exact"] + data["relative_variance_exact"]


def _scaled(axes: Axes, data: xr.Dataset) -> None:
    """1 − efficiency, of one network: lines exact, points drawn."""
    for law in ("published", "weighted"):
        its = 1 - data.sel(law=law)[[f"efficiency{end}" for end in ("", *ENDS)]]
        _line(axes, its["efficiency_exact"], law)
        _points(axes, its["efficiency"], (its["efficiency_high"], its["efficiency_low"]), law)
    _log(axes, [*(1 - data["efficiency_exact"]).values.flat])


def _line(axes: Axes, values: xr.DataArray, name: str) -> None:
    color, _, line, _ = LOOKS[name]
    axes.plot(values["share"], values, color=color, linestyle=line, zorder=2)


def _points(axes: Axes, values: xr.DataArray, ends: tuple[xr.DataArray, xr.DataArray], name: str) -> None:
    color, marker, _, _ = LOOKS[name]
    axes.errorbar(
        values["share"], values, yerr=intervals.bars(values, ends), color=color, marker=marker, linestyle="none",
        elinewidth=0.7, markeredgecolor="white", zorder=3,
    )  # fmt: skip


def _training(axes: Axes, data: xr.Dataset) -> None:
    """Medians over seeds with quartiles; on the right the range of what runs end with."""
    x = data["step"].values[1:]
    for place, name in enumerate(SAMPLERS):
        color, marker, line, _ = LOOKS[name]
        error = data["error"].sel(sampler=name).isel(step=slice(1, None))
        low, middle, high = (error.quantile(q, "seed") for q in (0.25, 0.5, 0.75))
        axes.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0, zorder=1)
        axes.plot(x, middle, color=color, linestyle=line, zorder=2)
        final = data["final"].sel(sampler=name)
        reach = intervals.bars([final.median()], ([final.min()], [final.max()]))
        axes.errorbar(
            [x[-1] * (1.06 + 0.05 * place)], [final.median()], yerr=reach, color=color, marker=marker,
            linestyle="none", elinewidth=0.9, markeredgecolor="white", zorder=3,
        )  # fmt: skip
    axes.set_xlim(0, x[-1] * 1.3)
    drawing.ticks(axes.xaxis, np.linspace(0, x[-1], 5))
    its = data.isel(step=slice(1, None))
    _log(axes, [*its["final"].values.flat, *its["error"].quantile([0.25, 0.75], "seed").values.flat])


def _log(axes: Axes, values: list[float]) -> None:
    if shown := [value for value in values if np.isfinite(value)]:  # of a source may be nothing, of cells that failed
        drawing.log(axes, "y", (min(shown) / 1.4, max(shown) * 1.4))


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, sources = dataset.attrs.get, [float(source) for source in dataset["source"].values]
    lacking = int((dataset["status"] != "done").sum())
    return [
        "A physics-informed network, u = x(1 − x)·N(x) with N two hidden layers of "
        f"{get('config_width', '?')} tanh, for −u″ = f, f a normal density; {get('config_points', '?')} collocation "
        f"points of a grid of {get('config_grid', '?')}. Published (Subramanian et al. 2022): a share η drawn "
        "uniformly and the others by |residual|, neither put back, each point once, their plain mean. Weighted: "
        "p = η/N + (1 − η)|r|/Σ|r|, put back, each point weighed by 1/(N p).",
        f"Left and middle: the gradient of one network (seed {int(dataset['seed'][0])}) after {_updates(dataset)} "
        "updates by uniform points, against that of the whole grid. Lines: exact, of the published law by integrals "
        f"over inclusion probabilities; points: {get('config_draws', '?')} draws, "
        f"{intervals.words(dataset, 'relative_variance')}, of squared biases ±{intervals.Z} standard errors. Middle: "
        "min E‖aĝ − g‖²/‖g‖² over a, which is 1 − efficiency: what is left where lengths do not count. "
        + " ".join(_of_gradients(dataset, source) for source in sources),
        "Right: relative error of u on the grid, against the exact u in closed form (the normal density integrated "
        f"twice). Medians of {dataset.sizes['seed']} seeds with quartiles; beside them median and range of each "
        "run's geometric mean over the last five rounds. Adam, begun anew in every round of "
        f"{get('config_steps', '?')} updates; each update draws new points, but for fixed and kept ones (of a "
        "round). The published η falls from 1 to 0 as a half cosine, the weighted one is ½: they differ in more than "
        "weights. No optimiser was run that feels lengths, as Adam does not. "
        + " ".join(_of_training(dataset, source) for source in sources),
        "Not as published: one dimension, Adam in place of L-BFGS, boundary values by construction, points on the "
        "grid (the code moves each by U(0, h/2) to one side), one cycle of η, and rounds of 25 to 100 epochs there."
        + (f" {lacking} of {dataset['status'].size} cells failed or are missing." if lacking else ""),
    ]


def _updates(dataset: xr.Dataset) -> object:
    probe, steps = (dataset.attrs.get(f"config_{name}") for name in ("probe", "steps"))
    return "?" if probe is None or steps is None else int(probe) * int(steps)


def _of_gradients(dataset: xr.Dataset, source: float) -> str:
    """At the share nearest ¼, of this network and over seeds."""
    its = dataset.sel(source=source).sel(share=0.25, method="nearest")
    total, one = _squared_error(its), its.isel(seed=0)
    ratio = total.sel(law="published") / total.sel(law="weighted")
    scaled = (1 - one["efficiency_exact"]).sel(law=["published", "weighted"]).values
    better = its["efficiency_exact"].sel(law="published") > its["efficiency_exact"].sel(law="weighted")
    cosines = its["cosine_of_mean"].sel(law="published")
    return (
        f"Width {source:g}, η = {its['share'].item():g}: published bias² "
        f"{one['relative_bias_exact'].sel(law='published').item():.3g} and sum "
        f"{total.isel(seed=0).sel(law='published').item():.3g}, weighted "
        f"{total.isel(seed=0).sel(law='weighted').item():.3g} (ratios of all seeds: {ratio.min().item():.2g} to "
        f"{ratio.max().item():.3g}); best scaled {scaled[0]:.2g} and {scaled[1]:.2g}, published less in "
        f"{int(better.sum())} of {better.size} seeds. Its mean has a cosine of {cosines.min().item():.2f} to "
        f"{cosines.max().item():.2f}."
    )


def _of_training(dataset: xr.Dataset, source: float) -> str:
    final = dataset["final"].sel(source=source)
    told = ", ".join(f"{name} {final.sel(sampler=name).median().item():.2g}" for name in SAMPLERS)
    below = int((final.sel(sampler="weighted") < final.sel(sampler="published")).sum())
    return f"Width {source:g}: {told}; weighted is below published in {below} of {final.sizes['seed']} seeds."


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.collocation", __doc__, FIGURES)
