"""Statistics: estimate bias, variance and direction of an estimator from its moments, with errors and intervals.

Everything here is in plain float64 arrays, one number a layer.
"""

import numpy as np
from scipy import special

from fgvar.measurement.intervals import (
    MINIMUM,
    MINIMUM_EFFECTIVE,
    MINIMUM_TESTED,
    Array,
    Estimated,
    hall_quantiles,
    inflate_standard_error,
    interval,
    p_value,
    skewness,
)
from fgvar.measurement.moments import Moments
from fgvar.measurement.references import References
from fgvar.measurement.sums import Sums

Z = 1.96  # of a normal law, 97.5 % on either side
FLOOR = 0.35  # the linear part of a squared bias's variance may be estimated below 0, by this share of the other


def statistics(moments: Moments, references: References) -> dict[str, Estimated]:
    """All statistics of drawn estimates: name → value, error and interval, [layers] or [references, layers].

    ``variance``: tr Cov(ĝ | batch), and ``snr`` = ‖E ĝ‖²/tr Cov. By reference (target, backprop): ``sq_bias``
    = ‖E ĝ − r‖², unbiased, hence negative half of the time where there is no bias; ``slope`` = ⟨E ĝ, r⟩/‖r‖²;
    ``cosine``, mean of the per-draw cosines; ``efficiency`` = ⟨E ĝ, r⟩²/(‖r‖² E‖ĝ‖²); ``bias_z`` and
    ``bias_p``, the largest standardised bias over 16 random projections and its p-value corrected for them.

    Errors are plain standard errors. Intervals cover 95 % (`studies/check_calibration.py` shows where, and how
    well) and are given from 32 draws on, p-values from 64 draws on, whatever the sample looks like
    (`fgvar.measurement.intervals`); a layer of one number has none of its cosine, snr and efficiency. Of the squared
    bias there is an upper limit alone, which holds in at least 97.5 % of runs.
    """
    sums = Sums.of(moments, references)
    found = {"variance": variance(sums), "snr": snr(sums)}
    for name, function in BY_REFERENCE.items():
        found[name] = Estimated.stacked([function(sums, reference) for reference in (0, 1)])
    return found


def variance(sums: Sums) -> Estimated:
    """tr Cov(ĝ), unbiased, with Hall's interval of the mean of ‖ĝ − E ĝ‖²."""
    found = interval(sums.n, sums.trace, sums.variance_error, sums.scatter.skewness)
    return found.clipped(0, np.inf)


def sq_bias(sums: Sums, reference: int) -> Estimated:
    """‖E ĝ − r‖², unbiased (a U-statistic): ‖mean − r‖² − tr Cov/n. Its variance is 4 bᵀΣb/n + 2 tr Σ²/n(n − 1).

    The upper limit solves (θ − U)² = 1.96² (c + 4θλ/n) for the larger θ: U the estimate (0 where it is negative),
    c = 2τ/n(n − 1) with τ ≥ tr Σ², and λ = √τ, as no direction of a bias has a larger variance. A single number has
    one direction, and Hall's interval of its slope.
    """
    n, value = sums.n, sums.square_mean[:, reference] - sums.trace / sums.n
    linear, constant = sums.parts(reference)
    # ‖mean − r‖² is too large by tr Cov/n, the noise of the mean itself; the difference may well be negative.
    error = np.sqrt(np.maximum(linear, -FLOOR * constant) + constant)
    limit = np.full_like(value, np.nan)
    if n >= MINIMUM:
        # Not from the estimated bᵀΣb, which is as uncertain as the bias: from the most that it can be.
        tau, least = sums.trace_square, np.maximum(value, 0)
        half = 2 * Z**2 * np.sqrt(tau) / n
        limit = least + half + np.sqrt(half**2 + 2 * least * half + Z**2 * 2 * tau / (n * (n - 1)))
        scale, length = slope(sums, reference), sums.products[:, reference]
        farther = length * np.maximum((scale.low - 1) ** 2, (scale.high - 1) ** 2)
        limit = np.where((sums.sizes < 2) & (length > 0), farther, limit)
    return Estimated(value, error, np.full_like(value, np.nan), limit)


