"""Intervals: what 95 of 100 runs cover, from moments of per-draw scalars, whatever the sample looks like.

An interval is given from `MINIMUM` draws on, always: a rule that looks at the sample would show the intervals of
samples that happened to miss the tail, and hide the others. What no sample shows, no interval covers: an event
that is absent from n draws has a probability below 3/n (95 %, the rule of three).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from fgvar.measurement.moments import BLOCK, LAG, Moments

Array = NDArray[np.float64]

MINIMUM = 2 * BLOCK  # draws from which on an interval is given
MINIMUM_TESTED = 4 * BLOCK  # and a p-value: at fewer, skewed and heavy-tailed laws are refused too often
MINIMUM_EFFECTIVE = 10  # draws, n/γ², that have to carry a mean with a p-value: of rare events, those that came in
SKEWNESS_INFLATION = 1.3  # what a sample shows of its law's skewness is too small by this factor
LEVEL = 0.975  # of each side


@dataclass(frozen=True)
class Estimated:
    """A number with what is known of its error.

    Attributes:
        value: the number, [layers] or [references, layers].
        error: its standard error: a weight, no promise; 0 of exact values; NaN where it cannot be computed.
        low, high: its 95 % interval; NaN where there is none.

    Example:
        >>> Estimated.exact([2.0]).parts
        (array([2.]), array([0.]), array([2.]), array([2.]))
    """

    value: Array
    error: Array
    low: Array
    high: Array

    @staticmethod
    def exact(value: ArrayLike) -> "Estimated":
        """Without error: the interval is the value."""
        known = np.asarray(value, dtype=np.float64)
        return Estimated(known, np.where(np.isnan(known), np.nan, 0.0), known, known)

    @staticmethod
    def without_error(value: Array) -> "Estimated":
        """A value that has no error."""
        none = np.full_like(value, np.nan)
        return Estimated(value, none, none, none)

    @staticmethod
    def stacked(several: list["Estimated"]) -> "Estimated":
        parts = [np.stack(part) for part in zip(*(one.parts for one in several), strict=True)]
        return Estimated(parts[0], parts[1], parts[2], parts[3])

    @property
    def parts(self) -> tuple[Array, ...]:
        return self.value, self.error, self.low, self.high

    def scaled(self, factor: Array) -> "Estimated":
        """Times a factor that is not negative."""
        return Estimated(self.value * factor, self.error * factor, self.low * factor, self.high * factor)

    def clipped(self, least: float, most: float) -> "Estimated":
        """With an interval that keeps to the values that the quantity can have."""
        return Estimated(self.value, self.error, np.clip(self.low, least, most), np.clip(self.high, least, most))

    def exact_where(self, where: NDArray[np.bool_]) -> "Estimated":
        """Exact in these places."""
        exact = Estimated.exact(self.value).parts
        parts = [np.where(where, one, other) for one, other in zip(exact, self.parts, strict=True)]
        return Estimated(parts[0], parts[1], parts[2], parts[3])

    def without_interval(self, where: NDArray[np.bool_]) -> "Estimated":
        """Without an interval in these places."""
        low, high = (np.where(where, np.nan, one) for one in (self.low, self.high))
        return Estimated(self.value, self.error, low, high)

    def nan_where(self, where: NDArray[np.bool_]) -> "Estimated":
        """NaN in these places."""
        parts = [np.where(where, np.nan, part) for part in self.parts]
        return Estimated(parts[0], parts[1], parts[2], parts[3])


def interval(n: int, value: Array, error: Array, skewness: Array) -> Estimated:
    """A mean of n per-draw scalars of this skewness, with Hall's interval.

    Hall's cubic transformation of Student's statistic, q(x) = (3/a)(∛(1 + a(x − a/6)) − 1) for a = 1.3 γ/√n,
    inverted: [value − e q(t), value − e q(−t)] for e of `inflate_standard_error` and Student's 97.5 % quantile t of
    n − 1 degrees of freedom. NaN below `MINIMUM` draws. Source: Hall 1992, J. R. Statist. Soc. B 54, 221-228.

    Args:
        n: draws.
        value, error, skewness: of the mean, its standard error and the skewness of a draw: arrays of one shape.

    Example:
        >>> mean = np.array([1.0])
        >>> found = interval(64, mean, np.array([0.1]), np.array([0.0]))
        >>> bool(found.low < mean) and bool(mean < found.high)
        True
    """
    below, above = hall_quantiles(n, skewness)
    inflated = inflate_standard_error(n, error, skewness)
    return Estimated(value, error, value - inflated * below, value + inflated * above)


def hall_quantiles(n: int, skewness: Array) -> tuple[Array, Array]:
    """Hall's q(t) and −q(−t): how many inflated errors the interval reaches down and up from the mean."""
    if n < MINIMUM:
        return np.full_like(skewness, np.nan), np.full_like(skewness, np.nan)
    a, t = SKEWNESS_INFLATION * skewness / np.sqrt(n), special.stdtrit(n - 1, LEVEL)
    # q(x) → x as a → 0, where 3/a times a difference of nearly equal roots would be rounding alone.
    divisor = np.where(np.abs(a) > 1e-6, a, 1.0)

    def transformed(x: float) -> Array:
        root = np.cbrt(1 + divisor * (x - divisor / 6))
        found: Array = np.where(divisor == a, 3 / divisor * (root - 1), x)
        return found

    return transformed(t), -transformed(-t)


