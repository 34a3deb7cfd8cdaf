"""Verdicts on claims, from a dataset alone: ratios of two estimators in every cell, and what they say.

A ratio is exact where closed forms are known of both rows; drawn ones have an interval at a level of 5 % over all
cells and claims (Bonferroni), symmetric on a logarithmic scale. In a cell the verdict is

    yes     the ratio, or all of its interval, is on the claimed side of 1 by the margin ("as good": not below by it)
    no      it, or all of its interval, is not
    open    the interval has both
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

Array = NDArray[np.float64]
CELLS = ("trainable", "stage", "seed")
QUANTITIES = {"variance": "relative_variance", "direction": "efficiency", "bias": "sq_bias"}
UNTESTED, MISSING, UNDECIDED = "could not be tested", "not computed", "undecided"


@dataclass(frozen=True)
class Ratio:
    """A claim's number in every cell, with its interval; of what is exact the number itself."""

    value: xr.DataArray
    low: xr.DataArray
    high: xr.DataArray

    @property
    def exact(self) -> bool:
        return bool(((self.low == self.high) | self.value.isnull()).all())


def claims(dataset: xr.Dataset) -> list[dict[str, str]]:
    """The dataset's claims, field by field."""
    fields = [str(name) for name in dataset.data_vars if str(name).startswith("claim_")]
    return [
        {name.removeprefix("claim_"): str(dataset[name].values[index]) for name in fields}
        for index in range(dataset.sizes["claim"])
    ]


def ratio(dataset: xr.Dataset, row: str, against: str, measure: str, group: str = "total") -> Ratio:
    """One estimator's measure over another's (``against`` may be empty), in every cell."""
    value, spread = _measured(dataset, row, measure, group)
    if against:
        other, more = _measured(dataset, against, measure, group)
        with np.errstate(divide="ignore", invalid="ignore"):
            value, spread = value / other, np.hypot(spread, more)
    reach = np.exp(_quantile(dataset) * spread)
    return Ratio(value, value / reach, value * reach)


def verdicts(dataset: xr.Dataset, claim: dict[str, str]) -> xr.DataArray:
    """1 for yes, 0 for no, NaN for open or missing, in every cell."""
    its = ratio(dataset, claim["row"], claim["against"], claim["measure"])
    margin, none = float(dataset.attrs["margin"]), float(dataset.attrs["no_bias"])
    low, high, sense = its.low, its.high, claim["sense"]
    if sense == "higher":
        yes, no = low >= margin, high < margin
    elif sense == "lower":
        yes, no = high <= 1 / margin, low > 1 / margin
    elif sense == "none":
        yes, no = high < none, low >= none
    else:
        yes, no = low > 1 / margin, high <= 1 / margin
    return xr.where(yes, 1.0, xr.where(no, 0.0, np.nan)).where(its.value.notnull())


def verdict(dataset: xr.Dataset, claim: dict[str, str]) -> str:
    """Holds; does not hold; holds only in …; does not hold in …, else open; undecided; could not be tested."""
    if not claim["measure"]:
        return UNTESTED
    known = ratio(dataset, claim["row"], claim["against"], claim["measure"]).value.notnull()
    if not known.any():
        return MISSING
    found = verdicts(dataset, claim)
    if (found == 1).sum() == known.sum():
        return "holds"
    if (found == 0).sum() == known.sum():
        return "does not hold"
    if (found == 1).any():
        return f"holds only in {_where(found == 1, known)}"
    return f"does not hold in {_where(found == 0, known)}; else open" if (found == 0).any() else UNDECIDED


def _where(yes: xr.DataArray, known: xr.DataArray) -> str:
    """The cells of a yes, or of a no: whole sets by their names, whole stages by theirs, else how many there are."""
    parts = []
    for name in yes["trainable"].values:
        mine, there = yes.sel(trainable=name), known.sel(trainable=name)
        stages = [
            stage for stage in mine["stage"].values if there.sel(stage=stage).any() and mine.sel(stage=stage).any()
        ]
        if not stages:
            continue
        if (mine == there).all():
            parts.append(str(name))
        elif all((mine.sel(stage=stage) == there.sel(stage=stage)).all() for stage in stages):
            parts.append(f"{name}: {', '.join(map(str, stages))}")
        else:
            parts.append(f"{name}: {int(mine.sum())} of {int(there.sum())} cells")
    return "; ".join(parts)


def _measured(dataset: xr.Dataset, row: str, measure: str, group: str) -> tuple[xr.DataArray, Any]:
    """Values in every cell, and relative standard errors: 0 where they are exact."""
    kind, _, unit = measure.partition(" per ")
    name = QUANTITIES[kind]
    its = dataset.sel(estimator=row, group=group)
    exact, drawn = its[f"{name}_exact"], its[name]
    known = exact.notnull()
    if kind == "bias":
        return abs(exact) ** 0.5, xr.zeros_like(exact)
    spread = xr.where(known, 0.0, its[f"{name}_se"] / drawn)
    value = xr.where(known, exact, drawn)
    if unit:
        times = its[{"query": "queries", "pass": "passes"}[unit]]
        value = value * times if kind == "variance" else value / times
    return value, spread


def _quantile(dataset: xr.Dataset) -> float:
    """Of the normal law, of all cells and claims together."""
    cells = int(np.prod([dataset.sizes.get(dim, 1) for dim in CELLS]))
    return float(special.ndtri(1 - 0.025 / max(1, cells * dataset.sizes["claim"])))


def ranged(values: Sequence[float] | Array) -> str:
    """The least and the largest of some numbers, or the one that they all are."""
    known = np.asarray(values, float)
    known = known[~np.isnan(known)]
    if not len(known):
        return "–"
    low, high = (_short(one) for one in (known.min(), known.max()))
    return low if low == high else f"{low} to {high}"


def _short(number: float) -> str:
    if np.isinf(number):
        return "∞"
    if 0 < number < 1e-2 or number >= 1e4:
        power = int(np.floor(np.log10(number)))
        return f"{number / 10**power:.1f}e{power}".replace("-", "−")
    return f"{number:.4g}" if 0.9 < number < 1.1 else f"{number:.3g}"
