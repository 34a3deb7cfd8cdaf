"""Transforms: what becomes of a gradient, of each term's or of the whole."""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem

Gradient = dict[str, Tensor]


class Transform(Protocol):
    """What becomes of a gradient. ``bias_reason`` says why its mean is another; empty where it is the same."""

    @property
    def bias_reason(self) -> str: ...

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        """The noise that it needs."""

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        """The gradient shaped, a dict like ``problem.params``."""
