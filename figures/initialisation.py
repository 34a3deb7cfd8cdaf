"""The figure of initialisation: noise of each layer's gradient before and after GradInit, minibatches' and FG-A's.

Run   python -m figures.initialisation results/initialisation.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.stats import t

from fgvar.plot import Sheet, datasets, drawing, looks
from figures import command
from figures.page import Figures, Page

AXES = ("net", "start", "lr", "seed", "when")
NEEDED: dict[str, tuple[str, ...]] = {
    "data_variance": (*AXES, "layer"),
    "relative_variance": (*AXES, "estimator", "layer"),
    "loss": AXES,
    "norm": AXES,
    "factor": ("net", "start", "lr", "seed", "layer"),
}
PAGE = Page("studies/initialisation.py", NEEDED)
ARROW = {"arrowstyle": "-|>,head_width=0.12,head_length=0.25", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
LOOKS = {"constant": ("#0072B2", "s", -0.17), "Kaiming": ("#D55E00", "o", 0.17)}  # colour, marker, side
QUANTITIES = {"data": "relative data variance", "FG-A": "relative variance of FG-A"}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Networks side by side, quantities below each other; an arrow from before to after for each layer and start."""
    shown = dataset.isel(lr=0)
    for row, net in zip(sheet.columns(2, 2, head=0.6, height=1.65), datasets.names(shown, "net"), strict=True):
        for axes, name in zip(row, QUANTITIES, strict=True):
            its = quantity(shown, name).sel(net=net)
            for start in datasets.names(shown, "start"):
                _arrows(axes, its.sel(start=start), start)
            if name == "FG-A":
                _forward(axes, shown.sel(net=net))
            _axes(axes, shown, QUANTITIES[name])
        row[0].set_title("no norms" if net == "plain" else net)
    handles = [_handle(start, when) for start in datasets.names(shown, "start") for when in ("before", "after")]
    line = Line2D([], [], label="FG-W, all: d + 1", marker="D", **looks.THEORY | {"linewidth": 0.9})
    line.set(markerfacecolor=looks.look("FG-W").color, markeredgecolor=looks.look("FG-W").color)
    sheet.legend([*handles, line])


def _handle(start: str, when: str) -> Line2D:
    color, marker, _ = LOOKS[start]
    face = "white" if when == "before" else color
    return Line2D(
        [], [], color=color, marker=marker, linestyle="none", markerfacecolor=face, label=f"{start}, {when}"
    )


def quantity(dataset: xr.Dataset, name: str) -> xr.DataArray:
    if name == "data":
        return dataset["data_variance"]
    return dataset["relative_variance"].sel(estimator=name, drop=True)


def mean(values: xr.DataArray) -> tuple[xr.DataArray, xr.DataArray, xr.DataArray]:
    """The geometric mean over seeds, and the ends of its 95 % interval (Student's t of logarithms)."""
    logs, n = xr.apply_ufunc(np.log, values), values.sizes["seed"]
    half = t.ppf(0.975, n - 1) * logs.std("seed", ddof=1) / n**0.5
    middle = logs.mean("seed")
    found, low, high = (xr.apply_ufunc(np.exp, value) for value in (middle, middle - half, middle + half))
    return found, low, high


def _arrows(axes: Axes, its: xr.DataArray, start: str) -> None:
    color, marker, side = LOOKS[start]
    x = np.arange(its.sizes["layer"]) + side
    middle, low, high = mean(its)
    before, after = (middle.sel(when=when).values for when in ("before", "after"))
    for place, one, other in zip(x, before, after, strict=True):
        axes.annotate("", (place, other), (place, one), arrowprops=ARROW | {"color": color})
    for when, values, face in (("before", before, "white"), ("after", after, color)):
        bars = np.stack([values - low.sel(when=when).values, high.sel(when=when).values - values])
        axes.errorbar(
            x, values, yerr=bars, color=color, marker=marker, linestyle="none", elinewidth=0.5, markerfacecolor=face,
            markeredgecolor=color, zorder=3,
        )  # fmt: skip


