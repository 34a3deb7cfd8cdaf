"""Enumeration: computes E ĝ = Σ_u p(u) ĝ(u) and Cov ĝ exactly, over all values u of the noise."""

from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fgvar.errors import unknown
from fgvar.estimators.declared import declared
from fgvar.estimators.laws import LAW
from fgvar.estimators.noise import Gaussian
from fgvar.estimators.protocol import GradientEstimator, require_estimator, require_problem
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.measurement.draws import Enumeration, estimates, ranges
from fgvar.problem import Problem

Gradients = dict[str, Tensor]
HELD = 5  # values of finite leaves at which an estimate has to be quadratic in the others
SCALES = (1e-3, 1e3)  # of noise, between which it has to be
Product = Callable[[Tensor, Tensor], Tensor]  # rows r and their weights w → Σ w r⊗r, or what is wanted of it


def expectation(
    estimator: GradientEstimator, problem: Problem, *, method: str | None = None, chunk: int = 256
) -> dict[str, Tensor]:
    """E ĝ given the batch, exactly: the average over an enumeration of the noise.

    One rule chooses: every law that says its values (`Law`), but for those with E uuᵀ = I, is enumerated by them,
    and all others by nodes. That is "support", "nodes", or "support × nodes" where there are both.

    Args:
        estimator: any gradient estimator.
        problem: best in float64, and small: the cost is 2d estimates ("nodes"), 2^d ("signs") or 3^d
            ("hermite") for d random numbers, times all values of the finite laws ("support").
        method: None, by the rule; "nodes" (any noise with E uuᵀ = I, for estimators that are polynomials of degree
            2 in it, as every composed scheme with the `Jvp` oracle is, and what adds noise; others are refused),
            "signs" (any estimator, under Rademacher noise), "hermite" (polynomials of degree 4 in the noise, under
            Gaussian noise), "support" (any estimator, of finite laws), "support × nodes" or "support × hermite".
        chunk: estimates computed at once; 1 means plain calls, without vmap.

    Returns:
        A dict like ``problem.params``, in float64.

    Raises:
        ValueError: an estimator that is not quadratic, with nodes; see `Enumeration`.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> x, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1])
        >>> problem = Problem(torch.nn.Linear(3, 2, dtype=torch.float64), "cross_entropy", (x, y))
        >>> mean, target = expectation(scheme("FG-W"), problem), problem.backprop()
        >>> bool(torch.allclose(mean["weight"], target["weight"], rtol=0, atol=1e-12))
        True
    """
    require_estimator("estimator", estimator)
    require_problem(problem)
    randomness = estimator.randomness(problem)
    enumeration = Enumeration(randomness, default_method(randomness) if method is None else method)
    if enumeration.method.endswith("nodes"):
        require_quadratic(estimator, problem, method=enumeration.method, chunk=chunk)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in problem.params.items()}
    for weights, gradients in _enumerated(enumeration, estimator, problem, chunk):
        for name, gradient in gradients.items():
            total[name] += torch.tensordot(weights, gradient.double(), dims=1)
    return total


def covariance(
    estimator: GradientEstimator, problem: Problem, *, method: str | None = None, chunk: int = 256
) -> dict[str, Tensor]:
    """Cov(ĝ given the batch), exactly, for each parameter: [entries, entries] in float64.

    The rule of `expectation` chooses: "support", "polarisation" for "nodes", "support × hermite" for both.

    Args:
        estimator: any gradient estimator.
        problem: best in float64, and small.
        method: "polarisation" evaluates an even, quadratic estimator ĝ = uᵀSu at all e_k and e_k + e_l, which
            gives S, and takes the fourth moments from the noise's kurtosis κ (independent coordinates):
            Cov = Σ_k (κ_k − 1) S_kk S_kk + 4 Σ_{k<l} S_kl S_kl, d(d + 1)/2 estimates for d random numbers.
            "signs" (2^d estimates) is exact for any estimator under Rademacher noise; "hermite" (3^d) for
            quadratic ones under Gaussian noise; "support" for any of finite laws; "support × hermite" for both.
        chunk: estimates computed at once; 1 means plain calls, without vmap.

    Raises:
        ValueError: an unknown method; an estimator that is not quadratic, noise without a kurtosis, or a law of
            finitely many values, with "polarisation"; see `Enumeration`.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> x, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1])
        >>> problem = Problem(torch.nn.Linear(3, 2, bias=False, dtype=torch.float64), "cross_entropy", (x, y))
        >>> square = problem.backprop()["weight"].square().sum()
        >>> bool(covariance(scheme("FG-W"), problem)["weight"].trace().isclose((6 + 1) * square))
        True
    """
    require_estimator("estimator", estimator)
    require_problem(problem)
    return _second_moments(
        estimator, problem, method, chunk, lambda rows, weights: rows.T @ (weights[:, None] * rows)
    )


