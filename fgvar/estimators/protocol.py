"""The protocol of every gradient estimator, and what says that something is none."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from collections.abc import Mapping
from dataclasses import dataclass
from inspect import isfunction
from typing import Protocol, runtime_checkable

from torch import Tensor

from fgvar.estimators.randomness import Randomness
from fgvar.problem import Problem


@dataclass(frozen=True)
class Estimate:
    """One estimate: ``gradient`` is a dict like ``problem.params``; ``loss`` the batch-mean output loss.

    Example:
        >>> import torch, fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> halves = Estimate({name: 0.5 * g for name, g in problem.backprop().items()})
        >>> sorted(halves.gradient) == sorted(problem.params), halves.loss
        (True, None)
    """

    gradient: dict[str, Tensor]
    loss: Tensor | None = None


@runtime_checkable
class GradientEstimator(Protocol):
    """All that measuring, testing and training ask of anybody's estimator.

    ``estimate`` must be a deterministic function of its arguments; it is called under ``torch.func.vmap``
    over a batch of noise (or plainly, one draw at a time, with ``measure(…, chunk=1)``).

    Example:
        >>> import fgvar
        >>> class Shrunk:
        ...     def randomness(self, problem):
        ...         return fgvar.Randomness({})
        ...     def estimate(self, problem, noise):
        ...         return fgvar.Estimate({name: 0.5 * g for name, g in problem.backprop().items()})
        ...     def target(self, problem):
        ...         return problem.backprop()
        >>> isinstance(Shrunk(), GradientEstimator)
        True
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> its = fgvar.measure({"half": Shrunk()}, problem).sel(layer="total", reference="target")
        >>> its["slope"].values.round(9)
        array([0.5])
    """

    def randomness(self, problem: Problem) -> Randomness:
        """Names, shapes and distributions of the noise that one estimate needs."""

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        """The estimate for this noise."""

    def target(self, problem: Problem) -> dict[str, Tensor]:
        """The gradient that the estimator should be unbiased for."""


def require_directions(directions: object) -> None:
    """Raise a ValueError where there are fewer directions than 1."""
    if not isinstance(directions, int) or directions < 1:
        raise ValueError(f"directions is {directions!r}, expected an integer of at least 1")


def require_estimator(name: str, candidate: object) -> None:
    """Raise a TypeError where ``candidate`` is not a `GradientEstimator`, saying what to give instead."""
    if isinstance(candidate, type):
        raise TypeError(f"{name!r} is the class {candidate.__name__}, expected an instance: {candidate.__name__}(…)")
    if isinstance(candidate, str):
        raise TypeError(f"{name!r} is the text {candidate!r}, expected an estimator: fgvar.scheme({candidate!r})")
    if not isinstance(candidate, GradientEstimator):
        hint = "; words of a sentence go into fgvar.Stochastic(…)" if hasattr(candidate, "leaves") else ""
        hint = "; a function goes into fgvar.testing.from_function(…)" if isfunction(candidate) else hint
        got = type(candidate).__name__
        raise TypeError(f"{name!r} is {got}, expected randomness, estimate and target methods{hint}")


def require_problem(candidate: object) -> None:
    """Raise a TypeError where ``candidate`` is not a `Problem`, saying how to make one."""
    if not isinstance(candidate, Problem):
        got = type(candidate).__name__
        raise TypeError(f"problem is {got}, expected fgvar.Problem(module, loss, (inputs, targets))")


def is_builtin(part: object) -> bool:
    """Is it one of fgvar's own, which leave a problem as it is? A sentence is, if all of its words are."""
    if isinstance(part, Mapping):
        return all(is_builtin(one) for one in part.values())
    if isinstance(part, tuple):
        return all(is_builtin(one) for one in part)
    if part is None or isinstance(part, bool | int | float | str | Tensor | Problem):
        return True
    own = type(part).__module__.startswith(("fgvar.stochastic.", "fgvar.estimators."))
    return own and all(is_builtin(one) for one in vars(part).values())
