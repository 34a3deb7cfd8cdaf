"""The figure of collocation: bias and variance of sampled residual points, and the error of u in training by them.

Run   python -m figures.collocation results/collocation.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures import command, drawing, intervals, style
from figures.page import Figures, Page, Sheet

LAW, TRAINED = ("source", "seed", "law", "share"), ("source", "seed", "sampler")
NEEDED: dict[str, tuple[str, ...]] = {
    "relative_bias": LAW,
    "relative_bias_se": LAW,
    "relative_bias_exact": LAW,
    "relative_variance": LAW,
    "relative_variance_low": LAW,
    "relative_variance_high": LAW,
    "relative_variance_exact": LAW,
    "cosine_of_mean": LAW,
    "error": (*TRAINED, "step"),
    "final": TRAINED,
    "status": ("source", "seed"),
}
PAGE = Page("studies/collocation.py", NEEDED)
LOOKS: dict[str, tuple[str, str, Any]] = {  # Okabe & Ito's colours, with markers and lines of their own
    "published: bias²": ("#E69F00", "^", style.DOTTED),
    "published: variance": ("#CC79A7", "s", style.DASHED),
    "published: their sum": ("#D55E00", "", style.SOLID),
    "weighted: variance (no bias)": ("#0072B2", "o", style.SOLID),
    "fixed points": ("#000000", "X", style.DOTTED),
    "uniform": ("#009E73", "D", style.MIXED),
    "published": ("#D55E00", "v", style.SOLID),
    "weighted": ("#0072B2", "o", style.SOLID),
}
DRAWN = ("fixed points", "uniform", "published", "weighted")


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each source: left the gradient against η, right the error over training."""
    sources = dataset["source"].values
    shape = (len(sources), 2) if sheet.wide else (2 * len(sources), 1)
    panels = sheet.grid(*shape, head=0.75, height=1.55).reshape(len(sources), 2)
    for (left, right), source in zip(panels, sources, strict=True):
        _gradients(left, dataset.sel(source=source).isel(seed=0))
        _training(right, dataset.sel(source=source))
        for axes in (left, right):
            axes.set_title(f"source of width {source:g}")
    panels[-1, 0].set_xlabel("share η of points drawn uniformly")
    panels[-1, 1].set_xlabel("updates")
    names = list(LOOKS)
    sheet.legend([_handle(name) for name in names], wide=4, narrow=2)


def _handle(name: str) -> Line2D:
    color, marker, line = LOOKS[name]
    return Line2D([], [], color=color, marker=marker, linestyle=line, markeredgecolor="white", label=name)


def _gradients(axes: Axes, data: xr.Dataset) -> None:
    """Of one network: lines exact, points drawn."""
    for law, what, name in (
        ("published", "relative_bias", "published: bias²"),
        ("published", "relative_variance", "published: variance"),
        ("weighted", "relative_variance", "weighted: variance (no bias)"),
    ):
        its, (color, marker, line) = data.sel(law=law), LOOKS[name]
        shown = its[f"{what}_exact"].where(its[f"{what}_exact"] > NOTHING)
        axes.plot(data["share"], shown, color=color, linestyle=line, zorder=2)
        drawn = its[what].where(np.isfinite(shown))
        axes.errorbar(
            data["share"], drawn, yerr=intervals.bars(drawn, intervals.ends(its, what)), color=color, marker=marker,
            linestyle="none", elinewidth=0.7, markeredgecolor="white", zorder=3,
        )  # fmt: skip
    color, _, line = LOOKS["published: their sum"]
    axes.plot(data["share"], _squared_error(data).sel(law="published"), color=color, linestyle=line, zorder=2)
    axes.set_ylabel("over ‖gradient‖²")
    _log(axes, [*_squared_error(data).values.flat, float(data["relative_variance_exact"].min())])


def _squared_error(data: xr.Dataset) -> xr.DataArray:
    return data["relative_bias_exact"] + data["relative_variance_exact"]


def _training(axes: Axes, data: xr.Dataset) -> None:
    """Medians over seeds with quartiles; on the right the range of what a run ends with."""
    x = data["step"].values[1:]
    for place, name in enumerate(DRAWN):
        color, marker, line = LOOKS[name]
        error = data["error"].sel(sampler=name).isel(step=slice(1, None))
        low, middle, high = (error.quantile(q, "seed") for q in (0.25, 0.5, 0.75))
        axes.fill_between(x, low, high, color=color, alpha=0.18, linewidth=0, zorder=1)
        axes.plot(x, middle, color=color, linestyle=line, zorder=2)
        final = data["final"].sel(sampler=name)
        at, middle = x[-1] * (1.06 + 0.04 * place), float(final.median())
        reach = [[middle - float(final.min())], [float(final.max()) - middle]]
        axes.errorbar(
            [at], [middle], yerr=reach, color=color, marker=marker, linestyle="none", elinewidth=0.9,
            markeredgecolor="white", zorder=3,
        )  # fmt: skip
    axes.set_ylabel("relative error of u")
    axes.set_xlim(0, x[-1] * 1.22)
    drawing.ticks(axes.xaxis, np.linspace(0, x[-1], 5))
    some = data["error"].sel(sampler=list(DRAWN)).isel(step=slice(1, None))
    _log(
        axes, [*data["final"].sel(sampler=list(DRAWN)).values.flat, *some.quantile([0.25, 0.75], "seed").values.flat]
    )


