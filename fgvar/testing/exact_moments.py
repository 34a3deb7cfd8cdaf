"""Laws: what the noise of an estimate follows, and its exact mean and covariance where that is enough."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.testing import enumeration as enumerated
from fgvar.testing.line_quadrature import line_mean
from fgvar.testing.subject import EstimatorUnderTest

Gradients = dict[str, Tensor]

FEW_SIGNS = 12  # random numbers of which a check enumerates all sign vectors
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


def mean(subject: EstimatorUnderTest) -> Mean | None:
    """E ĝ, by enumeration or along the axes of the noise; None where it can only be drawn."""
    return subject.once("mean", lambda: subject.ask("estimate", lambda: _mean(subject)))


def _mean(subject: EstimatorUnderTest) -> Mean | None:
    rounding, d = tolerance(subject), subject.randomness.size
    method = enumeration(subject)
    if method == "none":
        return Mean(
            {name: g.double() for name, g in subject.estimate({}).items()}, "exact: it needs no noise", rounding
        )
    if method is not None:
        found = enumerated.expectation(subject.estimator, subject.problem, method=method, chunk=subject.chunk)
        return Mean(
            found, f"exact: {f'all {2**d} sign vectors' if method == 'signs' else f'{2 * d} nodes'}", rounding
        )
    if not follows(subject, *INDEPENDENT):
        return None
    line = line_mean(subject.estimator, subject.problem, chunk=subject.chunk)
    if line is None:
        return None
    allowed = rounding + KINK + 10 * line.residual / subject.size
    norms = [float(value.norm()) for value in subject.target.values()]
    live = [norm for norm in norms if norm > 1e-6 * max(norms)]
    if live and allowed * subject.size > SHARP * min(live):
        return None
    return Mean(line.gradient, f"{line.points} points along the axes of its noise", allowed)


def covariance(subject: EstimatorUnderTest) -> Gradients | None:
    """Cov ĝ by parameter, exactly; None where there are too many numbers or it can only be drawn."""
    return subject.once("covariance", lambda: _covariance(subject))


def _covariance(subject: EstimatorUnderTest) -> Gradients | None:
    method = enumeration(subject)
    if method == "none":
        params = subject.problem.params
        return {k: torch.zeros(p.numel(), p.numel(), dtype=torch.float64) for k, p in params.items()}
    if method == "signs":
        return enumerated.covariance(subject.estimator, subject.problem, method="signs", chunk=subject.chunk)
    if method == "nodes" and follows(subject, *INDEPENDENT) and subject.randomness.size <= FEW_NUMBERS:
        return enumerated.covariance(subject.estimator, subject.problem, chunk=subject.chunk)
    return None


def enumeration(subject: EstimatorUnderTest) -> str | None:
    """The enumeration that gives its exact expectation: "none", "signs", "nodes"; None where there is none."""
    if subject.randomness.size == 0:
        return "none"
    if claim(subject.estimator, "bias_order") is not None:
        return None
    if subject.randomness.size <= FEW_SIGNS and follows(subject, Rademacher):
        return "signs"
    return "nodes" if _isotropic(subject) and _quadratic(subject) else None


def _isotropic(subject: EstimatorUnderTest) -> bool:
    """Does all its noise declare E uuᵀ = I? By its own class: one that inherits from a law may sample otherwise."""
    laws = [type(leaf.noise) for leaf in subject.randomness.leaves.values()]
    return not subject.opaque and all(vars(law).get("isotropic", False) for law in laws)


def _quadratic(subject: EstimatorUnderTest) -> bool:
    try:
        enumerated.require_quadratic(subject.estimator, subject.problem, chunk=subject.chunk)
    except ValueError:
        return False
    return True


def follows(subject: EstimatorUnderTest, *laws: type) -> bool:
    """Is all its noise of these laws, and declared?"""
    return not subject.opaque and all(type(leaf.noise) in laws for leaf in subject.randomness.leaves.values())


def tolerance(subject: EstimatorUnderTest) -> float:
    """What rounding allows, relative to the largest entry; a finite difference divides it by its step."""
    return max(1e-9, 100 * torch.finfo(subject.problem.dtype).eps ** 0.75) + by_step(subject)


def by_step(subject: EstimatorUnderTest) -> float:
    """What the rounding of a loss amounts to once a finite difference has divided it by its step; 0 without one."""
    step = claim(subject.estimator, "step")
    if not step:
        return 0.0
    norm = sum(float(value.double().square().sum()) for value in subject.target.values()) ** 0.5
    steepness = max(1.0, abs(float(subject.problem.loss())) / max(norm, 1e-300))
    return 30 * float(torch.finfo(subject.problem.dtype).eps) / step * steepness


def claim(estimator: object, name: str) -> Any:
    """What an estimator declares: its own attribute, or that of its noise or its oracle; None if nothing."""
    for owner in (estimator, getattr(estimator, "noise", None), getattr(estimator, "oracle", None)):
        if (found := getattr(owner, name, None)) is not None:
            return found
    return None
