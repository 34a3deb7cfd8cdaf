"""Line quadrature: integrates E ĝ along the axes of independent noise, where an estimate is almost quadratic in it.

Of an even, quadratic estimate a few nodes give the exact mean. A finite difference is quadratic to the order of its
step, and one that clips its noise is quadratic in what is left of it. Both are *additive*: over disjoint sets of
numbers a and b, F(a + b) + F(a − b) + 2 F(0) = 2 F(a) + 2 F(b) for the even part F of the estimate, so that its mean
is F(0) plus a one-dimensional integral for each number, along its axis.
"""

from dataclasses import dataclass

import numpy as np
import torch

from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.protocol import GradientEstimator
from fgvar.estimators.randomness import Randomness
from fgvar.measurement.draws import ranges
from fgvar.problem import Problem
from fgvar.testing.polynomials import Gradients, evaluated

SPLITS = 8  # random divisions of the numbers in two; one of them separates any two with probability 255/256
FAR, FAR_SPLITS = 2.0, 32  # times what is drawn, and divisions there: a bound at 3 σ is missed once in 10⁴
# What additivity may be off by, as shares of the estimates. Far out a bound shows as tens of per cent, the curvature
# and the kinks that a finite difference sees as a few.
ALMOST, ALMOST_FAR = 1e-2, 0.1
PANELS, ORDER = 7, 4  # Gauss-Legendre points between 0, 1, … 7, beyond which a normal number is 3 in 10¹²
LARGEST = 1 << 16  # evaluations


@dataclass(frozen=True)
class LineMean:
    """A mean along the axes of the noise.

    Attributes:
        gradient: E ĝ, in float64.
        points: estimates that it took.
        residual: the largest entry by which estimates are not additive: the mean may be off by about as much.
    """

    gradient: Gradients
    points: int
    residual: float


def line_mean(estimator: GradientEstimator, problem: Problem, *, chunk: int) -> LineMean | None:
    """E ĝ under independent `Gaussian` and `Rademacher` numbers; None where the estimate is not (almost) additive."""
    randomness = estimator.randomness(problem)
    rules = [_rule(leaf.noise) for leaf in randomness.leaves.values() for _ in range(leaf.size)]
    points = 2 * sum(len(rule) for rule in rules)
    if points > LARGEST:
        return None
    residual = _residual(estimator, problem, randomness, chunk)
    if residual is None:
        return None
    numbers = torch.tensor([number for number, rule in enumerate(rules) for _ in rule])
    at, weights = torch.tensor([pair for rule in rules for pair in rule], dtype=torch.float64).T
    none = torch.zeros(1, randomness.size, dtype=torch.float64, device=problem.device)
    origin = evaluated(estimator, problem, randomness, none, chunk)
    total = {name: value[0].clone() for name, value in origin.items()}
    for window in ranges(0, len(numbers), chunk):  # of which a row is as long as all the noise
        here = slice(window.start, window.stop)
        rows = torch.zeros(len(window), randomness.size, dtype=torch.float64)
        rows[torch.arange(len(window)), numbers[here]] = at[here]
        for sign in (1, -1):
            for name, found in evaluated(
                estimator, problem, randomness, sign * rows.to(problem.device), chunk
            ).items():
                total[name] += weights[here].to(found.device) @ (found - origin[name]) / 2
    params = problem.params
    return LineMean({name: value.reshape(params[name].shape) for name, value in total.items()}, points, residual)


def _residual(estimator: GradientEstimator, problem: Problem, randomness: Randomness, chunk: int) -> float | None:
    """The largest entry of F(a + b) + F(a − b) + 2 F(0) − 2 F(a) − 2 F(b); None where that is much.

    It is tried `FAR` out, too, where a bound shows that is seldom met by what is drawn.
    """
    near, size = _additivity(estimator, problem, randomness, 1.0, SPLITS, chunk)
    if not near <= ALMOST * size:  # nor where it is NaN: who divides by signs has none of 0
        return None
    far, size = _additivity(estimator, problem, randomness, FAR, FAR_SPLITS, chunk)
    return near if far <= ALMOST_FAR * size else None


def _additivity(
    estimator: GradientEstimator, problem: Problem, randomness: Randomness, scale: float, splits: int, chunk: int
) -> tuple[float, float]:
    """The largest entry by which estimates are not additive over random splits a + b, and their own largest."""
    drawn = randomness.sample(0, range(splits), dtype=torch.float64, device="cpu")
    u = scale * torch.cat([value[:, None].flatten(1) for value in drawn.values()], dim=1)
    bits = torch.from_numpy(np.random.default_rng(0).integers(0, 2, tuple(u.shape)))
    a = u * bits
    b = u - a
    rows = torch.cat([0 * a, a + b, a - b, a, b]).to(problem.device)
    residuals, sizes = [], []
    ahead, behind = (evaluated(estimator, problem, randomness, sign * rows, chunk) for sign in (1, -1))
    for name, found in ahead.items():
        none, plus, minus, one, other = ((found + behind[name]) / 2).unflatten(0, (5, splits))
        residuals.append((plus + minus + 2 * none - 2 * one - 2 * other).abs().max())
        sizes.append(plus.abs().max())
    return float(torch.stack(residuals).max()), float(torch.stack(sizes).max())


def _rule(law: object) -> list[tuple[float, float]]:
    """Points above 0 and weights, of both signs together, for even functions of a number of this law."""
    if type(law) is Rademacher:
        return [(1.0, 1.0)]
    assert type(law) is Gaussian
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    at = (np.arange(PANELS)[:, None] + (nodes + 1) / 2).ravel()
    density = np.tile(weights / 2, PANELS) * np.exp(-(at**2) / 2) * (2 / np.pi) ** 0.5
    density /= density @ at**2  # a quadratic estimate is integrated exactly
    return list(zip(at.tolist(), density.tolist(), strict=True))