def inflate_standard_error(n: int, error: Array, skewness: Array) -> Array:
    """The error, for the spread that a sample of a skewed law does not show: times 1 + γ²/2n + 1.7/n."""
    inflated: Array = error * (1 + skewness**2 / (2 * n) + 1.7 / n)
    return inflated


def standardised(n: int, mean: Array, error: Array, skewness: Array) -> Array:
    """How far a mean is from 0, to be held against Student's t of n − 1 degrees of freedom: the less extreme of two.

    Of T = mean/(inflated error), which symmetric laws need, and of its transform T + aT²/3 + a²T³/27 + a/6 (as in
    `interval`), which skewed ones need: each alone rejects too often where the other is right.
    """
    a, t = SKEWNESS_INFLATION * skewness / np.sqrt(n), mean / inflate_standard_error(n, error, skewness)
    transformed = t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
    less: Array = np.where(np.abs(t) < np.abs(transformed), t, transformed)
    # Where they disagree on the side, the sample does not even tell the sign: no evidence at all.
    return np.where(np.sign(t) == np.sign(transformed), less, 0.0)


def p_value(n: int, mean: Array, error: Array, skewness: Array) -> Array:
    """P(a mean as far from 0 | its law's mean is 0), of its `standardised` distance."""
    p: Array = 2 * special.stdtr(n - 1, -np.abs(standardised(n, mean, error, skewness)))
    return p


def skewness(mean: Array, second: Array, third: Array) -> Array:
    """Of a scalar with these raw moments; 0 where there is no spread but rounding."""
    spread = second - mean**2
    # The quotient is computed everywhere, also where there is no spread: the last line leaves it out there.
    with np.errstate(divide="ignore", invalid="ignore"):
        found: Array = (third - 3 * mean * spread - mean**3) / spread**1.5
    return np.where(spread > 1e-20 * second, found, 0.0)


@dataclass(frozen=True)
class Scatter:
    """What pairs of draws tell.

    Attributes:
        trace_square: tr Σ² [layers], unbiased, hence it may be negative; NaN below 4 draws.
        within: the covariances that `Moments.within` sums [layers, 4, 4]; NaN where there is one block.
        square: Var‖ĝ − E ĝ‖² [layers], unbiased where it is most of what the distances to sample means show.
        skewness: of ‖ĝ − E ĝ‖² [layers].
    """

    trace_square: Array
    within: Array
    square: Array
    skewness: Array

    @staticmethod
    def of(n: int, moments: Moments) -> "Scatter":
        """Of n draws."""
        blocks = moments.of("trace_square") / (moments.trace_weight or np.nan)
        lag = LAG.to(blocks.device)
        dof = moments.dof or np.nan
        # `Moments.within` is about M, the mean of the draws before: its noise is in every draw of a block, and goes.
        excess = blocks[:, None, None] * (lag[:, None] * lag) * (moments.lag / dof)
        trace_square, within = blocks.cpu().numpy(), (moments.of("within") / dof - excess).cpu().numpy()
        mean, second, third = (moments.of("apart") / n).cpu().numpy().T
        share = moments.share or np.nan
        # Distances to sample means: of their variance so much is the share of Var‖ĝ − E ĝ‖² itself.
        seen = np.maximum(second - mean**2, 0) * n * n / (n - 1) / share
        # Where most of it comes from the sample means, what is left without them is too uncertain to be believed.
        square = np.maximum(seen - moments.excess / share * trace_square, seen / 2)
        return Scatter(trace_square, within, square, skewness(mean, second, third))


def variance_error(n: int, square: Array, trace_square: Array) -> Array:
    """Standard error of tr Cov ĝ, √(Var‖ĝ − E ĝ‖²/n + 2 tr Σ²/n(n − 1)), from estimates of the two."""
    error: Array = np.sqrt(np.maximum(square / n + 2 * trace_square / (n * (n - 1)), 0))
    return error
