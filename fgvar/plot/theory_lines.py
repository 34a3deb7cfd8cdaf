"""Theory that stands beside what was measured: of FG-W, one Gaussian direction in d dimensions."""

import math
import re

import numpy as np
import xarray as xr

from fgvar.measurement.stored import descriptions

FG_W = "FG-W"
ONE_GAUSSIAN = re.compile(  # the field's FG-W, as its repr says it; older ones have no keep
    r"Estimator\(space=WeightSpace\(per_tensor=False(, keep=None)?\), noise=Gaussian\(\), "
    r"losses=GlobalLoss\(heads=\w+\), oracle=(Jvp|Replay)\(\), guess=Isotropic\(\), combine=Mean\(\), shared=None, "
    r"directions=1, antithetic=\w+\)"
)


def known(data: xr.Dataset) -> bool:
    """Is there an FG-W of one Gaussian direction shared by the batch, whose theory is drawn?

    Of one layer alone it is not: it hears the noise of all others. Nor of a cell that failed, whose d nobody knows.
    """
    whole = "layer" not in data.coords or "layer" in data.dims or data["layer"].item() == "perturbed"
    sized = "size" not in data or bool(data["size"].notnull().any())
    its = ONE_GAUSSIAN.fullmatch(descriptions(data).get(FG_W, "")) is not None
    return FG_W in data["estimator"] and whole and sized and its


def relative_variance(data: xr.Dataset) -> xr.DataArray:
    """FG-W's relative variance in each layer, 1 + d_layer ‖g‖²/‖g_layer‖²: every layer hears the noise of all.

    ``g`` is of all perturbed parameters. NaN for the total, where exact layers count, too, and where undefined.
    """
    if not known(data):
        return xr.DataArray(np.nan)
    its = data.sel(estimator=FG_W, drop=True)
    norm = its["gradient_norm"]
    norm = norm.sel(reference="target", drop=True) if "reference" in norm.dims else norm
    expected = 1 + its["size"] * (norm.sel(layer="perturbed", drop=True) / norm) ** 2
    return expected.where(its["relative_variance"].notnull() & (its["layer"] != "total"))


def cosine(d: int) -> float:
    """E|cos| of one random direction to a gradient in d dimensions, Γ(d/2)/(√π Γ((d + 1)/2)) ≈ √(2/πd)."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


def perturbed(data: xr.Dataset) -> list[int]:
    """d, how many numbers are perturbed, of each network."""
    size = data["size"].sel(layer="perturbed") if "layer" in data["size"].dims else data["size"]
    return [int(d) for d in np.unique(size) if np.isfinite(d)]


def words(data: xr.Dataset) -> str:
    """What FG-W's lines or ticks are."""
    if not known(data):
        return ""
    told = "; ".join(f"{d + 1} and {cosine(d):.2g} for d = {d}" for d in perturbed(data))
    return (
        "Black, FG-W in theory: relative variance 1 + d‖g‖²/‖g_layer‖², mean cosine over all perturbed numbers "
        f"Γ(d/2)/(√π Γ((d + 1)/2)): {told}."
    )
