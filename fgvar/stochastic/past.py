"""Past gradients: the last output of a stream, or one that is kept, in the place of an estimate.

`fgvar.History` tells its words each output by a method ``after(output)`` of theirs; what has none remembers nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from torch import Tensor

from fgvar.errors import require_type
from fgvar.estimators.protocol import Estimate
from fgvar.estimators.randomness import Randomness
from fgvar.identity import fingerprint
from fgvar.problem import Problem

Word = TypeVar("Word")


@dataclass(frozen=True)
class Past:
    """The past gradient: the last output of the `History` that it stands in, 0 at its first step.

    ``History(Stochastic(at=Ahead(by=Past(), step=γ̂), sample=Draw(m)), Momentum(0), steps=T, lr=γ)`` is extrapolation
    from the past: g_t at θ_t − γ̂ g_{t−1}, one gradient a step. Through momentum it looks ahead along that.

    Raises:
        ValueError: on use, outside of a stream.

    Source: Lin et al. 2020; Popov 1980.

    Example:
        >>> import fgvar, torch
        >>> from fgvar.points import Ahead
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> ahead = fgvar.Stochastic(at=Ahead(by=Past(), step=0.1))
        >>> found = fgvar.History(ahead, fgvar.streams.Momentum(0), steps=2).estimate(problem, {}).gradient
        >>> there = Ahead(by=Kept(problem.backprop()), step=0.1).view(problem, {})
        >>> bool(torch.allclose(found["bias"], there.backprop()["bias"]))
        True
    """

    bias_reason: ClassVar[str] = "another step's gradient"

    def randomness(self, problem: Problem) -> Randomness:  # noqa: ARG002
        return Randomness({})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:  # noqa: ARG002
        raise ValueError(
            "Past() has no gradient outside of a stream, whose last output it is; put it into "
            "fgvar.History(fgvar.Stochastic(at=Ahead(by=Past(), …)), …), or give a gradient: Kept(gradient)"
        )

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return self.estimate(problem, {}).gradient

    def after(self, output: Mapping[str, Tensor]) -> "Kept":
        """The output of a step of a stream, for the next one (see `after`)."""
        return Kept(output)


@dataclass(frozen=True, eq=False, repr=False)
class Kept:
    """A gradient that is there already, kept from an earlier step: without noise, and itself its target.

    Args:
        gradient: a dict like ``problem.params``, constant.

    Raises:
        ValueError: on use, tensors of other names or shapes than the parameters.

    Source: Lin et al. 2020 (the past gradient, given the state of a run).

    Example:
        >>> import torch
        >>> from fgvar.points import Ahead
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> z = problem.rows(slice(0, 2)).backprop()  # of an earlier minibatch
        >>> there = Ahead(by=Kept(z), step=0.1).view(problem, {}).params
        >>> bool((there["bias"] == problem.params["bias"] - 0.1 * z["bias"]).all())
        True
    """

    gradient: Mapping[str, Tensor]

    bias_reason: ClassVar[str] = ""
    holds_tensors: ClassVar[bool] = True  # its repr tells them from others, and rebuilds none

    def __post_init__(self) -> None:
        require_type("gradient", self.gradient, Mapping, "a dict of tensors, like problem.params")

    def __repr__(self) -> str:
        return f"Kept(<{', '.join(self.gradient)}: {fingerprint(self.gradient)[:12]}>)"

    def randomness(self, problem: Problem) -> Randomness:  # noqa: ARG002
        return Randomness({})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:  # noqa: ARG002
        return Estimate(self.target(problem))

    def target(self, problem: Problem) -> dict[str, Tensor]:
        shapes, expected = ({k: tuple(u.shape) for k, u in one.items()} for one in (self.gradient, problem.params))
        if shapes != expected:
            raise ValueError(
                f"the kept gradient has the shapes {shapes}, expected those of the parameters {expected}; keep what "
                "problem.backprop() or an estimate of a problem of this network returned"
            )
        return dict(self.gradient)


def after(word: Word, output: Mapping[str, Tensor]) -> Word:
    """A word as it is after a step of a stream, of this output: what remembers none stays what it is.

    A word that asks for the last output, or has such a one, says so by a method ``after(output)``.
    """
    following: Any = getattr(word, "after", None)
    found: Word = following(output) if following else word
    return found


def recalls(word: object) -> bool:
    """Does it ask for the last output of a stream?"""
    return after(word, {}) != word
