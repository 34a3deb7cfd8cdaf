"""Credit: which loss terms credit which perturbed number, and how their derivatives lie along its tensor."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, cast

from torch import Tensor

from fgvar.estimators.losses import Losses, LossTerms
from fgvar.nn.reach import ForwardTrace
from fgvar.nn.sites import Site
from fgvar.problem import Problem

Plan = dict[str, tuple[bool, bool]]  # end → do its copies stay apart along patches, along groups?


class Ends(NamedTuple):
    """The ends whose loss trains the trunk, and those after which gradients stop."""

    active: Sequence[str]
    cuts: Sequence[str]


def site_modules(problem: Problem, names: Iterable[str]) -> dict[str, Site]:
    """The sites of these names, which know their axes."""
    modules = problem.network.modules
    return {name: cast(Site, modules[name]) for name in names}


def site_plans(problem: Problem, losses: Losses, sites: Mapping[str, Site]) -> dict[str, Plan]:
    """How the numbers of each site are credited."""
    ends, plans = Ends(losses.active(problem), losses.cuts(problem)), {}
    for name, site in sites.items():
        apart = site.patch_axis is not None, site.group_axis is not None
        plans[name] = credit_plan(problem.trace, ends, name, [name], apart)
    return plans


def row_plans(problem: Problem, losses: Losses, names: Iterable[str]) -> dict[str, Plan]:
    """How the entries of each parameter are credited when weights are perturbed."""
    ends, modules, plans = Ends(losses.active(problem), losses.cuts(problem)), problem.network.modules, {}
    for name in names:
        owners = problem.network.owners[name]
        rows_apart = all(losses.group_rows(modules.get(owner)) for owner in owners)
        plans[name] = credit_plan(problem.trace, ends, name, owners, (False, rows_apart))
    return plans


def credit_plan(trace: ForwardTrace, ends: Ends, name: str, modules: Sequence[str], apart: tuple[bool, bool]) -> Plan:
    """The active ends that a parameter or site influences, and along which axes the copies there stay apart.

    ``modules`` are those that own the parameter, or the site itself. Copies stay apart only at a lone module's
    own end, and only along the axes (patches, groups) along which the network guarantees that they are independent.
    """
    own = trace.ends_after(modules[0], ends.cuts)[1] if len(modules) == 1 else None
    influenced = trace.losses_reached(name, ends.cuts)
    return {end: apart if end == own else (False, False) for end in ends.active if end in influenced}


def sum_terms(terms: LossTerms, plan: Plan) -> Tensor:
    """The derivatives [batch, patches or 1, groups or 1] that credit by this plan: linear in ``terms``.

    The sum over every end of the plan, and over the copies that it does not keep apart; zero [1, 1, 1] where no
    term is reached, that is where the gradient is zero.
    """
    total: Tensor | None = None
    for end, (patches, groups) in plan.items():
        term = terms[end]
        if not patches:
            term = term.sum(1, keepdim=True)
        if not groups:
            term = term.sum(2, keepdim=True)
        total = term if total is None else total + term
    return next(iter(terms.values())).new_zeros(1, 1, 1) if total is None else total


def broadcast_over_site(site: Site, c: Tensor, shape: Sequence[int]) -> Tensor:
    """``c`` [batch, patches or 1, groups or 1] laid along the patch and group axes of a site's numbers of a shape."""
    view = [c.shape[0]] + [1] * (len(shape) - 1)
    axes = [axis for axis, size in ((site.patch_axis, c.shape[1]), (site.group_axis, c.shape[2])) if size > 1]
    if c.shape[2] > 1 and site.group_axis is not None:
        c = c.repeat_interleave(shape[site.group_axis] // c.shape[2], dim=2)
        view[site.group_axis] = c.shape[2]
    if c.shape[1] > 1 and site.patch_axis is not None:
        view[site.patch_axis] = c.shape[1]
    if axes != sorted(axes, key=lambda axis: axis or 0):
        c = c.transpose(1, 2)
    return c.reshape(view)


def broadcast_over_rows(c: Tensor, v: Tensor) -> Tensor:
    """``c`` [1, 1, 1 or groups] laid along the first axis of ``v``, to broadcast with it."""
    each = c.flatten()
    rows = each.repeat_interleave(v.shape[0] // len(each)) if len(each) > 1 else each
    return rows.reshape(-1, *[1] * (v.ndim - 1)) if v.ndim else rows[0]
