"""Datasets: the labelled form of every result, its names, units and provenance."""

import platform
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fgvar.analysis.files import versions
from fgvar.errors import unknown

if TYPE_CHECKING:
    import torch

REFERENCES = ("target", "backprop")
FLAGS = {"dead": 1, "few_draws": 2, "no_noise": 4, "no_closed_form": 8, "one_number": 16}
RATIOS = ("relative_variance", "snr", "slope", "cosine", "efficiency")

# name → long name, units, source or identity
VARIABLES: dict[str, tuple[str, str, str]] = {
    "variance": ("noise variance tr Cov(ĝ | batch)", "gradient²", "sum over entries; Ren et al. 2023, Table 1"),
    "relative_variance": ("noise variance / ‖target‖²", "1", "d + 1 for one loss, d Gaussian numbers"),
    "snr": ("signal-to-noise ratio ‖E ĝ‖² / tr Cov(ĝ)", "1", "both unbiased"),
    "sq_bias": (
        "squared bias ‖E ĝ − reference‖²",
        "gradient²",
        "‖mean − g‖² − tr Cov/n: negative half of the time at 0",
    ),
    "bias_z": ("largest |z| of the bias", "1", "over 16 fixed random projections"),
    "bias_p": ("p-value of bias_z", "1", "Student t, Šidák-corrected over the projections"),
    "slope": ("slope ⟨E ĝ, g⟩ / ‖g‖²", "1", "1 if the scale is right"),
    "cosine": ("mean cosine to the reference", "1", "mean over draws of the per-draw cosine"),
    "cosine_null": ("95 % half-width of a random direction's cosine", "1", "√Beta⁻¹(0.95; ½, (d−1)/2)"),
    "efficiency": ("efficiency ⟨E ĝ, g⟩² / (‖g‖² E‖ĝ‖²)", "1", "share of the exact gradient's one-step progress"),
    "gradient_norm": ("norm of the reference gradient", "gradient", "batch mean"),
    "data_variance": ("data variance tr Cov(per-example gradient) / batch size", "gradient²", "within the batch"),
    "size": ("number of parameters", "1", "entries of the layer's tensors"),
    "cost": ("cost of one draw", "forward passes", "counted matrix-product FLOPs; NaN where none are counted"),
    "loss": ("batch-mean loss of the output", "loss", "at the measured parameters"),
    "accuracy": ("accuracy on the measured batch", "1", "share of correct classes; classifiers only"),
    "seconds": ("wall time", "s", "of measuring the estimator"),
    "variance_difference": ("variance, less that of the baseline", "gradient²", "common noise"),
    "relative_variance_difference": ("relative variance, less that of the baseline", "1", "common noise"),
    "slope_difference": ("slope, less that of the baseline", "1", "common noise"),
    "cosine_difference": ("mean cosine, less that of the baseline", "1", "common noise"),
    "difference_flag": ("why a difference is missing", "", "bits: as of flag, of either estimator"),
    "flag": ("why a number is missing", "", "bits: dead reference, too few draws, no noise, no closed form"),
}


