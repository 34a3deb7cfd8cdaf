"""What bars and bands show: 95 % intervals, or ± 1.96 standard errors of datasets that have errors alone."""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from fgvar.measurement.stored import Z, ends

__all__ = ["Z", "bars", "ends", "has", "over_seeds", "words", "written"]


def bars(value: ArrayLike, around: Sequence[ArrayLike]) -> NDArray[np.float64]:
    """Arms of an error bar [2, …], below and above; 0 where there is no interval, or no finite value within it."""
    value, low, high = (np.asarray(one, float) for one in (value, *around))
    value = np.where(np.isfinite(value), value, np.nan)
    return np.maximum(np.nan_to_num(np.stack([value - low, high - value])), 0)


def has(dataset: xr.Dataset, name: str) -> bool:
    return f"{name}_low" in dataset


def words(dataset: xr.Dataset, name: str) -> str:
    """What `ends` are."""
    return "95 % intervals" if has(dataset, name) else f"±{Z} standard errors"


def written(dataset: xr.Dataset, name: str) -> str:
    """A number with what `ends` are, in words: ``726 [671, 788]`` or ``726 ± 61``."""
    value, (low, high) = dataset[name].item(), (end.item() for end in ends(dataset, name))
    if not np.isfinite([low, high]).all():
        return f"{value:.3g}"
    return f"{value:.3g} " + (f"[{low:.3g}, {high:.3g}]" if has(dataset, name) else f"± {high - value:.2g}")


def over_seeds(dataset: xr.Dataset) -> xr.Dataset:
    """Means over the seeds of a sweep; their standard errors and arms of intervals as of independent values."""
    if "seed" not in dataset.dims:
        return dataset
    numbers = dataset.drop_vars([name for name, values in dataset.items() if values.dtype.kind not in "fiu"])
    means, found = numbers.mean("seed", keep_attrs=True), {}
    for end, side in (("_se", 0), ("_low", -1), ("_high", 1)):
        for name in (str(name) for name in means if str(name).endswith(end)):
            base = name.removesuffix(end)
            arms = dataset[name] - (dataset[base] if side else 0)
            arm = (arms**2).sum("seed", skipna=False) ** 0.5 / dataset.sizes["seed"]
            found[name] = side * arm + means[base] if side else arm
    return means.assign(found)
