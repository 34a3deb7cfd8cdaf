"""Exact moments: enumerate or integrate mean and variance of an estimator, where the law of its noise allows it."""

import math
from dataclasses import dataclass
from typing import Any

import torch

from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.randomness import Randomness
from fgvar.measurement.draws import LARGEST, Enumeration
from fgvar.testing import enumeration as enumerated
from fgvar.testing.line_quadrature import line_mean
from fgvar.testing.polynomials import TRIED, Gradients, require_quadratic
from fgvar.testing.under_test import EstimatorUnderTest, NotApplicable
from fgvar.testing.verdict import COARSEST

FEW_VALUES = 1 << 12  # of all noise together, which a check enumerates
FEW_ESTIMATES = 1 << 15  # values and nodes together, at which a check evaluates an estimate
FEW_NUMBERS = 150  # random numbers of which a check evaluates all pairs
INDEPENDENT = (Gaussian, Rademacher)  # laws whose quadrature along the axes of the noise is known
KINK = 1e-4  # what quadrature along a line may be off by where an estimate is not smooth
SHARP = 0.5  # of a tensor's norm: what an inexact mean may be off by, and still tell a turned or a doubled one


@dataclass(frozen=True)
class Mean:
    """An expectation that was not drawn.

    Attributes:
        gradient: E ĝ, in float64.
        how: it was found.
        allowed: what it may be off its target by, in units of the target's largest entry.
    """

    gradient: Gradients
    how: str
    allowed: float


def mean(tested: EstimatorUnderTest) -> Mean | None:
    """E ĝ, by enumeration or along the axes of the noise; None where it can only be drawn."""
    return tested.once("mean", lambda: tested.ask("estimate", lambda: _mean(tested)))


def _mean(tested: EstimatorUnderTest) -> Mean | None:
    rounding, method = tolerance(tested), enumeration(tested)
    if method is not None and not _tells(tested, rounding):  # an exact mean would pass whatever it is
        return None
    if method == "none":
        return Mean(
            {name: g.double() for name, g in tested.estimate({}).items()}, "exact: it needs no noise", rounding
        )
    if method is not None:
        found = enumerated.expectation(tested.estimator, tested.problem, method=method, chunk=tested.chunk)
        return Mean(found, f"exact: {_counted(Enumeration(tested.randomness, method))}", rounding)
    if not follows(tested, *INDEPENDENT):
        return None
    line = line_mean(tested.estimator, tested.problem, chunk=tested.chunk)
    if line is None:
        return None
    allowed = rounding + KINK + 10 * line.residual / tested.size
    if not _tells(tested, allowed):
        return None
    return Mean(line.gradient, f"{line.points} points along the axes of its noise", allowed)


def _counted(found: Enumeration) -> str:
    values, nodes = len(found) // found.rest_count, found.rest_count
    if not found.rest.size:
        return f"all {values} values of its noise" if values > 1 else "its noise has one value"
    return f"{nodes} nodes" + (f" at each of {values} values of other noise" if values > 1 else "")


def _tells(tested: EstimatorUnderTest, allowed: float) -> bool:
    """Would a mean that may be off by so much still tell a turned or a doubled tensor?"""
    norms = [float(value.norm()) for value in tested.target.values()]
    live = [norm for norm in norms if norm > 1e-6 * max(norms)]
    return not live or allowed * tested.size <= SHARP * min(live)


def variances(tested: EstimatorUnderTest) -> Gradients | None:
    """Of every weight, flat and exactly; None where there are too many numbers or it can only be drawn."""
    return tested.once("variances", lambda: _variances(tested))


def _variances(tested: EstimatorUnderTest) -> Gradients | None:
    method = enumeration(tested)
    if method == "none":
        return {k: torch.zeros(p.numel(), dtype=torch.float64) for k, p in tested.problem.params.items()}
    few = follows(tested, *INDEPENDENT) and tested.randomness.size <= FEW_NUMBERS
    if method == "nodes" and few and _quadratic(tested, method, even=True):
        method = "polarisation"
    if method is not None and method.endswith("nodes"):  # three Gauss-Hermite points stand for normal numbers
        method = "support × hermite" if _few_hermite(tested) else None
    if method is None:
        return None
    return enumerated.variances(tested.estimator, tested.problem, method=method, chunk=tested.chunk)


