"""Words that captions share: how numbers came, what bars are, what is missing and why, what the tests of bias say."""

from collections import Counter

import numpy as np
import xarray as xr

from fgvar.measurement import stored
from fgvar.plot import datasets, intervals, limits, looks, series
from fgvar.plot.series import LEVEL

BARS = {
    "intervals": "95 % intervals",
    "errors": f"±{intervals.Z} standard errors",
    "exact": "none, as values are exact",
    "few": "none, as there are too few draws, or seeds, for an interval",
    "none": "not there: the dataset has neither intervals nor standard errors",
}
OF_THE_BATCH = ("gradient_norm", "data_variance", "loss", "accuracy")
ESTIMATED = ("variance", "relative_variance", "snr", "sq_bias", "bias_z", "bias_p", "slope", "cosine", "efficiency")


def measured(dataset: xr.Dataset, name: str = "cosine") -> str:
    """By which route, how many draws, at which batch; nothing of a variable that is no property of estimates."""
    get = dataset.attrs.get
    several = dataset.sizes.get("seed", 1) > 1
    batch = f", given one batch of {get('batch_size')} examples" if "batch_size" in dataset.attrs else ""
    batch += " for each seed" if batch and several else ""
    if name.removesuffix("_difference") not in ESTIMATED and not series.has_errors(dataset, name):
        return f"Values are computed without a draw{batch}." if name in OF_THE_BATCH else ""
    if series.is_exact(dataset):
        return f"Values are exact, from closed forms{batch}."
    draws = f"Values are drawn (Monte Carlo, n = {get('draws', '?')} draws of each estimator's noise"
    seed = f", seed {get('seed')}" if "seed" in dataset.attrs and not several else ""
    return f"{draws}{seed}){batch}.{_by_route(dataset)}"


def _by_route(dataset: xr.Dataset) -> str:
    """Which estimators are exact or replayed among drawn ones."""
    if "estimator" not in dataset.dims or "cosine" not in dataset:
        return ""
    found: dict[str, list[str]] = {}
    for name in datasets.names(dataset, "estimator"):
        found.setdefault(series.made(dataset.sel(estimator=name), "cosine"), []).append(name)
    told = ""
    if its := found.get(series.EXACT):
        told += f" Without noise, so evaluated once and exact (black edges): {', '.join(its)}."
    if its := found.get(series.REPLAYED):
        told += f" Derivatives replayed from the known gradient (dotted bars): {', '.join(its)}."
    return told


def bars(dataset: xr.Dataset, name: str) -> str:
    """What bars and bands of a variable are."""
    low, high = intervals.ends(dataset, name)
    if series.is_exact(dataset) and not bool((high > low).any()):  # or exact ones over seeds
        return BARS["exact"]
    if f"{name}_low" in dataset:
        return BARS["intervals" if bool(dataset[f"{name}_low"].notnull().any()) else "few"]
    return BARS["errors" if f"{name}_se" in dataset else "none"]


def made(dataset: xr.Dataset, name: str = "cosine") -> str:
    """How a variable's numbers came, and what becomes of several seeds."""
    return " ".join(filter(None, (measured(dataset, name), seeds(dataset))))


def seeds(dataset: xr.Dataset, what: str = "Values") -> str:
    """What becomes of several seeds."""
    count = dataset.sizes.get("seed", 1)
    return f"{what} are means of {count} seeds, with intervals by Student's t of their spread." if count > 1 else ""


def quantities() -> str:
    """What cosines and relative variances are."""
    return (
        "Cosine: mean over draws of each draw's cosine to the estimator's own target (of local ones the local "
        "gradient) and to the end-to-end gradient by backpropagation. Relative variance: trace of the covariance of "
        "the estimate given the batch / ‖target‖²."
    )


def missing(data: xr.Dataset, variables: tuple[str, ...]) -> str:
    """How many numbers are missing, and why; what has no noise."""
    counts = Counter(word for name in variables for word in stored.missing(data, name) if word)
    parts = [f"{count} ({word}{_explained(word)})" for word, count in counts.items()]
    return f"Missing numbers, which their places say: {', '.join(parts)}." if parts else ""


def _explained(word: str) -> str:
    more = {
        "undefined": ": their reference is 0 within rounding",
        "too few draws": " for it",
        "no noise": ": nothing to test",
        "infinite": ": no axis reaches it",
        stored.UNKNOWN: ": the dataset does not say why",
    }
    return more.get(word, "")


def noiseless(data: xr.Dataset) -> str:
    """What varies not at all, and where a log axis has it."""
    variance = data["relative_variance"]
    names = [
        name
        for name in datasets.names(data, "estimator")
        if (its := variance.sel(estimator=name)).notnull().any() and (its.fillna(0) < series.ROUNDING).all()
    ]
    if not names:
        return ""
    return f"Without noise, so with relative variance 0 (on the edge of the log axis): {', '.join(names)}."


def unsure(data: xr.Dataset, name: str) -> str:
    """Values that have no interval."""
    low = data.get(f"{name}_low", data.get(f"{name}_se"))
    if low is None or not bool((data[name].notnull() & low.isnull()).any()):
        return ""
    return (
        "A question mark stands beside a value without an interval: too few draws (32 give one), one number, or one "
        "seed."
    )


def unbiased(dataset: xr.Dataset) -> str:
    """All tests of bias in one sentence."""
    if "bias_p" not in dataset:
        return ""
    threshold, p = limits.bias(dataset)
    if not p.size:
        return ""
    least = p[int(np.argmin(p.values))]
    named = {"estimator": "", "layer": "", "step": "step ", "algorithm": "trained by "}
    cell = ", ".join(f"{word}{least[name].item()}" for name, word in named.items() if name in least["cell"].coords)
    corrected = -np.expm1(p.size * np.log1p(-min(float(least), 1 - 1e-16)))
    return (
        f"Bias against each estimator's own target, tested in {p.size} cells: smallest p = {float(least):.2g} "
        f"({cell}), Šidák-corrected over the cells {corrected:.2g}; {int((p < threshold).sum())} cells are below the "
        f"threshold {threshold:.2g} (level {LEVEL:g} over all)."
    )


def listed(names: list[str], most: int = 4) -> str:
    """Some names, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def ordered(dataset: xr.Dataset) -> list[str]:
    return looks.in_order(datasets.names(dataset, "estimator"))


def of_layer(layer: str, dataset: xr.Dataset | None = None) -> str:
    """A layer in a sentence, and the last step of a dataset that has several."""
    when = f", at step {dataset['step'].values[-1]}" if dataset is not None and dataset.sizes.get("step") else ""
    return ("all parameters that an estimator estimates" if layer == "perturbed" else f"layer {layer!r}") + when
