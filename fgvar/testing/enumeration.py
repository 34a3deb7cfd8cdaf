"""Enumeration: computes E ĝ = Σ_u p(u) ĝ(u) and Cov ĝ exactly, over all values u of the noise."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fgvar.errors import unknown
from fgvar.estimators.declared import declared
from fgvar.estimators.laws import LAW
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.protocol import GradientEstimator, require_estimator, require_problem
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.measurement.draws import Enumeration, estimates, ranges
from fgvar.problem import Problem
from fgvar.testing.polynomials import Gradients, evaluated, require_degree, require_quadratic

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
            "signs" (any estimator, under Rademacher noise), "hermite" (polynomials of degree 5 in the noise, under
            Gaussian noise), "support" (any estimator, of finite laws), "support × nodes" or "support × hermite".
        chunk: estimates computed at once; 1 means plain calls, without vmap.

    Returns:
        A dict like ``problem.params``, in float64.

    Raises:
        ValueError: noise that declares neither its values nor E uuᵀ = I, without a method; an estimator that is not
            quadratic, with nodes, or of degree 5, with Hermite points; noise of
            another law than these, or signs, stand for; see `Enumeration`.

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
    _require_law(enumeration, lambda leaf: leaf.is_isotropic, "use 'nodes' or 'support × nodes'")
    for name, leaf in enumeration.rest.leaves.items() if method is None else ():
        if not leaf.is_isotropic:  # who asks for nodes knows it
            raise ValueError(
                f"the law of leaf {name!r}, {leaf.noise!r}, declares neither E uuᵀ = I (isotropic = True) nor its "
                "values (support): give it one of them, say method='nodes' if E uuᵀ = I, or draw"
            )
    if enumeration.method.endswith("nodes"):
        require_quadratic(estimator, problem, method=enumeration.method, chunk=chunk)
    elif enumeration.method.endswith("hermite"):
        require_degree(estimator, problem, 5, method=enumeration.method, chunk=chunk)
    return mean_over(enumeration, estimator, problem, chunk)


def mean_over(
    enumeration: Enumeration, estimator: GradientEstimator, problem: Problem, chunk: int
) -> dict[str, Tensor]:
    """The mean over these values by their probabilities, whether or not they stand for the law of the noise."""
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
            quadratic ones under Gaussian noise; "support" for any of finite laws; "support × hermite" for quadratic
            ones of finite laws and Gaussian noise.
        chunk: estimates computed at once; 1 means plain calls, without vmap.

    Raises:
        ValueError: an unknown method; an estimator that is not quadratic, with "polarisation" and "hermite"; noise
            without a kurtosis, or a law of finitely many values, with the former, another law than the Gaussian with
            the latter; see `Enumeration`.

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
    by_kurtosis = all(declared(leaf.noise, "kurtosis", *LAW) is not None for leaf in randomness.leaves.values())
    _require_law(enumeration, lambda _: by_kurtosis, "use method='polarisation', which takes their fourth moments")
    if method.endswith("hermite"):
        require_quadratic(estimator, problem, method=method, chunk=chunk)
    shift = {name: g.double().flatten() for name, g in estimator.target(problem).items()}
    first = {name: torch.zeros_like(g) for name, g in shift.items()}
    second = {name: product(g[None], g.new_zeros(1)) for name, g in shift.items()}
    for weights, gradients in _enumerated(enumeration, estimator, problem, chunk):
        for name, gradient in gradients.items():
            rows = gradient.double()[:, None].flatten(1) - shift[name]
            first[name] += weights @ rows
            second[name] += product(rows, weights)
    return {name: second[name] - product(mean[None], mean.new_ones(1)) for name, mean in first.items()}


def _require_law(enumeration: Enumeration, otherwise: Callable[[Leaf], bool], use: str) -> None:
    """Raise where signs or Hermite points would stand for another law than their own."""
    law = {"signs": Rademacher, "hermite": Gaussian}.get(enumeration.method.rpartition(" ")[2])
    for name, leaf in enumeration.rest.leaves.items():
        if law is not None and type(leaf.noise) is not law:
            raise ValueError(
                f"leaf {name!r} has the law {leaf.noise!r}, expected {law.__name__}(), for which alone the points of "
                f"{enumeration.method!r} stand; "
                + (use if otherwise(leaf) else "draw instead: fgvar.measure, or fgvar.testing.unbiased")
            )


def _polarised(estimator: GradientEstimator, problem: Problem, chunk: int, product: Product) -> Gradients:
    randomness = estimator.randomness(problem)
    if randomness.size == 0:
        flat = {name: p.detach().double().flatten() for name, p in problem.params.items()}
        return {name: product(p[None], p.new_zeros(1)) for name, p in flat.items()}
    kurtosis = torch.tensor(
        [_kurtosis(name, leaf) for name, leaf in randomness.leaves.items() for _ in range(leaf.size)],
        dtype=torch.float64,
        device=problem.device,
    )
    require_quadratic(estimator, problem, even=True, chunk=chunk)
    d = randomness.size
    basis = torch.eye(d, dtype=torch.float64, device=problem.device)
    constant = {k: g[0] for k, g in evaluated(estimator, problem, randomness, basis[:1] * 0, chunk).items()}
    diagonal = {k: g - constant[k] for k, g in evaluated(estimator, problem, randomness, basis, chunk).items()}
    found = {name: product(s, kurtosis - 1) for name, s in diagonal.items()}
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


def _bar(count: int, chunk: int) -> Iterator[range]:
    windows = list(ranges(0, count, chunk))
    yield from tqdm(windows, desc="enumerating", unit="chunk", delay=1, leave=False, disable=None)
