"""Draws: enumerate noise, and make estimates of a batch of it, by vmap where that runs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fgvar.errors import unknown
from fgvar.estimators.estimator import Estimator, GradientEstimator
from fgvar.estimators.factors import Factors
from fgvar.estimators.randomness import Randomness
from fgvar.measurement.protocol_checks import gradient_in
from fgvar.problem import Problem

LARGEST = {"signs": 18, "hermite": 11}  # random numbers that are enumerated at most: 2^18 and 3^11 estimates
METHODS = ("nodes", *LARGEST)

T = TypeVar("T")


@dataclass(frozen=True)
class Enumeration:
    """A finite set of noise values with their probabilities, given by number.

    ``method="nodes"``: the 2d nodes ±√d·e_i over all d random numbers jointly, equally likely. Their mean is
    uuᵀ = I, so the average of any estimator that is even and quadratic in u is its exact expectation under
    *every* noise with E uuᵀ = I. ``method="signs"``: all 2^d sign vectors, the exact law under Rademacher
    noise, whatever the estimator. ``method="hermite"``: −√3, 0, √3 with probabilities 1/6, 2/3, 1/6 in every
    coordinate (three-point Gauss-Hermite), exact under Gaussian noise for every polynomial of degree up to 5
    in each coordinate, hence for mean and covariance of a quadratic estimator.

    Raises:
        ValueError: an unknown method, no random number at all, or too many for it.

    Example:
        >>> from fgvar.estimators.noise import Gaussian
        >>> from fgvar.estimators.randomness import Leaf
        >>> nodes = Enumeration(Randomness({"w": Leaf((2,), Gaussian())}), "nodes")
        >>> nodes.take(range(4))["w"].pow(2).mean(0).round(decimals=9)
        tensor([1., 1.], dtype=torch.float64)
    """

    randomness: Randomness
    method: str = "nodes"

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(unknown("method", self.method, METHODS))
        d = self.randomness.size
        if d == 0:
            raise ValueError("the estimator needs no noise: its only estimate is its expectation")
        if d > LARGEST.get(self.method, d):
            raise ValueError(
                f"{d} random numbers have {self._base}^{d} values; at most {self._base}^{LARGEST[self.method]} are "
                f"enumerated by {self.method!r}: take a smaller problem, or 'nodes' for a quadratic estimator"
            )

    @property
    def _base(self) -> int:
        return 2 if self.method == "signs" else 3

    def __len__(self) -> int:
        return int(2 * self.randomness.size if self.method == "nodes" else self._base**self.randomness.size)

    def take(self, numbers: range, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Noise values of these numbers, stacked along a new first axis."""
        d, index = self.randomness.size, torch.arange(numbers.start, numbers.stop)
        if self.method == "nodes":
            flat = torch.zeros(len(index), d, dtype=dtype)
            # Numbers 2i and 2i + 1 are +√d·e_i and −√d·e_i.
            flat[torch.arange(len(index)), index // 2] = d**0.5 * (1 - 2 * (index % 2)).to(dtype)
        elif self.method == "signs":
            flat = self._digits(index).to(dtype) * 2 - 1
        else:
            flat = (self._digits(index).to(dtype) - 1) * 3**0.5
        return self.randomness.unflatten(flat)

    def probabilities(self, numbers: range) -> Tensor:
        """Of the noise values of these numbers, in float64."""
        if self.method != "hermite":
            return torch.full((len(numbers),), 1 / len(self), dtype=torch.float64)
        # Independent coordinates: the product of 2/3 for each that is 0, and of 1/6 for each other.
        zeros = (self._digits(torch.arange(numbers.start, numbers.stop)) == 1).sum(1)
        return (2 / 3) ** zeros.double() * (1 / 6) ** (self.randomness.size - zeros.double())

    def _digits(self, index: Tensor) -> Tensor:
        """Digits of these numbers to the base, one a random number: counting visits every combination once."""
        return index[:, None] // self._base ** torch.arange(self.randomness.size) % self._base


def estimates(
    estimator: GradientEstimator, problem: Problem, noise: Mapping[str, Tensor], *, name: str = ""
) -> dict[str, Tensor]:
    """The gradients for a batch of noise, stacked along a new first axis.

    One vmap over the batch, or plain calls where vmap cannot (`Stacker`): of a batch of one, at once.

    Args:
        estimator, problem, noise: what is estimated, with each draw's noise along the first axis.
        name: of the estimator, in the warning where vmap fails by its own code; empty: none.

    Raises:
        TypeError: what the estimator returned is no `Estimate` of a dict of tensors.
    """
    return _of_each(estimator, problem, lambda one: gradient_in(estimator.estimate(problem, one)), noise, name)


def factors(estimator: Estimator, problem: Problem, noise: Mapping[str, Tensor], *, name: str) -> Factors:
    """The factors for a batch of noise: its credit stacked along a new first axis."""

    def one(own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        found = estimator.factors(problem, own)
        return found.credit, found.exact

    credit, exact = _of_each(estimator, problem, one, noise, name)
    return Factors(credit, {name: g[0] for name, g in exact.items()})


def _of_each(
    estimator: GradientEstimator,
    problem: Problem,
    function: Callable[[dict[str, Tensor]], T],
    noise: Mapping[str, Tensor],
    name: str,
) -> T:
    """``function`` of every draw, stacked."""
    if len(next(iter(noise.values()))) > 1:
        return cast(T, problem.network.stack(estimator, function, dict(noise), name=name))
    return cast(T, tree_map(lambda found: found[None], function({key: u[0] for key, u in noise.items()})))


def ranges(start: int, stop: int, step: int) -> Iterator[range]:
    """Consecutive ranges of at most ``step`` numbers."""
    for first in range(start, stop, step):
        yield range(first, min(first + step, stop))
