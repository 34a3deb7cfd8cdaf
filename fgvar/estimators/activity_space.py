"""Activity perturbation: directions at the sites, which the layers' own local VJPs pull back to the weights."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from fgvar.errors import unknown
from fgvar.estimators.credit import Plan, broadcast_over_site, site_modules, site_plans, sum_terms
from fgvar.estimators.loss_terms import forward_terms, jvp_terms
from fgvar.estimators.losses import Losses, LossTerms
from fgvar.estimators.spaces import Linearised, Tensors, TermsAndLoss, require_perturbed
from fgvar.nn.forward_pass import called_twice
from fgvar.nn.instrumented import connected
from fgvar.nn.reach import OUTPUT
from fgvar.nn.sites import Site
from fgvar.problem import Problem


@final
@dataclass(frozen=True)
class LinearisedActivities:
    """The activities at the perturbed sites of one problem (see `Linearised`).

    Attributes:
        sites: the perturbed sites, which know their axes.
        relu_outputs: site → output of the ReLU behind it, 0 where a unit is inactive.
        total: the loss that trains what lies behind the sites.
        pullback: from all sites' activities, each cut from those before it, and ``total``, to all parameters.
        loss_gradients: as a pass along noise has found them (see `Losses.terms`).
    """

    problem: Problem
    losses: Losses
    sites: dict[str, Site]
    point: dict[str, Tensor]
    plans: dict[str, Plan]
    relu_outputs: dict[str, Tensor]
    total: Tensor
    pullback: Callable[[tuple[Tensors, Tensor]], tuple[dict[str, Tensor]]]
    loss_gradients: LossTerms | None = None

    def bind(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        return self.problem.params, tensors

    def forward_terms(self, tensors: Tensors, unperturbed: LossTerms | None = None) -> LossTerms:
        return forward_terms(self.losses, self.problem, *self.bind(tensors), unperturbed)

    def loss_terms(self, values: Tensors, tangents: Tensors) -> LossTerms:
        each = self.losses.terms(self.problem, values, tangents, self.loss_gradients)
        # Where examples are coupled, an activity moves the terms of all of them.
        return {end: t.sum(0, keepdim=True) for end, t in each.items()} if self.problem.coupled else each

    def direction(self, noise: Tensors) -> dict[str, Tensor]:
        # The backward pass of ReLU, itself a mask, is one pass over memory; a mask of its own would be three.
        return {
            site: torch.ops.aten.threshold_backward(u, self.relu_outputs[site], 0) if site in self.relu_outputs else u
            for site, u in _of_every_example(self.problem, noise).items()
        }

    def credit(self, terms: LossTerms) -> dict[str, Tensor]:
        return {
            name: broadcast_over_site(site, sum_terms(terms, self.plans[name]), self.point[name].shape)
            for name, site in self.sites.items()
        }

    def granularity(self, name: str, end: str) -> tuple[bool, bool] | None:
        # Copies are credited apart just where the network guarantees that numbers move one copy alone.
        return self.plans[name].get(end)

    def broadcast(self, name: str, c: Tensor) -> Tensor:
        return broadcast_over_site(self.sites[name], c, self.point[name].shape)

    def backward(self, credited: Tensors) -> dict[str, Tensor]:
        # Of sums over the batch, gradients are fewer numbers to divide than activities are.
        n = self.problem.batch_size
        found = self.pullback(({site: credited[site] for site in self.sites}, n * torch.ones_like(self.total)))[0]
        return {name: value / n for name, value in found.items()}


@dataclass(frozen=True)
class ActivitySpace:
    """Activity perturbation: directions at the sites; the layers' own local VJPs pull them back.

    ĝ = J_zᵀ(c ⊙ u), where u perturbs the activities z of all sites and examples at once, c is each number's
    credited directional derivative, and J_z differentiates every site by the parameters between it and the
    sites before it. E ĝ = ∇ for noise with E uuᵀ = I.

    Args:
        mask_inactive: do not perturb (nor credit) units whose ReLU is inactive: their gradient is 0, and
            noise on them only adds variance (Ren et al. 2023, Sec. 3.6). Off where no ReLU is declared.
        sites: names of the sites to perturb; None takes all.
        relu_after: for networks that declare none: site → name of the module whose zeros mark inactive units.
            That its gradient is 0 there is taken on trust: where the loss (or a local head's) sees the site past
            that module too, or the module is no ReLU, masking is biased, which `fgvar.testing` finds.
        per_tensor: move each site alone (one directional derivative each) in place of all at once (one).

    Raises:
        ValueError: no site, an unknown one, one that is called twice or carries no batch axis; parameters
            that reach the loss past the sites; masks of another shape.

    Source: Ren et al. 2023, eq. 3 and Sec. 3.6.

    Example:
        >>> ActivitySpace(mask_inactive=False).mask_inactive
        False
    """

    mask_inactive: bool = True
    sites: tuple[str, ...] | None = None
    relu_after: Mapping[str, str] | None = None
    per_tensor: bool = False

    per_example: ClassVar[bool] = True

    @property
    def one_pass(self) -> bool:
        # Nothing depends on a unit that a declared ReLU masks; a ReLU named by the user is taken on trust.
        return not self.per_tensor and not self.relu_after

    def check(self, problem: Problem) -> None:
        require_perturbed(problem)
        if not problem.trace.sites:
            raise ValueError("the network has no site to perturb; wrap it: fgvar.Problem(fgvar.with_sites(net), …)")
        for site in (*(self.sites or ()), *(self.relu_after or {})):
            _require_known(problem, site)
        for site in self._sites(problem):
            require_site(problem, site)
        for site, relu in self._relus(self._sites(problem)).items():
            if relu not in problem.trace.visits:
                raise ValueError(unknown(f"module (the ReLU of site {site!r})", relu, problem.trace.visits))
            if len(problem.trace.visits[relu]) > 1:
                raise ValueError(called_twice(relu))
            inactive = problem.trace.visits[relu][0].shape
            if inactive != problem.trace.sites[site]:
                raise ValueError(
                    f"site {site!r} has shape {problem.trace.sites[site]}, the ReLU {relu!r} named for it {inactive}"
                )
        self._require_coverage(problem)

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {site: problem.trace.sites[site][1:] for site in self._sites(problem)}

    def linearise(self, problem: Problem, losses: Losses) -> Linearised:
        sites, ends = self._sites(problem), tuple(problem.trace.ends)
        relus = self._relus(sites)

        # Behind the sites no perturbed parameter reaches the losses: their total's gradient is that of the heads.
        def forward(params: Tensors) -> tuple[tuple[dict[str, Tensor], Tensor], dict[str, Tensor]]:
            outputs, values = problem.run(params, watch=(*relus.values(), *ends), cut=sites)
            total = losses.total(problem, params, outputs, {end: values[end] for end in ends})
            return ({site: values[site] for site in sites}, total), {s: values[r] for s, r in relus.items()}

        # torch annotates a pair, which is what vjp returns without has_aux.
        (z, total), pullback, relu_outputs = cast(Any, torch.func.vjp(forward, problem.params, has_aux=True))
        point = {site: torch.zeros_like(value) for site, value in z.items()}
        plans = site_plans(problem, losses, sites)
        return LinearisedActivities(problem, losses, sites, point, plans, relu_outputs, total, pullback)

    def linearise_along(self, problem: Problem, losses: Losses, noise: Tensors) -> tuple[Linearised, TermsAndLoss]:
        sites, along = self._sites(problem), _of_every_example(problem, noise)
        relus = self._relus(sites)
        # Taps of zeros would be read and added: what moves is pushed, and nothing moves beside.
        still = {"": torch.zeros((), dtype=problem.dtype, device=problem.device)}

        def forward(params: Tensors) -> tuple[tuple[dict[str, Tensor], Tensor], Any]:
            seen = jvp_terms(
                losses, problem, params, lambda _: (params, {}), still, still,
                watch=tuple(relus.values()), add_tangent=along,
            )  # fmt: skip
            relu_outputs = {s: seen.watched[r] for s, r in relus.items()}
            carried = relu_outputs, seen.values, seen.tangents, seen.loss_gradients
            return ({site: seen.watched[site] for site in sites}, seen.total), carried

        (z, total), pullback, carried = cast(Any, torch.func.vjp(forward, problem.params, has_aux=True))
        relu_outputs, values, tangents, loss_gradients = carried
        # Along given noise nothing is differentiated at the point any more. Who still reads it (`Directions`) counts
        # and lays out: shapes are enough, and take no memory.
        point = {site: value.new_zeros(()).expand_as(value) for site, value in z.items()}
        plans = site_plans(problem, losses, sites)
        found = LinearisedActivities(
            problem, losses, sites, point, plans, relu_outputs, total, pullback, loss_gradients
        )
        return found, (found.loss_terms(values, tangents), values[OUTPUT].mean())

    def _sites(self, problem: Problem) -> dict[str, Site]:
        return site_modules(
            problem, (name for name in problem.trace.sites if self.sites is None or name in self.sites)
        )

    def _relus(self, sites: Mapping[str, Site]) -> dict[str, str]:
        """Perturbed site → the ReLU behind it."""
        if not self.mask_inactive:
            return {}
        declared = {
            name: f"{name.rpartition('.')[0]}.{site.relu}".lstrip(".")
            for name, site in sites.items()
            if site.relu is not None
        }
        named = {k: v for k, v in (self.relu_after or {}).items() if k in sites}
        return {**declared, **named}

    def _require_coverage(self, problem: Problem) -> None:
        """Every perturbed parameter must reach the loss through the sites, and only so."""
        weights = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
        names, ends = tuple(self._sites(problem)), tuple(problem.trace.ends)
        outputs, values = problem.run({**problem.params, **weights}, watch=ends, cut=names)
        through = connected([values[name] for name in names], weights)
        past = connected([problem.losses(outputs), *(values[end] for end in ends)], weights)
        if early := [name for name in problem.network.exact if name in through]:
            raise ValueError(
                f"parameters {sorted(early)} are to learn exactly but lead to perturbed sites, which cut their "
                "gradient; only modules after the last site can learn exactly (readout=)"
            )
        if uncovered := [name for name in problem.perturbed if name in past]:
            raise ValueError(
                f"parameters {uncovered} reach the loss past the sites, so that perturbing activities cannot "
                "credit them; give the modules that use them a site, with_sites(net, sites=…) (what the network uses "
                "itself, such as class tokens, belongs into a module of its own for that), or freeze them with "
                "requires_grad_(False)"
            )


def require_site(problem: Problem, site: str) -> None:
    """Raise a ValueError where this is no site whose activity is one tensor with the batch axis first."""
    _require_known(problem, site)
    shape = problem.trace.sites[site]
    if len(problem.trace.visits[site]) > 1:
        raise ValueError(f"{called_twice(site)}, or none a site: with_sites(net, inputs=…)")
    # The first axis may be as long as the batch by chance: it has to follow the batch.
    if shape[:1] != (problem.trace.batch_size,) or problem.single_trace.sites[site] != (1, *shape[1:]):
        raise ValueError(
            f"site {site!r} has shape {shape}, expected the batch axis ({problem.trace.batch_size}) first "
            "(position embeddings and routers of flattened tokens have none); with_sites(inputs=…) sees "
            "which outputs have one, or choose other sites with with_sites(sites=…)"
        )


def _require_known(problem: Problem, site: str) -> None:
    if site not in problem.trace.sites:
        raise ValueError(unknown("site", site, problem.trace.sites))


def _of_every_example(problem: Problem, noise: Tensors) -> dict[str, Tensor]:
    """Noise at sites, laid along the batch where it is shared."""
    shapes = {site: (problem.batch_size, *problem.trace.sites[site][1:]) for site in noise}
    return {site: u if u.ndim == len(shapes[site]) else u.expand(shapes[site]) for site, u in noise.items()}
