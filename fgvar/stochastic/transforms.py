"""Transforms: what becomes of a gradient, of each term's or of the whole."""

from collections.abc import Mapping
from typing import ClassVar, NamedTuple, Protocol

from torch import Tensor

from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem

Gradient = dict[str, Tensor]


class Transform(Protocol):
    """What becomes of a gradient. ``bias_reason`` says why its mean is another; empty where it is the same.

    ``linear``, an attribute of its class, says whether it is a linear map of the gradient, if a random one.
    """

    linear: ClassVar[bool]

    @property
    def bias_reason(self) -> str: ...

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        """The noise that it needs."""

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        """The gradient shaped, a dict like ``problem.params``."""

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> "Moments":
        """Mean and variance of the shaped gradient, entry by entry, for a gradient of this mean and variance.

        Raises:
            ValueError: mean and variance of each entry do not say it (a nonlinear map of a random gradient).
        """


class Moments(NamedTuple):
    """Mean and variance of every entry of a random gradient."""

    mean: Gradient
    variance: Gradient
