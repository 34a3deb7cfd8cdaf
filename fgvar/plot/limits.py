"""Limits of axes, and the threshold of the tests of bias, the same for all panels that are compared."""

from collections.abc import Iterable

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fgvar.plot import datasets, intervals, theory_lines
from fgvar.plot.series import LEVEL, ROUNDING, Series

LINEAR = ("cosine", "slope", "efficiency", "accuracy")  # quantities with linear axes
FLOOR = 1e-12  # smaller p-values are drawn here


def cosine(data: xr.Dataset) -> tuple[float, tuple[float, float]]:
    """Where the cosines' axes turn linear (the power of ten below a random direction's), and their limits."""
    null = data["cosine_null"].where(data["cosine_null"] > 0)
    linear = float(10 ** np.floor(np.log10(null.min()))) if null.notnull().any() else 0.01
    low = float(np.nanmin(intervals.ends(data, "cosine")[0].fillna(data["cosine"]).values, initial=0))
    return linear, (1.2 * low - 0.15 * linear, 1.4)


def variance(data: xr.Dataset) -> tuple[float, float]:
    """Limits of a log axis that holds every positive mean with its band, and FG-W's theory."""
    mean = data["relative_variance"].values
    below, above = intervals.bars(mean, intervals.ends(data, "relative_variance"))
    shown = np.isfinite(mean) & (mean > ROUNDING)  # heads, which learn exactly, vary by rounding
    if not shown.any():
        return 0.1, 10.0
    mean, below, above = mean[shown], below[shown], above[shown]
    low, high = np.maximum(mean - below, mean / 10).min(), (mean + above).max()  # a band may reach to 0
    return float(low / 1.6), float(max(high, data["size"].max() if theory_lines.known(data) else 0) * 1.6)


def linear(name: str, found: Iterable[Series]) -> bool:
    """Is a quantity's axis linear: does it have both signs by its nature, or is it surely negative somewhere?

    Other axes are logarithmic, and what is not told from 0 stands on their edge.
    """
    sure = any((np.where(np.isfinite(one.high), one.high, one.value) < 0).any() for one in found)
    return name.removesuffix("_difference") in LINEAR or name.endswith("_difference") or sure


def positive(values: NDArray[np.float64], *, floor: float = 0.0, room: float = 1.6) -> tuple[float, float]:
    """Limits of a log axis for the values above the floor; some around 1 where there are none."""
    shown = values[np.isfinite(values) & (values > floor)]
    if not shown.size:
        return 0.05, 20.0
    return float(shown.min()) / room, float(shown.max()) * room


def bias(dataset: xr.Dataset) -> tuple[float, xr.DataArray]:
    """The threshold at which all tests of bias together have `LEVEL`, and their p-values [cell].

    The total is left out: its test is that of ``perturbed``.
    """
    p = dataset["bias_p"]
    p = p.sel(reference="target") if "reference" in p.dims else p
    if "layer" in p.dims:
        p = p.sel(layer=[name for name in datasets.names(dataset, "layer") if name != "total"])
    p = p.stack(cell=p.dims)
    p = p[np.isfinite(p.values)]
    return float(-np.expm1(np.log1p(-LEVEL) / max(p.size, 1))), p