def snr(sums: Sums) -> Estimated:
    """‖E ĝ‖²/tr Cov(ĝ), numerator and denominator each unbiased; its variance is 4Rv/n + c/tr² by the delta method.

    Here c is as for `sq_bias`, and v the variance of a draw's influence on √R, which stays finite at 0. The interval
    holds the R with (R − R̂)² ≤ x² (c/tr² + 4Rv/n) for Hall's quantiles x: where it reaches 0, it begins there ("at
    most").
    """
    n, trace, scatter = sums.n, sums.trace, sums.scatter
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (sums.square_mean[:, 2] - trace / n) / trace
        linear = sums.parts(2)[0]
        product = 4 * scatter.within[:, 0, 3] / n
        # Across the target the influence is known by pairs of draws alone; where they see less, along it.
        seen = (linear + value**2 * scatter.square / n - value * product) / (4 * value * trace**2)
        most = np.sqrt(sums.trace_square) / trace / n
        # One block has no such pairs, and no error whatever the value is.
        across = np.where((value > 0) | np.isnan(linear), np.clip(seen, 0, most), 0)
        found = _ratio(sums, value, across)
    return found.without_interval(sums.sizes < 2)


def _ratio(sums: Sums, value: Array, least: Array) -> Estimated:
    """The signal-to-noise ratio with error and interval, where the variance v/n of its root is at least so much."""
    n, trace = sums.n, sums.trace
    root, length = np.sqrt(np.maximum(value, 0)), np.sqrt(sums.products[:, 0])
    scale = 1 + sums.mean[:, 1] / length**2
    # Influence of a draw on √R = ‖E ĝ‖/√tr Cov, as a weighted sum of its features ‖D‖² and ⟨D, target⟩.
    weights = np.zeros_like(sums.mean)
    weights[:, 0] = -root / trace / 2
    weights[:, 1] = np.sign(scale) / (length * np.sqrt(trace)) + root * (scale - 1) / trace
    error, skew = sums.combined(weights)
    spread = np.maximum(error**2, least)
    constant = 2 * sums.trace_square / (n * (n - 1)) / trace**2
    linear = 4 * np.maximum(value, 0) * spread
    # Not from estimates of all its terms, whose sum is below 0 in many a sample: an error of 0 is that of the exact.
    plain = np.sqrt(linear + constant)
    skew = skew * (linear / (linear + constant)) ** 1.5
    spread = inflate_standard_error(n, np.sqrt(spread), skew) ** 2
    ends = []
    for arm in hall_quantiles(n, skew):
        half = 2 * arm**2 * spread
        ends.append((value + half, np.sqrt(np.maximum(half**2 + 2 * value * half + arm**2 * constant, 0))))
    (below, down), (above, up) = ends
    return Estimated(value, plain, np.maximum(below - down, 0), np.maximum(above + up, 0))


