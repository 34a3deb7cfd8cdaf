"""Site Jacobians: what a weight moves at the sites, X_k = ∂z_k/∂w, with the network cut at every perturbed site.

Exact for whatever lies between two sites, at the price of one row (or column) a number: the reference for
`fgvar.theory.linear_layers`, which knows the common modules and needs no Jacobian.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import vjp

from fgvar.nn.forward_mode import jvp
from fgvar.nn.stacking import DIRECTIONS
from fgvar.problem import Problem
from fgvar.theory.credit_vectors import CreditVjp, class_gradients


@dataclass(frozen=True)
class Links:
    """Which sites each perturbed parameter, and the output of each module that is called once, reaches."""

    parameters: dict[str, tuple[str, ...]]
    modules: dict[str, tuple[str, ...]]


def links(problem: Problem, sites: Collection[str]) -> Links:
    """Which parameters and modules lead to which sites, without passing another site."""
    owners = {owner for name in problem.perturbed for owner in problem.network.owners[name]}
    # A module that runs twice moves a site by two outputs, of which one alone can be shifted here.
    called = [name for name, visits in problem.trace.visits.items() if name in owners and len(visits) == 1]
    called = [name for name in called if problem.trace.visits[name][0].shape]
    weights = {name: problem.params[name].clone().requires_grad_() for name in problem.perturbed}
    zero = torch.zeros((), dtype=problem.dtype, device=problem.device)
    # What a shift of an output reaches is what the output reaches, whatever module made it.
    shifts = {name: zero.clone().requires_grad_() for name in called}
    values, _ = problem.shift_outputs({**problem.params, **weights}, shifts, cut=sites)
    reached: dict[str, list[str]] = {}
    sources = {**{f"w{name}": w for name, w in weights.items()}, **{f"m{name}": s for name, s in shifts.items()}}
    for site in sites:
        if values[site].requires_grad:
            # The graph alone is asked, not its values: a sum has a gradient even where it is 0.
            found = torch.autograd.grad(
                values[site].sum(), list(sources.values()), allow_unused=True, retain_graph=True
            )
            for name, gradient in zip(sources, found, strict=True):
                if gradient is not None:
                    reached.setdefault(name, []).append(site)
    return Links(
        {name: tuple(reached.get(f"w{name}", ())) for name in weights},
        {name: tuple(reached.get(f"m{name}", ())) for name in called},
    )


def local_jacobian(
    problem: Problem, name: str, reached: Collection[str], cut: Collection[str], at_once: int
) -> Tensor:
    """∂(numbers at the ``reached`` sites, in order)/∂parameter of every example: [batch, numbers, weights]."""
    numbers = sum(math.prod(problem.trace.sites[site][1:]) for site in reached)
    point = problem.params[name]
    columns = torch.eye(point.numel(), dtype=point.dtype, device=point.device).reshape(-1, *point.shape)
    rows = torch.eye(numbers, dtype=point.dtype, device=point.device)
    stack = partial(problem.network.stack, DIRECTIONS, at_once=at_once)

    def one(example: Problem) -> Tensor:
        def sites(parameter: Tensor) -> Tensor:
            values = example.run({**problem.params, name: parameter}, cut=cut)[1]
            return torch.cat([values[site].flatten() for site in reached])

        # Whichever side is shorter: a column by forward mode, or a row by backward mode.
        if len(columns) <= numbers:
            moved: Tensor = stack(lambda step: jvp(sites, (point,), (step,))[1], columns)
            return moved.T
        back = vjp(sites, point)[1]
        pulled: Tensor = stack(lambda row: back(row)[0], rows)
        return pulled.flatten(1)

    stacked: Tensor = problem.per_example(one)
    return stacked


@dataclass(frozen=True)
class Classes:
    """Credit of the numbers of some sites, class by class and without any assumption on who moves whom.

    Attributes:
        members: for every class the positions of its numbers among all of the sites' numbers.
        gradients: c of every class, at those numbers alone [batch, classes, numbers].
        gram: c_j·c_j over all perturbed numbers, [batch, batch, classes].
    """

    members: list[Tensor]
    gradients: Tensor
    gram: Tensor


def classes(vjp: CreditVjp, sites: Collection[str]) -> Classes | None:
    """Credit of these sites; None where no term reaches them."""
    members, gradients, grams = [], [], []
    start = 0
    for site in sites:
        for chosen, c in class_gradients(vjp, vjp.linearised.plans[site]):
            inside = vjp.linearised.broadcast(site, chosen).expand(1, *vjp.mask[site].shape[1:]).flatten()
            members.append(start + inside.nonzero()[:, 0])
            gradients.append(torch.cat([c[other].flatten(1) for other in sites], dim=1))
            flat = torch.cat([value.flatten(1) for value in c.values()], dim=1)
            grams.append(flat @ flat.T)
        # Of sites without credit the numbers count, too: rows of X have them.
        start += vjp.mask[site][0].numel()
    return Classes(members, torch.stack(gradients, 1), torch.stack(grams, -1)) if members else None


def quadratic(rows: Tensor, credit: Classes, kurtosis: float, shift: int) -> Tensor:
    """‖M‖² + tr M² + (κ − 3) Σ M_kk² of every weight, summed over pairs of each example and one ``shift`` on.

    Args:
        rows: X, masked, [batch, numbers, weights].
        credit: of the same numbers.
        kurtosis: E u⁴.
        shift: distance between the examples of a pair.
    """
    n = torch.arange(len(rows), device=rows.device)
    # Each example with the one that many further on; shift 0 pairs it with itself.
    m = n.roll(-shift)
    own = torch.zeros_like(rows[:, :, 0])
    products = torch.zeros_like(own)
    for j, inside in enumerate(credit.members):
        own[:, inside] = credit.gradients[:, j, inside]
        products[:, inside] = credit.gram[n, m, j][:, None]
    # The numbers' own terms of ‖M‖² + (κ − 3) Σ M_kk²; what follows them is tr M², between classes.
    weights = products + (kurtosis - 3) * own * own[m]
    total = torch.einsum("nk,nkw->w", weights, rows * rows[m])
    pulled = _pulled(rows, credit.gradients[m], credit.members)
    other = pulled if shift == 0 else _pulled(rows[m], credit.gradients, credit.members)
    return total + (pulled * other.transpose(1, 2)).sum((0, 1, 2))


def _pulled(rows: Tensor, gradients: Tensor, members: list[Tensor]) -> Tensor:
    """Σ_{k in i} X_k c_{j,k}: [batch, classes i, classes j, weights]."""
    return torch.stack([gradients[:, :, inside] @ rows[:, inside] for inside in members], dim=1)
