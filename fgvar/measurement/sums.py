"""Sums: read moments to the host once, and compute what the statistics share: means, covariances, tr Cov and tr Σ².

tr Cov(ĝ) = (Σ‖D‖² − n‖D̄‖²)/(n − 1) with D = ĝ − target, from which no digit is lost where estimates are near it.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fgvar.measurement.intervals import Array, Scatter, skewness, variance_error
from fgvar.measurement.moments import Moments
from fgvar.measurement.references import BUCKETS, References


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
    projected_cube: Array
    projected_difference: Array  # projections of target − backprop
    scatter: Scatter
    sizes: Array  # numbers of each layer

    @staticmethod
    def of(moments: Moments, references: References) -> "Sums":
        n, zeros = moments.count, moments.sums.new_zeros
        squares, products, differences = [], [], []
        for name in references.target:
            square, product, difference = zeros(3), zeros(3), zeros(1, BUCKETS)
            for at, (target, backprop) in references.pieces(name):
                mean = moments.deviation[name][at] / n
                # mean D − (r − target): how far E ĝ is from each reference r, the last of them 0.
                shifts = (mean, mean + target - backprop, mean + target)
                square = square + torch.stack([shift @ shift for shift in shifts])
                product = product + torch.stack([target @ target, backprop @ backprop, target @ backprop])
                difference = difference + references.projected(name, (target - backprop)[None], at)
            squares.append(square)
            products.append(product)
            differences.append(difference[0])
        return Sums(
            n=n,
            first=_host(moments.of("first")),
            second=_host(moments.of("second")),
            third=_host(moments.of("third")),
            square_mean=_host(references.grouped(squares)),
            products=_host(references.grouped(products)),
            projected=_host(moments.of("projected")),
            projected_square=_host(moments.of("projected_square")),
            projected_cube=_host(moments.of("projected_cube")),
            projected_difference=_host(references.grouped(differences)),
            scatter=Scatter.of(n, moments),
            sizes=_host(references.grouped([zeros(()) + t.numel() for t in references.target.values()])),
        )

    @property
    def mean(self) -> Array:
        return self.first / self.n

    @property
    def trace(self) -> Array:
        """tr Cov(ĝ), unbiased: (Σ‖D‖² − n‖D̄‖²)/(n − 1)."""
        # The difference of two large sums where there is next to no noise: not below 0 by rounding.
        found: Array = np.maximum(self.first[:, 0] - self.n * self.square_mean[:, 0], 0) / (self.n - 1)
        return found

    @property
    def trace_square(self) -> Array:
        """tr Σ², not below the least that it can be at this trace, (tr Σ)²/d."""
        least: Array = np.maximum(self.scatter.trace_square, self.trace**2 / np.maximum(self.sizes, 1))
        return least

    @property
    def variance_error(self) -> Array:
        """Standard error of the trace."""
        return variance_error(self.n, self.scatter.square, self.trace_square)

    @property
    def covariance(self) -> Array:
        """Covariance of the per-draw features [layers, F, F]."""
        centred = self.second - self.first[:, :, None] * self.first[:, None, :] / self.n
        covariance: Array = centred / (self.n - 1)
        return covariance

    def combined(self, weights: Array) -> tuple[Array, Array]:
        """Standard error of the mean of the features' sum by weights [layers, F], and the skewness of the sum."""
        w = weights
        spread = np.einsum("lf,lfg,lg->l", w, self.covariance, w)
        sums = [
            np.einsum("lf,lf->l", w, self.first),
            np.einsum("lf,lfg,lg->l", w, self.second, w),
            np.einsum("lf,lg,lh,lfgh->l", w, w, w, self.third, optimize=True),
        ]
        # The raw moments of the weighted sum, from those of the features: no draw is needed again.
        return np.sqrt(np.maximum(spread, 0) / self.n), skewness(*(one / self.n for one in sums))

    def feature(self, index: int) -> tuple[Array, Array]:
        """Standard error of the mean of one feature, and its skewness."""
        return self.combined(np.eye(self.first.shape[1])[[index] * len(self.first)])

    def target_product(self, reference: int) -> Array:
        """⟨target, r⟩."""
        product: Array = self.products[:, 2 if reference else 0]
        return product

    def parts(self, reference: int) -> tuple[Array, Array]:
        """The parts 4 bᵀΣb/n and 2 tr Σ²/n(n − 1) of the variance of a squared bias."""
        n, within = self.n, self.scatter.within
        return 4 * within[:, 1 + reference, 1 + reference] / n, 2 * self.trace_square / (n * (n - 1))


def _host(tensor: Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array