def slope(sums: Sums, reference: int) -> Estimated:
    """Regression of ĝ on the reference through 0, ⟨E ĝ, r⟩/‖r‖²: 1 if the scale is right."""
    length = sums.products[:, reference]
    error, skew = sums.feature(1 + reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (sums.mean[:, 1 + reference] + sums.target_product(reference)) / length
        return interval(sums.n, value, error / length, skew)


def cosine(sums: Sums, reference: int) -> Estimated:
    """Mean over draws of the cosine between one estimate and the reference.

    A single number's cosine is 1 or −1, and one that may not have been seen yet has no interval: NaN; nor an error
    where all draws have one sign.
    """
    value, (error, skew), single = sums.mean[:, 3 + reference], sums.feature(3 + reference), sums.sizes < 2
    one_sign = single & (np.abs(value) > 1 - 0.5 / sums.n)  # and an error of rounding alone
    found = interval(sums.n, value, np.where(one_sign, np.nan, error), skew)
    return found.clipped(-1, 1).without_interval(single)


def efficiency(sums: Sums, reference: int) -> Estimated:
    """⟨E ĝ, r⟩²/(‖r‖² E‖ĝ‖²), the squared mean unbiased; the error by the delta method.

    The share of the exact gradient's one-step progress, each at its best step size, under isotropic curvature. Its
    interval is that of the signed root ⟨E ĝ, r⟩/(‖r‖ √E‖ĝ‖²), Hall's by influence values, squared: it begins at 0
    where the root may be 0 ("at most").
    """
    n = sums.n
    inner = sums.mean[:, 1 + reference] + sums.target_product(reference)
    energy = sums.mean[:, 0] + 2 * sums.mean[:, 1] + sums.products[:, 0]
    inner_variance = sums.covariance[:, 1 + reference, 1 + reference]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = sums.products[:, reference] * energy
        value, root = (inner**2 - inner_variance / n) / scale, inner / np.sqrt(scale)
        # Influence of a draw on the root: of ⟨ĝ, r⟩ and of ‖ĝ‖² = ‖D‖² + 2⟨D, target⟩ + ‖target‖².
        weights = np.zeros_like(sums.mean)
        weights[:, 1 + reference] = 1 / np.sqrt(scale)
        weights[:, 0] -= root / energy / 2
        weights[:, 1] -= root / energy
        error, skew = sums.combined(weights)
        ends = interval(n, root, error, skew)
        error = np.sqrt((2 * root * error) ** 2 + 2 * (inner_variance / scale / n) ** 2)
    least = np.where(ends.low * ends.high > 0, np.minimum(ends.low**2, ends.high**2), ends.low * 0)
    found = Estimated(value, error, least, np.maximum(ends.low**2, ends.high**2))
    return found.clipped(0, 1).without_interval(sums.sizes < 2)


def bias_z(sums: Sums, reference: int) -> Estimated:
    """Largest |z| of the bias over the random projections (no standard error: its p-value is `bias_p`)."""
    return Estimated.without_error(bias_test(sums, reference)[0])


def bias_p(sums: Sums, reference: int) -> Estimated:
    """P(a projection as far from 0 | no bias), Šidák-corrected for their number.

    NaN below 64 draws, and where fewer than 10 of them carry any projection (n/γ² of its skewness γ).
    """
    p = bias_test(sums, reference)[1]
    return Estimated.without_error(p if sums.n >= MINIMUM_TESTED else np.full_like(p, np.nan))


BY_REFERENCE = {
    "sq_bias": sq_bias,
    "slope": slope,
    "cosine": cosine,
    "efficiency": efficiency,
    "bias_z": bias_z,
    "bias_p": bias_p,
}


ERRORS = ("variance", "snr", *(name for name in BY_REFERENCE if not name.startswith("bias_")))
NOT_OF_ONE = ("snr", "cosine", "efficiency")  # these have no interval for a layer of one number


def cosine_null(dimension: int) -> float:
    """95 % half-width of the signed cosine of one isotropic direction in ``dimension`` dimensions.

    cos² ~ Beta(½, (d − 1)/2). An unbiased forward gradient has cosine ≥ 0 by construction; its own null is
    E|cos| ≈ √(2/πd), smaller than this.

    Example:
        >>> round(cosine_null(4096), 4)
        0.0306
    """
    if dimension == 1:
        return 1.0
    return float(np.sqrt(special.betaincinv(0.5, (dimension - 1) / 2, 0.95)))


def bias_test(sums: Sums, reference: int) -> tuple[Array, Array]:
    """Largest |z| over the random projections, and the corrected p-value, whatever the number of draws."""
    n = sums.n
    shift = sums.projected_difference if reference else np.zeros_like(sums.projected_difference)
    mean = sums.projected / n + shift
    centred = sums.projected_square - sums.projected**2 / n
    # A projection without spread (a parameter too small for 16 of them, a dead one) tests nothing.
    live = centred > 1e-20 * np.maximum(sums.projected_square, np.finfo(float).tiny)
    error = np.sqrt(np.where(live, centred, np.nan) / (n - 1) / n)
    skew = skewness(sums.projected / n, sums.projected_square / n, sums.projected_cube / n)
    # A few rare events that a sample holds may all be small ones, and the large ones may be still to come.
    tested = live & (n >= MINIMUM_EFFECTIVE * skew**2)
    count = tested.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(live, np.abs(mean) / error, -np.inf).max(1)
        p = np.where(tested, p_value(n, mean, error, skew), 1).min(1)
    # 1 − (1 − p)^count, as expm1 and log1p keep what is far below rounding of 1.
    p = -np.expm1(count * np.log1p(-np.minimum(p, 1 - 1e-16)))
    return np.where(live.any(1), z, np.nan), np.where(count > 0, p, np.nan)
