"""Transforms: what becomes of a gradient, of each term's or of the whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from fgvar.errors import require_type
from fgvar.estimators.lengths import length, rescaled
from fgvar.estimators.noise import Gaussian
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem

Gradient = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]
TRANSFORM = ("leaves", "shapes", "__call__")  # what a transform does, of which its declarations say something


class Moments(NamedTuple):
    """Mean and variance of every entry of a random gradient."""

    mean: Gradient
    variance: Gradient


class Transform(Protocol):
    """What becomes of a gradient. ``bias_reason`` says why its mean is another; empty where it is the same.

    ``linear``, an attribute of its class, says whether it is a linear map (a random one, for random ones) of the
    gradient, but for what it adds. One that returns tensors of other names or shapes has a method ``shapes(problem,
    shapes)``, from those that it is given to those that it returns. All run under ``torch.func.vmap``.

    Optional, of its class: ``adds_noise``, that all it does is to add noise of each entry's own; ``contracts``, that
    it moves no two gradients further apart. Of itself: ``bound``, the longest that it returns; ``of_batch``, that it
    looks at the problem's batch, beside the gradient; ``spread(variance, problem)`` of a linear one that mixes
    entries, the variance that it makes of uncorrelated ones. What a class inherits of all this, and ``moments``, does
    not count where it has a ``__call__`` or ``leaves`` of its own.
    """

    linear: ClassVar[bool]

    @property
    def bias_reason(self) -> str: ...

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        """The noise that it needs for a gradient of these shapes."""

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        """The gradient shaped. ``problem`` is the whole one, at θ, of an example's own gradient, too."""

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        """Mean and variance of the shaped gradient, entry by entry, for a gradient of this mean and variance.

        Raises:
            ValueError: mean and variance of each entry do not say it (a nonlinear map of a random gradient).
        """


def moments_without_noise(transform: Transform, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
    """What `Transform.moments` says where only a gradient without noise has any: what becomes of it."""
    require_certain(transform, variance)
    shaped = transform(mean, problem, {})
    return Moments(shaped, {name: torch.zeros_like(g) for name, g in shaped.items()})


def shapes_of(problem: Problem) -> Shapes:
    """Of gradients of all parameters."""
    return {name: tuple(p.shape) for name, p in problem.params.items()}


def returned_shapes(transform: Transform, problem: Problem, shapes: Shapes) -> Shapes:
    """Of what a transform makes of a gradient of these shapes."""
    changes = getattr(transform, "shapes", None)
    return changes(problem, shapes) if changes else shapes


def require_parameters(transform: Transform, problem: Problem, shapes: Shapes) -> None:
    """Raise where these are not the shapes of gradients of the parameters, which is all that a transform takes."""
    if shapes != shapes_of(problem):
        raise ValueError(
            f"{transform!r} is given {', '.join(shapes)}, expected gradients of the parameters "
            f"{', '.join(problem.params)}; put it before what changes their shapes, or behind the way back"
        )


def require_certain(transform: Transform, variance: Gradient) -> None:
    """Raise where a gradient has variance, of which a transform does not know what becomes."""
    if any(bool(v.any()) for v in variance.values()):
        raise ValueError(
            f"what {transform!r} makes of a random gradient does not follow from the mean and variance of its "
            "entries; draw (fgvar.measure), or enumerate small problems (fgvar.testing.expectation)"
        )


@dataclass(frozen=True)
class Clip:
    """Clipped: min(1, norm/‖g‖) g, the norm over all tensors together; none is longer than ``norm``, its ``bound``.

    Of each term it bounds what one example can do to the estimate; the mean of clipped gradients is biased.

    Args:
        norm: the largest length, in units of the gradient; infinite for no clip.

    Raises:
        ValueError: a norm that is not positive.

    Source: Abadi et al. 2016 (per example); Pascanu et al. 2013 (of the whole, ``clip_grad_norm_``).

    Example:
        >>> problem = Problem(torch.nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1)))
        >>> Clip(1.0)({"weight": torch.tensor([[3.0]]), "bias": torch.tensor([4.0])}, problem, {})
        {'weight': tensor([[0.6000]]), 'bias': tensor([0.8000])}
    """

    norm: float

    linear: ClassVar[bool] = False
    contracts: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_type("norm", self.norm, Real, "a positive number")
        if not self.norm > 0:
            raise ValueError(f"norm is {self.norm!r}, expected a positive number")

    @property
    def bias_reason(self) -> str:
        return "" if math.isinf(self.norm) else "gradients that are too long are shortened"

    @property
    def bound(self) -> float:
        """The largest norm of what it returns."""
        return self.norm

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        return {}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        # Of a zero gradient the quotient is infinite, which the clamp makes 1.
        return rescaled(gradient, (self.norm / length(gradient)).clamp_max(1))

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return moments_without_noise(self, mean, variance, problem)


@dataclass(frozen=True)
class AddNoise:
    """Normal noise added, g + std·u: the same mean, variance + std² of every entry, + d std² of all d.

    Args:
        std: in units of what it is added to. Of the mean of N examples clipped to C, each with probability q, noise
            multiplier σ means std = σC/(qN).

    Raises:
        ValueError: a negative std.

    Source: Abadi et al. 2016 (DP-SGD).

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> {name: leaf.shape for name, leaf in AddNoise(0.1).leaves(problem, {"weight": (2, 3)}).items()}
        {'weight': (2, 3)}
    """

    std: float

    linear: ClassVar[bool] = True
    adds_noise: ClassVar[bool] = True
    contracts: ClassVar[bool] = True
    bias_reason: ClassVar[str] = ""

    def __post_init__(self) -> None:
        require_type("std", self.std, Real, "a number from 0 on")
        if not self.std >= 0:
            raise ValueError(f"std is {self.std!r}, expected a number from 0 on")

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        return {name: Leaf(tuple(shape), Gaussian()) for name, shape in shapes.items()}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        return {name: torch.add(g, noise[name], alpha=self.std) for name, g in gradient.items()}

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return Moments(mean, {name: v + self.std**2 for name, v in variance.items()})


def size(gradient: Gradient) -> int:
    """How many numbers it has."""
    return sum(g.numel() for g in gradient.values())
