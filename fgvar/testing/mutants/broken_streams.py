"""Broken streams: optimisers with defects that real code of the field has had."""

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fgvar.stochastic.streams import Passed
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
