"""The language model's figure: relative variance and cosine of each trainable set, and layers one by one.

Run   python -m figures.language_model results/language_model.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table).
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from figures import command, drawing, intervals, style, tabular
from figures.page import Figures, Page, Sheet

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
# Kinds of layers are no schemes: Okabe & Ito's colours, with markers of their own.
KINDS = {"c_attn": ("#56B4E9", "o"), "c_proj": ("#0072B2", "s"), "c_fc": ("#009E73", "D"),
         "lora_A": ("#D55E00", "^"), "lora_B": ("#CC79A7", "v")}  # fmt: skip


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """For each trainable set relative variance over d, and cosine at equal cost; against ρ that of single layers."""
    schemes = style.in_order(style.names(dataset, "estimator"))
    left, middle, right = sheet.row(3, head=0.7, height=1.9)
    data = dataset.sel(reference="backprop")
    value, ends = at_equal_cost(data, "cosine")
    d = data["size"]
    _points(left, data, data["relative_variance"] / d, [end / d for end in intervals.ends(data, "relative_variance")])
    _points(middle, data, value, ends)
    for place, size in enumerate(d.isel(stage=0).values):
        left.plot([place - 0.45, place + 0.45], [(size + 1) / size] * 2, **style.THEORY)
        middle.plot([place - 0.45, place + 0.45], [(2 / np.pi / size / 3) ** 0.5] * 2, **style.THEORY)
    left.set_ylabel("relative variance / d")
    middle.set_ylabel("cosine to backprop / √cost")
    _layers(right, dataset)
    grey: dict[str, Any] = {"linestyle": "none", "marker": "o", "markersize": 3.5}
    stages = [Line2D([], [], label=stage, **grey | _fill(stage, "0.35")) for stage in style.names(dataset, "stage")]
    kinds = [
        Line2D([], [], label=kind, linestyle="none", color=color, marker=marker, markersize=2.5)
        for kind, (color, marker) in KINDS.items()
        if any(_of_kind(dataset, kind))
    ]
    law = Line2D([], [], label="theory", **style.THEORY)
    sheet.schemes(schemes, [*stages, law, *kinds], entry=1.05, points=True)


def _points(axes: Axes, data: xr.Dataset, value: xr.DataArray, ends: Sequence[xr.DataArray]) -> None:
    """A point with its interval for each scheme and stage, side by side within the set's place on the axis."""
    sets, stages = style.names(data, "trainable"), style.names(data, "stage")
    schemes, shown = style.in_order(style.names(data, "estimator")), value.where(value > 0)
    for row, scheme in enumerate(schemes):
        for column, stage in enumerate(stages):
            at = {"estimator": scheme, "stage": stage}
            aside = (row - (len(schemes) - 1) / 2) * 0.18 + (column - (len(stages) - 1) / 2) * 0.05
            bars = intervals.bars(shown.sel(at), [end.sel(at) for end in ends])
            how = style.point_style(scheme) | _fill(stage, style.look(scheme).color)
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
    axes.axhline(1, **style.NULL)
    axes.axvline(1, **style.NULL)
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


def at_equal_cost(data: xr.Dataset, name: str) -> tuple[xr.DataArray, list[xr.DataArray]]:
    """What as many estimates as one forward pass pays for have on average, and the ends of its interval.

    The mean of K estimates has 1/K of the variance, and √K times the cosine while that is small.
    """
    factor = data["cost"] if name == "relative_variance" else data["cost"] ** -0.5
    return data[name] * factor, [end * factor for end in intervals.ends(data, name)]


def gain(dataset: xr.Dataset, name: str, at: dict[str, str]) -> tuple[float, float, float]:
    """How many times better than the full set a set is at equal cost, and the ends of the 95 % interval.

    Ends are those of a difference of logarithms of independent values; NaN where an interval reaches 0.
    """
    its = dataset.sel(reference="backprop")
    found = [its.sel(at | {"trainable": which}) for which in (at["trainable"], FULL)]
    logs = []
    for one in found:
        value, ends = at_equal_cost(one, name)
        with np.errstate(invalid="ignore", divide="ignore"):
            logs.append(np.log([value.item(), *(end.item() for end in ends)]))
    (a, a_low, a_high), (b, b_low, b_high) = reversed(logs) if name == "relative_variance" else logs
    low, high = a - b - np.hypot(a - a_low, b_high - b), a - b + np.hypot(a_high - a, b - b_low)
    return float(np.exp(a - b)), float(np.exp(low)), float(np.exp(high))


