"""Mutation guard: gives an estimator a problem that it may move, and raises where it has moved one, or itself.

Estimators of fgvar are functions and get the problem itself. Anybody else's gets a clone, of which all tensors are
compared with the original's after each chunk of draws: what moves in place makes later draws of another point. Its
first draws are made again after the last ones: what draws otherwise, or remembers, has no independent draws.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fgvar.estimators.protocol import GradientEstimator, is_builtin
from fgvar.measurement.moments import Block, draws_in
from fgvar.problem import Problem


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

    @property
    def is_needed(self) -> bool:
        """Is the estimator somebody else's?"""
        return self.problem is not self.original

    def require_repeated(self, first: Iterable[Block], again: Iterable[Block]) -> None:
        """Raise where the first draws of all, made once more, are others, by their random projections.

        Raises:
            ValueError: naming the draw.
        """
        # Rounding may differ from call to call on a GPU, and is divided by the step of finite differences.
        share = min(100 * torch.finfo(self.original.dtype).eps ** 0.5, 0.1)
        for one, other in zip(first, again, strict=True):
            m = draws_in(one.gram)
            total = one.gram[:, -1].diagonal(dim1=1, dim2=2)  # ‖D‖² of each draw, of M, the target and backprop
            size = (total[:, :m] + total[:, m + 1, None]).sqrt()
            off = (one.projected - other.projected).abs().amax((1, 3)) > share * size
            if bool(off.any()):
                block, draw = off.nonzero()[0].tolist()
                number = one.before[block] + draw
                raise ValueError(
                    f"estimator {self.name!r} gives another estimate for the noise of draw {number} when it is asked "
                    "again after the last draw, so that its draws are not independent and intervals "
                    "would not cover; draw nothing inside estimate, declare it in randomness, and keep no state "
                    "between calls"
                )

    def require_unchanged(self, draws: range) -> None:
        """Raise where the estimator has changed what it was given.

        Raises:
            ValueError: naming the tensor and the draws by which it happened.
        """
        if not self.is_needed:
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