def _log(axes: Axes, shown: list[float]) -> None:
    drawing.log(axes, "y", (min(shown) / 1.4, max(shown) * 1.4))


NOTHING = 1e-12  # of ‖g‖²: a bias that is rounding


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    lacking = int((dataset["status"] != "done").sum())
    points, grid = get("config_points", "?"), get("config_grid", "?")
    sources = _sources(dataset)
    return [
        "A physics-informed network, u = x(1 − x)·N(x) with N two hidden layers of "
        f"{get('config_width', '?')} tanh, for −u″ = f, f a normal density; {points} collocation points of a grid "
        f"of {grid}. Published: a share η drawn uniformly and the others by |residual|, neither put back, each point "
        "once, their plain mean (Subramanian et al. 2022). Weighted: p = η/N + (1 − η)|r|/Σ|r|, put back, each point "
        "weighed by 1/(N p).",
        f"Left: one network (seed {int(dataset['seed'][0])}) after {_updates(dataset)} updates by uniform points. "
        "Lines: exact, of the published law by integrals over inclusion probabilities; points: "
        f"{get('config_draws', '?')} draws, {intervals.words(dataset, 'relative_variance')} of variances and "
        f"±{style.Z} standard errors of squared biases. " + " ".join(_of_gradients(dataset, s) for s in sources),
        "Right: relative error of u on the grid, the exact u in closed form (the normal density integrated twice). "
        f"Medians of {dataset.sizes['seed']} seeds with quartiles; beside them the median and range of the geometric "
        "mean of the last five rounds. Adam begins anew in every round of "
        f"{get('config_steps', '?')} updates, each of which draws new points; the published η falls from 1 to 0 as a "
        "half cosine, the weighted one is ½. " + " ".join(_of_training(dataset, s) for s in sources),
        "Not as published: one dimension, Adam in place of L-BFGS, boundary values by construction; points stay on "
        "the grid (the code moves each by U(0, h/2) to one side) and are drawn anew in every update, not kept for 25 "
        "to 100 epochs. Published, with points that are kept for a round (not drawn): "
        + "; ".join(f"{_median(dataset, s, 'published, kept')} at width {s:g}" for s in sources)
        + "."
        + (f" {lacking} of {dataset['status'].size} cells failed or are missing." if lacking else ""),
    ]


def _sources(dataset: xr.Dataset) -> list[float]:
    return [float(source) for source in dataset["source"].values]


def _updates(dataset: xr.Dataset) -> object:
    probe, steps = (dataset.attrs.get(f"config_{name}") for name in ("probe", "steps"))
    return "?" if probe is None or steps is None else int(probe) * int(steps)


def _of_gradients(dataset: xr.Dataset, source: float) -> str:
    """Squared errors at the share nearest ¼, of this network and over seeds."""
    its = dataset.sel(source=source).sel(share=0.25, method="nearest")
    total = _squared_error(its)
    ratio = total.sel(law="published") / total.sel(law="weighted")
    one, bias = total.isel(seed=0), its["relative_bias_exact"].sel(law="published").isel(seed=0).item()
    cosine = its["cosine_of_mean"].sel(law="published").isel(seed=0).item()
    return (
        f"Width {source:g}, η = {its['share'].item():g}: published bias² {bias:.3g} (cosine of its mean "
        f"{cosine:.2f}) and sum {one.sel(law='published').item():.3g}, weighted "
        f"{one.sel(law='weighted').item():.3g}; over seeds their ratio is {ratio.min().item():.2g} to "
        f"{ratio.max().item():.2g}."
    )


def _of_training(dataset: xr.Dataset, source: float) -> str:
    its = dataset["final"].sel(source=source)
    best = int((its.sel(sampler="weighted") < its.sel(sampler="published")).sum())
    told = ", ".join(f"{name} {_median(dataset, source, name)}" for name in DRAWN)
    return f"Width {source:g}: {told}; weighted is below published in {best} of {its.sizes['seed']} seeds."


def _median(dataset: xr.Dataset, source: float, sampler: str) -> str:
    return f"{dataset['final'].sel(source=source, sampler=sampler).median().item():.2g}"


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.collocation", __doc__, FIGURES)
