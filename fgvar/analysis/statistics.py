"""Statistics: bias, variance and direction of an estimator from its moments, each with its standard error.

Everything here is in plain float64 arrays, one number a layer. ``v_se`` is the standard error of ``v``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from fgvar.analysis.intervals import HALF, MINIMUM, Array, covering, scatter, skewness, variance_of_variance
from fgvar.analysis.moments import BLOCK, Moments, References

MINIMUM_SQUARED = 16 * BLOCK  # of squared norms of means: sq_bias, snr, efficiency
# The variance of a squared norm ‖E ĝ − r‖² has a part that is linear in it and one that is there without it.
RANK = 20  # effective rank (tr Σ)²/tr Σ² above which the law without the linear part is close to normal
NEAR, FAR = 1, 8  # linear part over the other: below NEAR there is no bias in sight, above FAR there clearly is
SIGHT = 3  # nor is there one in sight where the value is below so many errors of a value of 0
FLOOR = 0.35  # the linear part's estimate may be negative by this share of the other


@dataclass(frozen=True)
class Sums:
    """Moments read to the host once, with the norms and products that the statistics share.

    Axis 0 is the layer; ``[…, r]`` runs over the references target, backprop and 0.
    """

    n: int
    first: Array
    second: Array
    third: Array
    square_mean: Array  # ‖mean − r‖² [layers, 3]
    products: Array  # ⟨target, target⟩, ⟨backprop, backprop⟩, ⟨target, backprop⟩ [layers, 3]
    projected: Array
    projected_square: Array
    projected_difference: Array  # projections of target − backprop
    trace_square: Array
    within: Array
    sizes: Array  # numbers of each layer

    @staticmethod
    def of(moments: Moments, references: References) -> "Sums":
        n = moments.count
        squares, products, differences = [], [], []
        for name, target in references.target.items():
            backprop = references.backprop[name]
            mean = moments.deviation[name] / n
            shifts = (mean, mean + target - backprop, mean + target)
            squares.append(torch.stack([shift @ shift for shift in shifts]))
            products.append(torch.stack([target @ target, backprop @ backprop, target @ backprop]))
            differences.append(references.projected(name, (target - backprop)[None])[0])
        trace_square, within = scatter(moments)
        return Sums(
            n=n,
            first=_host(moments.first),
            second=_host(moments.second),
            third=_host(moments.third),
            square_mean=_host(references.grouped(squares)),
            products=_host(references.grouped(products)),
            projected=_host(moments.projected),
            projected_square=_host(moments.projected_square),
            projected_difference=_host(references.grouped(differences)),
            trace_square=trace_square if n >= MINIMUM else np.full(len(trace_square), np.nan),
            within=within,
            sizes=_host(references.grouped([t.new_tensor(float(t.numel())) for t in references.target.values()])),
        )

    @property
    def mean(self) -> Array:
        return self.first / self.n

    @property
    def covariance(self) -> Array:
        """Covariance of the per-draw features [layers, F, F]."""
        centred = self.second - self.first[:, :, None] * self.first[:, None, :] / self.n
        covariance: Array = centred / (self.n - 1)
        return covariance

    @property
    def skewness(self) -> Array:
        """Of the per-draw features [layers, F]; 0 where there is no spread but rounding."""
        return skewness(self.mean, self.second.diagonal(axis1=1, axis2=2) / self.n, self.third / self.n)


def statistics(moments: Moments, references: References) -> dict[str, tuple[Array, Array]]:
    """All statistics of drawn estimates: name → (value, standard error), [layers] or [references, layers].

    ``variance``: tr Cov(ĝ | batch), and ``snr`` = ‖E ĝ‖²/tr Cov. By reference (target, backprop): ``sq_bias``
    = ‖E ĝ − r‖², unbiased, hence negative half of the time where there is no bias; ``slope`` = ⟨E ĝ, r⟩/‖r‖²;
    ``cosine``, mean of the per-draw cosines; ``efficiency`` = ⟨E ĝ, r⟩²/(‖r‖² E‖ĝ‖²); ``bias_z`` and
    ``bias_p``, the largest standardised bias over 16 random projections and its p-value corrected for them.

    Errors are such that ± 1.96 of them cover 95 %: the plain standard error times 1 + (1.08γ² + 1.71)/n, which
    makes up to second order for the skewness γ of the per-draw scalars and for estimating their variance
    (Edgeworth's expansion of Student's t). They are NaN below 32 draws, 256 for sq_bias, snr and efficiency,
    below 16γ² draws (heavy tails), and where a squared norm has a law far from normal: of few effective
    dimensions, or neither at 0 nor clearly off it. `studies/check_calibration.py` shows their coverage.
    """
    sums = Sums.of(moments, references)
    found = {"variance": variance(sums), "snr": snr(sums)}
    for name, function in BY_REFERENCE.items():
        pairs = [function(sums, reference) for reference in (0, 1)]
        found[name] = np.stack([pair[0] for pair in pairs]), np.stack([pair[1] for pair in pairs])
    return found


def variance(sums: Sums) -> tuple[Array, Array]:
    """tr Cov(ĝ), unbiased: (Σ‖D‖² − n‖D̄‖²)/(n − 1); its variance is Var‖ĝ − E ĝ‖²/n + 2 tr Σ²/n(n − 1)."""
    n = sums.n
    value = np.maximum(sums.first[:, 0] - n * sums.square_mean[:, 0], 0) / (n - 1)
    return value, _covering(sums, np.sqrt(_variance_variance(sums)), 0, dof=HALF)


def sq_bias(sums: Sums, reference: int) -> tuple[Array, Array]:
    """‖E ĝ − r‖², unbiased (a U-statistic): ‖mean − r‖² − tr Cov/n. Its variance is 4 bᵀΣb/n + 2 tr Σ²/n(n − 1)."""
    value = sums.square_mean[:, reference] - variance(sums)[0] / sums.n
    return value, _squared(sums, np.sqrt(_bias_variance(sums, reference)), reference)


def snr(sums: Sums) -> tuple[Array, Array]:
    """‖E ĝ‖²/tr Cov(ĝ), numerator and denominator each unbiased; the error by the delta method."""
    n, value = sums.n, variance(sums)[0]
    signal = sums.square_mean[:, 2] - value / n
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = signal / value
        covariance = 2 * sums.within[:, 0, 3] / n - 2 * sums.trace_square / (n * (n - 1))
        spread = _bias_variance(sums, 2) + ratio**2 * _variance_variance(sums) - 2 * ratio * covariance
        return ratio, _covering(sums, _squared(sums, np.sqrt(np.maximum(spread, 0)), 2), 0, dof=HALF) / value


def slope(sums: Sums, reference: int) -> tuple[Array, Array]:
    """Regression of ĝ on the reference through 0, ⟨E ĝ, r⟩/‖r‖²: 1 if the scale is right."""
    length = sums.products[:, reference]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (sums.mean[:, 1 + reference] + _target_product(sums, reference)) / length
        error = np.sqrt(sums.covariance[:, 1 + reference, 1 + reference] / sums.n) / length
        return value, _covering(sums, error, 1 + reference)


def cosine(sums: Sums, reference: int) -> tuple[Array, Array]:
    """Mean over draws of the cosine between one estimate and the reference.

    A single number's cosine is 1 or −1, and one that has not been seen yet has no error: NaN.
    """
    spread = np.maximum(sums.covariance[:, 3 + reference, 3 + reference], 0)
    error = _covering(sums, np.sqrt(spread / sums.n), 3 + reference)
    return sums.mean[:, 3 + reference], np.where(sums.sizes > 1, error, np.nan)


def efficiency(sums: Sums, reference: int) -> tuple[Array, Array]:
    """⟨E ĝ, r⟩²/(‖r‖² E‖ĝ‖²), the squared mean unbiased; the error by the delta method.

    The share of the exact gradient's one-step progress, each at its best step size, under isotropic curvature.
    """
    n = sums.n
    inner = sums.mean[:, 1 + reference] + _target_product(sums, reference)
    energy = sums.mean[:, 0] + 2 * sums.mean[:, 1] + sums.products[:, 0]
    inner_variance = sums.covariance[:, 1 + reference, 1 + reference]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = sums.products[:, reference] * energy
        value = (inner**2 - inner_variance / n) / scale
        weights = np.zeros_like(sums.mean)
        weights[:, 1 + reference] = 2 * inner / scale
        weights[:, 0] -= value / energy
        weights[:, 1] -= 2 * value / energy
        spread = np.einsum("lf,lfg,lg->l", weights, sums.covariance, weights)
        error = np.sqrt(np.maximum(spread, 0) / n + 2 * (inner_variance / scale / n) ** 2)
        apart = (2 * n * inner**2 >= FAR * inner_variance) & (n >= MINIMUM_SQUARED)
        return value, np.where(apart, _covering(sums, _covering(sums, error, 1 + reference), 0), np.nan)


def bias_z(sums: Sums, reference: int) -> tuple[Array, Array]:
    """Largest |z| of the bias over the random projections (no standard error: its p-value is `bias_p`)."""
    return _bias_test(sums, reference)[0], np.full(len(sums.first), np.nan)


def bias_p(sums: Sums, reference: int) -> tuple[Array, Array]:
    """P(a z as large | no bias) by Student's t with n − 1 degrees of freedom, corrected (Šidák) for their number."""
    return _bias_test(sums, reference)[1], np.full(len(sums.first), np.nan)


