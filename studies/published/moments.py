"""What is told of an estimate, of groups of layers: drawn, from what `fgvar.measure` keeps of draws, and exact."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fgvar.measurement.intervals import interval
from studies.published.directional import Moments, Tensors, squares

Array = NDArray[np.float64]
ENDS = ("", "_se", "_low", "_high")
MEASURES = ("relative_variance", "sq_bias", "slope", "cosine", "efficiency")
DRAWN = ("sq_bias", *(f"{name}{end}" for name in MEASURES if name != "sq_bias" for end in ENDS))


def drawn(dataset: Any, groups: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """Measures of each group with standard errors and 95 % intervals, of one estimator whose target is the gradient.

    A group's squares and inner products are sums over its layers, draw by draw. The interval of the variance is that
    of the second moment: what the mean takes away of it is known better.
    """
    found: dict[str, list[float]] = {}
    for names in groups.values():
        its = dataset.sel(layer=list(names))
        norm = float((its["gradient_norm"] ** 2).sum())
        apart, along = its["draw_square"].sum("layer").values, its["draw_along_target"].sum("layer").values
        squared, inner = apart + 2 * along + norm, along + norm
        bias = float(its["sq_bias"].sum()) / norm if norm else np.nan
        for name, values in _of_draws(squared, inner, norm, bias).items():
            found.setdefault(name, []).append(values)
        found.setdefault("sq_bias", []).append(bias)
    return found


def _of_draws(squared: Array, inner: Array, norm: float, bias: float) -> dict[str, float]:
    """Of ‖ĝ‖² and ⟨ĝ, ∇⟩ of each draw, ‖∇‖² and the relative squared bias."""
    n = len(squared)
    if not norm:
        return dict.fromkeys(DRAWN[1:], np.nan)
    length = np.sqrt(np.maximum(squared, 0) * norm)
    cosine = np.divide(inner, length, out=np.zeros(n), where=length > 0)
    slope, second = inner / norm, squared / norm
    found = {"cosine": _mean(cosine), "slope": _mean(slope)}
    value, error, low, high = _mean(second)
    of_mean = bias + 2 * slope.mean() - 1  # ‖E ĝ‖²/‖∇‖²
    found["relative_variance"] = value - of_mean, error, low - of_mean, high - of_mean
    if value > 0:
        best = slope.mean() ** 2 / value
        # To first order: what each draw adds to the logarithm.
        share = 2 * slope / slope.mean() - second / value if slope.mean() else np.full(n, np.nan)
        found["efficiency"] = tuple(best * part for part in _mean(share))
    else:
        found["efficiency"] = (0.0, 0.0, 0.0, 0.0)
    return {f"{name}{end}": part for name, parts in found.items() for end, part in zip(ENDS, parts, strict=True)}


def _mean(values: Array) -> tuple[float, float, float, float]:
    """Mean, standard error and 95 % interval."""
    n, mean, spread = len(values), values.mean(), values.std(ddof=1)
    skewness = ((values - mean) ** 3).mean() / spread**3 if spread > 0 else 0.0
    one = interval(n, np.array([mean]), np.array([spread / n**0.5]), np.array([skewness]))
    return tuple(float(part[0]) for part in one.parts)  # type: ignore[return-value]


def exact(moments: Moments | None, gradient: Tensors, groups: Mapping[str, Sequence[str]]) -> dict[str, list[float]]:
    """The same measures of closed forms; NaN where there are none."""
    names = [f"{name}_exact" for name in MEASURES if name != "cosine"]
    if moments is None:
        return {name: [np.nan] * len(groups) for name in names}
    norms, means = squares(gradient), squares(moments.mean)
    inner = {name: float((moments.mean[name].double() * g.double()).sum()) for name, g in gradient.items()}
    found: dict[str, list[float]] = {name: [] for name in names}
    for its in groups.values():
        norm, mean, along, second = (
            sum(each[name] for name in its) for each in (norms, means, inner, moments.second)
        )
        mean += sum(moments.kept.get(name, 0.0) for name in its)
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.array([second - mean, mean - 2 * along + norm, along, along**2 / second if second else 0.0])
            values = values / (norm if norm else np.nan)
        for name, value in zip(names, values, strict=True):
            found[name].append(float(value))
    return found
