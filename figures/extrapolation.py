"""The figure of extrapolation: bias against the step on its laws, fitted slopes, and what workers buy.

Run   python -m figures.extrapolation results/extrapolation.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from scipy.stats import t

from fgvar.plot import Sheet, drawing, intervals, looks
from figures import command
from figures.page import Figures, Page

DIMS = ("seed", "step", "row")
OF_WORKERS = ("variance", "variance_se", "shared_bias", "shared_bias_se")
NEEDED: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("sq_bias", "sq_bias_se", "exact", "law"), DIMS),
    "slope": ("seed", "row"),
    **dict.fromkeys(OF_WORKERS, ("seed", "workers")),
    **dict.fromkeys(("gradient_square", "variance_of_one", "variance_here", "bias_of_one"), ("seed",)),
}
PAGE = Page("studies/extrapolation.py", NEEDED)
FRESH, NOISE = "fresh minibatch gradient", "random numbers"
LOOKS = {  # points are no schemes: Okabe & Ito's colours, with markers of their own
    FRESH: ("#0072B2", "s"),
    "kept gradient": ("#D55E00", "^"),
    NOISE: ("#009E73", "o"),
    "SAM": ("#CC79A7", "v"),
}
VARIANCE = ("black", "D")
POINTS: dict[str, Any] = {"linestyle": "none", "elinewidth": 0.7, "markeredgecolor": "white", "zorder": 3}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Bias against the step, slopes by seed, variance and squared bias against workers, side by side."""
    widths = {"width_ratios": [1.2, 0.7, 1.2]} if sheet.wide else {}
    bias, slopes, workers = sheet.row(3, head=0.62, height=1.9, **widths)
    _bias(bias, dataset)
    _slopes(slopes, dataset)
    _workers(workers, dataset)
    handles = [Line2D([], [], color=color, marker=marker, label=kind) for kind, (color, marker) in LOOKS.items()]
    handles.append(Line2D([], [], color=VARIANCE[0], marker=VARIANCE[1], label="variance of fresh (right)"))
    handles.append(Line2D([], [], color="black", linestyle=looks.DOTTED, label="leading order in the step"))
    sheet.legend(handles)


