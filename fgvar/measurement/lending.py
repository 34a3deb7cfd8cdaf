"""Lending: a problem's tensors for somebody's estimator, which may move them, and a look at whether it has."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fgvar.estimators.estimator import Estimate, GradientEstimator
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.problem import Problem


def ours(estimator: GradientEstimator) -> bool:
    """Is it one of fgvar's own, which leave a problem as it is?"""
    return type(estimator).__module__.startswith("fgvar.estimators.")


@dataclass(frozen=True)
class Loan:
    """A problem as an estimator gets it: of fgvar's own the problem itself, of others a copy that is looked after.

    Attributes:
        name: of the estimator.
        owned: the caller's problem, never handed out to others.
        problem: what the estimator gets.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> loan = Loan.of("mine", fgvar.testing.from_function(lambda p, g: p.backprop()), problem)
        >>> _ = loan.problem.params["bias"].add_(1)
        >>> loan.require_unchanged(range(3, 4))
        Traceback (most recent call last):
        ...
        ValueError: estimator 'mine' changed parameter 'bias' in place by draw 3, so that later draws would be of \
another point; estimate at copies, as p + step * u
    """

    name: str
    owned: Problem
    problem: Problem

    @staticmethod
    def of(name: str, estimator: GradientEstimator, problem: Problem) -> "Loan":
        return Loan(name, problem, problem if ours(estimator) else problem.clone())

    def require_unchanged(self, draws: range) -> None:
        """Raise where the estimator has changed what it was lent.

        Raises:
            ValueError: naming the tensor and the draws by which it happened.
        """
        if self.problem is self.owned:
            return
        before, after = self.owned.tensors(), self.problem.tensors()
        for name in {**before, **after}:
            if not same_values(before.get(name), after.get(name)):
                when = f"draw {draws.start}" if len(draws) == 1 else f"draws {draws.start} to {draws.stop - 1}"
                raise ValueError(
                    f"estimator {self.name!r} changed {name} in place by {when}, so that later draws would be of "
                    "another point; estimate at copies, as p + step * u"
                )


def require_randomness(name: str, found: object) -> Randomness:
    """Raise a TypeError where ``randomness`` of the estimator did not return fgvar's."""
    if not isinstance(found, Randomness):
        raise TypeError(
            f"estimator {name!r}: randomness returned {type(found).__name__}, expected fgvar.Randomness(name → Leaf)"
        )
    for leaf, kind in found.leaves.items():
        if not isinstance(kind, Leaf):
            raise TypeError(
                f"estimator {name!r}: leaf {leaf!r} is {type(kind).__name__}, expected fgvar.Leaf(shape, noise)"
            )
    return found


def gradient_in(found: object) -> dict[str, Tensor]:
    """The gradient of what ``estimate`` returned, as a dict of tensors; a TypeError says what it returned instead."""
    if not isinstance(found, Estimate):
        raise TypeError(f"estimate returned {type(found).__name__}, expected fgvar.Estimate(gradient)")
    return tensors_in("the estimate", found.gradient)


def tensors_in(what: str, gradient: object) -> dict[str, Tensor]:
    """A gradient as a dict of dense tensors that record no graph; a TypeError says what it is instead."""
    if not isinstance(gradient, Mapping):
        raise TypeError(f"{what} is {type(gradient).__name__}, expected a dict like problem.params")
    for name, value in gradient.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{what} has {type(value).__name__} for {name!r}, expected a tensor")
        if value.layout is not torch.strided:
            raise TypeError(f"{what} is {value.layout} for {name!r}, expected a dense tensor; give .to_dense()")
    return {name: value.detach() for name, value in gradient.items()}


def same_values(one: Tensor | None, two: Tensor | None) -> bool:
    """Are they the same numbers of one type, NaN where the other is NaN?"""
    if one is None or two is None or one.shape != two.shape or one.dtype != two.dtype:
        return False
    return bool(((one == two) | (one.isnan() & two.isnan())).all())
