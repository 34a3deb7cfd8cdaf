"""Scores: by what a sampler prefers some terms of a sum to others."""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fgvar.problem import Problem


class Score(Protocol):
    """How much each term is preferred: probabilities are proportional to it.

    ``adapted`` says, as an attribute of its class, whether scores depend on parameters or batch; ``linear`` whether
    they stay in proportion where the loss is multiplied by a number.
    """

    adapted: ClassVar[bool]

    def scores(self, problem: Problem, over: str) -> Tensor:
        """One number ≥ 0 for each term, constant for differentiation.

        [batch] for ``over="batch"``, else [rows, terms] of the `fgvar.Terms` module of this name. All 0 is uniform.
        """


@dataclass(frozen=True)
class Uniform:
    """All terms alike.

    Example:
        >>> Uniform().adapted
        False
    """

    adapted: ClassVar[bool] = False

    def scores(self, problem: Problem, over: str) -> Tensor:
        shape = (problem.batch_size,) if over == "batch" else terms_shape(problem, over)
        return torch.ones(shape, dtype=problem.dtype, device=problem.device)


def probabilities(scores: Tensor) -> Tensor:
    """Scores as probabilities along the last axis, in float64; uniform where they add up to 0."""
    scores = scores.detach().double()
    total = scores.sum(-1, keepdim=True)
    return torch.where(total > 0, scores / total.where(total > 0, 1), 1 / scores.shape[-1])


def terms_shape(problem: Problem, over: str) -> tuple[int, ...]:
    """Shape [rows, terms] of a `fgvar.Terms` module in one forward pass."""
    shape = problem.trace.visits[over][0].shape
    assert shape is not None
    return (problem.batch_size, *shape[1:])