BY_REFERENCE = {
    "sq_bias": sq_bias,
    "slope": slope,
    "cosine": cosine,
    "efficiency": efficiency,
    "bias_z": bias_z,
    "bias_p": bias_p,
}


ERRORS = ("variance", "snr", *(name for name in BY_REFERENCE if not name.startswith("bias_")))


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


def _bias_test(sums: Sums, reference: int) -> tuple[Array, Array]:
    n = sums.n
    total = sums.projected + (n * sums.projected_difference if reference else 0)
    centred = sums.projected_square - sums.projected**2 / n
    # A projection without spread (a parameter too small for 16 of them, a dead one) tests nothing.
    live = centred > 1e-20 * np.maximum(sums.projected_square, np.finfo(float).tiny)
    error = np.sqrt(np.where(live, centred, np.nan) / (n - 1) / n)
    with np.errstate(invalid="ignore", divide="ignore"):
        z = np.where(live, np.abs(total / n) / error, -np.inf).max(1)
    tested = live.sum(1)
    p = -np.expm1(tested * np.log1p(-np.minimum(2 * special.stdtr(n - 1, -z), 1 - 1e-16)))
    return np.where(tested > 0, z, np.nan), np.where(tested > 0, p, np.nan)


def _covering(sums: Sums, error: Array, feature: int, *, dof: float = 1.0) -> Array:
    """The error, widened for the skewness of a per-draw feature; NaN where there are too few draws for it.

    ``dof``: the share of the draws that the error's own estimate rests on.
    """
    return covering(sums.n, sums.skewness[:, feature], error, dof=dof)


