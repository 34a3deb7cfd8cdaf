"""The language model's figure: relative variance and cosine of each trainable set, and layers one by one.

Run   python -m figures.language_model results/language_model.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.measurement import tabular
from fgvar.plot import Sheet, datasets, drawing, intervals, looks
from figures import command
from figures.page import Figures, Page

DIMS = ("trainable", "seed", "stage", "estimator")
NEEDED = {
    **dict.fromkeys(("relative_variance", "relative_variance_low", "relative_variance_high", "predicted"), DIMS),
    **dict.fromkeys(("cosine", "cosine_low", "cosine_high"), (*DIMS, "reference")),
    "cost": DIMS,
    "gradient_norm": (*DIMS, "reference"),
    "size": ("trainable", "seed", "stage"),
    "test_perplexity": ("trainable", "seed", "epoch"),
    **dict.fromkeys(("ratio", "fan_in", "variance_ratio"), ("trainable", "seed", "end", "linear")),
}
PAGE = Page("studies/language_model.py", NEEDED, intervals.over_seeds)
FULL = "full"
PASSES = 1000  # forward passes that pay for the estimates of one mean
# Kinds of layers are no schemes: other colours (Paul Tol's muted ones), and other markers.
KINDS = {"c_attn": ("#117733", "<"), "c_proj": ("#882255", "p"), "c_fc": ("#888888", "X"),
         "lora_A": ("#332288", "v"), "lora_B": ("#999933", "*"), "ln": ("#661100", "P")}  # fmt: skip


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Of each trainable set relative variance over d, and cosine at equal cost; against ρ single layers' variance."""
    schemes = looks.in_order(datasets.names(dataset, "estimator"))
    left, middle, right = sheet.row(3, head=0.7, height=1.9)
    data = dataset.sel(reference="backprop")
    value, ends = cosine_of_passes(data)
    d = data["size"]
    _points(left, data, data["relative_variance"] / d, [end / d for end in intervals.ends(data, "relative_variance")])
    _points(middle, data, value, ends)
    for place, size in enumerate(d.isel(stage=0).values):
        left.plot([place - 0.45, place + 0.45], [(size + 1) / size] * 2, **looks.THEORY)
        middle.plot([place - 0.45, place + 0.45], [(1 + (size + 1) * 3 / PASSES) ** -0.5] * 2, **looks.THEORY)
    left.set_ylabel("relative variance / d")
    middle.set_ylabel(f"cosine of {PASSES} passes' mean")
    _layers(right, dataset)
    grey: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.5}
    stages = [
        Line2D([], [], label=stage, **grey | _fill(stage, "0.35")) for stage in datasets.names(dataset, "stage")
    ]
    kinds = [
        Line2D([], [], label=kind, linestyle="none", color=color, marker=marker, markersize=2.5)
        for kind, (color, marker) in KINDS.items()
        if any(_of_kind(dataset, kind))
    ]
    law = Line2D([], [], label="theory", **looks.THEORY)
    sheet.schemes(schemes, [*stages, law, *kinds], points=True)


def _points(axes: Axes, data: xr.Dataset, value: xr.DataArray, ends: Sequence[xr.DataArray]) -> None:
    """A point with its interval for each scheme and stage, side by side within the set's place on the axis."""
    sets, stages = datasets.names(data, "trainable"), datasets.names(data, "stage")
    schemes, shown = looks.in_order(datasets.names(data, "estimator")), value.where(value > 0)
    for row, scheme in enumerate(schemes):
        for column, stage in enumerate(stages):
            at = {"estimator": scheme, "stage": stage}
            aside = (row - (len(schemes) - 1) / 2) * 0.18 + (column - (len(stages) - 1) / 2) * 0.05
            bars = intervals.bars(shown.sel(at), [end.sel(at) for end in ends])
            how = looks.point_style(scheme) | _fill(stage, looks.look(scheme).color)
            axes.errorbar(np.arange(len(sets)) + aside, shown.sel(at), yerr=bars, elinewidth=0.5, **how)
    axes.set_xticks(range(len(sets)), [name.replace(" ", "\n") for name in sets], fontsize="x-small")
    axes.tick_params(axis="x", length=0)
    drawing.log(axes, "y", (float(shown.min()) / 1.5, float(shown.max()) * 1.5))


