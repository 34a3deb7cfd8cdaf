"""Transforms: what becomes of a gradient, of each term's or of the whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from fgvar.errors import require_integer, require_type
from fgvar.estimators.choices import Choice
from fgvar.estimators.noise import Gaussian, Uniform
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem

Gradient = dict[str, Tensor]
Shapes = Mapping[str, tuple[int, ...]]


class Moments(NamedTuple):
    """Mean and variance of every entry of a random gradient."""

    mean: Gradient
    variance: Gradient


class Transform(Protocol):
    """What becomes of a gradient. ``bias_reason`` says why its mean is another; empty where it is the same.

    ``linear``, an attribute of its class, says whether it is a linear map (a random one, for random ones) of the
    gradient, but for what it adds. One that returns tensors of other names or shapes has a method ``shapes(problem,
    shapes)``, from those that it is given to those that it returns. It runs under ``torch.func.vmap``.
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
    """min(1, norm/‖g‖) g, with the norm over all tensors together: nothing is longer than ``norm``, its ``bound``.

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
        factor = (self.norm / length(gradient)).clamp_max(1)
        return {name: factor * g for name, g in gradient.items()}

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return moments_without_noise(self, mean, variance, problem)


@dataclass(frozen=True)
class AddNoise:
    """g + std·u with standard normal u: the same mean, variance + std² of every entry, + d std² of all d.

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


@dataclass(frozen=True)
class RandomK:
    """k of the d numbers of a gradient, chosen evenly, times d/k: E ĝ = g, tr Cov(ĝ) = (d/k − 1)‖g‖².

    Args:
        k: how many, an integer; or their share, a float above 0 and at most 1 (of few numbers at least one).

    Raises:
        ValueError: no number, a share outside of (0, 1]; on use, more numbers than there are.

    Source: Stich et al. 2018 (without the factor); Konečný and Richtárik 2018.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> RandomK(0.5)({"weight": torch.ones(4)}, problem, {"": torch.tensor([0, 2])})
        {'weight': tensor([2., 0., 2., 0.])}
    """

    k: float

    linear: ClassVar[bool] = True
    bias_reason: ClassVar[str] = ""

    def __post_init__(self) -> None:
        require_count(self.k)

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        d = sum(math.prod(shape) for shape in shapes.values())
        evenly = torch.full((d,), 1 / d, dtype=torch.float64)
        return {"": Leaf((count(self.k, d),), Choice(evenly, replace=False, even=True))}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        return kept(gradient, noise[""], _size(gradient) / noise[""].shape[-1])

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        scale = _size(mean) / count(self.k, _size(mean))
        return Moments(mean, {name: scale * v + (scale - 1) * mean[name].square() for name, v in variance.items()})


@dataclass(frozen=True)
class TopK:
    """The k largest of the d numbers of a gradient, by their size, and zeros: the closest that k numbers come to it.

    Args:
        k: how many, or their share, as of `RandomK`.

    Raises:
        ValueError: no number, a share outside of (0, 1]; on use, more numbers than there are.

    Source: Aji and Heafield 2017; Stich et al. 2018.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> TopK(1)({"weight": torch.tensor([1.0, -3.0]), "bias": torch.tensor([2.0])}, problem, {})
        {'weight': tensor([ 0., -3.]), 'bias': tensor([0.])}
    """

    k: float

    linear: ClassVar[bool] = False
    bias_reason: ClassVar[str] = "small entries are left out"

    def __post_init__(self) -> None:
        require_count(self.k)

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        return {}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        sizes = torch.cat([g.abs().flatten() for g in gradient.values()])
        return kept(gradient, sizes.topk(count(self.k, len(sizes)), sorted=False).indices)

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return moments_without_noise(self, mean, variance, problem)


