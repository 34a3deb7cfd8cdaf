"""The figure of streams: cosines of optimisers' outputs to the gradient, and what makes Adam momentum.

Run   python -m figures.streams results/streams.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, drawing, intervals, looks
from figures import command
from figures.page import Figures, Page

AT_REST = ("seed", "feed", "optimiser", "steps")
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cosine", "cosine_se", "cosine_theory", "over", "over_se", "mean_cosine"), AT_REST),
    **dict.fromkeys(("turned", "turned_se", "turned_theory"), ("seed", "feed", "steps")),
    **dict.fromkeys(("difference", "difference_se"), ("seed", "feed", "scale")),
    **dict.fromkeys(("second", "second_se", "second_theory", "square"), ("seed", "weight")),
    **dict.fromkeys(("lag", "lag_theory"), ("seed", "rate")),
}
PAGE = Page("studies/streams.py", NEEDED)
SHOWN = ("exact", "minibatch", "FG-A")  # a panel each
LOOKS = {  # optimisers are no schemes: Okabe & Ito's colours, with markers of their own
    "momentum": ("#0072B2", "s"),
    "Adam": ("#D55E00", "o"),
    "AMSGrad": ("#000000", "x"),
    "diffGrad": ("#009E73", "^"),
    "sign of momentum": ("#CC79A7", "v"),
}
ASIDE = {"Adam": 0.88, "AMSGrad": 1.0, "diffGrad": 1.14}  # of T, as they lie on each other
FEEDS = {"minibatch": ("#56B4E9", "D"), "FG-A": ("#E69F00", "o"), "FG-W": ("#7f7f7f", "s")}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Cosines against T for each kind of stream; below, diffGrad's margin, v̂ of weight perturbation, and the lag."""
    data = intervals.over_seeds(dataset)
    columns, height = (3, 1.55) if sheet.wide else (1, 1.5)
    panels = list(sheet.grid(6 // columns, columns, head=0.55, height=height).flat)
    for axes, feed in zip(panels, SHOWN, strict=False):
        _cosines(axes, data.sel(feed=feed))
        axes.set_title(f"stream: {feed}")
    _margins(panels[3], data)
    _second_moments(panels[4], dataset)
    _lags(panels[5], data)
    sheet.legend([_handle(name, LOOKS) for name in LOOKS])


def _handle(name: str, looks: dict[str, tuple[str, str]]) -> Line2D:
    color, marker = looks[name]
    return Line2D([], [], color=color, marker=marker, label=name)


def _cosines(axes: Axes, data: xr.Dataset) -> None:
    x = data["steps"].values
    for name, (color, marker) in LOOKS.items():
        its = data.sel(optimiser=name)
        if name != "AMSGrad":  # whose theory is Adam's
            axes.plot(x, its["cosine_theory"], color=color, zorder=2)
        _points(axes, x * ASIDE.get(name, 1.0), its, "cosine", color, marker)
    axes.set_xscale("log")
    drawing.ticks(axes.xaxis, [step for step in (1, 8, 64, 512) if step <= x.max()])
    axes.set_ylim(0, 1.06)
    axes.set_xlabel("steps T")
    axes.set_ylabel("cosine to the gradient")


def _points(axes: Axes, x: np.ndarray, its: xr.Dataset, name: str, color: str, marker: str) -> None:
    error = intervals.bars(its[name], intervals.ends(its, name))
    edge = color if marker == "x" else "white"
    axes.errorbar(
        x, its[name], yerr=error, color=color, marker=marker, linestyle="none", elinewidth=0.7, zorder=3,
        markeredgecolor=edge, markeredgewidth=0.6 if marker == "x" else 0.3,
    )  # fmt: skip


def _margins(axes: Axes, data: xr.Dataset) -> None:
    x = data["scale"].values
    for feed, (color, marker) in FEEDS.items():
        its = data.sel(feed=feed)
        axes.plot(x, its["difference"], color=color, linewidth=0.6, linestyle=looks.DASHED, zorder=2)
        _points(axes, x, its, "difference", color, marker)
    axes.axhline(0, **looks.NULL)
    axes.set_xscale("log")
    drawing.ticks(axes.xaxis, [0.01, 1, 100], [0.01, 1, 100])
    axes.set_xlabel("loss multiplied by")
    axes.set_ylabel("diffGrad's cosine\nless Adam's")
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.5 * (high - low))  # room for the streams' names
    names = [_handle(feed, FEEDS) for feed in FEEDS]
    axes.legend(handles=names, loc="upper left", ncols=2, fontsize="x-small", columnspacing=0.8, handlelength=1.6)


def _second_moments(axes: Axes, dataset: xr.Dataset) -> None:
    x, y = (dataset[name].values.ravel() for name in ("square", "second"))
    axes.plot(x, y, color=FEEDS["FG-W"][0], marker=".", markersize=1.5, linestyle="none", zorder=2, alpha=0.7)
    line = np.linspace(0, x.max(), 2)
    axes.plot(line, 1 + 2 * line, **looks.THEORY | {"zorder": 3, "linewidth": 0.9})
    axes.set_xlabel(r"$g_i^2\,/\,\|g\|^2$")
    axes.set_ylabel(r"Adam's $\hat v_i\,/\,\|g\|^2$ of FG-W")


def _lags(axes: Axes, data: xr.Dataset) -> None:
    x = data["rate"].values
    color, marker = LOOKS["momentum"]
    axes.plot(x, data["lag_theory"], **looks.THEORY | {"linewidth": 0.9})
    axes.plot(x, data["lag"], color=color, marker=marker, linestyle="none", markeredgecolor="white", zorder=3)
    for (feed, level), side in zip(noise(data).items(), ("top", "bottom"), strict=True):
        axes.axhline(level, color=FEEDS[feed][0], linestyle=looks.DASHED, linewidth=0.8, zorder=1)
        axes.text(x.min(), level, f"noise left: {feed}", va=side, fontsize="x-small", color="0.3")
    axes.set_xscale("log")
    drawing.log(axes, "y", (float(data["lag"].min()) / 1.5, float(data["lag_theory"].max()) * 1.5))
    drawing.ticks(axes.xaxis, [0.001, 0.01, 0.1])
    axes.set_xlabel("learning rate of the path")
    axes.set_ylabel("lag of momentum")


def noise(data: xr.Dataset) -> dict[str, float]:
    """What noise momentum leaves after many steps at rest, over ‖g‖: its cosine is 1/√(1 + noise²)."""
    cosine = data["cosine_theory"].sel(optimiser="momentum").isel(steps=-1)
    return {feed: float((cosine.sel(feed=feed) ** -2 - 1) ** 0.5) for feed in SHOWN[1:]}


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, data, last = dataset.attrs.get, intervals.over_seeds(dataset), int(dataset["steps"][-1])
    return [
        f"Streams of estimates of one gradient, passed through optimisers whose parameters stand still: "
        f"{dataset.sizes['seed']} MLPs of 4 × 4 digits at their initialisation, {get('d', '?')} numbers each, "
        f"batches of {get('config_batch', '?')}, minibatches of {get('config_minibatch', '?')}, put back. "
        f"{get('config_draws', '?')} streams of each kind, the same for all optimisers; decays of 0.9 and 0.999.",
        "Above: cosine to the gradient in mean square, E⟨o, g⟩/(‖g‖ √E‖o‖²) of the outputs o, the root of their "
        f"efficiency. Points: drawn, {intervals.words(data, 'cosine')} over streams, given the networks, Adam, "
        "AMSGrad and diffGrad side by side. Lines: "
        "exact of momentum and of the exact stream, where Adam and its kin give sign g; else Adam (and AMSGrad) with "
        "v̂ at its mean, as after many steps, and signs of normal numbers. diffGrad has no line where there is noise. "
        f"Momentum is off its line by {_off(data)}. Means of single cosines differ from these by up to "
        f"{float(abs(data['mean_cosine'] - data['cosine']).max()):.2g}.",
        f"Below, left: diffGrad against Adam on the same streams at T = {last}, if the loss is multiplied; at both "
        f"ends its factor is one number, ½ or 1, and it is Adam. {_margin_words(data)} Middle: points, v̂ of weight "
        f"perturbation after {last} steps, means over streams, of all networks; line: its mean 1 + 2g_i²/‖g‖², "
        f"exact. {_flat(dataset)} Right: momentum of exact gradients along its own path of 40 steps, off the last of "
        "them, over its norm, means over networks; line: lr·age·‖Hg‖/‖g‖ at the start, of first order; dashed: the "
        "noise that momentum leaves in other streams at rest.",
        "Against Nanni et al. 2021: directions, by an angle that favours what does not rescale, no accuracies; "
        "their DGrad and Cos are not built, as their equations could not be held against the paper. diffGrad is "
        "its authors' second version, AMSGrad torch's.",
    ]


def _off(data: xr.Dataset) -> str:
    """How far momentum's points are off what is exact."""
    its = data.sel(optimiser="momentum", feed=[feed for feed in data["feed"].values if feed != "exact"])
    z = abs((its["cosine"] - its["cosine_theory"]) / its["cosine_se"])
    return f"at most {float(z.max()):.1f} errors, of {z.size} points"


def _margin_words(data: xr.Dataset) -> str:
    """The best and the worst of diffGrad, with their errors."""
    words = []
    for feed in FEEDS:
        its = data.sel(feed=feed)
        far = its.isel(scale=int(np.argmax(abs(its["difference"].values))))
        words.append(
            f"{feed} {float(far['difference']):+.4f} ± {intervals.Z * float(far['difference_se']):.1g} at "
            f"{float(far['scale']):g}"
        )
    return f"Farthest from Adam: {'; '.join(words)}.".replace("+-", "−")


def _flat(dataset: xr.Dataset) -> str:
    """How flat v̂ is, and what that makes of Adam."""
    exact = dataset["second_theory"]
    z = float(abs((dataset["second"] - exact) / dataset["second_se"]).max())
    spread = float((exact.std("weight") / exact.mean("weight")).mean())
    its = intervals.over_seeds(dataset).sel(feed="FG-W").isel(steps=-1)
    return (
        f"Points are off by at most {z:.1f} errors. Its numbers differ by {spread:.1%} (standard deviation), and "
        f"Adam's output has a cosine of {float(its['turned']):.4f} to momentum's ({float(its['turned_theory']):.4f} "
        "with v̂ at its mean)."
    )


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.streams", __doc__, FIGURES)
