"""What is stored: reads intervals, flags, biases over the target and estimators' descriptions out of a dataset."""

import numpy as np
import xarray as xr

from fgvar.measurement.dataset import FLAGS, RATIOS, VARIABLES

Z = 1.96  # half-width of a 95 % normal interval, in standard errors
# Bits of `flags` that no dataset stores: why a sweep has no number at all.
UNMEASURED = {
    "not_measured": 64,
    "not_in_this_network": 128,
    "cell_failed": 256,
    "cell_timed_out": 512,
    "cell_died": 1024,
    "cell_missing": 2048,
}
# Flag → variables whose values it takes; of the others it takes the errors at most.
TAKES = {
    "dead": RATIOS,
    "few_draws": ("bias_p",),
    "no_noise": ("snr", "bias_z", "bias_p"),
    "no_closed_form": (*RATIOS, "variance", "sq_bias", "bias_z", "bias_p"),
    "lost_digits": ("cosine", "efficiency"),
}
REASONS = {  # of a number that is missing, by its flag
    "no_closed_form": "no closed form",
    "dead": "undefined",
    "few_draws": "too few draws",
    "no_noise": "no noise",
    "lost_digits": "lost digits",
    **{name: name.replace("_", " ") for name in UNMEASURED},
}
UNKNOWN = "NaN"  # a number is missing, and no flag says why


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

    NaN where `sq_bias_over_target` is.
    """
    return sq_bias_over_target(dataset, square).clip(min=0) ** 0.5


def sq_bias_over_target(dataset: xr.Dataset, square: str = "sq_bias") -> xr.DataArray:
    """‖E ĝ − target‖²/‖target‖², below 0 where its estimate is; of ``sq_bias_high`` or ``sq_bias_se`` those of it.

    NaN where the target is 0 within rounding, or where draws are too few for a relative variance.
    """
    its = dataset.sel(reference="target") if "reference" in dataset.dims else dataset
    known = (its["gradient_norm"] > 0) & (flags(its) & FLAGS["dead"] == 0)
    if square != "sq_bias":
        known = known & its["relative_variance"].notnull()
    return (its[square] / its["gradient_norm"] ** 2).where(known)


def flags(dataset: xr.Dataset, name: str = "flag") -> xr.DataArray:
    """Bits of `FLAGS`, as stored, and of `UNMEASURED` where a sweep has no flag; 0 of a dataset without flags.

    Cells differ in their layers and estimators, and some fail: there a sweep's flags, as its numbers, are NaN.

    Example:
        >>> cells = {"flag": ("width", [8.0, np.nan, np.nan]), "status": ("width", ["done", "died", "done"])}
        >>> flags(xr.Dataset(cells)).values.tolist()
        [8, 1024, 64]
    """
    stored = dataset.get(name, dataset.get("cell_flag", xr.DataArray(0)))
    empty = stored.isnull()
    found = stored.fillna(0).astype(int) + UNMEASURED["not_measured"] * empty
    if "layer" in stored.dims:
        measured = stored.notnull().any("layer")
        found = xr.where(empty & measured, UNMEASURED["not_in_this_network"], found)
    for status in ("failed", "timed out", "died", "missing") if "status" in dataset else ():
        bit = UNMEASURED[f"cell_{status.replace(' ', '_')}"]
        found = xr.where(dataset["status"].astype(str) == status, bit, found)
    return found


def explained(dataset: xr.Dataset) -> xr.Dataset:
    """With `flags` in place of those stored, before one layer is chosen, or text dropped, that tells them."""
    kinds = [name for name in ("flag", "difference_flag") if name in dataset]
    kinds = kinds or ["cell_flag"] * ("status" in dataset)  # which knows no more than what became of a cell
    return dataset.assign({name: flags(dataset, name) for name in kinds})


def joined(bits: xr.DataArray, dim: str | list[str]) -> xr.DataArray:
    """Bits that are set anywhere along a dim."""
    return bits.reduce(np.bitwise_or.reduce, dim)


def flags_of(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Flags of a variable's values, over dims of its own.

    What is relative to the target has the target's, and what is of all estimators none but those of all.
    """
    difference = name.endswith("_difference") and "difference_flag" in dataset
    found = flags(dataset, "difference_flag" if difference else "flag")
    others = [dim for dim in found.dims if dim not in dataset[name].dims]
    if "reference" in others and "target" in found.get_index("reference"):
        found, others = found.sel(reference="target"), [dim for dim in others if dim != "reference"]
    return found.reduce(np.bitwise_and.reduce, others) if others else found


def why_missing(dataset: xr.Dataset, name: str) -> xr.DataArray:
    """Those of `flags_of` that may have taken a variable's values: a cost is not missing as draws are few."""
    base = name.removesuffix("_difference")
    taking = [bit for flag, bit in FLAGS.items() if base not in VARIABLES or base in TAKES.get(flag, ())]
    return flags_of(dataset, name) & sum([*taking, *UNMEASURED.values()])


def missing(data: xr.Dataset, name: str) -> tuple[str, ...]:
    """Of each number why it is not there, by the flags or as it is infinite; empty where it is."""
    values, bits = (one.values.flat for one in xr.broadcast(data[name].astype(float), why_missing(data, name)))
    return tuple(
        "infinite" if np.isinf(value) else reason(its) if np.isnan(value) else ""
        for value, its in zip(values, bits, strict=True)
    )


def reason(bits: int) -> str:
    """A word for the flags of one number.

    Example:
        >>> reason(2), reason(64), reason(0)
        ('too few draws', 'not measured', 'NaN')
    """
    every = FLAGS | UNMEASURED
    return next((word for name, word in REASONS.items() if bits & every[name]), UNKNOWN)


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