def variances(
    estimator: GradientEstimator, problem: Problem, *, method: str | None = None, chunk: int = 256
) -> dict[str, Tensor]:
    """The diagonals of `covariance`, flat, by no matrix of a parameter's size squared."""
    return _second_moments(estimator, problem, method, chunk, lambda rows, weights: weights @ rows.square())


def default_method(randomness: Randomness) -> str:
    """The enumeration that the rule of `expectation` chooses."""
    by_values = [leaf.is_finite and not leaf.is_isotropic for leaf in randomness.leaves.values()]
    if not any(by_values):
        return "nodes"
    return "support" if all(by_values) else "support × nodes"


SECOND_MOMENTS = {"nodes": "polarisation", "support": "support", "support × nodes": "support × hermite"}


def _second_moments(
    estimator: GradientEstimator, problem: Problem, method: str | None, chunk: int, product: Product
) -> Gradients:
    randomness = estimator.randomness(problem)
    if (method := method or SECOND_MOMENTS[default_method(randomness)]) == "polarisation":
        return _polarised(estimator, problem, chunk, product)
    if method not in (exact := ("signs", "hermite", "support", "support × hermite")):
        raise ValueError(unknown("method", method, ("polarisation", *exact)))
    enumeration = Enumeration(randomness, method)
    shift = {name: g.double().flatten() for name, g in estimator.target(problem).items()}
    first = {name: torch.zeros_like(g) for name, g in shift.items()}
    second = {name: product(g[None], g.new_zeros(1)) for name, g in shift.items()}
    for weights, gradients in _enumerated(enumeration, estimator, problem, chunk):
        for name, gradient in gradients.items():
            rows = gradient.double()[:, None].flatten(1) - shift[name]
            first[name] += weights @ rows
            second[name] += product(rows, weights)
    return {name: second[name] - product(mean[None], mean.new_ones(1)) for name, mean in first.items()}


