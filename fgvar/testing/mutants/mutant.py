"""Mutant: an estimator with one planted defect, and the check that catches it."""

from collections.abc import Callable
from dataclasses import dataclass

from fgvar.estimators.protocol import GradientEstimator
from fgvar.problem import Problem
from fgvar.testing.problems import default_problems


@dataclass(frozen=True)
class Mutant:
    """An estimator with one planted defect, taken from real code of the field.

    Attributes:
        name: what it is called in `fgvar.testing.mutants.MUTANTS`.
        estimator: declares what the right one declares.
        caught_by: the check of `fgvar.testing.CHECKS` that must fail (others may, too).
        defect: what is wrong, and what that does to the estimate.
        shows_on: name of a problem of `fgvar.testing.default_problems` on which that check fails, or of its own.
        reported: where code with this defect was shipped or reported, as project#issue, or a project's name.
        right: the same without the defect, which passes every check.
        own: builds a problem of its own, where the default ones have no place for the defect.
        draws: of each verdict that is drawn. Default: those of a report.

    Example:
        >>> from fgvar.testing import CHECKS
        >>> from fgvar.testing.mutants import MUTANTS
        >>> mutant = MUTANTS["uphill"]
        >>> try:
        ...     CHECKS[mutant.caught_by](mutant.estimator, mutant.problem())
        ... except AssertionError as error:
        ...     print(error)
        scale, linear: the slope of 'weight' is -1, expected 1 (exact: 12 nodes)
    """

    name: str
    estimator: GradientEstimator
    caught_by: str
    defect: str
    shows_on: str = "linear"
    reported: str = ""
    right: GradientEstimator | None = None
    own: Callable[[], Problem] | None = None
    draws: int | None = None

    def problem(self) -> dict[str, Problem]:
        """The problem on which the check fails, by its name."""
        return {self.shows_on: default_problems()[self.shows_on] if self.own is None else self.own()}