def _fill(stage: str, color: str) -> dict[str, Any]:
    """Markers are filled before fine-tuning, pale during it, hollow after it."""
    faces = {"before": color, "during": "0.8", "after": "white"}
    return {"markerfacecolor": faces.get(stage, color), "markeredgecolor": color, "markeredgewidth": 0.6}


def _layers(axes: Axes, dataset: xr.Dataset) -> None:
    """Each layer alone: its exact variance ratio against ρ over the fan-in, in quadrants that agree or do not."""
    ratio, variances = _layer_ratios(dataset)
    for kind, (color, marker) in KINDS.items():
        mine = _of_kind(dataset, kind)
        its: dict[str, Any] = {"color": color, "marker": marker, "linestyle": "none", "markersize": 2.5}
        axes.plot(ratio.isel(linear=mine).values.ravel(), variances.isel(linear=mine).values.ravel(), **its)
    axes.axhline(1, **looks.NULL)
    axes.axvline(1, **looks.NULL)
    both = np.array([ratio.min(), ratio.max(), variances.min(), variances.max()], float)
    limits = (float(np.nanmin(both)) / 1.5, float(np.nanmax(both)) * 1.5)
    for which in ("x", "y"):
        drawing.log(axes, which, limits)
    axes.set(xlabel="ρ / fan-in, one layer alone", ylabel="variance of FG-A / FG-W")


def _layer_ratios(dataset: xr.Dataset) -> tuple[xr.DataArray, xr.DataArray]:
    """ρ over the fan-in, and FG-A's variance over FG-W's, where both are defined."""
    ratio = dataset["ratio"] / dataset["fan_in"]
    defined = ratio.notnull() & dataset["variance_ratio"].notnull()
    return ratio.where(defined), dataset["variance_ratio"].where(defined)


def at_equal_cost(data: xr.Dataset) -> tuple[xr.DataArray, list[xr.DataArray]]:
    """Relative variance times cost, and the ends of its interval: what n passes pay for has the n-th part of it."""
    return data["relative_variance"] * data["cost"], [
        end * data["cost"] for end in intervals.ends(data, "relative_variance")
    ]


def cosine_of_passes(data: xr.Dataset) -> tuple[xr.DataArray, list[xr.DataArray]]:
    """Cosine to its target of a mean of K = n/cost unbiased estimates, 1/√(1 + v/K), and its interval's ends."""
    value, (low, high) = at_equal_cost(data)
    cosine, *ends = ((1 + one / PASSES) ** -0.5 for one in (value, high, low))
    return cosine, ends


def gain(dataset: xr.Dataset, at: dict[str, str]) -> tuple[float, float, float]:
    """How many times a set's relative variance the full set's is, at equal cost, and the 95 % interval's ends.

    Ends are those of a difference of logarithms of independent values.
    """
    logs = []
    for which in (FULL, at["trainable"]):
        value, ends = at_equal_cost(dataset.sel(at | {"trainable": which}))
        logs.append(np.log([value.item(), *(end.item() for end in ends)]))
    (a, a_low, a_high), (b, b_low, b_high) = logs
    low, high = a - b - np.hypot(a - a_low, b_high - b), a - b + np.hypot(a_high - a, b - b_low)
    return float(np.exp(a - b)), float(np.exp(low)), float(np.exp(high))


