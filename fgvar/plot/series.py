"""Series: the numbers of one estimator with their intervals, how they were made, and why one is missing."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fgvar.measurement.dataset import FLAGS
from fgvar.measurement.stored import descriptions, flags_of, missing
from fgvar.plot import intervals

Array = NDArray[np.float64]

DRAWN, EXACT, REPLAYED = "drawn", "exact", "replayed"
LEVEL = 0.01  # of all tests of no bias in a figure together
ROUNDING = 1e-9  # relative variances below it are of what has no noise
UNSEEN = 1e-6  # exact biases below it, of their target, are rounding
FLOORS = {"relative_variance": ROUNDING, "relative_bias": UNSEEN}  # of what is relative; units have no floor


@dataclass(frozen=True)
class Series:
    """Numbers of one estimator along one dim.

    Attributes:
        value, low, high: NaN where there is none; equal ends of exact ones, and of what has no errors.
        made: "drawn", "exact", or "replayed": drawn, by derivatives from the known gradient.
        missing: why a value is not there, in a word or two; empty where it is.
    """

    value: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    made: str
    missing: tuple[str, ...]

    @property
    def bars(self) -> NDArray[np.float64]:
        """Arms of the intervals [2, …], 0 where there is none."""
        return intervals.bars(self.value, (self.low, self.high))

    @property
    def unsure(self) -> NDArray[np.bool_]:
        """Values whose interval is missing: too few draws, or one number or seed alone."""
        unsure: NDArray[np.bool_] = np.isfinite(self.value) & ~np.isfinite(self.low + self.high)
        return unsure

    @property
    def ends(self) -> NDArray[np.float64]:
        """What a linear axis has to hold: values and their intervals."""
        return np.concatenate([self.value, self.low, self.high])

    @property
    def extent(self) -> NDArray[np.float64]:
        """What a log axis has to hold: values, upper ends, and lower ones down to a tenth of the value."""
        return np.concatenate([self.value, np.fmax(self.low, self.value / 10), self.high])

    def without_rounding(self, name: str) -> "Series":
        """Numbers of what has no noise, or no bias, as 0, which they are but for rounding; ``name``: the variable."""
        none = _rounding(self.value, name)
        return self._changed(lambda one: np.where(none, 0.0, one))

    def at_least(self, floor: float) -> "Series":
        """Smaller numbers at the floor."""
        return self._changed(lambda one: np.maximum(one, floor))

    def _changed(self, change: Callable[[Array], Array]) -> "Series":
        return Series(change(self.value), change(self.low), change(self.high), self.made, self.missing)


def without_rounding(values: Array, name: str) -> Array:
    """Numbers of a variable, with those that are 0 but for rounding at 0."""
    return np.where(_rounding(values, name), 0.0, values)


def _rounding(values: Array, name: str) -> NDArray[np.bool_]:
    none: NDArray[np.bool_] = np.abs(values) < FLOORS.get(name, 0.0)
    return none


def of(data: xr.Dataset, name: str, *, certain: bool = False) -> Series:
    """A variable of one estimator, and reference where it has one, over the dim that is left.

    Args:
        data: chosen by ``estimator`` and ``reference``; ``estimator`` may be a scalar coordinate, or absent.
        name: of the variable.
        certain: it has no error by its nature, as a p-value or a size.
    """
    value = np.atleast_1d(np.asarray(data[name].values, float))
    if certain:
        low = high = value
    elif has_errors(data, name):
        low, high = (np.atleast_1d(np.asarray(end.values, float)) for end in intervals.ends(data, name))
    else:
        low = high = value
    return Series(value, low, high, made(data, name), missing(data, name))


def has_errors(data: xr.Dataset, name: str) -> bool:
    return f"{name}_low" in data or f"{name}_se" in data


def made(data: xr.Dataset, name: str) -> str:
    """How a variable's numbers came: exact where the route is, or where no number has an error."""
    if str(data.attrs.get("route")) == "exact" or _errorless(data, name):
        return EXACT
    estimator = str(data["estimator"].values) if "estimator" in data.coords else ""
    return REPLAYED if "oracle=Replay(" in descriptions(data).get(estimator, "") else DRAWN


def _errorless(data: xr.Dataset, name: str) -> bool:
    if f"{name}_se" not in data:
        return False
    known = data[name].notnull()
    exact = data[f"{name}_se"] == 0
    if "flag" in data:  # an error that was cut off at 0 is none of an exact number
        exact = exact & (flags_of(data, name) & FLAGS["no_noise"] > 0)
    return bool(known.any() and exact.where(known, True).all())


# ---- bias ------------------------------------------------------------------------------------------------------


def is_exact(data: xr.Dataset) -> bool:
    return str(data.attrs.get("route")) == "exact"


def biased(data: xr.Dataset) -> dict[str, str]:
    """Estimators that are known to be biased for their target → how it is known.

    "declared" by a variable ``biased``, a text or true; "exact" where the closed form says so; "seen" where the
    test of no bias refutes it, at `LEVEL` for all estimators together.

    Args:
        data: of `fgvar.plot.datasets.one`.
    """
    names = [str(name) for name in data["estimator"].values]
    if "biased" in data:
        return {name: "declared" for name in names if data["biased"].sel(estimator=name).item()}
    if is_exact(data):
        share = data["relative_sq_bias"]
        return {name: "exact" for name in names if float(share.sel(estimator=name)) > UNSEEN**2}
    if "bias_p" not in data:
        return {}
    p = data["bias_p"].sel(reference="target") if "reference" in data["bias_p"].dims else data["bias_p"]
    threshold = -np.expm1(np.log1p(-LEVEL) / max(int(p.notnull().sum()), 1))
    return {name: "seen" for name in names if float(p.sel(estimator=name)) < threshold}
