"""Applicability: tells which estimators have a closed form, and why others have none.

The quadratic form uᵀMu of `fgvar.theory.closed_forms` needs a derivative that is linear in the direction, independent
coordinates of known kurtosis, and estimates that are added up as the credit rule says.
"""

from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.combine import Mean
from fgvar.estimators.estimator import Estimator, ExactGradient, GradientEstimator
from fgvar.estimators.guesses import Isotropic
from fgvar.estimators.oracles import Jvp, Replay
from fgvar.estimators.weight_space import WeightSpace
from fgvar.problem import Problem


def no_closed_form(estimator: GradientEstimator, problem: Problem) -> str | None:
    """Why this estimator has no closed form on this problem; None where it has one."""
    # Types are compared as they are: a subclass may estimate anything.
    kind = type(estimator)
    if isinstance(estimator, ExactGradient) and kind is ExactGradient:
        return None
    if not isinstance(estimator, Estimator) or kind is not Estimator:
        return f"{kind.__name__} is not a composed fgvar.Estimator"
    if type(estimator.oracle) not in (Jvp, Replay):
        return f"{estimator.oracle!r} is not quadratic in the noise"
    if type(estimator.guess) is not Isotropic:
        return f"the guess {estimator.guess!r} shapes the noise"
    if type(estimator.combine) is not Mean:
        return f"{estimator.combine!r} is not the mean of the directions' estimates"
    if estimator.space.per_tensor:
        return f"{estimator.space!r} perturbs one tensor at a time"
    if getattr(estimator.noise, "kurtosis", None) is None:
        return f"{type(estimator.noise).__name__} noise states no kurtosis of independent coordinates"
    if type(estimator.space) not in (WeightSpace, ActivitySpace):
        return f"{type(estimator.space).__name__} is a space of its own"
    if problem.coupled and estimator.space.per_example:
        return "the loss couples the examples, so that activities are credited with all terms"
    return None


def kurtosis_of(estimator: Estimator) -> float:
    """E u⁴ of the noise of an estimator that has a closed form."""
    return float(getattr(estimator.noise, "kurtosis"))  # noqa: B009 (stated by laws of independent numbers alone)
