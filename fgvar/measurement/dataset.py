"""Datasets: describe every result by names, units and provenance."""

import platform
from typing import TYPE_CHECKING, Any

import xarray as xr

from fgvar.measurement.files import versions

if TYPE_CHECKING:
    import torch

FLAGS = {"dead": 1, "few_draws": 2, "no_noise": 4, "no_closed_form": 8, "one_number": 16, "lost_digits": 32}
# What stands beside a drawn mean: ending of the name → what it is.
ENDS = {
    "_se": "standard error of the",
    "_low": "lower end of the 95 % interval of the",
    "_high": "upper end of the 95 % interval of the",
}
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
    "bias_p": (
        "p-value of bias_z",
        "1",
        "from 64 draws on; the larger of two by Student t, Šidák-corrected over the projections",
    ),
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
    "draw_square": (
        "squared error ‖ĝ − target‖² of one draw",
        "gradient²",
        "mean over draws: tr Cov(ĝ) + squared bias",
    ),
    "draw_along_target": ("⟨ĝ − target, target⟩ of one draw", "gradient²", "0 on average, if unbiased"),
    "draw_along_backprop": ("⟨ĝ − target, backprop⟩ of one draw", "gradient²", "0 on average, if unbiased"),
    "draw_cosine_target": ("cosine of one draw to the target", "1", "⟨ĝ, g⟩ / (‖ĝ‖ ‖g‖); 0 of ĝ = 0"),
    "draw_cosine_backprop": ("cosine of one draw to backprop", "1", "⟨ĝ, g⟩ / (‖ĝ‖ ‖g‖); 0 of ĝ = 0"),
    "difference_flag": ("why a difference is missing", "", "bits: as of flag, of either estimator"),
    "flag": (
        "why a number is missing",
        "",
        "bits: dead reference, too few draws, no noise, no closed form, one number",
    ),
}


def describe(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset with long name, units and source on every known variable that does not state its own."""
    for name, variable in dataset.data_vars.items():
        end = next((end for end in ENDS if str(name).endswith(end)), "")
        base = str(name).removesuffix(end)
        if base not in VARIABLES:
            continue
        long_name, units, source = VARIABLES[base]
        what = "upper limit (97.5 %) of the" if name == "sq_bias_high" else ENDS.get(end, "")
        variable.attrs = {
            "long_name": f"{what} {long_name}".strip(),
            "units": units,
            "source": source,
            "normalisation": "gradients are of the mean over the batch",
        } | variable.attrs
    for name in {"flag", "difference_flag"} & set(dataset):
        dataset[name].attrs |= {"flag_masks": list(FLAGS.values()), "flag_meanings": " ".join(FLAGS)}
    return dataset


def provenance(device: "torch.device", dtype: "torch.dtype") -> dict[str, Any]:
    """What made a result: versions, commit, device, dtype, threads.

    Example:
        >>> import torch
        >>> provenance(torch.device("cpu"), torch.float64)["dtype"]
        'float64'
    """
    import torch  # stored results are read without

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        **versions(),
        "device": f"{device.type} ({name})",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
    }
