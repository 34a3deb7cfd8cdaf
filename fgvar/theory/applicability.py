"""Applicability: tells which estimators have a closed form, and why others have none.

The quadratic form uᵀMu of `fgvar.theory.closed_forms` needs a derivative that is linear in the direction, independent
coordinates of known kurtosis, and estimates that are added up as the credit rule says. A stochastic gradient needs a
point that is known, gradients that are means over the examples, and words that say what they make of moments.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.combine import Mean
from fgvar.estimators.declared import declared
from fgvar.estimators.estimator import Estimator, ExactGradient
from fgvar.estimators.guesses import Isotropic
from fgvar.estimators.laws import LAW
from fgvar.estimators.oracles import Jvp, Replay
from fgvar.estimators.protocol import GradientEstimator
from fgvar.estimators.spaces import of_parameters_alone
from fgvar.estimators.weight_space import WeightSpace
from fgvar.problem import Problem
from fgvar.stochastic.history import History
from fgvar.stochastic.past import recalls
from fgvar.stochastic.sampling import tells_moments
from fgvar.stochastic.sentence import Stochastic, of_terms, origin_of
from fgvar.stochastic.streams import STREAM
from fgvar.stochastic.targets import Against
from fgvar.stochastic.transforms import TRANSFORM, Moments, Transform
from fgvar.theory.commuted import commuted


def no_closed_form(estimator: GradientEstimator, problem: Problem) -> str | None:
    """Why this estimator has no closed form on this problem; None where it has one.

    Example:
        >>> import torch, fgvar
        >>> problem = fgvar.Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> no_closed_form(fgvar.scheme("FG-W"), problem) is None
        True
    """
    estimator = estimates_of(estimator)
    # Types are compared as they are: a subclass may estimate anything.
    kind = type(estimator)
    if isinstance(estimator, ExactGradient) and kind is ExactGradient:
        return None
    if isinstance(estimator, Stochastic) and kind is Stochastic:
        own = of_terms(estimator.randomness(problem).leaves)
        perturbs = any(name.partition(".")[0] != "each" for name in own)
        return _of_words(estimator, problem, perturbs) or _of_transforms(estimator, problem, perturbs)
    if isinstance(estimator, History) and kind is History:
        return _of_stream(estimator) or no_closed_form(estimator.of, problem)
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
    if declared(estimator.noise, "kurtosis", *LAW) is None:
        return f"{type(estimator.noise).__name__} noise states no kurtosis of independent coordinates"
    if type(estimator.space) not in (WeightSpace, ActivitySpace):
        return f"{type(estimator.space).__name__} is a space of its own"
    if problem.coupled and estimator.space.per_example:
        return "the loss couples the examples, so that activities are credited with all terms"
    return None


def estimates_of(estimator: GradientEstimator) -> GradientEstimator:
    """The estimator whose estimates these are, whatever they are held against."""
    return estimates_of(estimator.estimator) if isinstance(estimator, Against) else estimator


def _of_stream(history: History) -> str | None:
    """Why there is none by its path or its optimiser."""
    if history.lr and history.steps > 1:
        return "its gradients are those of a path (lr is not 0)"
    if recalls(history.of):
        return "each of its gradients depends on the last output"
    through: object = history.through
    if getattr(through, "bias_reason", "") or not declared(through, "gain", *STREAM):
        return f"{through!r} does not keep the mean, or does not say what it leaves of the variance (gain)"
    return None


def _of_words(estimator: Stochastic, problem: Problem, noisy: bool) -> str | None:
    """Why there is none by its point, its sampler or its ``of``, which is noisy or not."""
    of, at, sample = estimates_of(estimator.of), estimator.at, estimator.sample
    origin = origin_of(problem)
    if at.leaves(problem):
        return f"{at!r} takes the gradient at a random point"
    sampled = bool(sample.leaves(origin))
    if sampled and not tells_moments(sample):
        return f"{sample!r} does not say mean and spread of what it samples"
    if sampled and (reason := sample.no_closed_form(origin)):
        return reason
    whole = sampled and not estimator.each
    if noisy and whole and isinstance(of, Stochastic | History):
        return f"{sample!r} samples for what samples itself; write all words in one sentence"
    keep = getattr(getattr(of, "space", None), "keep", None)
    if noisy and whole and not (keep is None or of_parameters_alone(keep)):
        return f"{keep!r} may look at the batch, which {sample!r} weighs at random"
    if not noisy and whole and problem.coupled:
        return "the loss couples the examples, so that none has a gradient of its own"
    if not noisy and whole and not declared(of, "additive", "estimate"):
        return f"{of!r} does not say that it is additive, the mean of the estimates of each example alone"
    return no_closed_form(of, problem) if noisy else None


def _of_transforms(estimator: Stochastic, problem: Problem, noisy: bool) -> str | None:
    """Why there is none by its transforms: asked for what they make of moments that stand in for the gradient's."""
    estimator, _ = commuted(estimator, problem)
    known = {name: _stand_in(value) for name, value in problem.params.items()}
    still = {name: torch.zeros_like(value) for name, value in problem.params.items()}
    try:
        found = _after(estimator.each, Moments(known, known if noisy else still), problem)
        if estimator.sample.leaves(origin_of(problem)):
            found = Moments(found.mean, found.mean)
        _after(estimator.then, found, problem)
    except ValueError as error:
        return str(error).partition("; ")[0]  # who asks says what to use instead
    return None


def _stand_in(like: Tensor) -> Tensor:
    """Positive numbers in general position: of ones, a transform may leave what it leaves of no gradient."""
    golden = torch.arange(1, 1 + like.numel(), dtype=torch.float64, device=like.device) * ((1 + 5**0.5) / 2)
    return (1 + golden.frac()).reshape(like.shape).to(like.dtype)


def _after(transforms: Sequence[Transform], found: Moments, problem: Problem) -> Moments:
    for transform in transforms:
        if not declared(transform, "moments", *TRANSFORM):
            raise ValueError(f"{transform!r} does not say moments of what it shapes")
        found = transform.moments(*found, problem)
    return found


def kurtosis_of(estimator: Estimator) -> float:
    """E u⁴ of the noise of an estimator that has a closed form."""
    return float(getattr(estimator.noise, "kurtosis"))  # noqa: B009 (stated by laws of independent numbers alone)
