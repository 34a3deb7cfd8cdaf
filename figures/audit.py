"""The figure of the audit: variance and direction of published estimators beside MeZO's; verdicts on their claims.

Run   python -m figures.audit results/audit.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png, .txt (the caption) and .tex (the table of claims).
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from fgvar.plot import Sheet, datasets, drawing
from figures import command, verdicts
from figures.page import Figures, Page

DIMS = ("trainable", "stage", "seed", "estimator", "group")
MEASURED = ("relative_variance", "efficiency")
NEEDED: dict[str, tuple[str, ...]] = {
    **{f"{name}{end}": DIMS for name in MEASURED for end in ("", "_se", "_low", "_high", "_exact")},
    "sq_bias_exact": DIMS,
    "queries": DIMS[:-1],
    "passes": DIMS[:-1],
    "replayed": DIMS[:-1],
    "status": ("part", *DIMS[:3]),
}
PAGE = Page("studies/audit.py", NEEDED)
BASE = "MeZO"
# Heading → measure, what its axis is called, and the span of the axis: what is beyond is an arrow at its end.
PANELS: dict[str, tuple[str, str, tuple[float, float]]] = {
    "← less noise": ("variance", "variance of an estimate / MeZO's", (1e-5, 1e4)),
    "equal queries: better →": ("direction per query", "efficiency per query / MeZO's", (3e-2, 1e2)),
    "equal cost: better →": ("direction per pass", "efficiency per pass / MeZO's", (3e-2, 1e2)),
}
LOOKS = {"full": ("#0072B2", "o"), "LoRA": ("#D55E00", "s")}  # sets are no schemes


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each estimator: variance, and direction at equal queries and at equal cost, over MeZO's."""
    rows = datasets.names(dataset, "estimator")
    names = list(PANELS) if sheet.wide else list(PANELS)[1:2]
    grid = sheet.grid(1, len(names), head=0.75, height=0.185 * len(rows), sharey=True)[0]
    for axes, name in zip(grid, names, strict=True):
        measure, label, limits = PANELS[name]
        _panel(axes, dataset, measure, limits)
        axes.set_title(name)
        axes.set_xlabel(label)
        axes.tick_params(axis="y", length=0)
    grid[0].set_yticks(range(len(rows)), rows)
    grid[0].set_ylim(len(rows) - 0.5, -0.5)
    handles = [
        Line2D([], [], color=_look(name)[0], marker=_look(name)[1], markersize=3, linestyle="none",
               label=f"{name}, drawn")
        for name in datasets.names(dataset, "trainable")
    ]  # fmt: skip
    handles += [
        Line2D([], [], color=_look(name)[0], linewidth=3, alpha=0.4, label=f"{name}, exact, every stage and seed")
        for name in datasets.names(dataset, "trainable")
    ]
    sheet.legend(handles)


def _look(trainable: str) -> tuple[str, str]:
    return LOOKS[trainable.partition(" ")[0]]


def _panel(axes: Axes, dataset: xr.Dataset, measure: str, limits: tuple[float, float]) -> None:
    drawing.log(axes, "x", limits)
    axes.axvline(1, color="black", linewidth=0.6, zorder=1)
    for row, name in enumerate(datasets.names(dataset, "estimator")):
        if row % 2:
            axes.axhspan(row - 0.5, row + 0.5, color="0.96", linewidth=0, zorder=0)
        for place, trainable in enumerate(datasets.names(dataset, "trainable")):
            at = row + (place - (dataset.sizes["trainable"] - 1) / 2) * 0.4
            _ratios(axes, dataset.sel(trainable=trainable), name, measure, at, _look(trainable))


def _ratios(axes: Axes, data: xr.Dataset, name: str, measure: str, at: float, look: tuple[str, str]) -> None:
    """One estimator in one set: a bar over the exact values of all stages, and each stage's drawn point."""
    exact, drawn, low, high = (_flat(one) for one in over_base(data, name, measure))
    color, marker = look
    left, right = axes.get_xlim()
    if np.isfinite(exact).any():
        ends = np.clip([np.nanmin(exact), np.nanmax(exact)], left, right)
        axes.plot(ends, [at, at], color=color, linewidth=3, alpha=0.4, solid_capstyle="butt", zorder=2)
        axes.plot(np.clip(exact, left, right), np.full(exact.size, at), color=color, marker="|", markersize=4,
                  markeredgewidth=0.8, linestyle="none", zorder=2)  # fmt: skip
    known = np.isfinite(drawn)
    inside = known & (drawn > left) & (drawn < right)
    spread = at + 0.1 * (np.arange(drawn.size) / max(1, drawn.size - 1) - 0.5)
    arms = np.maximum(np.nan_to_num([drawn - low, high - drawn]), 0)[:, inside]
    axes.errorbar(
        drawn[inside], spread[inside], xerr=arms, color=color, marker=marker, markersize=1.6, markeredgewidth=0,
        linestyle="none", elinewidth=0.4, zorder=3,
    )  # fmt: skip
    for beyond, end, arrow in ((known & (drawn <= left), left, "<"), (known & (drawn >= right), right, ">")):
        if beyond.any():
            axes.plot([end], [at], color=color, marker=arrow, markersize=3, linestyle="none", clip_on=False, zorder=4)


def _flat(values: xr.DataArray) -> Any:
    return values.values.astype(float).ravel()


