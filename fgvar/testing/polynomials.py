"""Polynomials: tells whether an estimate is one in its noise, of a degree that a few points can integrate."""

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fgvar.estimators.noise import Gaussian
from fgvar.estimators.protocol import GradientEstimator
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.measurement.draws import Enumeration, estimates, ranges
from fgvar.problem import Problem

Gradients = dict[str, Tensor]
SCALES = (1e-3, 1e3)  # of noise, between which it has to be quadratic
TRIED = 13  # estimates by which it is tried, at each value of the other noise
REACH = 3.0  # along a line, in units of the noise, on which it has to be of another degree
SINGLE = torch.finfo(torch.float32).eps
WITHIN = "; where the network computes in float32 within, as the norms of Llama do, take a problem of model.float()"
ADVICE = "use method='support' where its laws list their values, or fgvar.testing.unbiased, which draws"


def require_quadratic(
    estimator: GradientEstimator,
    problem: Problem,
    *,
    method: str = "nodes",
    even: bool = False,
    seed: int = 0,
    chunk: int = 256,
) -> None:
    """Raise a ValueError where an estimate is no polynomial of degree 2 in its noise, at each value of the rest.

    The parallelogram law and homogeneity of the even part, and additivity of the odd one (it is 0 where ``even``),
    are tried at random points and at scales from 1/1000 to 1000, where a clipped, normalised or finite difference
    shows. The rest are the leaves that ``method`` takes by their supports.
    """
    enumeration = Enumeration(estimator.randomness(problem), method)
    if not enumeration.rest.size:
        return
    u, v = _points(enumeration.rest, problem, seed)
    half = torch.stack([u, v, u + v, u - v, *(s * u for s in SCALES)])
    rows = torch.cat([0 * u[None], half, -half])
    for found in _at_each_value(estimator, problem, enumeration, rows, chunk):
        # Rounding is relative to the largest numbers on the way: some parameters are dead.
        size = largest({name: g[[1, 2, 3, 4, 7]] - g[0] for name, g in found.items()})
        constant = largest({name: g[0] for name, g in found.items()})
        eps = torch.finfo(problem.dtype).eps
        allowed = eps**0.5 * size + 10 * eps * constant / min(SCALES) ** 2
        for name, g in found.items():
            ahead, behind = g[1:].chunk(2)
            for identity, residual in _residuals(ahead, behind, g[0], even).items():
                if not (off := float(residual.abs().max())) <= allowed:
                    single = problem.dtype == torch.float64 and off <= SINGLE**0.5 * size
                    raise ValueError(
                        f"the estimate of {name!r} is not {'even and ' * even}quadratic in its noise ({identity} is "
                        f"off by {off / max(size, 1e-300):.1g} of its size), so that a few nodes cannot replace its "
                        f"law; {ADVICE}{WITHIN if single else ''}"
                    )


def require_degree(
    estimator: GradientEstimator, problem: Problem, degree: int, *, method: str, seed: int = 0, chunk: int = 256
) -> None:
    """Raise a ValueError where an estimate is no polynomial of this degree in its noise, at each value of the rest.

    Of such a one the next difference is 0, of values at equal steps along a line in general position.
    """
    enumeration = Enumeration(estimator.randomness(problem), method)
    if not enumeration.rest.size:
        return
    u, v = _points(enumeration.rest, problem, seed)
    steps = torch.linspace(-REACH, REACH, degree + 2, dtype=u.dtype, device=u.device)
    signs = [(-1) ** k * math.comb(degree + 1, k) for k in range(degree + 2)]
    for found in _at_each_value(estimator, problem, enumeration, u + steps[:, None] * v, chunk):
        allowed = torch.finfo(problem.dtype).eps ** 0.5 * largest(found)
        for name, g in found.items():
            off = float((g.new_tensor(signs) @ g).abs().max())
            if not off <= allowed:
                raise ValueError(
                    f"the estimate of {name!r} is no polynomial of degree {degree} in its noise (differences of the "
                    f"next order are {off:.1g}, expected at most {allowed:.1g}), so that a few points cannot replace "
                    f"its law; {ADVICE}"
                )


