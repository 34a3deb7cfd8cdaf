"""Stochastic gradients in closed form: the law of total variance, Var ĝ = E_ω Var(ĝ | ω) + Var_ω E(ĝ | ω).

A sampler tells mean and spread of X = (1/N) Σ ω_n x_n for given terms x_n, and a transform what it makes of a mean
and a variance. Of ``of`` two facts are used: given ω its mean is linear in ω, and its variance a quadratic form of ω.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from fgvar.estimators.estimator import Estimator
from fgvar.estimators.protocol import GradientEstimator
from fgvar.problem import Problem
from fgvar.stochastic.history import History
from fgvar.stochastic.sampling import Everything, Sample
from fgvar.stochastic.sentence import Stochastic, of_terms, origin_of
from fgvar.stochastic.transforms import Gradient, Moments
from fgvar.theory import perturbation
from fgvar.theory.applicability import estimates_of
from fgvar.theory.commuted import commuted


def moments(estimator: Stochastic, problem: Problem, budget: int) -> Moments:
    """E ĝ and Var ĝ, entry by entry, of a sentence that has a closed form."""
    estimator, added = commuted(estimator, problem)
    here, of, sample = estimator.at.view(problem, {}), estimates_of(estimator.of), estimator.sample
    known = not sample.leaves(origin_of(here))
    if known:
        here, sample = estimator.seen(problem, {}), Everything()
    if known and not estimator.each:
        found = of_one(of, here, budget)
    elif isinstance(of, Estimator) and not estimator.each:
        found = _of_batches(of, sample, here, budget)
    else:
        found = _of_terms(_terms(estimator, problem, budget), sample, here, budget)
    found = Moments(found.mean, {name: v + added.get(name, 0) for name, v in found.variance.items()})
    for transform in estimator.then:
        found = transform.moments(*found, problem)
    return Moments(found.mean, {name: v / estimator.workers for name, v in found.variance.items()})


def _of_batches(of: Estimator, sample: Sample, here: Problem, budget: int) -> Moments:
    """Of batches that are perturbed as a whole: by means and variances of batches weighted in other ways."""
    origin, n = origin_of(here), here.batch_size
    units = torch.eye(n, dtype=torch.float64, device=here.device)

    def weighted(factors: Tensor) -> Problem:
        return here.weighted(n * factors)

    usual = weighted(sample.mean(units, origin))
    # A quadratic form Var(ω) has the mean Var(E ω) + Σ Var(f) over the directions f of Cov ω. Noise of each example's
    # own has a variance Σ ω_n² v_n, for which the ω² are replaced by their means.
    own = usual if of.shares_noise else weighted(sample.squares(units, origin).sqrt())
    mean = perturbation.mean(of, usual, budget)
    variance = perturbation.variance(of, own, budget)
    for factors in _directions(sample, units, origin):
        moved = weighted(factors)
        if of.shares_noise:
            found = perturbation.moments(of, moved, budget)
        else:
            found = Moments(perturbation.mean(of, moved, budget), {})
        variance = {name: v + found.mean[name].square() + found.variance.get(name, 0) for name, v in variance.items()}
    return Moments(mean, variance)


def _directions(sample: Sample, units: Tensor, origin: Problem) -> Iterator[Tensor]:
    """Vectors f with Σ f fᵀ = Cov ω/N²."""
    # Var X = xᵀCx for C = Cov ω/N²: half its gradient is Cx, and C itself at the unit vectors.
    covariance = torch.func.grad(lambda terms: sample.spread(terms, origin).sum())(units) / 2
    sizes, vectors = torch.linalg.eigh(covariance)
    for size, vector in zip(sizes, vectors.T, strict=True):
        if size > torch.finfo(sizes.dtype).eps * sizes[-1]:
            yield size.sqrt() * vector


def _of_terms(terms: Callable[[Problem], Moments], sample: Sample, here: Problem, budget: int) -> Moments:
    """Of given moments of the examples' own gradients, stacked; no variances where these have no noise."""
    origin, n = origin_of(here), here.batch_size
    factors = torch.ones(n, device=here.device) if here.importance is None else here.importance
    here = here.unweighted()
    shapes = {name: g.shape[1:] for name, g in terms(here.rows(slice(0, 1))).mean.items()}
    mean, variance = Gradient(), Gradient()
    for names in _groups(shapes, n, budget):
        # Of each part no more is kept than the columns of these names, whose passes are made again for others.
        found = [_columns(terms(part), names) for part in perturbation.parts(here, budget)]
        # In float64, as differences of sums of squares are made of them.
        g, noise = (torch.cat(rows).double() for rows in zip(*found, strict=True))
        g = g * factors[:, None]
        spread = sample.spread(g, origin)
        if noise.shape[1]:
            spread = spread + sample.squares(noise * factors[:, None].square(), origin)
        for total, columns in ((mean, sample.mean(g, origin)), (variance, spread)):
            pieces = columns.to(here.dtype).split([shapes[name].numel() for name in names])
            total |= {name: piece.reshape(shapes[name]) for name, piece in zip(names, pieces, strict=True)}
    return Moments(mean, variance)


def _terms(estimator: Stochastic, problem: Problem, budget: int) -> Callable[[Problem], Moments]:
    """A function of some examples: moments of their own, shaped gradients, without their ω."""
    if not of_terms(estimator.randomness(problem).leaves):
        return lambda part: Moments(part.per_example(lambda example: estimator.term(example, {}, problem)), {})

    def one(example: Problem) -> Moments:
        found = of_one(estimator.of, example, budget)
        for transform in estimator.each:
            found = transform.moments(*found, problem)
        return found

    def stacked(part: Problem) -> Moments:
        # One by one: closed forms look at values, which a vmap has none of.
        each = [one(part.example(index)) for index in range(part.batch_size)]
        means, variances = ({name: torch.stack([g[k][name] for g in each]) for name in each[0][k]} for k in (0, 1))
        return Moments(means, variances)

    return stacked


def of_one(of: GradientEstimator, problem: Problem, budget: int) -> Moments:
    """Of an estimator by itself that has a closed form, on a problem that is known."""
    of = estimates_of(of)
    if isinstance(of, Estimator):
        return perturbation.moments(of, problem, budget)
    if isinstance(of, Stochastic):
        return moments(of, problem, budget)
    if isinstance(of, History) and of.randomness(problem).leaves:
        found, factor = of_one(of.of, problem, budget), getattr(of.through, "gain")(of.steps)  # noqa: B009
        return Moments(found.mean, {name: factor * v for name, v in found.variance.items()})
    gradient = of.estimate(problem, {}).gradient
    return Moments(gradient, {name: torch.zeros_like(g) for name, g in gradient.items()})


def _groups(shapes: Mapping[str, torch.Size], n: int, budget: int) -> Iterator[list[str]]:
    """Names whose gradients of all examples, in float64 and with their squares, keep to the budget; one at least."""
    names, held = list[str](), 0
    for name, shape in shapes.items():
        size = 16 * n * shape.numel()
        if names and held + size > budget:
            yield names
            names, held = [], 0
        names, held = [*names, name], held + size
    yield names


def _columns(found: Moments, names: list[str]) -> tuple[Tensor, Tensor]:
    """Means and variances of these names, [examples, numbers]; of no variances, no number."""
    mean = _side_by_side(found.mean, names)
    return mean, _side_by_side(found.variance, names) if found.variance else mean[:, :0]


def _side_by_side(stacked: Gradient, names: list[str]) -> Tensor:
    return torch.cat([stacked[name][:, None].flatten(1) for name in names], 1)
