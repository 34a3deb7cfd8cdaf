"""Draws: enumerate noise, and make estimates of a batch of it, by vmap where that runs."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fgvar.errors import unknown
from fgvar.estimators.estimator import Estimator
from fgvar.estimators.factors import Factors
from fgvar.estimators.protocol import GradientEstimator, is_builtin
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.measurement.protocol_checks import gradient_in
from fgvar.problem import Problem

LARGEST = {"signs": 18, "hermite": 11}  # random numbers that are enumerated at most: 2^18 and 3^11 estimates
METHODS = ("nodes", *LARGEST, "support", "support × nodes", "support × hermite")

T = TypeVar("T")


@dataclass(frozen=True)
class Enumeration:
    """A finite set of noise values with their probabilities, given by number.

    ``method="nodes"``: the 2d nodes ±√d·e_i over all d random numbers jointly, equally likely. Their mean is
    uuᵀ = I, so the average of any estimator that is even and quadratic in u is its exact expectation under
    *every* noise with E uuᵀ = I. ``method="signs"``: all 2^d sign vectors, the exact law under Rademacher
    noise, whatever the estimator. ``method="hermite"``: −√3, 0, √3 with probabilities 1/6, 2/3, 1/6 in every
    coordinate (three-point Gauss-Hermite), exact under Gaussian noise for every polynomial of degree up to 5
    in each coordinate, hence for mean and covariance of a quadratic estimator. ``method="support"``: all values of
    laws that have finitely many (``support`` of `fgvar.estimators.laws.Law`), exact whatever the estimator;
    ``"support × nodes"`` and ``"support × hermite"`` pair each of them with the nodes of the other leaves. The former
    takes nodes of what declares E uuᵀ = I, too: 2d nodes stand for 2^d sign vectors.

    Raises:
        ValueError: an unknown method, no random number at all, too many for it, a law without a support, or nodes
            of a seed or an index.

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
        if self.randomness.size == 0:
            raise ValueError("the estimator needs no noise: its only estimate is its expectation")
        if self.method == "support" and (without := sorted(self.rest.leaves)):
            law = self.randomness.leaves[without[0]].noise
            raise ValueError(
                f"the law of leaf {without[0]!r}, {law!r}, says no support; 'support × nodes' takes nodes of those"
            )
        # Nodes stand for noise of mean 0, and not for a seed or an index.
        numbers = sorted(k for k, leaf in self.rest.leaves.items() if not leaf.dtype(torch.float64).is_floating_point)
        if numbers:
            law = self.randomness.leaves[numbers[0]].noise
            raise ValueError(
                f"leaf {numbers[0]!r} draws {law!r}, which is no noise of mean 0 and has no nodes; take "
                "'support' where its law lists its values, or fgvar.testing.unbiased, which draws"
            )
        d, most = self.rest.size, LARGEST.get(self._on_rest, self.rest.size)
        if d > most:
            raise ValueError(
                f"{d} random numbers have {self._base}^{d} values; at most {self._base}^{most} are enumerated by "
                f"{self.method!r}: take a smaller problem, or 'nodes' for a quadratic estimator"
            )

    @cached_property
    def _supports(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Values and probabilities of the leaves that are enumerated by them."""
        if "support" not in self.method:
            return {}
        return {name: leaf.support() for name, leaf in self.randomness.leaves.items() if name not in self.rest.leaves}

    @cached_property
    def rest(self) -> Randomness:
        """The leaves that are not enumerated by their supports."""

        def by_support(leaf: Leaf) -> bool:
            return (
                "support" in self.method and leaf.is_finite and not (self._on_rest == "nodes" and leaf.is_isotropic)
            )

        return Randomness({name: leaf for name, leaf in self.randomness.leaves.items() if not by_support(leaf)})

    @property
    def _on_rest(self) -> str:
        return self.method.removeprefix("support × ")

    @property
    def _base(self) -> int:
        return 2 if self._on_rest == "signs" else 3

    @property
    def rest_count(self) -> int:
        """Values of these, which run fastest: number n has the (n // rest_count)th of the supports."""
        d = self.rest.size
        if not d:
            return 1
        return int(2 * d if self._on_rest == "nodes" else self._base**d)

    def __len__(self) -> int:
        return math.prod(len(chance) for _, chance in self._supports.values()) * self.rest_count

    def take(self, numbers: range, *, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """Noise values of these numbers, stacked along a new first axis."""
        index = torch.arange(numbers.start, numbers.stop, numbers.step)
        found = {} if not self.rest.size else self.rest.unflatten(self._flat(index % self.rest_count, dtype))
        for name, (digit, values, _) in self._of_supports(index).items():
            found[name] = values[digit].to(self.randomness.leaves[name].dtype(dtype))
        return {name: found[name] for name in self.randomness.leaves}

    def probabilities(self, numbers: range) -> Tensor:
        """Of the noise values of these numbers, in float64."""
        index = torch.arange(numbers.start, numbers.stop)
        found = torch.ones(len(index), dtype=torch.float64)
        if self.rest.size and self._on_rest != "hermite":
            found /= self.rest_count
        elif self.rest.size:
            # Independent coordinates: the product of 2/3 for each that is 0, and of 1/6 for each other.
            zeros = (self._digits(index % self.rest_count) == 1).sum(1)
            found = (2 / 3) ** zeros.double() * (1 / 6) ** (self.rest.size - zeros.double())
        for digit, _, chance in self._of_supports(index).values():
            found = found * chance[digit]
        return found

    def _of_supports(self, index: Tensor) -> dict[str, tuple[Tensor, Tensor, Tensor]]:
        """For each leaf that has one, which of its values these numbers take, all values, and their probabilities."""
        found, left = {}, index // self.rest_count
        for name, (values, chance) in self._supports.items():
            found[name] = left % len(chance), values, chance
            left = left // len(chance)
        return found

    def _flat(self, index: Tensor, dtype: torch.dtype) -> Tensor:
        """Nodes, signs or Hermite points of the other random numbers: [numbers, random numbers]."""
        d = self.rest.size
        if self._on_rest == "nodes":
            flat = torch.zeros(len(index), d, dtype=dtype)
            # Numbers 2i and 2i + 1 are +√d·e_i and −√d·e_i.
            flat[torch.arange(len(index)), index // 2] = d**0.5 * (1 - 2 * (index % 2)).to(dtype)
            return flat
        digits = self._digits(index).to(dtype)
        return digits * 2 - 1 if self._on_rest == "signs" else (digits - 1) * 3**0.5

    def _digits(self, index: Tensor) -> Tensor:
        """Digits of these numbers to the base, one a random number: counting visits every combination once."""
        return index[:, None] // self._base ** torch.arange(self.rest.size) % self._base


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

    Example:
        >>> import torch, fgvar
        >>> problem = fgvar.Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> estimator = fgvar.scheme("FG-W")
        >>> noise = estimator.randomness(problem).sample(seed=0, draws=range(5))
        >>> estimates(estimator, problem, noise)["weight"].shape
        torch.Size([5, 2, 3])
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
    found = tree_map(lambda found: found[None], function({key: u[0] for key, u in noise.items()}))
    # Anybody else's may hand out one buffer at every call, which the next one overwrites.
    return cast(T, found if is_builtin(estimator) else tree_map(torch.clone, found))


def ranges(start: int, stop: int, step: int) -> Iterator[range]:
    """Consecutive ranges of at most ``step`` numbers.

    Args:
        start, stop: as of `range`.

    Example:
        >>> list(ranges(0, 5, 2))
        [range(0, 2), range(2, 4), range(4, 5)]
    """
    for first in range(start, stop, step):
        yield range(first, min(first + step, stop))
