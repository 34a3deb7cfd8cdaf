"""Credit: which loss terms credit which perturbed number, and how their derivatives lie along its tensor."""

from collections.abc import Sequence

from torch import Tensor

from fgvar.estimators.losses import Losses, LossTerms
from fgvar.nn.sites import Site
from fgvar.problem import Problem

Plan = dict[str, tuple[bool, bool]]  # end → do its copies stay apart along patches, along groups?


def credit_plan(
    losses: Losses, problem: Problem, name: str, modules: Sequence[str], *, patches: bool, groups: bool
) -> Plan:
    """The active ends that a parameter or site influences, and along which axes the copies there stay apart.

    ``modules`` are those that own the parameter, or the site itself. Copies stay apart only at a lone module's
    own end, and only along the axes (``patches``, ``groups``) along which the network guarantees that they are
    independent.
    """
    cuts = losses.cuts(problem)
    own = problem.trace.ends_after(modules[0], cuts)[1] if len(modules) == 1 else None
    influenced = problem.trace.losses_reached(name, cuts)
    return {
        end: (patches and end == own, groups and end == own) for end in losses.active(problem) if end in influenced
    }


def credit(terms: LossTerms, plan: Plan) -> Tensor | None:
    """The derivatives [batch, patches or 1, groups or 1] that credit by this plan: linear in ``terms``.

    The sum over every end of the plan, and over the copies that it does not keep apart. None where no term
    is reached, that is where the gradient is zero.
    """
    total: Tensor | None = None
    for end, (patches, groups) in plan.items():
        term = terms[end]
        if not patches:
            term = term.sum(1, keepdim=True)
        if not groups:
            term = term.sum(2, keepdim=True)
        total = term if total is None else total + term
    return total


def site_plan(problem: Problem, losses: Losses, name: str) -> Plan:
    """How the numbers of a site are credited."""
    site = problem.network.modules[name]
    assert isinstance(site, Site)
    patches, groups = site.patch_axis is not None, site.group_axis is not None
    return credit_plan(losses, problem, name, [name], patches=patches, groups=groups)


def broadcast_over_site(problem: Problem, name: str, c: Tensor) -> Tensor:
    """``c`` [batch, patches or 1, groups or 1] laid along a site's patch and group axes, to broadcast with it."""
    site, shape = problem.network.modules[name], problem.trace.sites[name]
    assert isinstance(site, Site)
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


def row_plan(problem: Problem, losses: Losses, name: str) -> Plan:
    """How the entries of a parameter are credited when weights are perturbed."""
    owners = problem.network.owners[name]
    apart = all(losses.group_rows(problem.network.modules.get(owner)) for owner in owners)
    return credit_plan(losses, problem, name, owners, patches=False, groups=apart)


def row_credit(terms: LossTerms, plan: Plan) -> Tensor | None:
    """The batch mean of a parameter's credit, [1] or one number for each group of its rows."""
    c = credit(terms, plan)
    return None if c is None else c.mean(0).flatten()


def broadcast_over_rows(c: Tensor, v: Tensor) -> Tensor:
    """``c`` [1 or groups] laid along the first axis of ``v``, to broadcast with it."""
    rows = c.repeat_interleave(v.shape[0] // len(c)) if len(c) > 1 else c
    return rows.reshape(-1, *[1] * (v.ndim - 1)) if v.ndim else rows[0]
