"""Points: where a gradient is taken."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem


class Point(Protocol):
    """Where a gradient is taken. ``bias_reason`` says why not at the parameters; empty where it is there."""

    @property
    def bias_reason(self) -> str: ...

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        """The noise that it needs."""

    def view(self, problem: Problem, noise: Mapping[str, Tensor]) -> Problem:
        """The problem there (`Problem.moved`)."""


@dataclass(frozen=True)
class Here:
    """At the parameters.

    Example:
        >>> Here().bias_reason
        ''
    """

    @property
    def bias_reason(self) -> str:
        return ""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:  # noqa: ARG002
        return {}

    def view(self, problem: Problem, noise: Mapping[str, Tensor]) -> Problem:  # noqa: ARG002
        return problem