def _written(found: tuple[float, float, float]) -> str:
    value, low, high = found
    return f"{value:.3g} [{low:.3g}, {high:.3g}]" if np.isfinite(low + high) else f"{value:.3g} (not told from 0)"


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Before fine-tuning: each set's size and gradient, and what its estimates have beside the full set's."""
    rows: dict[str, dict[tuple[str, str], str]] = {}
    for name in style.names(dataset, "trainable"):
        its = dataset.sel(trainable=name)
        perplexity = its["test_perplexity"].values
        cells = rows[name] = {
            ("", "d"): f"{its['size'].values[0]:.0f}",
            ("", "perplexity"): f"{perplexity[0]:.2f} → {perplexity[-1]:.2f}",
            ("", "squared gradient"): tabular.number(share(dataset, name), digits=2),
        }
        for scheme in style.in_order(style.names(dataset, "estimator")):
            at = {"trainable": name, "estimator": scheme, "stage": "before"}
            one = dataset.sel(at | {"reference": "backprop"})
            cells[scheme, "variance / d"] = tabular.number((one["relative_variance"] / one["size"]).item())
            cells[scheme, "cosine, times"] = tabular.number(gain(dataset, "cosine", at)[0])
    return pd.DataFrame.from_dict(rows, orient="index")


def share(dataset: xr.Dataset, trainable: str, stage: str = "before") -> float:
    """Squared norm of the set's gradient over that of the full set's."""
    norms = dataset["gradient_norm"].sel(stage=stage, reference="backprop").isel(estimator=0)
    return float((norms.sel(trainable=trainable) / norms.sel(trainable=FULL)) ** 2)


def within(dataset: xr.Dataset, scheme: str) -> tuple[int, int]:
    """Of how many of its relative variances the 95 % interval holds what theory says, and how many there are."""
    its = dataset.sel(estimator=scheme, reference="backprop")
    low, high = intervals.ends(its, "relative_variance")
    known = its["predicted"].notnull() & low.notnull()
    return int(((low <= its["predicted"]) & (its["predicted"] <= high) & known).sum()), int(known.sum())


def agreement(dataset: xr.Dataset) -> tuple[int, int]:
    """Of how many layers ρ and the variances stand on the same side of their crossovers, and how many there are."""
    ratio, variances = _layer_ratios(dataset)
    return int((((ratio < 1) == (variances < 1)) & ratio.notnull()).sum()), int(ratio.notnull().sum())


@PAGE.caption
def caption(dataset: xr.Dataset) -> Iterator[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, schemes = dataset.attrs.get, style.in_order(style.names(dataset, "estimator"))
    sets = [name for name in style.names(dataset, "trainable") if name != FULL]
    shares = ", ".join(f"{name} has {share(dataset, name):.2g}" for name in sets)
    known = [_within(dataset, name) for name in schemes if within(dataset, name)[1]]
    same, count = agreement(dataset)
    yield (
        f"A causal transformer of {dataset['size'].sel(trainable=FULL).values[0]:.0f} numbers (GPT-2 classes, "
        "bytes), trained by backprop on the sources of Python's standard library and fine-tuned by backprop on "
        f"its help topics ({get('text', '?')}): everything, the last block alone, or LoRA of a rank. Test perplexity "
        f"of a byte, before → after: {'; '.join(_perplexity(dataset, name) for name in [FULL, *sets])}."
    )
    yield (
        f"Left and middle: drawn ({get('draws', '?')} draws), given one network and one batch of "
        f"{get('batch_size', '?')} examples; bars: {intervals.words(dataset, 'cosine')}. Filled, pale, hollow: "
        "before, during and after fine-tuning. Middle: over the root of an estimate's cost in forward passes (of the "
        "network with its adapters), as a mean of K estimates has √K times the cosine. Lines: d + 1, and √(2/πd) at "
        "a cost of 3. Cosines at or below 0 have no point."
    )
    yield (
        "At equal cost and before fine-tuning, training a set in place of everything divides the relative variance "
        "by, and multiplies the cosine to backprop by (95 % intervals): "
        + " ".join(f"{scheme}: {'; '.join(_gains(dataset, scheme, name) for name in sets)}." for scheme in schemes)
    )
    yield (
        "Each set's cosine is to its own gradient, which is shorter: of the full set's squared norm, before "
        f"fine-tuning, {shares} (LoRA in the scale of its own factors, of which B is 0 at first, so that A has no "
        "gradient yet). How fast these estimates train is not measured."
    )
    yield (
        "The relative variance that theory says (d + 1; of EGGROLL more, by its matrices' sizes) lies in the 95 % "
        f"interval of {', '.join(known)} values."
    )
    yield (
        f"Right: exact, each linear layer alone, before and after fine-tuning. In {same} of {count} cases ρ < fan-in "
        f"says which of FG-A and FG-W has the smaller variance; FG-A's is smaller in {_winners(dataset)}. All layers "
        f"of a set together, FG-A has so many times FG-W's variance (before, during, after): {_together(dataset)}."
    )


def _within(dataset: xr.Dataset, scheme: str) -> str:
    number, count = within(dataset, scheme)
    return f"{scheme} {number} of {count}"


def _winners(dataset: xr.Dataset) -> str:
    """How often perturbing activities is less noisy, kind by kind of layer."""
    _, variances = _layer_ratios(dataset)
    kinds = {kind: variances.isel(linear=_of_kind(dataset, kind)).values for kind in KINDS}
    counts = {kind: (int((its < 1).sum()), int(np.isfinite(its).sum())) for kind, its in kinds.items()}
    return ", ".join(f"{kind} {wins} of {count}" for kind, (wins, count) in counts.items() if count)


def _of_kind(dataset: xr.Dataset, kind: str) -> list[bool]:
    """Which of the layers are of a kind: their names end in it."""
    return [name.endswith(kind) for name in style.names(dataset, "linear")]


def _together(dataset: xr.Dataset) -> str:
    its = dataset["relative_variance"]
    ratios = its.sel(estimator="FG-A") / its.sel(estimator="FG-W")
    return "; ".join(
        f"{name} {', '.join(f'{value:.2g}' for value in ratios.sel(trainable=name).values)}"
        for name in style.names(dataset, "trainable")
    )


def _perplexity(dataset: xr.Dataset, name: str) -> str:
    values = dataset["test_perplexity"].sel(trainable=name).values
    return f"{name} {values[0]:.2f} → {values[-1]:.2f}"


def _gains(dataset: xr.Dataset, scheme: str, name: str) -> str:
    at = {"trainable": name, "estimator": scheme, "stage": "before"}
    return f"{name} {_written(gain(dataset, 'relative_variance', at))} and {_written(gain(dataset, 'cosine', at))}"


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.language_model", __doc__, FIGURES, table)
