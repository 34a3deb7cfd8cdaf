"""Datasets as figures need them: what they have to hold, and one measurement out of several."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import xarray as xr
from scipy import stats

import fgvar
from fgvar.errors import unknown
from fgvar.measurement import LABELS, missing_from
from fgvar.measurement.dataset_checks import REFERENCES, missing_for_measurement, require_measurement
from fgvar.measurement.stored import explained, joined, sq_bias_over_target

TEXT = ("family", "biased", "status", "data", "group", "law_route")  # variables of datasets that hold text
NUMBERED = ("run", "cell", "example")  # dims without labels


def read(path: Path) -> xr.Dataset:
    """The dataset in a file, wholly in memory.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a netCDF file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no dataset at {path}; write it by the study of the same name")
    dataset: xr.Dataset = fgvar.open_dataset(path)
    return dataset


def require(dataset: xr.Dataset, needed: Mapping[str, tuple[str, ...]], source: str) -> None:
    """Raise ValueError where the dataset lacks a variable, a dimension of it, numbers or labels, naming them."""
    dims = dict.fromkeys(
        dim for name, its in needed.items() for dim in its if name in dataset and dim in dataset.dims
    )
    labels = [f"labels along {dim!r}" for dim in dims if dim not in (*dataset.coords, *LABELS, *NUMBERED)]
    if missing := [*missing_from(dataset, needed, TEXT), *labels]:
        raise ValueError(f"not a dataset of {source}: it lacks {', '.join(missing)}")


def quantities(dataset: xr.Dataset) -> list[str]:
    """Variables of numbers with a meaning of their own: not ends of intervals, flags, or numbers of each draw."""
    return [
        str(name)
        for name, its in dataset.data_vars.items()
        if its.dtype.kind in "fiu"
        and not str(name).endswith(("_se", "_low", "_high", "_theory", "flag"))
        and "draw" not in its.dims
    ]


def names(dataset: xr.Dataset, dim: str) -> list[str]:
    return [str(name) for name in dataset[dim].values]


# ---- one measurement -------------------------------------------------------------------------------------------


def one(dataset: xr.Dataset, *, layer: str | None = None) -> xr.Dataset:
    """One measurement: of several steps the last one, of several seeds their mean (`across_seeds`).

    Where it has squared biases, it has them over ‖target‖², too, as ``relative_sq_bias``.

    Args:
        dataset: of `fgvar.measure`, of a run with probes, or of a sweep whose cells return such datasets.
        layer: which one; None keeps them all.

    Raises:
        TypeError: no dataset.
        ValueError: it is no measurement, is of several along other dims than these, or has no such layer.
    """
    if isinstance(dataset, xr.Dataset) and not missing_for_measurement(dataset):
        dataset = dataset.isel(step=-1) if dataset.sizes.get("step") else dataset
        dataset = across_seeds(_relative(explained(dataset)))
    require_measurement(dataset)
    return of_layer(dataset, layer)


def _relative(dataset: xr.Dataset) -> xr.Dataset:
    """With each seed's squared biases over its own target: a ratio of means would be that of the largest target."""
    squares = [name for name in ("sq_bias", "sq_bias_se", "sq_bias_high") if {name, "gradient_norm"} <= set(dataset)]
    return dataset.assign({f"relative_{name}": sq_bias_over_target(dataset, name) for name in squares})


def of_layer(dataset: xr.Dataset, layer: str | None) -> xr.Dataset:
    """The dataset of one layer.

    Raises:
        ValueError: it has no such layer.
    """
    if layer is None:
        return dataset
    if "layer" not in dataset.dims:
        require_layer(dataset, layer)
        return dataset
    if layer not in names(dataset, "layer"):
        raise ValueError(unknown("layer", layer, names(dataset, "layer")))
    return dataset.sel(layer=layer)


def require_layer(dataset: xr.Dataset, layer: str) -> None:
    """Raise ValueError where what is drawn has no layers, and one is asked for that there is not.

    "perturbed" is what nobody asks for.
    """
    known = [str(name) for name in np.ravel(dataset["layer"].values)] if "layer" in dataset.coords else []
    if layer not in (*known, "perturbed"):
        raise ValueError(unknown("layer", layer, known or ["perturbed"]))


def of_reference(dataset: xr.Dataset, name: str, reference: str) -> xr.Dataset:
    """The dataset at the reference of a variable: this one, or the target, which all others are relative to.

    Raises:
        ValueError: it has no such reference.
    """
    known = names(dataset, "reference") if "reference" in dataset.dims else []
    if reference not in (known if "reference" in dataset[name].dims else {*known, *REFERENCES}):
        raise ValueError(unknown("reference", reference, known or REFERENCES))
    chosen = reference if "reference" in dataset[name].dims else "target"
    return dataset.sel(reference=chosen) if chosen in known else dataset


def across_seeds(dataset: xr.Dataset) -> xr.Dataset:
    """Means over ``seed``, with 95 % intervals by Student's t of the seeds' spread; NaN of a single seed's error.

    A variable has an interval where it has one, or a standard error, for each seed; p-values are combined by
    Bonferroni's correction, and flags are joined. Text is left out. With one seed the dataset is that seed's.

    Example:
        >>> seeds = xr.Dataset({"v": ("seed", [1.0, 3.0]), "v_se": ("seed", [0.1, 0.1])})
        >>> [round(float(across_seeds(seeds)[name]), 2) for name in ("v", "v_low", "v_high")]
        [2.0, -10.71, 14.71]
    """
    if "seed" not in dataset.dims:
        return dataset
    if dataset.sizes["seed"] == 1:
        return dataset.isel(seed=0)
    found, dataset = {}, explained(dataset)
    for name, values in dataset.data_vars.items():
        if "seed" not in values.dims:
            found[str(name)] = values
        elif str(name) == "bias_p":
            found[str(name)] = (values.min("seed") * values.count("seed")).clip(max=1)
        elif "flag" in str(name):
            found[str(name)] = joined(values, "seed")
        elif values.dtype.kind in "fiu":
            found |= _spread(dataset, str(name))
    return xr.Dataset(found, attrs=dataset.attrs)


def _spread(dataset: xr.Dataset, name: str) -> dict[str, xr.DataArray]:
    """Mean of a variable, and its standard error and interval where each seed has one of them."""
    base = next((name.removesuffix(end) for end in ("_se", "_low", "_high") if name.endswith(end)), name)
    if base != name and base in dataset:
        return {}
    values = dataset[name]
    found = {name: values.mean("seed", keep_attrs=True)}
    if any(f"{name}{end}" in dataset for end in ("_se", "_low")):
        n = values.count("seed")
        error = values.std("seed", ddof=1) / np.sqrt(n)
        half = error * xr.apply_ufunc(lambda count: stats.t.ppf(0.975, np.maximum(count - 1, 1)), n)
        found |= {f"{name}_se": error, f"{name}_low": found[name] - half, f"{name}_high": found[name] + half}
    return found
