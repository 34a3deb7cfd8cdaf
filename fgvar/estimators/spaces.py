"""Spaces: what is perturbed, and how credit becomes a gradient of the weights."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor

from fgvar.errors import unknown
from fgvar.estimators.credit import broadcast_over_rows, broadcast_over_site, credit, row_credit, row_plan, site_plan
from fgvar.estimators.losses import Losses, LossTerms, forward_terms, gradient, jvp_terms
from fgvar.nn.forward_pass import called_twice
from fgvar.nn.instrumented import connected
from fgvar.nn.sites import Site
from fgvar.problem import Problem

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Linearised:
    """A space at one problem: where directions start, how they are credited, and the way back.

    Attributes:
        point: the perturbed tensors, unperturbed.
        bind: perturbed tensors → (parameters, taps) to run the network with.
        forward_terms: perturbed tensors → what an oracle differentiates; and, for differences, what was observed
            unperturbed (see `forward_terms`).
        terms: (values, tangents) of that → derivatives of the loss copies that the space tells apart,
            end → [batch or 1, patches or 1, groups or 1]; linear in the tangents.
        direction: noise of the shapes of ``point``, with a batch axis or one for all examples → direction.
        from_sites: the same for noise at all sites, carried to the perturbed tensors by local VJPs.
        credit: terms → what credits each perturbed number, to broadcast with ``point``; linear.
        granularity: (perturbed tensor, end) → do the copies there stay apart along patches, along groups? None where
            the tensor does not influence that end's loss.
        broadcast: (perturbed tensor, [batch or 1, patches or 1, groups or 1]) → laid along it, to broadcast.
        backward: credited noise, of the shapes of ``point`` → gradient of all parameters (batch mean): the
            perturbed ones' estimate, the heads' exact gradient.
        precomputed_jvp: values and tangents of what is observed, along the noise that the space was linearised with.
    """

    point: dict[str, Tensor]
    bind: Callable[[Tensors], tuple[Tensors, Tensors]]
    forward_terms: Callable[..., LossTerms]
    terms: Callable[[Tensors, Tensors], LossTerms]
    direction: Callable[[Tensors], dict[str, Tensor]]
    from_sites: Callable[[Tensors], dict[str, Tensor]]
    credit: Callable[[LossTerms], dict[str, Tensor]]
    granularity: Callable[[str, str], tuple[bool, bool] | None]
    broadcast: Callable[[str, Tensor], Tensor]
    backward: Callable[[Tensors], dict[str, Tensor]]
    precomputed_jvp: tuple[LossTerms, LossTerms] | None = None


class Space(Protocol):
    """Which named tensors are perturbed."""

    per_example: ClassVar[bool]  # is every perturbed number one example's own?

    @property
    def per_tensor(self) -> bool:
        """Is every perturbed tensor moved alone, by a direction of its own?"""

    def check(self, problem: Problem) -> None:
        """Raise where this space cannot estimate the gradient of every perturbed parameter."""

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        """Shape of each perturbed tensor, without a batch axis."""

    def linearise(self, problem: Problem, losses: Losses, along: Tensors | None = None) -> Linearised:
        """What an estimate needs beside noise and directional derivatives; given noise, those along it, too."""


@dataclass(frozen=True)
class WeightSpace:
    """Weight perturbation: ĝ = (∇·v) v, with v a direction in all perturbed parameters together.

    E ĝ = ∇ for noise with E vvᵀ = I. Gaussian noise shared by the batch: tr Cov(ĝ) = (d + 1)‖∇‖² for d
    parameters and one loss. With local losses a block's weights are credited by the block's terms alone.

    Args:
        per_tensor: move each tensor alone (one directional derivative each, which leaves the noise of the others
            out) in place of all at once (one).

    Source: Ren et al. 2023, eq. 2; Baydin et al. 2022.

    Example:
        >>> WeightSpace()
        WeightSpace(per_tensor=False)
    """

    per_tensor: bool = False

    per_example: ClassVar[bool] = False

    def check(self, problem: Problem) -> None:
        if not problem.perturbed:
            raise ValueError("all parameters belong to heads, which learn exactly: nothing is left to perturb")

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {name: tuple(problem.params[name].shape) for name in problem.perturbed}

    def linearise(self, problem: Problem, losses: Losses, along: Tensors | None = None) -> Linearised:
        heads = {name: value for name, value in problem.params.items() if name in problem.network.exact}
        point = {name: problem.params[name] for name in problem.perturbed}
        carried, loss_gradients = None, {}
        exact = lambda: gradient(losses, problem, heads)  # noqa: E731 (which one pass replaces)
        if along is not None and heads:

            def once(some: Tensors) -> tuple[Tensor, tuple[tuple[LossTerms, LossTerms], LossTerms]]:
                params = {**problem.params, **some}
                seen = jvp_terms(losses, problem, params, lambda weights: ({**params, **weights}, {}), point, along)
                return seen.total, ((seen.values, seen.tangents), seen.loss_gradients)

            total, back, (carried, loss_gradients) = cast(Any, torch.func.vjp(once, heads, has_aux=True))
            exact = lambda: back(torch.ones_like(total))[0]  # noqa: E731

        def place(weights: Tensors) -> tuple[Tensors, Tensors]:
            return {**problem.params, **weights}, {}

        def terms(values: Tensors, tangents: Tensors) -> LossTerms:
            # A weight is credited by the whole batch, and by all patches.
            each = losses.terms(problem, values, tangents, loss_gradients)
            return {end: t.mean(0, keepdim=True).sum(1, keepdim=True) for end, t in each.items()}

        def credited(found: LossTerms, name: str) -> Tensor:
            c = row_credit(found, row_plan(problem, losses, name))
            return broadcast_over_rows(point[name].new_zeros(1) if c is None else c, point[name])

        def from_sites(noise: Tensors) -> dict[str, Tensor]:
            linearised = ActivitySpace().linearise(problem, losses)
            found = linearised.backward(linearised.direction(noise))
            return {name: found[name] for name in point}

        return Linearised(
            point=point,
            bind=place,
            forward_terms=lambda weights, still=None: forward_terms(losses, problem, *place(weights), still),
            terms=terms,
            direction=dict,
            from_sites=from_sites,
            credit=lambda found: {name: credited(found, name) for name in point},
            granularity=lambda name, end: (False, False) if end in row_plan(problem, losses, name) else None,
            broadcast=lambda name, c: broadcast_over_rows(c.flatten(), point[name]),
            backward=lambda credited: {**credited, **exact()},
            precomputed_jvp=carried,
        )


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

    def check(self, problem: Problem) -> None:
        if not problem.trace.sites:
            raise ValueError("the network has no site to perturb; wrap it: fgvar.Problem(fgvar.with_sites(net), …)")
        for site in (*(self.sites or ()), *(self.relu_after or {})):
            if site not in problem.trace.sites:
                raise ValueError(unknown("site", site, problem.trace.sites))
        for site in self._names(problem):
            shape = problem.trace.sites[site]
            if len(problem.trace.visits[site]) > 1:
                raise ValueError(called_twice(site))
            # The first axis may be as long as the batch by chance: it has to follow the batch.
            if shape[:1] != (problem.trace.batch_size,) or problem.single_trace.sites[site] != (1, *shape[1:]):
                raise ValueError(
                    f"site {site!r} has shape {shape}, expected the batch axis ({problem.trace.batch_size}) first; "
                    "choose other sites with with_sites(sites=…)"
                )
        for site, relu in self._relus(problem).items():
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
        return {site: problem.trace.sites[site][1:] for site in self._names(problem)}

    def linearise(self, problem: Problem, losses: Losses, along: Tensors | None = None) -> Linearised:
        n, sites, relus = problem.batch_size, self._names(problem), self._relus(problem)
        ends, shapes = tuple(problem.trace.ends), {site: (n, *problem.trace.sites[site][1:]) for site in sites}

        def whole(noise: Tensors) -> dict[str, Tensor]:
            return {site: u if u.ndim == len(shapes[site]) else u.expand(shapes[site]) for site, u in noise.items()}

        # Behind the sites no perturbed parameter reaches the losses: their total's gradient is that of the heads.
        def activities(params: Tensors) -> tuple[tuple[dict[str, Tensor], Tensor], tuple[dict[str, Tensor], Any]]:
            carried: Any = (), {}  # an auxiliary result cannot be None
            if along is None:
                outputs, values = problem.run(params, watch=(*relus.values(), *ends), cut=sites)
                total = losses.total(problem, params, outputs, {end: values[end] for end in ends})
            else:
                # Taps of zeros would be read and added: what moves is pushed, and nothing moves beside.
                still = {"": torch.zeros((), dtype=problem.dtype, device=problem.device)}
                seen = jvp_terms(
                    losses, problem, params, lambda _: (params, {}), still, still,
                    watch=tuple(relus.values()), add_tangent=whole(along),
                )  # fmt: skip
                values, total = seen.watched, seen.total
                carried = (seen.values, seen.tangents), seen.loss_gradients
            return ({site: values[site] for site in sites}, total), (
                {s: values[r] for s, r in relus.items()},
                carried,
            )

        # torch annotates a pair, which is what vjp returns without has_aux.
        (z, total), vjps, (outputs, (carried, loss_gradients)) = cast(
            Any, torch.func.vjp(activities, problem.params, has_aux=True)
        )

        def direction(noise: Tensors) -> dict[str, Tensor]:
            # The backward pass of ReLU, itself a mask, is one pass over memory; a mask of its own would be three.
            return {
                site: torch.ops.aten.threshold_backward(u, outputs[site], 0) if site in outputs else u
                for site, u in whole(noise).items()
            }

        def backward(credited: Tensors) -> dict[str, Tensor]:
            # Of sums over the batch, gradients are fewer numbers to divide than activities are.
            summed: dict[str, Tensor] = vjps(({s: credited[s] for s in sites}, n * torch.ones_like(total)))[0]
            return {name: value / n for name, value in summed.items()}

        def terms(values: Tensors, tangents: Tensors) -> LossTerms:
            each = losses.terms(problem, values, tangents, loss_gradients)
            # Where examples are coupled, an activity moves the terms of all of them.
            return {end: t.sum(0, keepdim=True) for end, t in each.items()} if problem.coupled else each

        def credited(terms: LossTerms, site: str) -> Tensor:
            c = credit(terms, site_plan(problem, losses, site))
            return broadcast_over_site(problem, site, z[site].new_zeros(n, 1, 1) if c is None else c)

        # Along given noise nothing is differentiated at the point any more: shapes are enough, and take no memory.
        point = {
            site: torch.zeros_like(value) if along is None else value.new_zeros(()).expand_as(value)
            for site, value in z.items()
        }
        return Linearised(
            point=point,
            bind=lambda taps: (problem.params, taps),
            forward_terms=lambda taps, still=None: forward_terms(losses, problem, problem.params, taps, still),
            terms=terms,
            direction=direction,
            from_sites=lambda noise: direction({site: noise[site] for site in sites}),
            credit=lambda terms: {site: credited(terms, site) for site in sites},
            granularity=lambda site, end: site_plan(problem, losses, site).get(end),
            broadcast=lambda site, c: broadcast_over_site(problem, site, c),
            backward=backward,
            precomputed_jvp=carried or None,
        )

    def _names(self, problem: Problem) -> tuple[str, ...]:
        return tuple(site for site in problem.trace.sites if self.sites is None or site in self.sites)

    def _relus(self, problem: Problem) -> dict[str, str]:
        if not self.mask_inactive:
            return {}
        declared: dict[str, str] = {}
        for name in self._names(problem):
            site = problem.network.modules[name]
            assert isinstance(site, Site)
            if site.relu is not None:
                declared[name] = f"{name.rpartition('.')[0]}.{site.relu}".lstrip(".")
        named = {k: v for k, v in (self.relu_after or {}).items() if self.sites is None or k in self.sites}
        return {**declared, **named}

    def _require_coverage(self, problem: Problem) -> None:
        """Every perturbed parameter must reach the loss through the sites, and only so."""
        weights = {name: value.clone().requires_grad_() for name, value in problem.params.items()}
        if not problem.perturbed:
            raise ValueError("all parameters belong to heads, which learn exactly: nothing is left to perturb")
        names, ends = self._names(problem), tuple(problem.trace.ends)
        outputs, values = problem.run({**problem.params, **weights}, watch=ends, cut=names)
        through = connected([values[name] for name in names], weights)
        past = connected([problem.losses(outputs), *(values[end] for end in ends)], weights)
        if early := [name for name in problem.network.exact if name in through]:
            raise ValueError(
                f"parameters {sorted(early)} are to learn exactly but lead to perturbed sites, which cut their "
                "gradient; only modules after the last site can learn exactly (readout=)"
            )
        if uncovered := [name for name in problem.perturbed if name not in through or name in past]:
            raise ValueError(
                f"parameters {uncovered} reach the loss past the sites, so that perturbing activities cannot "
                "credit them; give the modules that use them a site, with_sites(net, sites=…), or none at all"
            )