def _few_hermite(tested: EstimatorUnderTest) -> bool:
    rest = [leaf for leaf in tested.randomness.leaves.values() if not leaf.is_finite]
    points = 3 ** min(sum(leaf.size for leaf in rest), LARGEST["hermite"] + 1)
    values = math.prod(leaf.values for leaf in tested.randomness.leaves.values() if leaf.is_finite)
    return all(type(leaf.noise) is Gaussian for leaf in rest) and points * values <= FEW_ESTIMATES


def enumeration(tested: EstimatorUnderTest) -> str | None:
    """The enumeration that gives its exact expectation: "none" of no noise at all; None where there is none.

    All values of all noise where they are few; else nodes of what declares E uuᵀ = I, at all values of the rest.
    """
    return tested.once("enumeration", lambda: _enumeration(tested))


def _enumeration(tested: EstimatorUnderTest) -> str | None:
    leaves = tested.randomness.leaves.values()
    if tested.randomness.size == 0:
        return "none"
    if claim(tested.estimator, "bias_order") is not None or tested.opaque:
        return None
    if number_of_values(tested.randomness) <= FEW_VALUES:
        return "support"
    nodes = 2 * sum(leaf.size for leaf in leaves if leaf.is_isotropic)
    values = math.prod(leaf.values for leaf in leaves if not leaf.is_isotropic)
    if not nodes or (values > 1 and (nodes + TRIED) * values > FEW_ESTIMATES):
        return None
    method = enumerated.default_method(tested.randomness)
    return method if _quadratic(tested, method) else None


def number_of_values(randomness: Randomness) -> int:
    """How many values all noise has together, if each of it has finitely many that are listed."""
    return math.prod(leaf.values for leaf in randomness.leaves.values())


def _quadratic(tested: EstimatorUnderTest, method: str, *, even: bool = False) -> bool:
    try:
        require_quadratic(tested.estimator, tested.problem, method=method, even=even, chunk=tested.chunk)
    except ValueError:
        return False
    return True


def follows(tested: EstimatorUnderTest, *laws: type) -> bool:
    """Is all its noise of these laws, and declared?"""
    return not tested.opaque and all(type(leaf.noise) in laws for leaf in tested.randomness.leaves.values())


def tolerance(tested: EstimatorUnderTest) -> float:
    """What rounding allows, relative to the largest entry; a finite difference divides it by its step."""
    eps = torch.finfo(tested.problem.dtype).eps
    return min(max(1e-9, 100 * eps**0.75), COARSEST) + by_step(tested)


def resolving(tested: EstimatorUnderTest) -> float:
    """`tolerance`, of a comparison of two estimates; a `NotApplicable` where it would let anything pass."""
    allowed = tolerance(tested)
    if allowed >= SHARP:
        kind = str(tested.problem.dtype).removeprefix("torch.")
        raise NotApplicable(f"{kind} cannot resolve its step: rounding alone is as large as an estimate")
    return allowed


def by_step(tested: EstimatorUnderTest) -> float:
    """What the rounding of a loss amounts to once a finite difference has divided it by its step; 0 without one."""
    step = claim(tested.estimator, "step")
    if not step:
        return 0.0
    norm = sum(float(value.double().square().sum()) for value in tested.target.values()) ** 0.5
    steepness = max(1.0, abs(float(tested.problem.loss())) / max(norm, 1e-300))
    return 30 * float(torch.finfo(tested.problem.dtype).eps) / step * steepness


def claim(estimator: object, name: str) -> Any:
    """What an estimator declares: its own attribute, or that of its noise or its oracle; None if nothing."""
    for owner in (estimator, getattr(estimator, "noise", None), getattr(estimator, "oracle", None)):
        if (found := getattr(owner, name, None)) is not None and not callable(found):
            return found
    return None
