"""The estimator that most published ones are: one derivative along a query, times an update that may differ."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

import fgvar

Tensors = Mapping[str, Tensor]


class Moments(NamedTuple):
    """What is known exactly of an estimator, given the gradient.

    Attributes:
        mean: E ĝ, a dict like the gradient.
        second: E‖ĝ‖² of each tensor.
        kept: of what is drawn once and kept, such as a pool, how far it takes the mean from that, squared, in the
            mean over such draws: then both moments are over them, too.
    """

    mean: dict[str, Tensor]
    second: dict[str, float]
    kept: Mapping[str, float] = MappingProxyType({})


class Law(Protocol):
    """How query and update of one estimate are drawn."""

    bias_reason: str

    def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:
        """The noise that one estimate needs."""

    def directions(self, problem: fgvar.Problem, noise: Tensors) -> tuple[Tensors, Tensors]:
        """Query q and update w, dicts like ``problem.params``."""

    def moments(self, gradient: Tensors) -> Moments:
        """Mean and second moment of ⟨∇, q⟩ w, exactly."""


@dataclass(frozen=True)
class Directional:
    """ĝ = ⟨∇, q⟩ w: the derivative along a query q, times an update w.

    The derivative is replayed, an inner product with the known gradient, as `fgvar.oracles.Replay` has it: what a
    finite difference along q tends to for small steps.

    Args:
        law: of q and w.

    Example:
        >>> from studies.published.layers import Layers
        >>> Directional(Layers({"weight": 0, "bias": 1}, (0.5, 0.5))).bias_reason
        ''
    """

    law: Law

    @property
    def bias_reason(self) -> str:
        return self.law.bias_reason

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness(self.law.leaves(problem))

    def estimate(self, problem: fgvar.Problem, noise: Tensors) -> fgvar.Estimate:
        query, update = self.law.directions(problem, noise)
        c = along(problem.backprop(), query)
        return fgvar.Estimate({name: c * update[name] for name in problem.params})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()


@dataclass(frozen=True)
class Declared:
    """What a law's estimates have for mean, as the target of `fgvar.Against`: E ĝ in closed form.

    Args:
        law: whose mean it is.
    """

    law: Law

    bias_reason = ""

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
        return fgvar.Randomness({})

    def estimate(self, problem: fgvar.Problem, noise: Tensors) -> fgvar.Estimate:  # noqa: ARG002
        return fgvar.Estimate(self.target(problem))

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return self.law.moments(problem.backprop()).mean


def along(gradient: Tensors, direction: Tensors) -> Tensor:
    """⟨∇, u⟩ over all tensors."""
    return torch.stack([torch.dot(gradient[name].flatten(), u.flatten()) for name, u in direction.items()]).sum()


def gaussian(problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:
    """A normal number for every parameter."""
    return {name: fgvar.Leaf(tuple(p.shape), fgvar.Gaussian()) for name, p in problem.params.items()}


def squares(gradient: Tensors) -> dict[str, float]:
    """‖∇‖² of each tensor."""
    return {name: float(g.double().square().sum()) for name, g in gradient.items()}


def of_gaussian(gradient: Tensors, sizes: Mapping[str, int]) -> dict[str, float]:
    """E‖⟨∇, u⟩u‖² of each tensor, for normal u of so many numbers in it: d_k‖∇‖² + 2‖∇_k‖².

    Of directions in a subspace: with the gradient's projection on it, and its dimensions.
    """
    each = squares(gradient)
    total = sum(each.values())
    return {name: sizes[name] * total + 2 * s for name, s in each.items()}