def require_quadratic(
    estimator: GradientEstimator,
    problem: Problem,
    *,
    method: str = "nodes",
    even: bool = False,
    seed: int = 0,
    chunk: int = 256,
) -> None:
    """Raise a ValueError where an estimate is no polynomial of degree 2 in its noise, at several values of the rest.

    The parallelogram law and homogeneity of the even part, and additivity of the odd one (it is 0 where ``even``),
    are tried at random points and at scales from 1/1000 to 1000, where a clipped, normalised or finite difference
    shows. The rest are the leaves that ``method`` takes by their supports.
    """
    enumeration = Enumeration(estimator.randomness(problem), method)
    u, v = _points(enumeration.rest, problem, seed)
    half = torch.stack([u, v, u + v, u - v, *(s * u for s in SCALES)])
    rows = torch.cat([0 * u[None], half, -half])
    for held in _held(enumeration, problem):
        found = evaluated(estimator, problem, enumeration.rest, rows, chunk, held)
        # Rounding is relative to the largest numbers on the way: some parameters are dead.
        size = largest({name: g[[1, 2, 3, 4, 7]] - g[0] for name, g in found.items()})
        constant = largest({name: g[0] for name, g in found.items()})
        eps = torch.finfo(problem.dtype).eps
        allowed = eps**0.5 * size + 10 * eps * constant / min(SCALES) ** 2
        for name, g in found.items():
            ahead, behind = g[1:].chunk(2)
            for identity, residual in _residuals(ahead, behind, g[0], even).items():
                if not float(residual.abs().max()) <= allowed:
                    raise ValueError(
                        f"the estimate of {name!r} is not {'even and ' * even}quadratic in its noise ({identity} is "
                        f"off by {float(residual.abs().max()) / max(size, 1e-300):.1g} of its size), so that a few "
                        "nodes cannot replace its law; use method='support' or 'support × hermite' where its laws "
                        "allow it, or fgvar.testing.unbiased, which draws"
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


def _held(enumeration: Enumeration, problem: Problem) -> Iterator[dict[str, Tensor]]:
    """A few values of the leaves that are enumerated by their supports, from first to last."""
    step, count = enumeration.rest_count, len(enumeration) // enumeration.rest_count
    for number in torch.linspace(0, count - 1, min(count, HELD)).long().tolist():
        one = enumeration.take(range(step * number, step * number + 1), dtype=problem.dtype)
        yield {name: u[0].to(problem.device) for name, u in one.items() if name not in enumeration.rest.leaves}


def _polarised(estimator: GradientEstimator, problem: Problem, chunk: int, product: Product) -> Gradients:
    randomness = estimator.randomness(problem)
    if randomness.size == 0:
        flat = {name: p.detach().double().flatten() for name, p in problem.params.items()}
        return {name: product(p[None], p.new_zeros(1)) for name, p in flat.items()}
    kurtosis = torch.cat(
        [torch.full((leaf.size,), _kurtosis(name, leaf)) for name, leaf in randomness.leaves.items()]
    )
    require_quadratic(estimator, problem, even=True, chunk=chunk)
    d = randomness.size
    basis = torch.eye(d, dtype=torch.float64, device=problem.device)
    constant = {k: g[0] for k, g in evaluated(estimator, problem, randomness, basis[:1] * 0, chunk).items()}
    diagonal = {k: g - constant[k] for k, g in evaluated(estimator, problem, randomness, basis, chunk).items()}
    weights = (kurtosis.to(problem.device) - 1).double()
    found = {name: product(s, weights) for name, s in diagonal.items()}
    pairs = torch.triu_indices(d, d, offset=1, device=problem.device)
    for numbers in _bar(pairs.shape[1], chunk):
        one, two = pairs[:, numbers.start : numbers.stop]
        for name, g in evaluated(estimator, problem, randomness, basis[one] + basis[two], chunk).items():
            twice = g - constant[name] - diagonal[name][one] - diagonal[name][two]
            found[name] += product(twice, twice.new_ones(len(twice)))
    return found


def _kurtosis(name: str, leaf: Leaf) -> float:
    kurtosis = declared(leaf.noise, "kurtosis", *LAW)
    if kurtosis is None:
        raise ValueError(
            f"the noise of leaf {name!r}, {leaf.noise!r}, declares no kurtosis, so that its fourth moments are "
            "unknown; "
            + ("use method='support' or 'support × hermite'" if leaf.is_finite else "give it one, or take 'hermite'")
        )
    return float(kurtosis)


def _enumerated(
    enumeration: Enumeration, estimator: GradientEstimator, problem: Problem, chunk: int
) -> Iterator[tuple[Tensor, Gradients]]:
    for numbers in _bar(len(enumeration), chunk):
        noise = enumeration.take(numbers, dtype=problem.dtype)
        noise = {name: u.to(problem.device) for name, u in noise.items()}
        yield enumeration.probabilities(numbers).to(problem.device), estimates(estimator, problem, noise)


def evaluated(
    estimator: GradientEstimator,
    problem: Problem,
    randomness: Randomness,
    rows: Tensor,
    chunk: int,
    held: Mapping[str, Tensor] = MappingProxyType({}),
) -> Gradients:
    """Estimates for rows of random numbers, flat, in float64: [rows, entries] for each parameter.

    ``held`` are other leaves, the same for all rows.
    """

    def estimated(some: Tensor) -> Gradients:
        same = {name: u.expand(len(some), *u.shape) for name, u in held.items()}
        return estimates(estimator, problem, {**randomness.unflatten(some.to(problem.dtype)), **same})

    parts = [estimated(rows[numbers.start : numbers.stop]) for numbers in ranges(0, len(rows), chunk)]
    return {
        name: torch.cat([part[name].double().reshape(len(part[name]), -1) for part in parts]) for name in parts[0]
    }


def _points(randomness: Randomness, problem: Problem, seed: int) -> Tensor:
    """Two points in general position, where the noise's own law may not be: two sign vectors can be opposite."""
    general = Randomness({name: Leaf(leaf.shape, Gaussian()) for name, leaf in randomness.leaves.items()})
    noise = general.sample(seed, [0, 1], dtype=problem.dtype, device=problem.device)
    return torch.cat([u[:, None].flatten(1) for u in noise.values()], dim=1)


def _bar(count: int, chunk: int) -> Iterator[range]:
    windows = list(ranges(0, count, chunk))
    yield from tqdm(windows, desc="enumerating", unit="chunk", delay=1, leave=False, disable=None)


def largest(gradients: Mapping[str, Tensor]) -> float:
    """The largest entry; 0 where there is none."""
    return max((float(value.abs().max()) for value in gradients.values() if value.numel()), default=0.0)
