"""Oracles: the directional derivative of a function of named tensors."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

Tensors = Mapping[str, Tensor]


class Oracle(Protocol):
    """Value of a function at a point, and its derivative along a direction."""

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

    def __call__(
        self, function: Callable[[Tensors], dict[str, Tensor]], point: Tensors, direction: Tensors
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        # torch annotates the result for has_aux, too: three values.
        value, derivative = torch.func.jvp(function, (dict(point),), (dict(direction),))[:2]
        return value, derivative
