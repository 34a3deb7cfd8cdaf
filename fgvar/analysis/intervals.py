"""Intervals: standard errors such that ± 1.96 of them cover 95 %, or NaN, from moments of per-draw scalars."""

import numpy as np
from numpy.typing import NDArray

from fgvar.analysis.moments import BLOCK, LAG, Moments

Array = NDArray[np.float64]

# An error is given from MINIMUM draws on, and from RATIO γ² draws on, γ the skewness of the per-draw scalar
# whose mean the statistic is; below, ± 1.96 errors would cover less than the 95 % that they promise.
MINIMUM = 2 * BLOCK
RATIO = 16
HALF = 0.5  # what scatter within blocks knows of, in draws: it is taken about the mean of earlier blocks


def covering(n: int, skewness: Array, error: Array, *, dof: float = 1.0) -> Array:
    """The error, widened for the skewness of a per-draw scalar; NaN where there are too few draws for it.

    ``dof``: the share of the draws that the error's own estimate rests on.
    """
    square = skewness**2
    enough = n >= np.maximum(MINIMUM, RATIO * square)
    return np.where(enough, error * (1 + (1.08 * square + 1.71) / (dof * n)), np.nan)


def skewness(mean: Array, second: Array, third: Array) -> Array:
    """Of a scalar with these raw moments; 0 where there is no spread but rounding."""
    spread = second - mean**2
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = (third - 3 * mean * spread - mean**3) / spread**1.5
    return np.where(spread > 1e-20 * second, found, 0.0)


def scatter(moments: Moments) -> tuple[Array, Array]:
    """Estimates of tr Σ² [layers], and of the covariances that `Moments.within` sums [layers, 4, 4]."""
    weight, dof = max(moments.trace_weight, 1.0), max(moments.dof, 1)
    trace_square = moments.trace_square / weight
    lag = LAG.to(trace_square.device)
    excess = trace_square[:, None, None] * (lag[:, None] * lag) * (moments.lag / dof)
    return trace_square.cpu().numpy(), (moments.within / dof - excess).cpu().numpy()


def variance_of_variance(n: int, linear: Array, trace_square: Array) -> Array:
    """Var‖ĝ − E ĝ‖²/n + 2 tr Σ²/n(n − 1), from estimates of the two, which may be negative."""
    spread: Array = np.maximum(linear, 0) / n + 2 * trace_square / (n * (n - 1))
    return np.maximum(spread, 0)