def _written(value: float, low: float, high: float) -> str:
    return f"{value:.3g} [{low:.3g}, {high:.3g}]"


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Before fine-tuning: each set's size and gradient, and its estimates at equal cost (perplexity: after, too)."""
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for name in datasets.names(dataset, "trainable"):
        its = dataset.sel(trainable=name)
        perplexity = its["test_perplexity"].values
        cells = rows[name] = {
            ("", "d"): f"{its['size'].values[0]:.0f}",
            ("", "perplexity"): f"{perplexity[0]:.2f} → {perplexity[-1]:.2f}",
            ("", "squared gradient"): tabular.number(share(dataset, name), digits=2),
        }
        for scheme in looks.in_order(datasets.names(dataset, "estimator")):
            one = dataset.sel(trainable=name, estimator=scheme, stage="before")
            cells[scheme, "variance / d"] = tabular.number((one["relative_variance"] / one["size"]).item())
            cells[scheme, "cosine"] = tabular.number(cosine_of_passes(one)[0].item())
            cells[scheme, "cost"] = f"{one['cost'].item():.2f}"
    return pd.DataFrame.from_dict(rows, orient="index")


def share(dataset: xr.Dataset, trainable: str) -> float:
    """Squared norm of the set's gradient over that of the full set's, before fine-tuning."""
    norms = dataset["gradient_norm"].sel(stage="before", reference="backprop").isel(estimator=0)
    return float((norms.sel(trainable=trainable) / norms.sel(trainable=FULL)) ** 2)


def progress(dataset: xr.Dataset, at: dict[str, str]) -> float:
    """‖∇‖² cos² over that of the full set at equal cost: what one step gains, if curvatures are alike."""
    one, full = (cosine_of_passes(dataset.sel(at | {"trainable": name}))[0] for name in (at["trainable"], FULL))
    return share(dataset, at["trainable"]) * float(one / full) ** 2


def within(dataset: xr.Dataset, scheme: str, name: str = "relative_variance") -> tuple[int, int]:
    """Of how many drawn values of a scheme the 95 % interval holds what theory says, and how many there are."""
    its = dataset.sel(estimator=scheme, reference="backprop")
    low, high = intervals.ends(its, name)
    # Of Gaussian directions the cosine is that of a random one; EGGROLL's are none.
    theory = its["predicted"] if name == "relative_variance" else (2 / np.pi / its["size"]) ** 0.5
    known = theory.notnull() & low.notnull()
    return int(((low <= theory) & (theory <= high) & known).sum()), int(known.sum())


def agreement(dataset: xr.Dataset) -> tuple[int, int]:
    """Of how many layers ρ and the variances stand on the same side of their crossovers, and how many there are."""
    ratio, variances = _layer_ratios(dataset)
    return int((((ratio < 1) == (variances < 1)) & ratio.notnull()).sum()), int(ratio.notnull().sum())