@dataclass(frozen=True)
class Quantise:
    """QSGD: every number rounded at random to one of ``levels`` steps of the norm, so that its mean is the number.

    ‖g‖/s · sign(g_i)·(⌊x_i⌋ + b_i) with x_i = s|g_i|/‖g‖, the norm over all tensors, and b_i one with probability
    f_i = x_i − ⌊x_i⌋: E ĝ = g, tr Cov(ĝ) = Σ_i ‖g‖²/s² f_i(1 − f_i).

    Args:
        levels: s.

    Raises:
        ValueError: less than one level.

    Source: Alistarh et al. 2017.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> noise = {"weight": torch.tensor([0.0, 0.0])}  # uniform from −√3 to √3: in the middle
        >>> Quantise(1)({"weight": torch.tensor([3.0, -4.0])}, problem, noise)
        {'weight': tensor([ 5., -5.])}
    """

    levels: int

    linear: ClassVar[bool] = False
    bias_reason: ClassVar[str] = ""

    def __post_init__(self) -> None:
        require_integer("levels", self.levels, 1)

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        return {name: Leaf(tuple(shape), Uniform()) for name, shape in shapes.items()}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        steps, step = self._steps(gradient)
        found = {}
        for name, x in steps.items():
            # Not ⌊x + u⌋, which rounding moves: what lies on a level stays there.
            up = (noise[name] / 3**0.5 + 1) / 2 < x.frac()
            found[name] = step * gradient[name].sign() * (x.floor() + up)
        return found

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        require_certain(self, variance)
        steps, step = self._steps(mean)
        return Moments(mean, {name: step**2 * x.frac() * (1 - x.frac()) for name, x in steps.items()})

    def _steps(self, gradient: Gradient) -> tuple[Gradient, Tensor]:
        """Sizes of all numbers in steps, and what a step is; all 0 where the gradient is."""
        norm = length(gradient)
        per_unit = torch.where(norm > 0, self.levels / norm, 0)
        return {name: g.abs() * per_unit for name, g in gradient.items()}, norm / self.levels


@dataclass(frozen=True)
class Sign:
    """sign(g), of every number; 0 stays 0.

    Args:
        scaled: times the mean size of all d numbers, ‖g‖₁/d, so that the sign is of the gradient's own length.

    Source: Bernstein et al. 2018 (signSGD); Karimireddy et al. 2019 (scaled).

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> Sign(scaled=True)({"weight": torch.tensor([1.0, -3.0])}, problem, {})
        {'weight': tensor([ 2., -2.])}
    """

    scaled: bool = False

    linear: ClassVar[bool] = False
    bias_reason: ClassVar[str] = "signs have no size"

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        return {}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        if not self.scaled:
            return {name: g.sign() for name, g in gradient.items()}
        size = torch.stack([g.abs().sum() for g in gradient.values()]).sum() / _size(gradient)
        return {name: size * g.sign() for name, g in gradient.items()}

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return moments_without_noise(self, mean, variance, problem)


def length(gradient: Gradient) -> Tensor:
    """‖g‖ over all tensors."""
    return torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradient.values()]))


def require_count(k: float) -> None:
    """Raise where this is neither a number of numbers nor a share of them."""
    require_type("k", k, Real, "an integer of at least 1, or a share above 0 and at most 1")
    if not (0 < k <= 1 if isinstance(k, float) else k >= 1):
        raise ValueError(f"k is {k!r}, expected an integer of at least 1, or a float: a share above 0 and at most 1")


def count(k: float, d: int) -> int:
    """How many of d numbers these are."""
    number = max(round(k * d), 1) if isinstance(k, float) else int(k)
    if number > d:
        raise ValueError(f"k is {k} of the {d} numbers of a gradient, expected at most all of them")
    return number


def kept(gradient: Gradient, which: Tensor, scale: float = 1.0) -> Gradient:
    """The numbers at these places of all tensors in a row, times ``scale``, and zeros."""
    first = next(iter(gradient.values()))
    factors = first.new_zeros(_size(gradient)).scatter(0, which, scale)
    pieces = factors.split([g.numel() for g in gradient.values()])
    return {name: piece.reshape(g.shape) * g for (name, g), piece in zip(gradient.items(), pieces, strict=True)}


def _size(gradient: Gradient) -> int:
    return sum(g.numel() for g in gradient.values())
