"""Broken streams: optimisers with defects that real code of the field has had."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fgvar.problem import Problem
from fgvar.stochastic.streams import ErrorFeedback, Passed
from fgvar.stochastic.transforms import Gradient


class Buffers(NamedTuple):
    """The gradient's memory, which every backward pass writes to, and what is kept as the one before."""

    gradient: Gradient
    previous: Gradient


@dataclass(frozen=True)
class AliasedDiffGrad:
    """diffGrad.py ahead of its "bug fixed in v2": the gradient before is kept, and not a copy of it."""

    def start(self, gradient: Gradient) -> Buffers:
        memory = {name: torch.zeros_like(g) for name, g in gradient.items()}
        return Buffers(memory, memory)

    def __call__(self, gradient: Gradient, state: Buffers) -> Passed:
        for name, g in gradient.items():
            state.gradient[name].copy_(g)
        factors = {name: torch.sigmoid((state.previous[name] - g).abs()) for name, g in state.gradient.items()}
        return Passed(factors, Buffers(state.gradient, state.gradient))


@dataclass(frozen=True)
class LosesResidual(ErrorFeedback):
    """Compresses what is owed, and forgets what it left out: compression alone, whose errors do not come later."""

    def on(self, problem: Problem, noise: Mapping[str, Tensor]) -> Any:
        compressing = super().on(problem, noise)

        def passed(gradient: Gradient, state: Gradient) -> Passed:
            return Passed(compressing(gradient, state).gradient, self.start(gradient))

        return passed
