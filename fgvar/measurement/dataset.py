"""Datasets: describe every result by names, units and provenance, and sum it up in a table."""

import platform
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from fgvar.errors import unknown
from fgvar.measurement.dataset_checks import REFERENCES, require_measurement
from fgvar.measurement.files import versions
from fgvar.measurement.text_tables import visible

if TYPE_CHECKING:
    import torch

FLAGS = {"dead": 1, "few_draws": 2, "no_noise": 4, "no_closed_form": 8, "one_number": 16}
# What stands beside a drawn mean: ending of the name → what it is.
ENDS = {
    "_se": "standard error of the",
    "_low": "lower end of the 95 % interval of the",
    "_high": "upper end of the 95 % interval of the",
}
LARGE = 1e6  # numbers above it are written with exponents
WIDTHS = (10, 15, 26)  # least ones of columns: of names, of the bias, of intervals
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
    """A table a person can read: each estimator's bias, relative variance and cosines, with 95 % intervals.

    Beside the z and p of the bias stands how large it may be: ‖E ĝ − target‖/‖target‖ is at most so much, in 97.5 %
    of runs. On the exact route the relative bias itself stands in place of both. Where a dataset has standard errors
    alone (stored ones), ± 1.96 of them are shown, and its heading says so. A paired dataset
    (``measure(…, paired=True)``) has a second table, of the differences to its baseline.

    Args:
        dataset: of `measure`, or of a training run with probes (one table for each step).
        layer: which layer; "perturbed" is all parameters that the scheme estimates.

    Raises:
        TypeError: no dataset.
        ValueError: an unknown layer; a dataset that is no measurement, or several.

    Example:
        >>> import torch
        >>> from fgvar import Problem, measure, scheme
        >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
        >>> problem = Problem(torch.nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> print(summary(measure({"BP": scheme("BP")}, problem, draws=2)).splitlines()[-1].split())
        ['BP', '–', '0', '0', '1', '1']
    """
    require_measurement(dataset)
    layers = [str(name) for name in dataset["layer"].values]
    if layer not in layers:
        raise ValueError(unknown("layer", layer, map(visible, layers)))
    chosen = dataset.sel(layer=layer)
    if "step" in chosen.dims:
        return "\n\n".join(_table(chosen.sel(step=step), layer, f", step {step.item()}") for step in chosen["step"])
    return _table(chosen, layer, "")


def _table(dataset: xr.Dataset, layer: str, when: str) -> str:
    columns = _columns(dataset)
    rows = [["estimator", *columns]]
    for name in dataset["estimator"].values:
        row = dataset.sel(estimator=name)
        rows.append([str(name), *(cell(row) for cell in columns.values())])
    lines = [f"layer {layer!r}{when}: {_how(dataset)}", *_laid_out(rows), *_flat_target(dataset)]
    return "\n".join(lines if "baseline" not in dataset.coords else [*lines, *_paired(dataset)])


def _flat_target(dataset: xr.Dataset) -> list[str]:
    """A line that says why there are dashes, where a target is 0."""
    if "gradient_norm" not in dataset:
        return []
    rows = dataset.sel(reference="target")
    names = [
        visible(str(name))
        for name in dataset["estimator"].values
        if rows.sel(estimator=name)["gradient_norm"].item() == 0
    ]
    if not names:
        return []
    return [
        f"–: the target of {', '.join(names)} is 0, which nothing is relative to and has no angle; a loss without a "
        'derivative (0-1 loss) has no other gradient: see dataset["variance"], or measure a loss that has one'
    ]


def _laid_out(rows: list[list[str]]) -> list[str]:
    """Lines of columns at least as wide as `WIDTHS`, and as their cells and the two blanks between them need."""
    columns = []
    for i, cells in enumerate(zip(*rows, strict=True)):
        shown = [visible(cell) for cell in cells]
        least = WIDTHS[0 if i == 0 else 1 if "bias" in cells[0] else 2]
        width = max(least, *(len(cell) + (2 if i else 0) for cell in shown))
        columns.append([cell.rjust(width) if i else cell.ljust(width) for cell in shown])
    return ["".join(line) for line in zip(*columns, strict=True)]


def _how(dataset: xr.Dataset) -> str:
    if str(dataset.attrs.get("route")) == "exact":
        return "exact, closed form"
    shown = (
        "95 % intervals" if "relative_variance_low" in dataset else "± 1.96 standard errors, as it has no intervals"
    )
    return f"drawn, {visible(str(dataset.attrs.get('draws', '?')))} draws, {shown}"


