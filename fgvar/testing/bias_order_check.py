"""Bias order check: holds the power of the step that a bias falls with against means at two steps."""

import math
from typing import Any

from fgvar.estimators.noise import Gaussian
from fgvar.estimators.oracles import Jvp
from fgvar.estimators.randomness import Randomness
from fgvar.measurement.draws import Enumeration
from fgvar.problem import Problem
from fgvar.stochastic.past import after
from fgvar.testing.declared_checks import varied
from fgvar.testing.enumeration import mean_over
from fgvar.testing.polynomials import Gradients
from fgvar.testing.under_test import EstimatorUnderTest, Failure, NotApplicable

STEPS = (0.1, 0.05)  # between which the order of the bias is read
MOST_NODES = 3**7
LAW = "support × hermite"


def bias_order(tested: EstimatorUnderTest) -> str:
    """The bias of a finite difference, or of a point ahead, falls as step^order at least: the slope of two steps.

    Where other words bias the mean, too, what falls is the distance from the mean at step 0.
    """
    word = _declaring(tested.estimator, "bias_order")
    if word is None:
        raise NotApplicable("declares no bias")
    if hasattr(word, "by"):
        _require_side(tested, tested.problem, after(word, tested.target))
    # Of a point the step is as long as gradients are, and nothing is divided by it: it can be short.
    norm = math.sqrt(sum(float(g.square().sum()) for g in tested.target.values()))
    steps = [step * (1e-2 / max(norm, 1.0) if hasattr(word, "view") else 1.0) for step in STEPS]
    reference = _without_step(tested, word)
    found = []
    for step in steps:
        one = varied(tested, step=step)
        if one is None:
            raise NotApplicable("declares a bias order, but is no dataclass whose step can be changed")
        mean = _mean_over_law(one)
        bias = [mean[name] - g for name, g in (reference or one.target).items()]
        found.append(math.sqrt(sum(float(off.square().sum()) for off in bias)))
    if max(found) <= 1e-9 * tested.size:
        return "no bias at all on this problem"
    slope = math.log(found[0] / max(found[1], 1e-300)) / math.log(STEPS[0] / STEPS[1])
    if slope < word.bias_order - 0.15:  # where it falls faster, as of a network without heads, O(step^order) holds
        raise Failure(
            f"the bias falls as step^{slope:.2f}, declared is step^{word.bias_order} "
            f"(bias {found[0]:.3g} at step {steps[0]:.3g}, {found[1]:.3g} at {steps[1]:.3g})"
        )
    return f"bias ~ step^{slope:.2f}, enumerated at steps {steps[0]:.3g} and {steps[1]:.3g}"


def _require_side(tested: EstimatorUnderTest, problem: Problem, word: Any) -> None:
    """A point by an estimate z lies at θ − step·z, not at θ + step·z, from which the bias is as far."""
    noise = tested.one(Randomness(word.leaves(problem)).sample(0, [0], dtype=problem.dtype, device=problem.device))
    there, z = word.view(problem, noise).params, word.by.estimate(problem, noise).gradient
    if sum(float(word.step * (z[name] * (p - there[name])).sum()) for name, p in problem.params.items()) < 0:
        raise Failure("the point lies at θ + step·z, expected θ − step·z, of the declared step and estimate z")


def _without_step(tested: EstimatorUnderTest, word: Any) -> Gradients | None:
    """The mean at the parameters themselves, or by exact derivatives, of what is biased then, too; else None."""
    still = varied(tested, step=0.0) if hasattr(word, "view") else varied(tested, oracle=Jvp())
    if still is None or not getattr(still.estimator, "bias_reason", ""):
        return None
    return _mean_over_law(still)


def _declaring(part: object, name: str) -> Any:
    """What declares it: an estimator, its noise, oracle or point, or likewise what it is of; None if nothing."""
    for word in (part, *(getattr(part, word, None) for word in ("noise", "oracle", "at"))):
        if getattr(word, name, None) is not None:
            return word
    of = getattr(part, "of", None)
    return None if of is None else _declaring(of, name)


def _mean_over_law(tested: EstimatorUnderTest) -> Gradients:
    """The expectation under the noise's own law, or under one with the Gaussian's moments up to the fifth."""
    randomness = tested.randomness
    if not randomness.size:
        return tested.estimate({})
    known = all(leaf.is_finite or type(leaf.noise) is Gaussian for leaf in randomness.leaves.values())
    # A number has two values at least: of more numbers than this the values would not even be listed.
    if not known or 2**randomness.size > MOST_NODES or len(Enumeration(randomness, LAW)) > MOST_NODES:
        raise NotApplicable(f"its noise cannot be enumerated here ({randomness.size} random numbers)")
    return mean_over(Enumeration(randomness, LAW), tested.estimator, tested.problem, tested.chunk)
