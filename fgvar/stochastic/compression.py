"""Compression: transforms that leave a gradient few numbers, or few values of them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import require_integer, require_type
from fgvar.estimators.choices import Choice
from fgvar.estimators.lengths import length, rescaled
from fgvar.estimators.noise import Uniform
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.transforms import (
    Gradient,
    Moments,
    Shapes,
    moments_without_noise,
    require_certain,
    size,
)


@dataclass(frozen=True)
class RandomK:
    """Random sparsification: k of the d numbers, chosen evenly, times d/k: E ĝ = g, tr Cov(ĝ) = (d/k − 1)‖g‖².

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
        evenly = torch.full((d,), 1 / d, dtype=torch.float64, device=problem.device)
        return {"": Leaf((count(self.k, d),), Choice(evenly, replace=False, even=True))}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        return only_these(gradient, noise[""], size(gradient) / noise[""].shape[-1])

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        scale = size(mean) / count(self.k, size(mean))
        return Moments(mean, {name: scale * v + (scale - 1) * mean[name].square() for name, v in variance.items()})


@dataclass(frozen=True)
class TopK:
    """Top-k sparsification: the k largest of the d numbers, by their size, and zeros; no k numbers are closer to g.

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
        return only_these(gradient, sizes.topk(count(self.k, len(sizes)), sorted=False).indices)

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return moments_without_noise(self, mean, variance, problem)


@dataclass(frozen=True)
class UniformFloat32(Uniform):
    """Uniform numbers of 32 bits, whatever those of the problem have."""

    dtype: ClassVar[torch.dtype] = torch.float32


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
        # Of 16 bits there are too few numbers: fractions below 1/1000 would be rounded up far too often.
        law = Uniform() if problem.dtype.itemsize > 2 else UniformFloat32()
        return {name: Leaf(tuple(shape), law) for name, shape in shapes.items()}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        steps, step = self._steps(gradient)
        found = {}
        for name, x in steps.items():
            # Not ⌊x + u⌋, which rounding moves: what lies on a level stays there.
            up = (noise[name] / 3**0.5 + 1) / 2 < x.frac()
            found[name] = gradient[name].sign() * (x.floor() + up)
        return rescaled(found, step)

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        require_certain(self, variance)
        steps, step = self._steps(mean)
        return Moments(mean, rescaled({name: x.frac() * (1 - x.frac()) for name, x in steps.items()}, step**2))

    def _steps(self, gradient: Gradient) -> tuple[Gradient, Tensor]:
        """Sizes of all numbers in steps, and what a step is; all 0 where the gradient is."""
        norm = length(gradient)
        per_unit = torch.where(norm > 0, self.levels / norm, 0)
        return rescaled({name: g.abs() for name, g in gradient.items()}, per_unit), norm / self.levels


@dataclass(frozen=True)
class Sign:
    """signSGD: sign(g), of every number; 0 stays 0.

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
        each = [torch.linalg.vector_norm(g, 1, dtype=torch.float64) for g in gradient.values()]
        mean = torch.stack(each).sum() / size(gradient)
        return rescaled({name: g.sign() for name, g in gradient.items()}, mean)

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return moments_without_noise(self, mean, variance, problem)


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


def only_these(gradient: Gradient, which: Tensor, scale: float = 1.0) -> Gradient:
    """The numbers at these places of all tensors in a row, times ``scale``, and zeros."""
    first = next(iter(gradient.values()))
    factors = first.new_zeros(size(gradient)).scatter(0, which, scale)
    pieces = factors.split([g.numel() for g in gradient.values()])
    return {name: piece.reshape(g.shape) * g for (name, g), piece in zip(gradient.items(), pieces, strict=True)}
