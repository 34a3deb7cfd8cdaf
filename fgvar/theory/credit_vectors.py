"""Credit vectors: pull back, to everything that is perturbed, the loss terms that credit a number.

Every estimate is a quadratic form uᵀMu. A perturbed number k enters it as X_k u_k (c_k·u), where c_k·u is the
directional derivative that credits k; here are the vectors c_k. They come from transposing the very maps that
the estimator differentiates, adds and lays out, so that no rule of credit is written twice. Numbers of one
site fall into *classes* (patch, group) that share their c.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fgvar.estimators.credit import Plan, sum_terms
from fgvar.estimators.losses import Losses, LossTerms
from fgvar.estimators.spaces import Space
from fgvar.nn.sites import Site
from fgvar.problem import Problem

Vectors = dict[str, Tensor]  # perturbed tensor → numbers of its shape


class CreditVjp:
    """Loss terms of one batch, pulled back to the perturbed tensors; ``passes`` counts the backward passes."""

    def __init__(self, space: Space, losses: Losses, problem: Problem) -> None:
        self.problem, self.passes = problem, 0
        self.linearised = space.linearise(problem, losses)
        # Noise on a masked number is not applied: it enters no derivative, and no estimate.
        self.mask = self.linearised.direction({k: torch.ones_like(v) for k, v in self.linearised.point.items()})
        values = self.linearised.forward_terms(self.linearised.point)
        still = {k: torch.zeros_like(v) for k, v in values.items()}
        self.still, self._to_tangents = torch.func.vjp(lambda t: self.linearised.loss_terms(values, t), still)[:2]
        self._to_point: dict[str, Callable[..., tuple[Vectors]]] = {}

    def classes(self, plan: Plan) -> tuple[int, ...]:
        """Shape of the credit by this plan."""
        return tuple(sum_terms(self.still, plan).shape)

    def seeds(self, plan: Plan, seed: Tensor) -> LossTerms:
        """Σ seed·credit as Σ seeds·terms, for the ends of the plan."""
        seeds = torch.func.vjp(lambda terms: sum_terms(terms, plan), self.still)[1](seed)[0]
        # Ends outside of the plan have seeds of 0, and would cost a backward pass each.
        return {end: seeds[end] for end in plan}

    def pull(self, seeds: LossTerms) -> Vectors:
        """Gradient of Σ seeds·terms by the perturbed numbers: one backward pass an end."""
        tangents = self._to_tangents({end: seeds.get(end, zero) for end, zero in self.still.items()})[0]
        total = {name: torch.zeros_like(mask) for name, mask in self.mask.items()}
        # A pullback an end, made when it is first needed: one of all ends would run every pass each time.
        for end in seeds:
            if end not in self._to_point:
                observe = lambda t, end=end: self.linearised.forward_terms(t)[end]  # noqa: E731
                self._to_point[end] = torch.func.vjp(observe, self.linearised.point)[1]
            self.passes += 1
            found = self._to_point[end](tangents[end])[0]
            total = {name: value + self.mask[name] * found[name] for name, value in total.items()}
        return total


def weight_credits(vjp: CreditVjp) -> tuple[Vectors, Vectors]:
    """For every perturbed weight w: its own entry c_ww of the gradient that credits it, and all of |c_w|²."""
    own = {name: torch.zeros_like(value) for name, value in vjp.linearised.point.items()}
    squares = dict(own)
    for plan, names in _by_plan(vjp.linearised.plans):
        for one, c in class_gradients(vjp, plan):
            # All weights that are credited alike share their c: of it they need |c|², and each its own entry.
            square = torch.stack([value.square().sum() for value in c.values()]).sum()
            for name in names:
                rows = vjp.linearised.broadcast(name, one)
                own[name] = own[name] + rows * c[name]
                # Of a weight that is not moved nothing is credited, whatever moves the loss.
                squares[name] = squares[name] + vjp.mask[name] * rows * square
    return own, squares


@dataclass(frozen=True)
class SiteCredit:
    """Credit of one site's numbers. The c of class j, at this site and in class i, is later + (own if i = j).

    Attributes:
        later: [batch, *site], what all classes have in common; None for 0.
        own: [batch, *site], each class's own part within the class.
        gram: c_j·c_j over *all* perturbed numbers, [batch, patches or 1, groups or 1], or between each two
            examples, [batch, batch, …].
    """

    later: Tensor | None
    own: Tensor
    gram: Tensor

    @property
    def diagonal(self) -> Tensor:
        """c_kk: how the loss that credits a number moves with the number itself."""
        return self.own if self.later is None else self.own + self.later

    def products(self, shift: int) -> Tensor:
        """c_j of each example times c_j of the example ``shift`` further on, [batch, patches or 1, groups or 1]."""
        if self.gram.ndim == 3:
            return self.gram
        # Example n with n + shift: the diagonal of that offset, of every class.
        n = torch.arange(len(self.gram), device=self.gram.device)
        return self.gram[n, n.roll(-shift)]


def site_credits(vjp: CreditVjp, *, shared: bool) -> dict[str, SiteCredit | None]:
    """Credit of every perturbed site, in O(groups) backward passes where sites keep patches apart.

    None where no loss term is reached. ``shared`` asks for products between examples.

    Raises:
        ValueError: a site that declares patches or groups apart which it mixes.
    """
    found: dict[str, SiteCredit | None] = {}
    for plan, sites in _by_plan(vjp.linearised.plans):
        found |= _credits(vjp, plan, sites, shared) if plan else dict.fromkeys(sites)
    return found


def class_gradients(vjp: CreditVjp, plan: Plan) -> Iterator[tuple[Tensor, Vectors]]:
    """Every class of a plan, as 0/1 [1, patches or 1, groups or 1], and its c: one pass a class and end."""
    shape = vjp.classes(plan)
    for one in _one_hot(vjp, shape) if plan else ():
        yield one, vjp.pull(vjp.seeds(plan, one.expand(shape)))


def _credits(vjp: CreditVjp, plan: Plan, sites: list[str], shared: bool) -> dict[str, SiteCredit | None]:
    problem, plans, broadcast = vjp.problem, vjp.linearised.plans, vjp.linearised.broadcast
    shape = vjp.classes(plan)
    _, patches, groups = shape
    # Copies that stay apart give each class a c of its own, at a pass each; all other ends of the plan add the same
    # to every class, `later`, at one pass. Where none stays apart there is one class, and all of it is its own.
    apart = [end for end in plan if patches * groups > 1 and any(plan[end])] or list(plan)
    joint = [end for end in plan if end not in apart]
    # Where no site mixes the patches on the way to that end, the c of different patches do not overlap: one pass
    # carries those of all patches, and each is read off at its own.
    touched = [site for site, own in plans.items() if apart[0] in own]
    together = patches > 1 and all(plans[site][apart[0]][0] for site in touched)

    def pulled(seed: Tensor, ends: list[str]) -> Vectors:
        seeds = vjp.seeds(plan, seed.expand(shape))
        return vjp.pull({end: seeds[end] for end in ends})

    # The variance needs the vectors c only by their products: Gram matrices of credit, a number for two classes,
    # where the vectors themselves have an entry for every perturbed number.
    def products(a: Vectors, b: Vectors, by_patch: bool) -> Tensor:
        """⟨a, b⟩ of each example, or of each two: [batch, (batch,) patches or 1]."""
        total = torch.zeros((), dtype=problem.dtype, device=problem.device)
        for site in touched if by_patch else plans:
            x, y = (_rows(problem, site, v[site], by_patch) for v in (a, b))
            total = total + (torch.einsum("npk,mpk->nmp", x, y) if shared else (x * y).sum(2))
        return total

    # The same for every class: that of the first.
    later = pulled(_one_hot(vjp, shape)[0], joint) if joint else None
    classes = _one_hot(vjp, shape)
    if together:
        classes = classes.reshape(patches, groups, 1, patches, groups).sum(0)
    own = {site: torch.zeros_like(vjp.mask[site]) for site in sites}
    total = {site: torch.zeros_like(vjp.mask[site]) for site in touched}
    grams = []
    for chosen in classes:
        c = pulled(chosen, apart)
        for site in sites:
            inside = c[site] * broadcast(site, chosen)
            _require_apart(problem, site, inside, c[site])
            own[site] = own[site] + inside
        gram = products(c, c, together)
        # |own + later|² = |own|² + 2 own·later + |later|², the last of them below, once for all classes.
        if later:
            cross = products(later, c, together)
            gram = gram + cross + (cross.transpose(0, 1) if shared else cross)
        grams.append(gram)
        if together:
            total = {site: value + c[site] for site, value in total.items()}
    if together:
        # Patches that do not mix: each keeps the factor that its own term was given.
        factor = torch.linspace(1, 2, patches, dtype=problem.dtype, device=problem.device).reshape(1, -1, 1)
        c = pulled(factor.expand(1, patches, groups), apart)
        for site, value in total.items():
            _require_apart(problem, site, value * broadcast(site, factor), c[site])
    stacked = torch.stack(grams, -1).reshape(*grams[0].shape[:-1], patches, groups)
    if later:
        stacked = stacked + products(later, later, False)[..., None]
    return {site: SiteCredit(later[site] if later else None, own[site], stacked) for site in sites}


def _one_hot(vjp: CreditVjp, shape: tuple[int, ...]) -> Tensor:
    """Every class, [classes, 1, patches or 1, groups or 1]."""
    _, patches, groups = shape
    problem = vjp.problem
    return torch.eye(patches * groups, dtype=problem.dtype, device=problem.device).reshape(-1, 1, patches, groups)


def _rows(problem: Problem, name: str, value: Tensor, by_patch: bool) -> Tensor:
    """[batch, patches or 1, the rest] of a site's numbers."""
    site = problem.network.modules[name]
    assert isinstance(site, Site)
    if not by_patch or site.patch_axis is None:
        return value.reshape(len(value), 1, -1)
    return value.movedim(site.patch_axis, 1).flatten(2) if value.ndim > 2 else value[..., None]


def _require_apart(problem: Problem, name: str, expected: Tensor, found: Tensor) -> None:
    """Raise where a site's numbers move copies of the loss that its axes promise they do not."""
    if found.is_meta:
        return
    # Between rounding and any credit that matters: a promise that is broken shows at the size of the credit itself.
    tolerance = torch.finfo(problem.dtype).eps ** 0.6
    if float((found - expected).abs().max()) > tolerance * float(found.abs().max()):
        site = problem.network.modules[name]
        raise ValueError(
            f"site {name!r} declares that its patches or groups influence their own copy of the loss alone "
            f"({site.extra_repr()}), but they influence others, so its credit is incomplete and the closed form "
            "does not hold; correct the site's patch_axis and group_axis, or draw: fgvar.measure(…)"
        )


def _by_plan(plans: Mapping[str, Plan]) -> list[tuple[Plan, list[str]]]:
    """Names that are credited alike, together."""
    # By their ends, in order, and along which axes the copies stay apart: what is equal there shares its passes.
    found: dict[tuple[object, ...], tuple[Plan, list[str]]] = {}
    for name, plan in plans.items():
        found.setdefault(tuple(plan.items()), (plan, []))[1].append(name)
    return list(found.values())
