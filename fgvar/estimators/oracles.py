"""Oracles: the directional derivative of a function of named tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Oracle(Protocol):
    """Value of a function at a point, and its derivative along a direction."""

    bias_order: ClassVar[int | None]  # E ĝ − ∇ = O(step^order) under symmetric noise; None: no bias

    def __call__(
        self, function: Callable[[Tensors], dict[str, Tensor]], point: Tensors, direction: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]: ...


@dataclass(frozen=True)
class Jvp:
    """The exact directional derivative ∇f·u, by forward-mode differentiation in one pass.

    Example:
        >>> square = lambda t: {"f": t["x"] ** 2}
        >>> Jvp()(square, {"x": torch.tensor(3.0)}, {"x": torch.tensor(1.0)})[1]
        {'f': tensor(6.)}
    """

    bias_order: ClassVar[int | None] = None

    def __call__(
        self, function: Callable[[Tensors], dict[str, Tensor]], point: Tensors, direction: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # torch annotates the result for has_aux, too: three values.
        value, derivative = torch.func.jvp(function, (dict(point),), (dict(direction),))[:2]
        return value, derivative


@dataclass(frozen=True)
class ForwardDifference:
    """(f(x + step·u) − f(x))/step = ∇f·u + step/2 · uᵀHu + O(step²).

    Its first-order error is even in u, hence odd in c·u: it averages out under symmetric noise, and leaves a
    bias of order step² (the third derivatives) with more variance than `CentralDifference` has.

    Args:
        step: of the difference, in units of the direction.

    Raises:
        ValueError: a step that is not positive.

    Source: Dalm et al. 2023 (node perturbation by finite differences).

    Example:
        >>> cube = lambda t: {"f": t["x"] ** 3}
        >>> ForwardDifference(step=0.5)(cube, {"x": torch.tensor(1.0)}, {"x": torch.tensor(1.0)})[1]
        {'f': tensor(4.7500)}
    """

    step: float = 1e-3
    bias_order: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        _check_step(self.step)

    def __call__(
        self, function: Callable[[Tensors], dict[str, Tensor]], point: Tensors, direction: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        value = function(point)
        ahead = function(_moved(point, direction, self.step))
        return value, {name: (ahead[name] - value[name]) / self.step for name in value}


@dataclass(frozen=True)
class CentralDifference:
    """(f(x + step·u) − f(x − step·u))/(2·step) = ∇f·u + step²/6 · D³f(u, u, u) + O(step⁴): a bias of order step².

    Args:
        step: of the difference, in units of the direction.

    Raises:
        ValueError: a step that is not positive.

    Source: Spall 1992 (simultaneous perturbation), MeZO.

    Example:
        >>> cube = lambda t: {"f": t["x"] ** 3}
        >>> CentralDifference(step=0.5)(cube, {"x": torch.tensor(1.0)}, {"x": torch.tensor(1.0)})[1]
        {'f': tensor(3.2500)}
    """

    step: float = 1e-3
    bias_order: ClassVar[int | None] = 2

    def __post_init__(self) -> None:
        _check_step(self.step)

    def __call__(
        self, function: Callable[[Tensors], dict[str, Tensor]], point: Tensors, direction: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        ahead, behind = (function(_moved(point, direction, s)) for s in (self.step, -self.step))
        return function(point), {name: (ahead[name] - behind[name]) / (2 * self.step) for name in ahead}


def _moved(point: Tensors, direction: Tensors, step: float) -> dict[str, Tensor]:
    return {name: value + step * direction[name] for name, value in point.items()}


def _check_step(step: float) -> None:
    if not step > 0:
        raise ValueError(f"step is {step!r}, expected a positive number")