def _axes(axes: Axes, dataset: xr.Dataset, title: str) -> None:
    names = datasets.names(dataset, "layer")
    values = np.concatenate([np.ravel(line.get_ydata()) for line in axes.lines])
    axes.axvline(len(names) - 1.5, **looks.NULL)
    axes.set_xticks(range(len(names)), [{"embedding": "in", "head": "out"}.get(name, name) for name in names])
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylabel(title)
    axes.set_xlabel("layer")
    drawing.log(axes, "y", (float(values.min()) / 1.6, float(values.max()) * 1.6))


def _forward(axes: Axes, its: xr.Dataset) -> None:
    """Weight perturbation of all layers together, from every start: points on the line d + 1."""
    whole = its["relative_variance"].sel(estimator="FG-W", layer="all")
    last, exact = its.sizes["layer"] - 1.0, its.attrs["d"] + 1
    axes.plot([last - 0.5, last + 0.6], [exact, exact], **looks.THEORY | {"linewidth": 0.9})
    axes.plot(
        np.full(whole.size, last),
        whole.values.ravel(),
        color=looks.look("FG-W").color,
        marker="D",
        linestyle="none",
        zorder=4,
    )


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, shown = dataset.attrs.get, dataset.isel(lr=0)
    seeds, layers = dataset.sizes["seed"], dataset.sizes["layer"] - 1
    worst = abs(dataset["relative_variance"].sel(estimator="FG-W", layer="all") / (get("d", np.nan) + 1) - 1)
    return [
        f"Noise of gradients by layer, before (hollow) and after (filled) {get('config_steps', '?')} steps of "
        f"GradInit (SGD's rule, η = {get('config_eta', '?')}, γ = {get('config_gamma', '?')}, Adam's rate "
        f"{float(shown['lr']):g}), from two starts: standard deviations of 0.1, or √(2 / fan-in). Residual networks "
        f"of {get('config_blocks', '?')} blocks and {get('config_width', '?')} units without biases, on batches of "
        f"{get('config_batch', '?')} digits of 4 × 4: without norms, and with layer norms.",
        f"All values are exact, given a batch that GradInit did not see: geometric means over {seeds} seeds "
        "(network and batches), bars: 95 % intervals over seeds, cut at the axes; arrows: from before to after. "
        "Above: data variance over the gradient's squared norm; below: variance of FG-A over it. Right of the dotted "
        "line: all layers together, with the points of "
        f"FG-W, of every seed and start, before and after, on their line d + 1 = {get('d', 0) + 1} (off by at most "
        f"{float(worst.max()):.0e} of it).",
        *(
            f"Lower after than before at the rate {float(lr):g}, of {layers} layers × {seeds} seeds: "
            f"{_counts(dataset.sel(lr=lr))}."
            for lr in dataset["lr"]
        ),
        f"Loss, and norm of the gradient, before → after: {_ends(shown)}.",
        "Kaiming's small variance without norms is that of a loss far above chance, where examples agree. "
        "Against Zhu et al. 2021: layer norms, which keep examples apart, in place of batch norm in train mode, "
        "which fgvar refuses; small networks; no training afterwards.",
    ]


def improved(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Is it lower after than before? [net, start, …, seed, layer], without all layers together."""
    its = quantity(dataset, name).drop_sel(layer="all")
    return its.sel(when="after", drop=True) < its.sel(when="before", drop=True)


def _counts(dataset: xr.Dataset) -> str:
    """By network and start: of data variance, and of FG-A; and where the last layer is."""
    words = []
    for net in datasets.names(dataset, "net"):
        for start in datasets.names(dataset, "start"):
            of_data, of_forward = (improved(dataset, name).sel(net=net, start=start) for name in QUANTITIES)
            words.append(
                f"{net}, {start}: data {int(of_data.sum())} (last layer {int(of_data.sel(layer='head').sum())} of "
                f"{dataset.sizes['seed']}), FG-A {int(of_forward.sum())}"
            )
    return "; ".join(words)


def _ends(dataset: xr.Dataset) -> str:
    words = []
    for net in datasets.names(dataset, "net"):
        for start in datasets.names(dataset, "start"):
            loss, norm = (mean(dataset[name].sel(net=net, start=start))[0].values for name in ("loss", "norm"))
            words.append(f"{net}, {start}: {loss[0]:.3g} → {loss[1]:.3g} and {norm[0]:.3g} → {norm[1]:.3g}")
    return "; ".join(words)


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.initialisation", __doc__, FIGURES)