def _columns(dataset: xr.Dataset) -> dict[str, Callable[[xr.Dataset], str]]:
    """Heading → what is in the cell of one estimator."""
    if str(dataset.attrs.get("route")) == "exact":
        first: dict[str, Callable[[xr.Dataset], str]] = {"relative bias": _relative_bias}
    else:
        first = {"bias z (p)": _tested_bias}
        if "sq_bias_high" in dataset:
            first["bias, of the target"] = _largest_bias
    return first | {
        "relative variance": lambda row: _interval(row, "relative_variance"),
        "cosine to target": lambda row: _interval(row.sel(reference="target"), "cosine"),
        "cosine to backprop": lambda row: _interval(row.sel(reference="backprop"), "cosine"),
    }


def _paired(dataset: xr.Dataset) -> list[str]:
    """Lines on how each estimator differs from the baseline."""
    baseline = dataset["baseline"].item()
    columns = (("slope", "target"), ("relative_variance", None), *(("cosine", r) for r in REFERENCES))
    rows = [["estimator", "slope to target", "relative variance", "cosine to target", "cosine to backprop"]]
    for name in dataset["estimator"].values:
        if name != baseline:
            row = dataset.sel(estimator=name)
            cells = [_interval(row.sel(reference=r) if r else row, f"{one}_difference") for one, r in columns]
            rows.append([str(name), *cells])
    return [f"less those of {baseline!r}, by common noise: {_how(dataset)}", *_laid_out(rows)]


def _tested_bias(row: xr.Dataset) -> str:
    z, p = (row[name].sel(reference="target").item() for name in ("bias_z", "bias_p"))
    return "–" if np.isnan(z) else f"{z:.1f} ({'–' if np.isnan(p) else f'{p:.2g}'})"


def _largest_bias(row: xr.Dataset) -> str:
    """‖E ĝ − target‖/‖target‖ that cannot be excluded."""
    target = row.sel(reference="target")
    square, length = target["sq_bias_high"].item(), target["gradient_norm"].item()
    if np.isnan(square) or np.isnan(row["relative_variance"].item()):  # too few draws, a target of 0
        return "–"
    known = square == target["sq_bias"].item()
    return f"{'' if known else 'at most '}{np.sqrt(max(square, 0)) / length:.2g}"


def _relative_bias(row: xr.Dataset) -> str:
    """‖E ĝ − target‖/‖target‖."""
    target = row.sel(reference="target")
    square, length = target["sq_bias"].item(), target["gradient_norm"].item()
    if np.isnan(square) or not length > 0:  # no closed form, a target of 0
        return "–"
    return f"{np.sqrt(max(square, 0)) / length:.2g}"


def _interval(row: xr.Dataset, name: str) -> str:
    """Value [low, high] of a variable; ± 1.96 errors of a dataset that has errors alone."""
    value = row[name].item()
    if f"{name}_low" in row:
        return ranged(value, row[f"{name}_low"].item(), row[f"{name}_high"].item())
    half = 1.96 * row[f"{name}_se"].item()
    return ranged(value, value - half, value + half, plus_minus=True)


def ranged(value: float, low: float, high: float, *, plus_minus: bool = False) -> str:
    """``value [low, high]``, all rounded to the second significant digit of half its width.

    Args:
        value: NaN is a dash; above a million it has an exponent.
        low, high: equal for exact values, which have no brackets; NaN where there is no interval.
        plus_minus: ± half the width in place of the brackets.

    Example:
        >>> ranged(16.63, 15.21, 18.88), ranged(2.0, 2.0, 2.0), ranged(0.5, np.nan, np.nan)
        ('16.6 [15.2, 18.9]', '2', '0.5 [–]')
        >>> ranged(1.08e16, 1.04e16, 1.12e16, plus_minus=True)
        '1.080e+16 ± 4.0e+14'
    """
    if np.isnan(value):
        return "–"
    half = (high - low) / 2
    if half == 0 or not np.isfinite([value, low, high]).all():
        return f"{value:.4g}" + ("" if half == 0 else " [–]")
    last = int(np.floor(np.log10(half))) - 1  # the place of the second significant digit
    large, leading = max(abs(value), half) > LARGE, int(np.floor(np.log10(abs(value) or half)))
    form = f".{max(0, leading - last)}e" if large else f".{max(0, -last)}f"
    if plus_minus:
        return f"{value:{form}} ± {half:{'.1e' if large else form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