def over_base(data: xr.Dataset, name: str, measure: str) -> list[xr.DataArray]:
    """Exact value, drawn value and ends of its interval, each over MeZO's exact one in the same cell."""
    base = verdicts.ratio(data, BASE, "", measure).value
    kind, _, unit = measure.partition(" per ")
    its = data.sel(estimator=name, group="total")
    times: Any = its[{"query": "queries", "pass": "passes"}[unit]] if unit else 1.0
    factor = times if kind == "variance" else 1 / times
    quantity = verdicts.QUANTITIES[kind]
    return [its[f"{quantity}{end}"] * factor / base for end in ("_exact", "", "_low", "_high")]


# ---- claims ---------------------------------------------------------------------------------------------------


@PAGE.table
def table(dataset: xr.Dataset) -> pd.DataFrame:
    """Of each claim: the numbers here, over stages and seeds, of each set, and the verdict."""
    rows = {}
    for claim in verdicts.claims(dataset):
        number = _number(dataset, claim)
        rows[f"{claim['source']}: {claim['claim']}"] = {
            "measure": f"{claim['measure'] or '–'}, {claim['row']}"
            + (f" / {claim['against']}" if claim["against"] and claim["measure"] else ""),
            **number,
            "verdict": verdicts.verdict(dataset, claim),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def _number(dataset: xr.Dataset, claim: dict[str, str]) -> dict[str, str]:
    found = {}
    for trainable in datasets.names(dataset, "trainable"):
        if not claim["measure"]:
            found[trainable] = "–"
            continue
        its = verdicts.ratio(dataset, claim["row"], claim["against"], claim["measure"])
        one = verdicts.Ratio(*(part.sel(trainable=trainable) for part in (its.value, its.low, its.high)))
        text = verdicts.ranged(_flat(one.value))
        if not one.exact:
            text += f" [{verdicts.ranged([float(one.low.min()), float(one.high.max())])}]"
        found[trainable] = text
    return found


@PAGE.caption
def caption(dataset: xr.Dataset) -> Iterator[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    size = dataset["size"].sel(group="total").max(("stage", "seed"))
    d = ", ".join(f"{name} d = {int(size.sel(trainable=name)):,}" for name in datasets.names(dataset, "trainable"))
    yield (
        f"Published zeroth-order and forward estimators on a small GPT-2 ({d}), at "
        f"{dataset.sizes['stage']} stages ({', '.join(datasets.names(dataset, 'stage'))}), {dataset.sizes['seed']} "
        f"seed(s), given one batch of {get('config_probe_batch', '?')}. Left: noise variance of one estimate over "
        "that of MeZO. Middle and right: efficiency (squared cosine as a ratio of means, ⟨E ĝ, ∇⟩²/(‖∇‖² E‖ĝ‖²)) "
        "over MeZO's, at equal queries and at equal forward passes as published. Left of the line: less variance; "
        "right of it: a better direction. Arrows: beyond the axis."
    )
    taken = [
        name for name in datasets.names(dataset, "estimator") if not dataset["replayed"].sel(estimator=name).max()
    ]
    yield (
        "Bars and ticks: exact given the gradient, one tick for each stage and seed. Points: drawn, 95 % intervals, "
        f"{_draws(dataset)}; derivatives replayed from the known gradient"
        + (f", but of {' and '.join(taken)}, which take forward passes." if taken else ".")
    )
    told = [verdicts.verdict(dataset, claim) for claim in verdicts.claims(dataset)]
    only = sum(one.startswith("holds only") for one in told)
    rest = sum(one in (verdicts.UNDECIDED, verdicts.UNTESTED, verdicts.MISSING) for one in told)
    rest += sum(one.endswith("else open") for one in told)
    yield (
        f"Of {len(told)} claims (table) {told.count('holds')} hold, {only} hold only in some cells, "
        f"{told.count('does not hold')} do not hold, {rest} are open in some or all cells, not "
        "computed or could not be tested. " + off(dataset)
    )
    yield _there(dataset)


def _there(dataset: xr.Dataset) -> str:
    """Which cells there are: set × stage × seed, of exact numbers, and of each part that is drawn."""
    done = dataset["status"] == "done"
    exact, rest = done.sel(part="exact"), done.sel(part=[part for part in done["part"].values if part != "exact"])
    text = f"Exact: {int(exact.sum())} of {exact.size} cells (set, stage, seed)"
    if not rest.size:
        return f"{text}; nothing drawn."
    lacking = rest.size - int(rest.sum())
    seeds = [int(seed) for seed in rest["seed"].values if rest.sel(seed=seed).any()]
    drawn = (
        f"; drawn: {int(rest.sum())} of {rest.size} (these and the group of rows), seed {', '.join(map(str, seeds))}"
    )
    return text + drawn + (f"; {lacking} were not computed." if lacking else ".")


def _draws(dataset: xr.Dataset) -> str:
    draws = dataset["draws_made"].values
    if np.isnan(draws).all():
        return "none here"
    return f"{int(np.nanmin(draws))} to {int(np.nanmax(draws))} draws each"


def off(dataset: xr.Dataset) -> str:
    """How far drawn values are from exact ones."""
    its, parts = dataset.sel(group="total"), []
    for name in MEASURED:
        known = its[f"{name}_exact"].where(its[f"{name}_exact"] != 0)  # where nothing is live, all is rounding
        z = (abs(its[name] - known) / np.hypot(its[f"{name}_se"], 1e-4 * known)).where(np.isfinite(known))
        if z.notnull().any():
            worst = z.isel(z.argmax(z.dims))
            where = ", ".join(str(worst[dim].item()) for dim in ("estimator", "trainable", "stage"))
            parts.append(
                f"{name.replace('_', ' ')}, {int(z.notnull().sum())} points, largest |z| {worst.item():.1f} ({where})"
            )
    return f"Drawn from exact: {'; '.join(parts)}."


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.audit", __doc__, FIGURES, table)
