"""Populations: which terms a sampler draws from, and with which probabilities, by scores that it is given."""

from typing import Protocol

import torch
from torch import Tensor

from fgvar.errors import unknown
from fgvar.estimators.declared import declared
from fgvar.nn.forward_pass import called_twice
from fgvar.nn.terms import Terms, terms_of
from fgvar.problem import Problem

BATCH = "batch"  # what is sampled: examples,
TERMS = "terms"  # or the terms of all sums inside the network
SCORE = ("adapted", "of_loss", "linear", "scores")  # what tells a score from other words


class Score(Protocol):
    """How much each term is preferred: probabilities are proportional to it.

    Said as attributes of its class, or as properties: ``adapted``, do scores depend on parameters or batch?
    ``of_loss``, on the loss function? ``linear``, is Σ ω ĝ, with ω in proportion to 1 over the scores, linear in the
    loss all the same, as by gradients' norms, where the estimate is a sum of (Σ‖g‖/N) g_n/‖g_n‖? ``even = True``: all
    scores are the same, whatever the problem, so that nothing has to be weighed.
    """

    @property
    def adapted(self) -> bool: ...

    @property
    def of_loss(self) -> bool: ...

    @property
    def linear(self) -> bool: ...

    def scores(self, problem: Problem, over: str) -> Tensor:
        """One number ≥ 0 for each term, constant for differentiation.

        [batch] for ``over="batch"``, else [rows, terms] of the `fgvar.Terms` module of this name. All 0 is uniform.
        """


def is_even(by: Score) -> bool:
    """Are all its scores the same, by what it says of them?"""
    return bool(declared(by, "even", "scores"))


def probabilities(scores: Tensor, among: Tensor | None = None) -> Tensor:
    """Scores as probabilities along the last axis, in float64; uniform (``among`` those of 1) where they sum to 0."""
    scores = scores.detach().double()
    even = torch.ones_like(scores) if among is None else among
    # What is no score makes all of them NaN, and so the gradient, which is found without waiting for the device.
    scores = scores.where(scores.isfinite() & (scores >= 0), torch.nan) * even
    total = scores.sum(-1, keepdim=True)
    return torch.where(total == 0, even / even.sum(-1, keepdim=True), scores / total.where(total != 0, 1))


def scores_of(by: Score, problem: Problem, over: str) -> Tensor:
    """Its scores, one for each term; others would leave terms out without a word."""
    scores = by.scores(problem, over)
    expected = (problem.batch_size,) if over == BATCH else terms_shape(problem, over)
    got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
    if got != expected:
        raise ValueError(f"scores by {by!r} are {got}, expected a tensor of shape {expected}: a number for each term")
    return scores.detach()


def require_scores(by: Score, scores: Tensor) -> None:
    """Raise unless scores are numbers from 0 on; elsewhere than on the CPU it would wait, and NaN has to tell it."""
    if scores.device.type == "cpu" and not bool((scores.isfinite() & (scores >= 0)).all()):
        raise ValueError(
            f"scores by {by!r} reach from {float(scores.min()):.6g} to {float(scores.max()):.6g}, expected finite "
            "numbers from 0 on; take another score, or a loss that is never below 0"
        )


def sampled_terms(problem: Problem, over: str) -> dict[str, Terms]:
    """The `fgvar.Terms` modules that ``over`` names, all of them for "terms", each called once in a forward pass."""
    every = terms_of(problem.network.modules)
    if not every:
        raise ValueError(
            f"over is {over!r}, and the network has no fgvar.Terms; expected over='batch', or such a module around "
            "the terms of a sum in its forward"
        )
    if over != TERMS and over not in every:
        raise ValueError(unknown("over", over, {BATCH, TERMS, *every}))
    return every if over == TERMS else {over: every[over]}


def terms_shape(problem: Problem, name: str) -> tuple[int, ...]:
    """Shape [batch, …, terms] of what a `fgvar.Terms` module returns in one forward pass."""
    visits = problem.trace.visits.get(name, [])
    if len(visits) > 1:
        raise ValueError(called_twice(name))
    shape = (visits[0].shape if visits else None) or ()
    if len(shape) < 2 or shape[0] != problem.trace.batch_size:
        raise ValueError(
            f"the terms of {name!r} have shape {shape if visits else 'unknown, as it is not called'}, expected the "
            f"examples ({problem.trace.batch_size}) along the first axis and the terms along the last"
        )
    return (problem.batch_size, *shape[1:])
