"""What is stored: reads ends of intervals, biases over the target and estimators' descriptions out of a dataset."""

import numpy as np
import xarray as xr

from fgvar.measurement.dataset import FLAGS

Z = 1.96  # half-width of a 95 % normal interval, in standard errors


def ends(dataset: xr.Dataset, name: str) -> tuple[xr.DataArray, xr.DataArray]:
    """Low and high of a variable: its interval where the dataset has one, else ± 1.96 of its standard errors.

    NaN where it has neither.
    """
    if f"{name}_low" in dataset:
        return dataset[f"{name}_low"], dataset[f"{name}_high"]
    half = Z * dataset[f"{name}_se"] if f"{name}_se" in dataset else np.nan
    return dataset[name] - half, dataset[name] + half


def bias_over_target(dataset: xr.Dataset, square: str = "sq_bias") -> xr.DataArray:
    """‖E ĝ − target‖/‖target‖; of ``square="sq_bias_high"`` how large it is at most, in 97.5 % of runs.

    NaN where the target is 0 within rounding, or where draws are too few for a relative variance.
    """
    its = dataset.sel(reference="target") if "reference" in dataset.dims else dataset
    known = its["gradient_norm"] > 0
    if "flag" in its:
        known = known & (its["flag"].astype(int) & FLAGS["dead"] == 0)
    if square != "sq_bias":
        known = known & its["relative_variance"].notnull()
    return (its[square].clip(min=0) ** 0.5 / its["gradient_norm"]).where(known)


def descriptions(dataset: xr.Dataset) -> dict[str, str]:
    """Estimator → its repr, as the measurement wrote them down, a line each.

    Example:
        >>> lines = "FG-A: Estimator()\\nFG-A: replay: Estimator(oracle=Replay())"
        >>> list(descriptions(xr.Dataset(attrs={"estimators": lines})))
        ['FG-A', 'FG-A: replay']
    """
    return dict(map(_parted, str(dataset.attrs.get("estimators", "")).splitlines()))


def _parted(line: str) -> tuple[str, str]:
    """Name and repr: names may hold ": ", reprs within brackets only, so that the last one outside parts them."""
    depth = 0
    for i in reversed(range(len(line))):
        depth += (line[i] in ")]}") - (line[i] in "([{")
        if not depth and line.startswith(": ", i):
            return line[:i], line[i + 2 :]
    name, _, its = line.partition(": ")  # brackets of a stranger's repr that do not match
    return name, its
