"""Perturbation: mean and variance of composed estimators in closed form, by the quadratic form of `closed_forms`."""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fgvar.estimators.estimator import Estimator
from fgvar.estimators.weight_space import WeightSpace
from fgvar.problem import Problem
from fgvar.stochastic.transforms import Moments
from fgvar.theory import quadratic_forms, site_jacobians
from fgvar.theory.applicability import kurtosis_of
from fgvar.theory.credit_vectors import CreditVjp, SiteCredit, Vectors, site_credits, weight_credits
from fgvar.theory.linear_layers import Layer, recognise


def moments(estimator: Estimator, problem: Problem, budget: int) -> Moments:
    """E ĝ and Var ĝ of every weight of an estimator that has a closed form: of weights at once."""
    if isinstance(estimator.space, WeightSpace):
        return _of_weights(estimator, problem, budget)
    return Moments(mean(estimator, problem, budget), variance(estimator, problem, budget))


def mean(estimator: Estimator, problem: Problem, budget: int) -> dict[str, Tensor]:
    """E ĝ of an estimator that has a closed form."""
    if isinstance(estimator.space, WeightSpace):
        return _of_weights(estimator, problem, budget).mean
    total = {name: torch.zeros_like(value) for name, value in problem.params.items()}
    for part in parts(problem, budget):
        credit_vjp = CreditVjp(estimator.space, estimator.losses, part)
        credited = {
            site: torch.zeros_like(credit_vjp.mask[site]) if found is None else found.diagonal
            for site, found in site_credits(credit_vjp, shared=False).items()
        }
        # Σ_k X_k c_kk is a backward pass from the sites with c_kk for cotangent: no X_k is ever formed.
        share = part.batch_size / problem.batch_size
        for name, value in credit_vjp.linearised.backward(credited).items():
            total[name] = total[name] + share * value
    return total


def variance(estimator: Estimator, problem: Problem, budget: int) -> dict[str, Tensor]:
    """Var ĝ of every weight of an estimator that has a closed form."""
    if isinstance(estimator.space, WeightSpace):
        return _of_weights(estimator, problem, budget).variance
    return _per_direction(estimator, problem, _activity_variance(estimator, problem, budget))