def _residuals(ahead: Tensor, behind: Tensor, none: Tensor, even: bool) -> dict[str, Tensor]:
    """What is 0 of a polynomial of degree 2, given at u, v, u ± v and `SCALES` of u, at their negatives, and at 0.

    The even part is quadratic, the odd one linear.
    """
    u, v, total, difference, *scaled = (ahead + behind) / 2 - none
    odd, other, both, _, *linear = (ahead - behind) / 2
    found = {"ĝ(u + v) + ĝ(u − v) = 2 ĝ(u) + 2 ĝ(v)": total + difference - 2 * u - 2 * v}
    for s, quadratic, first in zip(SCALES, scaled, linear, strict=True):
        found[f"ĝ({s:g} u) = {s**2:g} ĝ(u)"] = quadratic / s**2 - u
        found[f"ĝ({s:g} u) − ĝ(−{s:g} u) = {s:g} (ĝ(u) − ĝ(−u))"] = first / s - odd
    return found | ({"ĝ(u) = ĝ(−u)": odd} if even else {"ĝ(u + v) − ĝ(−u − v) is additive": both - odd - other})


def _at_each_value(
    estimator: GradientEstimator, problem: Problem, enumeration: Enumeration, rows: Tensor, chunk: int
) -> Iterator[Gradients]:
    """Estimates for these rows of the rest, at each value of the leaves that are enumerated by their supports.

    At a few of them nothing would be seen of what differs at the others: two drawn examples may be one.
    """
    step, count, each = enumeration.rest_count, len(enumeration) // enumeration.rest_count, len(rows)
    for window in ranges(0, count, max(1, chunk // each)):
        values = enumeration.take(range(step * window.start, step * window.stop, step), dtype=problem.dtype)
        held = {
            name: u.to(problem.device).repeat_interleave(each, 0)
            for name, u in values.items()
            if name not in enumeration.rest.leaves
        }
        found = evaluated(estimator, problem, enumeration.rest, rows.repeat(len(window), 1), chunk, held)
        for at in range(len(window)):
            yield {name: g[each * at : each * (at + 1)] for name, g in found.items()}


def evaluated(
    estimator: GradientEstimator,
    problem: Problem,
    randomness: Randomness,
    rows: Tensor,
    chunk: int,
    held: Mapping[str, Tensor] = MappingProxyType({}),
) -> Gradients:
    """Estimates for rows of random numbers, flat, in float64: [rows, entries] for each parameter.

    ``held`` are other leaves, one value for each row.
    """

    def estimated(some: slice) -> Gradients:
        same = {name: u[some] for name, u in held.items()}
        return estimates(estimator, problem, {**randomness.unflatten(rows[some].to(problem.dtype)), **same})

    parts = [estimated(slice(numbers.start, numbers.stop)) for numbers in ranges(0, len(rows), chunk)]
    return {
        name: torch.cat([part[name].double().reshape(len(part[name]), -1) for part in parts]) for name in parts[0]
    }


def _points(randomness: Randomness, problem: Problem, seed: int) -> Tensor:
    """Two points in general position, where the noise's own law may not be: two sign vectors can be opposite."""
    general = Randomness({name: Leaf(leaf.shape, Gaussian()) for name, leaf in randomness.leaves.items()})
    noise = general.sample(seed, [0, 1], dtype=problem.dtype, device=problem.device)
    return torch.cat([u[:, None].flatten(1) for u in noise.values()], dim=1)


def largest(gradients: Mapping[str, Tensor]) -> float:
    """The largest entry; 0 where there is none."""
    return max((float(value.abs().max()) for value in gradients.values() if value.numel()), default=0.0)
