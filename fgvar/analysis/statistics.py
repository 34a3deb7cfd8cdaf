"""Statistics: bias, variance and direction of an estimator from its moments, each with its standard error.

Everything here is in plain float64 arrays, one number a layer. ``v_se`` is the standard error of ``v``.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from fgvar.analysis.moments import BLOCK, LAG, Moments, References

Array = NDArray[np.float64]

MINIMUM = 2 * BLOCK  # draws below which variances of quadratic statistics are not estimated


@dataclass(frozen=True)
class Sums:
    """Moments read to the host once, with the norms and products that the statistics share.

    Axis 0 is the layer; ``[…, r]`` runs over the references target, backprop and 0.
    """

    n: int
    first: Array
    second: Array
    square_mean: Array  # ‖mean − r‖² [layers, 3]
    products: Array  # ⟨target, target⟩, ⟨backprop, backprop⟩, ⟨target, backprop⟩ [layers, 3]
    projected: Array
    projected_square: Array
    projected_difference: Array  # projections of target − backprop
    trace_square: Array
    within: Array

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
        weight, dof = max(moments.trace_weight, 1.0), max(moments.dof, 1)
        trace_square = moments.trace_square / weight
        lag = LAG.to(trace_square.device)
        excess = trace_square[:, None, None] * (lag[:, None] * lag) * (moments.lag / dof)
        return Sums(
            n=n,
            first=_host(moments.first),
            second=_host(moments.second),
            square_mean=_host(references.grouped(squares)),
            products=_host(references.grouped(products)),
            projected=_host(moments.projected),
            projected_square=_host(moments.projected_square),
            projected_difference=_host(references.grouped(differences)),
            trace_square=_host(trace_square) if n >= MINIMUM else np.full(len(trace_square), np.nan),
            within=_host(moments.within / dof - excess),
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


def statistics(moments: Moments, references: References) -> dict[str, tuple[Array, Array]]:
    """All statistics of drawn estimates: name → (value, standard error), [layers] or [references, layers].

    ``variance``: tr Cov(ĝ | batch), and ``snr`` = ‖E ĝ‖²/tr Cov. By reference (target, backprop): ``sq_bias``
    = ‖E ĝ − r‖², unbiased, hence negative half of the time where there is no bias; ``slope`` = ⟨E ĝ, r⟩/‖r‖²;
    ``cosine``, mean of the per-draw cosines; ``efficiency`` = ⟨E ĝ, r⟩²/(‖r‖² E‖ĝ‖²); ``bias_z`` and
    ``bias_p``, the largest standardised bias over 16 random projections and its p-value corrected for them.

    Errors of variance, snr and sq_bias need at least 32 draws and are NaN below.
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
    return value, np.sqrt(_variance_variance(sums))


def sq_bias(sums: Sums, reference: int) -> tuple[Array, Array]:
    """‖E ĝ − r‖², unbiased: ‖mean − r‖² − tr Cov/n. Its variance is 4 bᵀΣb/n + 2 tr Σ²/n(n − 1).

    The estimate of bᵀΣb ≥ 0 is kept from being negative, which makes the error too large where there is no
    bias (by 40 % for one Gaussian direction in 6 dimensions; `tests/test_naive.py`).
    """
    value = sums.square_mean[:, reference] - variance(sums)[0] / sums.n
    return value, np.sqrt(_bias_variance(sums, reference))


def snr(sums: Sums) -> tuple[Array, Array]:
    """‖E ĝ‖²/tr Cov(ĝ), numerator and denominator each unbiased; the error by the delta method."""
    n, value = sums.n, variance(sums)[0]
    signal = sums.square_mean[:, 2] - value / n
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = signal / value
        covariance = 2 * sums.within[:, 0, 3] / n - 2 * sums.trace_square / (n * (n - 1))
        spread = _bias_variance(sums, 2) + ratio**2 * _variance_variance(sums) - 2 * ratio * covariance
        return ratio, np.sqrt(np.maximum(spread, 0)) / value


def slope(sums: Sums, reference: int) -> tuple[Array, Array]:
    """Regression of ĝ on the reference through 0, ⟨E ĝ, r⟩/‖r‖²: 1 if the scale is right."""
    length = sums.products[:, reference]
    with np.errstate(divide="ignore", invalid="ignore"):
        value = (sums.mean[:, 1 + reference] + _target_product(sums, reference)) / length
        return value, np.sqrt(sums.covariance[:, 1 + reference, 1 + reference] / sums.n) / length


def cosine(sums: Sums, reference: int) -> tuple[Array, Array]:
    """Mean over draws of the cosine between one estimate and the reference."""
    spread = np.maximum(sums.covariance[:, 3 + reference, 3 + reference], 0)
    return sums.mean[:, 3 + reference], np.sqrt(spread / sums.n)


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
        return value, np.sqrt(np.maximum(spread, 0) / n)


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


def _bias_variance(sums: Sums, reference: int) -> Array:
    along = np.maximum(sums.within[:, 1 + reference, 1 + reference], 0)
    spread: Array = 4 * along / sums.n + 2 * sums.trace_square / (sums.n * (sums.n - 1))
    return np.maximum(spread, 0)


def _variance_variance(sums: Sums) -> Array:
    spread = np.maximum(sums.within[:, 0, 0], 0) / sums.n + 2 * sums.trace_square / (sums.n * (sums.n - 1))
    return np.maximum(spread, 0)


def _target_product(sums: Sums, reference: int) -> Array:
    """⟨target, r⟩."""
    product: Array = sums.products[:, 2 if reference else 0]
    return product


def _host(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