def share(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """The mean over seeds of a square, over that of ‖∇L‖²."""
    return dataset[name].mean("seed") / dataset["gradient_square"].mean("seed")


def share_ends(dataset: xr.Dataset, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Its 95 % interval, by the error of drawing alone: the networks are these."""
    count = dataset.sizes["seed"]
    error = (dataset[f"{name}_se"] ** 2).sum("seed", skipna=False) ** 0.5 / count
    half = intervals.Z * error / dataset["gradient_square"].mean("seed")
    return share(dataset, name) - half, share(dataset, name) + half


def _bias(axes: Axes, dataset: xr.Dataset) -> None:
    x = dataset["step"].values
    ends = [end.clip(0) ** 0.5 for end in share_ends(dataset, "sq_bias")]
    drawn, exact, law = (share(dataset, name).clip(0) ** 0.5 for name in ("sq_bias", "exact", "law"))
    for kind, (color, marker) in LOOKS.items():
        at = {"row": kind}
        axes.plot(x, law.sel(at), color=color, linestyle=looks.DOTTED, zorder=1)
        axes.plot(x, exact.sel(at), color=color, zorder=2)
        error = intervals.bars(drawn.sel(at), [end.sel(at) for end in ends])
        under = {"markersize": 5, "zorder": 2.5} if kind == "SAM" else {}  # or it would cover those of the kept one
        axes.errorbar(x, drawn.sel(at), yerr=error, color=color, marker=marker, **POINTS | under)
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.3, x.max() * 1.3)
    drawing.ticks(axes.xaxis, x[::2])
    drawing.log(axes, "y", (float(drawn.min()) / 1.6, float(law.max()) * 1.3))
    axes.set_xlabel("step (γ̂, σ or ρ)")
    axes.set_ylabel("|bias| / ‖∇L‖")


def _slopes(axes: Axes, dataset: xr.Dataset) -> None:
    """One dot a network, and the mean with its interval by Student's law; grey lines are the orders of theory."""
    for order in (1, 2):
        axes.axhline(order, color=looks.GREY, linewidth=0.7, zorder=1)
    for place, (kind, (color, marker)) in enumerate(LOOKS.items()):
        its = dataset["slope"].sel(row=kind)
        axes.plot(np.full(its.size, place - 0.22), its, color=color, marker=".", markersize=2, linestyle="none")
        mean, half = slope_of(dataset, kind)
        axes.errorbar([place + 0.12], [mean], yerr=[half], color=color, marker=marker, **POINTS)
    axes.set_xticks(range(len(LOOKS)), ["fresh", "kept", "random", "SAM"], rotation=35)
    axes.set_xlim(-0.6, len(LOOKS) - 0.4)
    axes.set_ylim(0.8, 2.2)
    drawing.ticks(axes.yaxis, (1, 1.5, 2))
    axes.set_ylabel("fitted slope")


def slope_of(dataset: xr.Dataset, kind: str) -> tuple[float, float]:
    """The mean over networks, and half of its 95 % interval."""
    its = dataset["slope"].sel(row=kind)
    half = float(t.ppf(0.975, its.size - 1)) * its.std(ddof=1).item() / its.size**0.5
    return its.mean().item(), half


def _workers(axes: Axes, dataset: xr.Dataset) -> None:
    x = dataset["workers"].values
    lines = {"variance": share(dataset, "variance_of_one").item() / x, "shared_bias": 0 * x}
    lines["shared_bias"] = lines["shared_bias"] + share(dataset, "bias_of_one").item()
    for name, (color, marker) in {"variance": VARIANCE, "shared_bias": LOOKS[FRESH]}.items():
        axes.plot(x, lines[name], color=color, zorder=2)
        value = share(dataset, name)
        axes.errorbar(
            x, value, yerr=intervals.bars(value, share_ends(dataset, name)), color=color, marker=marker, **POINTS
        )
    axes.set_xscale("log")
    axes.set_xlim(x.min() / 1.3, x.max() * 1.3)
    drawing.ticks(axes.xaxis, x[::2])
    drawing.log(
        axes, "y", (float(min(line.min() for line in lines.values())) / 2, float(lines["variance"].max()) * 2)
    )
    axes.set_xlabel(f"workers K, at γ̂ = {dataset['step'].values[-1]:g}")
    axes.set_ylabel("variance and |bias|², over ‖∇L‖²")


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, last, count = dataset.attrs.get, dataset.isel(step=-1), dataset.sizes["seed"]
    told = "; ".join("{} {:.3f} ± {:.3f}".format(kind, *slope_of(dataset, kind)) for kind in LOOKS)
    exact, one = share(dataset, "bias_of_one").item(), share(dataset, "variance_of_one").item()
    here = share(dataset, "variance_here").item()
    meet = dataset["variance_of_one"] / dataset["bias_of_one"]
    z = abs(share(dataset, "sq_bias") - share(dataset, "exact")) / (
        (share_ends(dataset, "sq_bias")[1] - share(dataset, "sq_bias")) / intervals.Z
    )
    kept, fresh = (last["exact"].sel(row=kind) for kind in ("kept gradient", "fresh minibatch gradient"))
    laws = {kind: (share(last, "law").sel(row=kind).item()) ** 0.5 for kind in LOOKS}
    found = {kind: (share(last, "sq_bias").sel(row=kind).item()) ** 0.5 for kind in LOOKS}
    return [
        f"Gradients of minibatches of 2 of {get('batch_size', '?')} examples, taken ahead of the parameters: at "
        "θ − γ̂z for z a fresh minibatch gradient or the one that made the last step, at θ + σu for normal u, at "
        f"θ + ρ∇L/‖∇L‖ (SAM). {count} small networks in the middle of training; biases and variances are root means "
        "and means over them, over the root mean square, and mean square, of their gradients' norms.",
        f"Left: points drawn, {get('config_draws', '?')} draws a network and point, with the same minibatch's "
        "gradient at θ for a control variate and noise in pairs ±u, 95 % intervals; solid: exact, by enumeration of "
        "all values of z (random numbers have none); dotted: γ̂‖H∇L‖, γ̂‖Hz‖, ρ‖H∇L‖/‖∇L‖ and ½σ²‖∇tr H‖. Largest "
        f"|z| of {int(z.notnull().sum())} drawn from exact: {float(z.max()):.1f}.",
        f"Middle: slopes of the drawn bias up to a step of {get('short', '?')}, a dot a network, means with 95 % "
        f"intervals over networks (Student): {told}. Grey: orders 1 and 2.",
        f"Right: points drawn, lines exact: variance {one:.3g}/K (without extrapolation {here:.3g}/K), squared bias "
        f"{exact:.3g} whatever K; they meet at K = {one / exact:.0f}, at this step, in single networks at "
        f"{float(meet.min()):.0f} to {float(meet.max()):.0f}.",
        f"At a step of {last['step'].item():g} leading orders no longer hold (drawn bias, law): "
        + "; ".join(f"{kind} {found[kind]:.2f}, {laws[kind]:.2f}" for kind in LOOKS)
        + ". The kept gradient is that of one minibatch, given the network: its own noise is in the bias, which "
        f"workers who share it do not average: larger than fresh ones' in {int((kept > fresh).sum())} of {count} "
        "networks, for minibatches of 2 and no others. Not reproduced from Lin et al. 2020, of which summaries were "
        "read: that extrapolation smooths the loss and lets batches grow.",
    ]


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.extrapolation", __doc__, FIGURES)
