"""Mutation guard: gives an estimator a problem that it may move, and raises where it has moved one.

Estimators of fgvar are functions and get the problem itself. Anybody else's gets a clone, of which all tensors are
compared with the original's after each chunk of draws: what moves in place makes later draws of another point.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fgvar.estimators.protocol import GradientEstimator
from fgvar.problem import Problem


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


@dataclass(frozen=True)
class MutationGuard:
    """A problem as an estimator gets it: of fgvar's own the problem itself, of others a copy of it.

    Attributes:
        name: of the estimator.
        original: the caller's problem, never handed out to others.
        problem: what the estimator gets.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> guard = MutationGuard.of("mine", fgvar.testing.from_function(lambda p, g: p.backprop()), problem)
        >>> _ = guard.problem.params["bias"].add_(1)
        >>> guard.require_unchanged(range(3, 4))
        Traceback (most recent call last):
        ...
        ValueError: estimator 'mine' changed parameter 'bias' in place by draw 3, so that later draws would be of \
another point; estimate at copies, as p + step * u
    """

    name: str
    original: Problem
    problem: Problem

    @staticmethod
    def of(name: str, estimator: GradientEstimator, problem: Problem) -> "MutationGuard":
        return MutationGuard(name, problem, problem if is_builtin(estimator) else problem.clone())

    def require_unchanged(self, draws: range) -> None:
        """Raise where the estimator has changed what it was given.

        Raises:
            ValueError: naming the tensor and the draws by which it happened.
        """
        if self.problem is self.original:
            return
        before, after = self.original.tensors(), self.problem.tensors()
        for name in {**before, **after}:
            if not same_values(before.get(name), after.get(name)):
                when = f"draw {draws.start}" if len(draws) == 1 else f"draws {draws.start} to {draws.stop - 1}"
                raise ValueError(
                    f"estimator {self.name!r} changed {name} in place by {when}, so that later draws would be of "
                    "another point; estimate at copies, as p + step * u"
                )


def same_values(one: Tensor | None, two: Tensor | None) -> bool:
    """Are they the same numbers of one type, NaN where the other is NaN?"""
    if one is None or two is None or one.shape != two.shape or one.dtype != two.dtype:
        return False
    # Not torch.equal: a buffer that holds NaN from the start would look moved.
    return bool(((one == two) | (one.isnan() & two.isnan())).all())
