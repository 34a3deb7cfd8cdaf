"""Mutant: an estimator with one planted defect, and the check that catches it."""

from dataclasses import dataclass

from fgvar.estimators.estimator import GradientEstimator


@dataclass(frozen=True)
class Mutant:
    """An estimator with one planted defect, taken from real code of the field.

    Attributes:
        name: what it is called in `fgvar.testing.mutants.MUTANTS`.
        estimator: declares what the right one declares.
        caught_by: the check of `fgvar.testing.CHECKS` that must fail (others may, too).
        defect: what is wrong, and what that does to the estimate.
        shows_on: name of a problem of `fgvar.testing.default_problems` on which that check fails.

    Example:
        >>> from fgvar.testing import CHECKS, default_problems
        >>> from fgvar.testing.mutants import MUTANTS
        >>> mutant = MUTANTS["uphill"]
        >>> try:
        ...     CHECKS[mutant.caught_by](mutant.estimator, {"linear": default_problems()["linear"]})
        ... except AssertionError as error:
        ...     print(error)
        scale, linear: the slope of 'weight' is -1, expected 1 (exact: 12 nodes)
    """

    name: str
    estimator: GradientEstimator
    caught_by: str
    defect: str
    shows_on: str = "linear"
