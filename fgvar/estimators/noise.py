"""Noise: the laws of directions with independent numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.estimators.random_streams import Stream
from fgvar.estimators.randomness import combinations


@dataclass(frozen=True)
class Gaussian:
    """Independent standard normal coordinates: E u = 0, E uuᵀ = I, E u⁴ = 3.

    For one scalar loss over d perturbed numbers, tr Cov(ĝ) = (d + 1)‖∇‖² (Ren et al. 2023, Table 1).

    Example:
        >>> from fgvar.estimators.randomness import Leaf, Randomness
        >>> Randomness({"w": Leaf((3,), Gaussian())}).sample(seed=0, draws=[0, 1])["w"].shape
        torch.Size([2, 3])
    """

    isotropic: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    kurtosis: ClassVar[float] = 3.0

    def spans_evenly(self, directions: int) -> bool:  # noqa: ARG002
        """Is E of the projection on so many directions a multiple of the identity?"""
        return True

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.normal(shape, dtype, device)


@dataclass(frozen=True)
class Rademacher:
    """Independent signs: E u = 0, E uuᵀ = I, E u⁴ = 1; every law over them is a finite sum.

    For one scalar loss over d perturbed numbers, tr Cov(ĝ) = (d − 1)‖∇‖²: the least of all noise with
    independent coordinates.

    Example:
        >>> from fgvar.estimators.randomness import Leaf, Randomness
        >>> noise = Randomness({"w": Leaf((3,), Rademacher())}).sample(seed=0, draws=[0, 1])
        >>> bool((noise["w"].abs() == 1).all())
        True
    """

    isotropic: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    kurtosis: ClassVar[float] = 1.0

    def spans_evenly(self, directions: int) -> bool:
        """Two sign vectors can be parallel."""
        return directions == 1

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.signs(shape, dtype, device)

    def support(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """All sign vectors, equally likely."""
        values = combinations([2] * math.prod(shape)).double() * 2 - 1
        return values.reshape(-1, *shape), torch.full((len(values),), 1 / len(values), dtype=torch.float64)


@dataclass(frozen=True)
class Uniform:
    """Independent numbers, even between −√3 and √3: E u = 0, E uuᵀ = I, E u⁴ = 9/5.

    For one scalar loss over d perturbed numbers, tr Cov(ĝ) = (d − 1/5)‖∇‖².

    Source: Prashanth et al. 2017 (random directions stochastic approximation).

    Example:
        >>> from fgvar.estimators.randomness import Leaf, Randomness
        >>> noise = Randomness({"w": Leaf((64,), Uniform())}).sample(seed=0, draws=[0])
        >>> bool((noise["w"].abs() <= 3**0.5).all())
        True
    """

    isotropic: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    kurtosis: ClassVar[float] = 1.8

    def spans_evenly(self, directions: int) -> bool:  # noqa: ARG002
        """A sign turned or two numbers exchanged, in all directions, leave the law; none is parallel to others."""
        return True

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.uniform(shape, dtype, device).mul_(2).sub_(1).mul_(3**0.5)