@PAGE.caption
def caption(dataset: xr.Dataset) -> Iterator[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, schemes = dataset.attrs.get, looks.in_order(datasets.names(dataset, "estimator"))
    sets = [name for name in datasets.names(dataset, "trainable") if name != FULL]
    first = {"estimator": "FG-W", "stage": "before"}
    gains = {name: progress(dataset, first | {"trainable": name}) for name in sets}
    shares = ", ".join(f"{name} {share(dataset, name):.2g} ({gains[name]:.2g})" for name in sets)
    known = [name for name in schemes if within(dataset, name)[1]]
    cosines = [_within(dataset, name, "cosine") for name in known if name != "EGGROLL"]
    same, count = agreement(dataset)
    yield (
        f"A causal transformer of {dataset['size'].sel(trainable=FULL).values[0]:.0f} numbers (GPT-2 classes, "
        "bytes), trained by backprop on the sources of Python's standard library and fine-tuned by backprop on "
        f"its help topics ({get('text', '?')}): everything, the last block alone, or LoRA of a rank. Test perplexity "
        f"of a byte, before → after: {'; '.join(_perplexity(dataset, name) for name in [FULL, *sets])}."
    )
    yield (
        f"Left: drawn ({get('draws', '?')} draws), given one network and one batch of {get('batch_size', '?')} "
        f"examples; bars: {intervals.words(dataset, 'relative_variance')}. Filled, pale, hollow: before, during and "
        "after fine-tuning. Middle: from the same variances, the cosine 1/√(1 + v/K) to its target of the mean of "
        f"as many estimates as {PASSES} forward passes pay for (of the network with its adapters). Lines: d + 1 at a "
        "cost of 3, MeZO's. LG-FG-A's target is the local gradient; on the last block, with nothing trained ahead of "
        "it, it is FG-A."
    )
    yield (
        "At equal cost and before fine-tuning, training a set in place of everything divides the relative variance "
        "by (95 % intervals): " + _by_set(dataset, schemes, sets, gain)
    )
    some = [name for name in ("FG-W", "FG-A") if name in schemes]
    yield f"The mean of {PASSES} passes then has a cosine of: " + _by_set(dataset, some, [FULL, *sets], _cosine)
    yield (
        "Each set's target is its own gradient, which is shorter. Of the full set's squared norm, before "
        "fine-tuning, they have (and, times FG-W's squared cosine at equal cost, of what one step gains): "
        f"{shares}; LoRA in the scale of its own factors, of which B is 0 at first, so that A has no gradient yet. "
        "How fast these estimates train is not measured."
    )
    yield (
        "The relative variance that theory says (d + 1; of EGGROLL more, by its matrices' sizes) lies in the 95 % "
        f"interval of {', '.join(_within(dataset, name) for name in known)} values, the cosine √(2/πd) of one "
        f"estimate in that of {', '.join(cosines)}."
    )
    yield (
        f"Right: exact, each layer alone, before and after fine-tuning. In {same} of {count} cases ρ < fan-in says "
        f"which of FG-A and FG-W has the smaller variance; FG-A's is smaller in {_winners(dataset)}. All layers of a "
        f"set together, FG-A has so many times FG-W's variance (before, during, after): {_together(dataset)}."
    )


def _by_set(
    dataset: xr.Dataset,
    schemes: Sequence[str],
    sets: Sequence[str],
    number: Callable[[xr.Dataset, dict[str, str]], tuple[float, float, float]],
) -> str:
    """A number with its interval for each scheme and set, before fine-tuning."""
    parts = []
    for scheme in schemes:
        at = {"estimator": scheme, "stage": "before"}
        each = [f"{name} {_written(*number(dataset, at | {'trainable': name}))}" for name in sets]
        parts.append(f"{scheme}: {'; '.join(each)}.")
    return " ".join(parts)


def _cosine(dataset: xr.Dataset, at: dict[str, str]) -> tuple[float, float, float]:
    value, (low, high) = cosine_of_passes(dataset.sel(at))
    return value.item(), low.item(), high.item()


def _perplexity(dataset: xr.Dataset, name: str) -> str:
    values = dataset["test_perplexity"].sel(trainable=name).values
    return f"{name} {values[0]:.2f} → {values[-1]:.2f}"


def _within(dataset: xr.Dataset, scheme: str, name: str = "relative_variance") -> str:
    number, count = within(dataset, scheme, name)
    return f"{scheme} {number} of {count}"


def _winners(dataset: xr.Dataset) -> str:
    """How often perturbing activities is less noisy, kind by kind of layer."""
    _, variances = _layer_ratios(dataset)
    kinds = {kind: variances.isel(linear=_of_kind(dataset, kind)).values for kind in KINDS}
    counts = {kind: (int((its < 1).sum()), int(np.isfinite(its).sum())) for kind, its in kinds.items()}
    return ", ".join(f"{kind} {wins} of {count}" for kind, (wins, count) in counts.items() if count)


def _of_kind(dataset: xr.Dataset, kind: str) -> list[bool]:
    """Which of the layers are of a kind, by the last part of their names."""
    return [name.split(".")[-1].startswith(kind) for name in datasets.names(dataset, "linear")]


def _together(dataset: xr.Dataset) -> str:
    its = dataset["relative_variance"]
    ratios = its.sel(estimator="FG-A") / its.sel(estimator="FG-W")
    return "; ".join(
        f"{name} {', '.join(f'{value:.2g}' for value in ratios.sel(trainable=name).values)}"
        for name in datasets.names(dataset, "trainable")
    )


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.language_model", __doc__, FIGURES, table)