def _per_direction(estimator: Estimator, problem: Problem, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Of the mean over directions, which are independent; an antithetic pair repeats one estimate."""
    return {
        name: found[name] / estimator.directions if name in found else torch.zeros_like(value)
        for name, value in problem.params.items()
    }


def _of_weights(estimator: Estimator, problem: Problem, budget: int) -> Moments:
    """Of weight perturbation: mean and variance from the same passes, for the batch or for each example."""
    if estimator.shares_noise:
        found, spread = _for_one_direction(estimator, problem)
    else:
        # Independent noise: the estimate is the mean of the examples' own, whose variances add up to N² of its own.
        n, found, spread = problem.batch_size, dict[str, Tensor](), dict[str, Tensor]()
        for part in parts(problem, budget):
            own, squares = part.per_example(lambda example: _for_one_direction(estimator, example))
            found = {name: found.get(name, 0) + c.sum(0) / n for name, c in own.items()}
            spread = {name: spread.get(name, 0) + v.sum(0) / n**2 for name, v in squares.items()}
    return Moments({name: found[name] for name in problem.params}, _per_direction(estimator, problem, spread))


def _for_one_direction(estimator: Estimator, problem: Problem) -> tuple[Vectors, Vectors]:
    """Mean, of heads and read-outs too, which no draw changes, and variance |c_w|² + (κ − 2) c_ww²."""
    # A weight moves itself alone, X_w = 1: M = e_w c_wᵀ, so that ‖M‖² = |c_w|² and tr M² = M_ww² = c_ww².
    credit_vjp, excess = CreditVjp(estimator.space, estimator.losses, problem), kurtosis_of(estimator) - 2
    own, squares = weight_credits(credit_vjp)
    spread = {name: squares[name] + excess * c.square() for name, c in own.items()}
    return {**own, **credit_vjp.linearised.backward({})}, spread


def _activity_variance(estimator: Estimator, problem: Problem, budget: int) -> dict[str, Tensor]:
    if problem.device.type == "meta":
        raise ValueError("activity perturbation has its closed form in values, and the meta device holds none")
    n = problem.batch_size
    total = {name: torch.zeros_like(problem.params[name]) for name in problem.perturbed}
    for part in [problem] if estimator.shares_noise else parts(problem, budget):
        # Shared noise couples all examples of a batch: parts of it would lose the products between them.
        for name, value in _Sites(estimator, part, budget).variances().items():
            total[name] = total[name] + value / n**2
    return total


class _Sites:
    """Activity perturbation of some examples: plans what to use for each parameter, then computes."""

    def __init__(self, estimator: Estimator, problem: Problem, budget: int) -> None:
        self.problem, self.budget, self.kurtosis = problem, budget, kurtosis_of(estimator)
        self.credit_vjp = CreditVjp(estimator.space, estimator.losses, problem)
        self.sites = tuple(self.credit_vjp.linearised.point)
        self.plans = self.credit_vjp.linearised.plans
        self.linked = site_jacobians.links(problem, self.sites)
        self.shared = estimator.shares_noise
        pairs = problem.batch_size // 2 + 1 if estimator.shares_noise else 1
        # With shared noise M = Σ_n M_n, of which the squares hold every pair (n, n + d): all shifts d of the batch.
        # A pair and its mirror image give the same.
        self.shifts = {d: 1 if d in (0, problem.batch_size - d) else 2 for d in range(pairs)}
        self.layers: list[tuple[Layer, quadratic_forms.Arrangement]] = []
        for layer in recognise(problem, self.sites, self.linked).values():
            plan = self.plans[layer.site]
            shape = self.credit_vjp.classes(plan)[1:] if plan else (1, 1)
            arrangement = quadratic_forms.arrange(problem, layer, *shape)
            # Else its classes cross the blocks of a norm, and the Jacobian below takes them as they are.
            if arrangement is not None:
                self.layers.append((layer, arrangement))

    def variances(self) -> dict[str, Tensor]:
        """N² times the variance of every perturbed parameter."""
        known = {name for layer, _ in self.layers for name in layer.parameters(self.problem).values()}
        rest = {name: sites for name, sites in self.linked.parameters.items() if name not in known}
        sizes = {name: self._bytes(name, sites) for name, sites in rest.items()}
        # All sizes before the first Jacobian: what is beyond the budget is refused before hours of work.
        found = {name: self._from_jacobian(name, sites, sizes[name]) for name, sites in rest.items()}
        credits = site_credits(self.credit_vjp, shared=self.shared) if self.layers else {}
        for layer, arrangement in self.layers:
            found |= self._from_layer(layer, arrangement, credits[layer.site])
        return found

    def _from_layer(
        self, layer: Layer, arrangement: quadratic_forms.Arrangement, credit: SiteCredit | None
    ) -> dict[str, Tensor]:
        names = layer.parameters(self.problem)
        total = {name: torch.zeros_like(self.problem.params[name]) for name in names.values()}
        if credit is None:
            return total
        linearised, mask = self.credit_vjp.linearised, self.credit_vjp.mask[layer.site]
        for shift, times in self.shifts.items():
            found = quadratic_forms.quadratic(
                layer, arrangement, credit, linearised, mask, self.kurtosis, shift, self.budget
            )
            for kind, name in names.items():
                total[name] = total[name] + times * found[kind].reshape(total[name].shape)
        return {name: value.clamp_min(0) for name, value in total.items()}  # below 0 by rounding alone

    def _bytes(self, name: str, sites: tuple[str, ...]) -> int:
        """Bytes of the local Jacobian of one example (of all, where noise is shared), checked."""
        item, weights = self.problem.params[name].element_size(), self.problem.params[name].numel()
        numbers = sum(self.credit_vjp.mask[site][0].numel() for site in sites)
        classes = sum(math.prod(self.credit_vjp.classes(self.plans[site])[1:]) for site in sites if self.plans[site])
        # X with its masked copies, the pullbacks between any two classes, and the classes' credit.
        each = item * (3 * weights * numbers + 2 * weights * classes**2 + classes * numbers)
        needed = each * (self.problem.batch_size if self.shared else 1)
        if needed > self.budget:
            owner = " and ".join(repr(owner) for owner in self.problem.network.owners[name])
            raise ValueError(
                f"the Jacobian of site {', '.join(sites)} ({numbers} numbers) by {name!r} of module {owner} takes "
                f"{needed} bytes, expected at most budget={self.budget}: what this module moves is not a linear "
                "layer, convolution or norm that reaches one site as itself or through a layer norm. Put a site "
                "right after it (with_sites), raise budget=, take a smaller problem, or draw: fgvar.measure(…)"
            )
        return each

    def _from_jacobian(self, name: str, sites: tuple[str, ...], each: int) -> Tensor:
        weights = self.problem.params[name]
        total = torch.zeros(weights.numel(), dtype=weights.dtype, device=weights.device)
        found = site_jacobians.classes(self.credit_vjp, sites) if sites else None
        if found is None:
            return total.reshape(weights.shape)
        mask = torch.cat([self.credit_vjp.mask[site].flatten(1) for site in sites], 1)
        n = self.problem.batch_size
        at_once = n if self.shared else max(1, self.budget // each)
        for start in range(0, n, at_once):
            part = slice(start, start + at_once)
            batch = self.problem.rows(part)
            # In forward mode each column carries a tangent of every activation.
            columns = max(1, self.budget // (4 * batch.batch_size * _activity_bytes(self.problem)))
            rows = site_jacobians.local_jacobian(batch, name, sites, self.sites, columns) * mask[part, :, None]
            some = site_jacobians.Classes(found.members, found.gradients[part], found.gram[part, part])
            for shift, times in self.shifts.items():
                total = total + times * site_jacobians.quadratic(rows, some, self.kurtosis, shift)
        return total.clamp_min(0).reshape(weights.shape)


def _activity_bytes(problem: Problem) -> int:
    """Bytes of all modules' outputs for one example."""
    shapes = [visit.shape[1:] for visits in problem.trace.visits.values() for visit in visits if visit.shape]
    return problem.dtype.itemsize * sum(math.prod(shape) for shape in shapes) or 1


def parts(problem: Problem, budget: int) -> Iterator[Problem]:
    """The problem in parts whose forward and backward passes, and gradients, keep to the budget."""
    parameters = sum(p.numel() * p.element_size() for p in problem.params.values())
    # With room: values, tangents and cotangents of both passes, and a few gradients while they are added.
    at_once = max(1, budget // (8 * _activity_bytes(problem) + 4 * parameters))
    for start in range(0, problem.batch_size, at_once):
        yield problem.rows(slice(start, start + at_once))
