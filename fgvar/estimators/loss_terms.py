"""Loss terms: what one forward pass shows of them, along a direction too, and their exact gradient."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

from fgvar.estimators.losses import Losses, LossTerms
from fgvar.nn.forward_mode import jvp, primal
from fgvar.nn.reach import OUTPUT
from fgvar.problem import Problem


def forward_terms(
    losses: Losses,
    problem: Problem,
    params: Mapping[str, Tensor],
    taps: Mapping[str, Tensor],
    unperturbed: Mapping[str, Tensor] | None = None,
) -> LossTerms:
    """What the oracle differentiates: features at the active ends, and the output's per-example loss.

    ``unperturbed`` are the terms there: what follows a cut gets them. Derivatives stop at cuts by themselves,
    but a difference sees all that moves.
    """
    cuts = losses.cuts(problem)
    replace = {cut: unperturbed[cut] for cut in cuts} if unperturbed else None
    return _observed(losses, problem, *problem.run(params, taps, watch=problem.trace.ends, cut=cuts, replace=replace))


def _observed(losses: Losses, problem: Problem, outputs: Any, values: Mapping[str, Tensor]) -> LossTerms:
    ends = [end for end in losses.active(problem) if end != OUTPUT]
    return {**{end: values[end] for end in ends}, OUTPUT: problem.losses(outputs)}


class JvpTerms(NamedTuple):
    """What one forward pass along a direction has seen.

    Attributes:
        values, tangents: of what `forward_terms` returns.
        total: the scalar whose gradient is the target.
        loss_gradients: its gradients by the values at the active ends.
        watched: unperturbed values of the modules that were asked for.
    """

    values: LossTerms
    tangents: LossTerms
    total: Tensor
    loss_gradients: LossTerms
    watched: dict[str, Tensor]


def jvp_terms(
    losses: Losses,
    problem: Problem,
    params: Mapping[str, Tensor],
    place: Callable[[Mapping[str, Tensor]], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
    point: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    *,
    watch: Collection[str] = (),
    add_tangent: Mapping[str, Tensor] | None = None,
) -> JvpTerms:
    """`forward_terms` at a point and along a direction from it; an enclosing vjp follows the pass through ``params``.

    ``place`` puts perturbed tensors among parameters and taps. The direction may move what modules return, too
    (``add_tangent``: see `fgvar.nn.instrumented.Network.run`).
    """

    def forward(tensors: Mapping[str, Tensor]) -> tuple[LossTerms, tuple[Tensor, LossTerms, dict[str, Tensor]]]:
        outputs, values = problem.run(
            *place(tensors), watch=(*watch, *problem.trace.ends), cut=losses.cuts(problem), add_tangent=add_tangent
        )
        observed = _observed(losses, problem, outputs, values)
        plain = {end: primal(values[end]) for end in problem.trace.ends}

        def objective(features: Mapping[str, Tensor]) -> Tensor:
            return losses.total(problem, params, tree_map(primal, outputs), {**plain, **features})

        active = {end: plain[end] for end in observed if end != OUTPUT}
        total, loss_gradients = _value_and_gradients(objective, active)
        return observed, (total, loss_gradients, {name: values[name] for name in (*watch, *(add_tangent or ()))})

    values, tangents, (total, loss_gradients, watched) = jvp(
        forward, (dict(point),), (dict(direction),), has_aux=True
    )
    return JvpTerms(values, tangents, total, loss_gradients, watched)


def _value_and_gradients(
    objective: Callable[[Mapping[str, Tensor]], Tensor], at: LossTerms
) -> tuple[Tensor, LossTerms]:
    """A scalar function and its gradients, in a pass whose value an enclosing vjp goes on to differentiate."""
    if not at:
        return objective(at), {}
    value, back = torch.func.vjp(objective, at)[:2]
    return value, back(torch.ones_like(value))[0]


def gradient(losses: Losses, problem: Problem, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The exact gradient of the losses by the given parameters: all of them, or those of the heads alone."""
    return gradient_and_loss(losses, problem, params)[0] if params else {}


def gradient_and_loss(
    losses: Losses, problem: Problem, params: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], Tensor]:
    """The same, and the batch-mean loss of the output, which its forward pass has."""

    def objective(some: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        whole = {**problem.params, **some}
        outputs, values = problem.run(whole, watch=tuple(problem.trace.ends), cut=losses.cuts(problem))
        total = losses.total(problem, whole, outputs, {end: values[end] for end in problem.trace.ends})
        return total, problem.losses(outputs).mean()

    found: tuple[dict[str, Tensor], Tensor] = grad(objective, has_aux=True)(dict(params))
    return found