def _squared(sums: Sums, error: Array, reference: int) -> Array:
    """The error of ‖E ĝ − r‖², NaN where its law is far from normal.

    At 0 the law is that of Σ λ(χ²₁ − 1) over the spectrum λ of Σ: close to normal where the effective rank is
    high. Far from 0 the linear part of the variance dominates. Between them it is neither.
    """
    linear, constant = _parts(sums, reference)
    with np.errstate(divide="ignore", invalid="ignore"):
        rank = variance(sums)[0] ** 2 / sums.trace_square
        value = sums.square_mean[:, reference] - variance(sums)[0] / sums.n
        near = (rank >= RANK) & (linear <= NEAR * constant) & (value <= SIGHT * np.sqrt(constant))
    normal = near | (linear >= FAR * constant)
    along = 1 + reference if reference < 2 else 1
    enough = (sums.n >= MINIMUM_SQUARED) & (sums.sizes > 1)  # one number's square is as skewed as its law
    return np.where(normal & enough, _covering(sums, error, along, dof=HALF), np.nan)


def _parts(sums: Sums, reference: int) -> tuple[Array, Array]:
    """The parts 4 bᵀΣb/n and 2 tr Σ²/n(n − 1) of the variance of a squared bias."""
    linear: Array = 4 * sums.within[:, 1 + reference, 1 + reference] / sums.n
    return linear, 2 * sums.trace_square / (sums.n * (sums.n - 1))


def _bias_variance(sums: Sums, reference: int) -> Array:
    linear, constant = _parts(sums, reference)
    return np.maximum(linear, -FLOOR * constant) + constant


def _variance_variance(sums: Sums) -> Array:
    return variance_of_variance(sums.n, sums.within[:, 0, 0], sums.trace_square)


def _target_product(sums: Sums, reference: int) -> Array:
    """⟨target, r⟩."""
    product: Array = sums.products[:, 2 if reference else 0]
    return product


def _host(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