def describe(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with long name, units and source on every known variable that does not state its own."""
    for name, variable in dataset.data_vars.items():
        base = str(name).removesuffix("_se")
        if base not in VARIABLES:
            continue
        long_name, units, source = VARIABLES[base]
        error = str(name).endswith("_se")
        variable.attrs = {
            "long_name": f"standard error of the {long_name}" if error else long_name,
            "units": units,
            "source": source,
            "normalisation": "gradients are of the mean over the batch",
        } | variable.attrs
    for name in {"flag", "difference_flag"} & set(dataset):
        dataset[name].attrs |= {"flag_masks": list(FLAGS.values()), "flag_meanings": " ".join(FLAGS)}
    return dataset


def provenance(device: "torch.device", dtype: "torch.dtype") -> dict[str, Any]:
    """What made a result: versions, commit, device, dtype, threads."""
    import torch  # stored results are read without

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **versions(),
        "device": f"{device.type} ({name})",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }


def summary(dataset: xr.Dataset, *, layer: str = "perturbed") -> str:
    """A table a person can read: each estimator's bias z, relative variance and cosines, ± standard errors.

    On the exact route the relative bias ‖E ĝ − target‖/‖target‖ stands in place of the bias z. A paired dataset
    (``measure(…, paired=True)``) has a second table, of the differences to its baseline.

    Args:
        dataset: of `measure`, or of a training run with probes (one table for each step).
        layer: which layer; "perturbed" is all parameters that the scheme estimates.

    Raises:
        ValueError: an unknown layer.

    Example:
        >>> import torch
        >>> from fgvar import Problem, measure, scheme
        >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
        >>> problem = Problem(torch.nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> print(summary(measure({"BP": scheme("BP")}, problem, draws=2)).splitlines()[-1])
        BP                      –                     0                     1                     1
    """
    layers = [str(name) for name in dataset["layer"].values]
    if layer not in layers:
        raise ValueError(unknown("layer", layer, layers))
    chosen = dataset.sel(layer=layer)
    if "step" in chosen.dims:
        return "\n\n".join(_table(chosen.sel(step=step), layer, f", step {step.item()}") for step in chosen["step"])
    return _table(chosen, layer, "")


def _table(dataset: xr.Dataset, layer: str, when: str) -> str:
    exact = dataset.attrs.get("route") == "exact"
    how = "exact, closed form" if exact else f"drawn, {dataset.attrs.get('draws', '?')} draws, ± standard error"
    bias = "relative bias" if exact else "bias z (p)"
    columns = (bias, "relative variance", "cosine to target", "cosine to backprop")
    width = max(10, *(len(str(name)) for name in dataset["estimator"].values))
    lines = [
        f"layer {layer!r}{when}: {how}",
        "estimator".ljust(width) + "".join(f"{c:>{w}}" for c, w in zip(columns, (15, 22, 22, 22), strict=True)),
    ]
    for name in dataset["estimator"].values:
        row = dataset.sel(estimator=name)
        target = row.sel(reference="target")
        cells = [
            f"{_relative_bias(target) if exact else _tested_bias(target):>15}",
            f"{_plus_minus(row['relative_variance'].item(), row['relative_variance_se'].item()):>22}",
            *(
                f"{_plus_minus(row['cosine'].sel(reference=r).item(), row['cosine_se'].sel(reference=r).item()):>22}"
                for r in REFERENCES
            ),
        ]
        lines.append(str(name).ljust(width) + "".join(cells))
    return "\n".join(lines if "baseline" not in dataset.coords else [*lines, *_paired(dataset, how, width)])


def _paired(dataset: xr.Dataset, how: str, width: int) -> list[str]:
    """Lines on how each estimator differs from the baseline."""
    baseline = dataset["baseline"].item()
    columns = (("slope", "target"), ("relative_variance", None), *(("cosine", r) for r in REFERENCES))
    heads = ("slope to target", "relative variance", "cosine to target", "cosine to backprop")
    lines = [
        f"less those of {baseline!r}, by common noise: {how}",
        "estimator".ljust(width) + "".join(f"{head:>22}" for head in heads),
    ]
    for name in dataset["estimator"].values:
        cells = []
        for variable, reference in columns if name != baseline else ():
            pair = (dataset[f"{variable}_difference{end}"].sel(estimator=name) for end in ("", "_se"))
            cells.append(_plus_minus(*((v.sel(reference=reference) if reference else v).item() for v in pair)))
        lines += [str(name).ljust(width) + "".join(f"{cell:>22}" for cell in cells)] if cells else []
    return lines


def _tested_bias(target: xr.Dataset) -> str:
    z, p = target["bias_z"].item(), target["bias_p"].item()
    return "–" if np.isnan(z) else f"{z:.1f} ({p:.2g})"


def _relative_bias(target: xr.Dataset) -> str:
    """‖E ĝ − target‖/‖target‖."""
    length = target["gradient_norm"].item()
    return f"{np.sqrt(max(target['sq_bias'].item(), 0)) / length:.2g}" if length > 0 else "–"


def _plus_minus(value: float, error: float) -> str:
    """Value ± error, both rounded to the error's second significant digit."""
    if np.isnan(value):
        return "–"
    if error == 0 or np.isnan(error):
        return f"{value:.4g}" + ("" if error == 0 else " ± –")
    digits = max(0, 1 - int(np.floor(np.log10(error))))
    return f"{value:.{digits}f} ± {error:.{digits}f}"
