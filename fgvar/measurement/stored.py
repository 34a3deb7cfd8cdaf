"""Stored numbers: reads ends of intervals, and biases over the target, out of a measurement's dataset."""

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
