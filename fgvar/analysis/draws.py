"""Draws: noise in batches, sampled or enumerated, and the estimates made from it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import vmap

from fgvar.estimators.estimator import GradientEstimator
from fgvar.estimators.noise import Randomness
from fgvar.problem import Problem

MOST_SIGNS = 18  # random numbers whose sign vectors are enumerated: 2^18 estimates


@dataclass(frozen=True)
class Enumeration:
    """A finite set of equally likely noise values, given by number.

    ``method="nodes"``: the 2d nodes ±√d·e_i over all d random numbers jointly. Their mean is uuᵀ = I, so the
    average of any estimator that is even and quadratic in u (plus odd parts) is its exact expectation under
    *every* noise with E uuᵀ = I. ``method="signs"``: all 2^d sign vectors, the exact law under Rademacher
    noise, whatever the estimator.

    Raises:
        ValueError: an unknown method, no random number at all, or too many for sign vectors.

    Example:
        >>> from fgvar.estimators.noise import Gaussian, Leaf
        >>> nodes = Enumeration(Randomness({"w": Leaf((2,), Gaussian())}), "nodes")
        >>> nodes.take(0, 4)["w"].pow(2).mean(0).round(decimals=9)
        tensor([1., 1.], dtype=torch.float64)
    """

    randomness: Randomness
    method: str = "nodes"

    def __post_init__(self) -> None:
        if self.method not in ("nodes", "signs"):
            raise ValueError(f"method is {self.method!r}, expected 'nodes' or 'signs'")
        if self.randomness.size == 0:
            raise ValueError("the estimator needs no noise: its only estimate is its expectation")
        if self.method == "signs" and self.randomness.size > MOST_SIGNS:
            raise ValueError(
                f"{self.randomness.size} random numbers have 2^{self.randomness.size} sign vectors; at most "
                f"2^{MOST_SIGNS} are enumerated: take a smaller problem, or 'nodes' for a quadratic estimator"
            )

    def __len__(self) -> int:
        return 2**self.randomness.size if self.method == "signs" else 2 * self.randomness.size

    def take(self, start: int, stop: int, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Noise values number ``start`` to ``stop − 1``, stacked along a new first axis."""
        numbers = torch.arange(start, stop)
        d = self.randomness.size
        if self.method == "signs":
            flat = (numbers[:, None] >> torch.arange(d) & 1).to(dtype) * 2 - 1
        else:
            flat = torch.zeros(stop - start, d, dtype=dtype)
            flat[torch.arange(stop - start), numbers // 2] = d**0.5 * (1 - 2 * (numbers % 2)).to(dtype)
        leaves = self.randomness.leaves
        pieces = flat.split([leaf.size for leaf in leaves.values()], dim=1)
        return {
            name: piece.reshape(-1, *leaf.shape) for (name, leaf), piece in zip(leaves.items(), pieces, strict=True)
        }


def estimates(estimator: GradientEstimator, problem: Problem, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The gradients for a batch of noise, stacked along a new first axis.

    One vmap over the batch; a batch of one is a plain call, so that estimators that do not run under vmap
    can be measured with ``chunk=1``.
    """
    count = len(next(iter(noise.values())))
    if count > 1:
        stacked: dict[str, Tensor] = vmap(lambda one: estimator.estimate(problem, one).gradient)(dict(noise))
        return stacked
    one = {name: u[0] for name, u in noise.items()}
    return {name: g[None] for name, g in estimator.estimate(problem, one).gradient.items()}


def ranges(start: int, stop: int, step: int) -> Iterator[range]:
    """Consecutive ranges of at most ``step`` numbers."""
    for first in range(start, stop, step):
        yield range(first, min(first + step, stop))
