"""Paired comparison: estimates differences between estimators that were drawn with common noise, and their errors.

Draw i of two estimators has the same noise wherever their leaves agree in name, shape and law, so their per-draw
scalars are correlated, and the error of a difference is that of the mean of the scalars' differences. A variance
is a function of Gram matrices alone, and so is the difference of two, with the same function of the *difference*
of the Gram matrices: the Gram matrix of the pairs (D, D₀) under ⟨·,·⟩ − ⟨·,·⟩₀. Its tr Σ² is
tr Σ² + tr Σ₀² − 2‖Cov(ĝ, ĝ₀)‖².
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgvar.measurement import moments as streaming
from fgvar.measurement.dataset import FLAGS
from fgvar.measurement.intervals import Array, Estimated, Scatter, interval, skewness, variance_error
from fgvar.measurement.moments import FEATURES
from fgvar.measurement.sampled import Drawn

# Others have no interval here: those of squared means (sq_bias, snr, efficiency) are no means of per-draw scalars.
DIFFERENCES = ("variance", "relative_variance", "slope", "cosine")
SQUARE, ALONG, COSINE = (FEATURES.index(name) for name in ("square", "along_target", "cosine_target"))
ROUNDING = 100  # differences whose spread is so many units of rounding of what is subtracted have none

Values = dict[str, Estimated]


@dataclass(frozen=True)
class Measured:
    """One estimator's numbers, as in the dataset.

    Attributes:
        values: name → value, error and interval, NaN where undefined.
        flags: bits of `fgvar.measurement.dataset.FLAGS` [references, layers].
        sizes: numbers of each layer.
        drawn: its draws with their Gram matrices; None for exact values.
        eps: of the floating-point type in which the estimates were computed.
    """

    values: Values
    flags: NDArray[np.int8]
    sizes: Array
    drawn: Drawn | None
    eps: float


@dataclass(frozen=True)
class Spread:
    """Standard error of a mean over draws, with the skewness of what it is a mean of."""

    error: Array
    skewness: Array


def differences(one: Measured, baseline: Measured) -> Values:
    """`DIFFERENCES` of two estimators, one − baseline: name → value, standard error and 95 % interval.

    Values are the differences of the two statistics. Errors and intervals are those of
    `fgvar.measurement.statistics.statistics`, for the difference of the per-draw scalars, from 32 draws on.
    Differences are exact where neither estimator has noise, and where no draw differs but by rounding (an
    estimator against itself).
    """
    values = {name: one.values[name].value - baseline.values[name].value for name in DIFFERENCES}
    if one.drawn is None or baseline.drawn is None:
        return {name: Estimated.exact(value) for name, value in values.items()}
    n, spreads = one.drawn.features.shape[1], _spreads(one.drawn, baseline.drawn, one.eps)
    noiseless = (one.flags & baseline.flags & FLAGS["no_noise"])[0] > 0
    found = {}
    for name, value in values.items():
        error = spreads[name].error
        if name == "cosine":
            # All draws of a single number may have one sign, but for rounding, and yet differ: a spread not shown.
            hidden = (one.sizes < 2) & (error < 0.5 / n) & (spreads["slope"].error > 0)
            error = np.where(hidden, np.nan, error)
        found[name] = interval(n, value, error, spreads[name].skewness).exact_where(noiseless | (error == 0))
        if name == "cosine":
            # A single number's cosine is 1 or −1, and one that has not been seen yet has no interval.
            found[name] = found[name].without_interval((one.sizes < 2) & ~noiseless & (error > 0))
    return found


def _spreads(one: Drawn, baseline: Drawn, eps: float) -> dict[str, Spread]:
    lengths = [_lengths(drawn.grams[0]) for drawn in (one, baseline)]
    slopes, cosines = [], []
    for r in (0, 1):
        along, cosine = ([drawn.features[:, :, at + r] for drawn in (one, baseline)] for at in (ALONG, COSINE))
        scaled = [v * _inverse(length[:, r]) for v, length in zip(along, lengths, strict=True)]
        slopes.append(_mean_spread(scaled[0], scaled[1], eps))
        cosines.append(_mean_spread(cosine[0], cosine[1], eps))
    # Two scales at once: the variance as it is, and over ‖target‖².
    scales = [np.stack([np.ones_like(v[:, 0]), _inverse(v[:, 0])[:, 0]]) for v in lengths]
    variance = _variance_spread(one, baseline, scales[0], scales[1], eps)
    return {
        "variance": Spread(variance.error[0], variance.skewness[0]),
        "relative_variance": Spread(variance.error[1], variance.skewness[1]),
        **{
            name: Spread(np.stack([v.error for v in both]), np.stack([v.skewness for v in both]))
            for name, both in (("slope", slopes), ("cosine", cosines))
        },
    }


def _variance_spread(one: Drawn, baseline: Drawn, scale: Array, baseline_scale: Array, eps: float) -> Spread:
    """Of the difference of two variances, each times its scale [scales, layers]."""
    squares = [
        (s[:, :, None] * drawn.features[:, :, SQUARE]).reshape(scale.size, -1)
        for s, drawn in ((scale, one), (baseline_scale, baseline))
    ]
    factors = [torch.from_numpy(s).to(one.grams[0].device)[:, :, None, None] for s in (scale, baseline_scale)]
    total, before = streaming.blank(scale.size, one.grams[0].device), 0
    # The same function of the difference of the Gram matrices: its blocks pair draw i of both.
    for left, right in zip(one.grams, baseline.grams, strict=True):
        gram = (factors[0] * left - factors[1] * right).flatten(0, 1)
        total = streaming.scatter(total, gram, before)
        before += streaming.draws_in(left)
    scatter = Scatter.of(before, total)
    error = variance_error(before, scatter.square, scatter.trace_square)
    size = ROUNDING * eps * (squares[0].mean(1) + squares[1].mean(1))
    equal = ((squares[0] - squares[1]).std(1) <= size) & (scatter.trace_square <= size**2)
    # An estimate of 0 is that of a spread which so few draws do not show.
    error = np.where(equal, 0.0, np.where(error > 0, error, np.nan))
    return Spread(error.reshape(scale.shape), scatter.skewness.reshape(scale.shape))


def _mean_spread(one: Array, baseline: Array, eps: float) -> Spread:
    """Of the mean over draws of a difference [layers, draws]."""
    difference = one - baseline
    n, spread = difference.shape[1], difference.std(1, ddof=1)
    # What two large numbers differ by in their last digits is no noise.
    size = np.sqrt(np.square(one).mean(1)) + np.sqrt(np.square(baseline).mean(1))
    return Spread(np.where(spread <= ROUNDING * eps * size, 0.0, spread / np.sqrt(n)), _skewness(difference))


def _skewness(values: Array) -> Array:
    centred = values - values.mean(1, keepdims=True)
    return skewness(centred.mean(1), np.square(centred).mean(1), (centred**3).mean(1))


def _lengths(gram: Tensor) -> Array:
    """‖target‖² and ‖backprop‖² [layers, 2], the last rows of every block's Gram matrix."""
    lengths: Array = gram.diagonal(dim1=1, dim2=2)[:, -2:].cpu().numpy()
    return lengths


def _inverse(length: Array) -> Array:
    """[layers, 1]; NaN of 0."""
    return 1 / np.where(length > 0, length, np.nan)[:, None]
