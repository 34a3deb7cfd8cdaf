"""Losses: which loss terms there are, where gradients stop, and which term credits which number."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.func import grad
from torch.utils._pytree import tree_map

from fgvar.errors import unknown
from fgvar.nn.forward_mode import at_rest, jvp
from fgvar.nn.reach import OUTPUT
from fgvar.problem import Problem

Terms = dict[str, Tensor]  # end → directional derivative of each loss copy [batch, patches or 1, groups or 1]


class Losses(Protocol):
    """Loss terms of a problem. All of them are functions of the batch; gradients are of batch means."""

    def check(self, problem: Problem) -> None:
        """Raise a ValueError where the network lacks what these losses need."""

    def cuts(self, problem: Problem) -> tuple[str, ...]:
        """The ends after which gradients stop."""

    def active(self, problem: Problem) -> tuple[str, ...]:
        """The ends whose loss trains the trunk, in order."""

    def terms(
        self,
        problem: Problem,
        values: Mapping[str, Tensor],
        tangents: Mapping[str, Tensor],
        slopes: Mapping[str, Tensor] | None = None,
    ) -> Terms:
        """Directional derivatives of the loss copies from those of what `observe` returned.

        ``slopes``: gradients of `total` by the values at the active ends, where a pass has them already.
        """

    def group_rows(self, module: object) -> bool:
        """Is each row group of this module's parameters credited by its own group's copies alone?"""

    def total(
        self, problem: Problem, params: Mapping[str, Tensor], outputs: Any, values: Mapping[str, Tensor]
    ) -> Tensor:
        """The scalar whose gradient is the target, from the output and the values at all ends."""


def observe(
    losses: Losses,
    problem: Problem,
    params: Mapping[str, Tensor],
    taps: Mapping[str, Tensor],
    still: Mapping[str, Tensor] | None = None,
) -> Terms:
    """What the oracle differentiates: features at the active ends, and the output's per-example loss.

    ``still`` is what was observed unperturbed: what follows a cut gets it. Derivatives stop at cuts by themselves,
    but a difference sees all that moves.
    """
    cuts = losses.cuts(problem)
    put = {cut: still[cut] for cut in cuts} if still else None
    return _observed(losses, problem, *problem.run(params, taps, watch=problem.map.ends, cut=cuts, put=put))


def _observed(losses: Losses, problem: Problem, outputs: Any, values: Mapping[str, Tensor]) -> Terms:
    ends = [end for end in losses.active(problem) if end != OUTPUT]
    return {**{end: values[end] for end in ends}, OUTPUT: problem.losses(outputs)}


class Pass(NamedTuple):
    """What one forward pass along a direction has seen.

    Attributes:
        values, tangents: of what `observe` returns.
        total: the scalar whose gradient is the target.
        slopes: its gradients by the values at the active ends.
        watched: unperturbed values of the modules that were asked for.
    """

    values: Terms
    tangents: Terms
    total: Tensor
    slopes: Terms
    watched: dict[str, Tensor]


def observe_along(
    losses: Losses,
    problem: Problem,
    params: Mapping[str, Tensor],
    place: Callable[[Mapping[str, Tensor]], tuple[Mapping[str, Tensor], Mapping[str, Tensor]]],
    point: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
    *,
    watch: Collection[str] = (),
    push: Mapping[str, Tensor] | None = None,
) -> Pass:
    """`observe` at a point and along a direction from it, in a pass that an enclosing vjp follows through ``params``.

    ``place`` puts perturbed tensors among parameters and taps. The direction may move what modules return, too
    (``push``: see `fgvar.nn.instrumented.Network.run`).
    """

    def forward(tensors: Mapping[str, Tensor]) -> tuple[Terms, tuple[Tensor, Terms, dict[str, Tensor]]]:
        outputs, values = problem.run(
            *place(tensors), watch=(*watch, *problem.map.ends), cut=losses.cuts(problem), push=push
        )
        observed = _observed(losses, problem, outputs, values)
        plain = {end: at_rest(values[end]) for end in problem.map.ends}

        def objective(features: Mapping[str, Tensor]) -> Tensor:
            return losses.total(problem, params, tree_map(at_rest, outputs), {**plain, **features})

        active = {end: plain[end] for end in observed if end != OUTPUT}
        total, slopes = _value_and_slopes(objective, active)
        return observed, (total, slopes, {name: values[name] for name in (*watch, *(push or ()))})

    values, tangents, (total, slopes, watched) = jvp(forward, (dict(point),), (dict(direction),), has_aux=True)
    return Pass(values, tangents, total, slopes, watched)


def _value_and_slopes(objective: Callable[[Mapping[str, Tensor]], Tensor], at: Terms) -> tuple[Tensor, Terms]:
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
        outputs, values = problem.run(whole, watch=tuple(problem.map.ends), cut=losses.cuts(problem))
        total = losses.total(problem, whole, outputs, {end: values[end] for end in problem.map.ends})
        return total, problem.losses(outputs).mean()

    found: tuple[dict[str, Tensor], Tensor] = grad(objective, has_aux=True)(dict(params))
    return found


@dataclass(frozen=True)
class GlobalLoss:
    """The loss of the network's output; gradients flow end to end.

    Args:
        heads: local heads learn from features behind a stop-gradient (as in the paper's BP-free schemes), or
            not at all (backprop).

    Source: Ren et al. 2023, Sec. 3.

    Example:
        >>> GlobalLoss()
        GlobalLoss(heads=True)
    """

    heads: bool = True

    def check(self, problem: Problem) -> None:
        """Every network has an output."""

    def cuts(self, problem: Problem) -> tuple[str, ...]:  # noqa: ARG002
        return ()

    def active(self, problem: Problem) -> tuple[str, ...]:  # noqa: ARG002
        return (OUTPUT,)

    def terms(
        self,
        problem: Problem,  # noqa: ARG002
        values: Mapping[str, Tensor],  # noqa: ARG002
        tangents: Mapping[str, Tensor],
        slopes: Mapping[str, Tensor] | None = None,  # noqa: ARG002
    ) -> Terms:
        return {OUTPUT: tangents[OUTPUT][:, None, None]}

    def group_rows(self, module: object) -> bool:  # noqa: ARG002
        return False

    def total(
        self, problem: Problem, params: Mapping[str, Tensor], outputs: Any, values: Mapping[str, Tensor]
    ) -> Tensor:
        return _total(self, problem, params, outputs, values if self.heads else {})


@dataclass(frozen=True)
class LocalLosses:
    """Losses of local heads, one at every block or at the last one, in one copy or replicated.

    Copy (p, g) of a block's loss has the value of the ordinary loss and passes gradient to the features of
    patch p and group g only. The copies' gradients therefore sum to the ordinary gradient, while each copy's
    directional derivative ⟨∂L/∂x(p,g), ẋ(p,g)⟩ credits its own features alone: less noise, same mean. The
    fused form computes all copies at the cost of one (Ren et al. 2023, Sec. 4, eqs 4-6, Fig. 5).

    Args:
        block: one loss a block; else only the last block's.
        patch: replicate over patches.
        group: replicate over channel groups.
        stop: stop gradients between blocks, and before the read-out (True); False stops only before the
            read-out, so that gradients flow end to end through all blocks (L-BP).
        credit: "unbiased" credits every weight with all copies that it influences. "published" credits the
            rows of a channel layer with their own group's copies alone, as the paper's code does; the layer
            norm after that layer couples the groups, so this is biased for more than one group.

    Raises:
        ValueError: an unknown credit; on use, a network without local heads.

    Source: Ren et al. 2023, Sec. 4 and Fig. 3.

    Example:
        >>> LocalLosses(patch=False).group
        True
    """

    block: bool = True
    patch: bool = True
    group: bool = True
    stop: bool = True
    credit: str = "unbiased"

    CREDITS: ClassVar[tuple[str, ...]] = ("unbiased", "published")

    def __post_init__(self) -> None:
        if self.credit not in self.CREDITS:
            raise ValueError(unknown("credit", self.credit, self.CREDITS))

    def check(self, problem: Problem) -> None:
        if not problem.map.ends:
            raise ValueError(
                "the network has no local heads, so it has no local losses; give it some "
                "(fgvar.with_local_heads(net, after=…), fgvar.networks.LocalMixer), or use a scheme with the global "
                "loss (FG-W, FG-A)"
            )

    def cuts(self, problem: Problem) -> tuple[str, ...]:
        ends = tuple(problem.map.ends)
        return ends if self.block and self.stop else ends[-1:]

    def active(self, problem: Problem) -> tuple[str, ...]:
        ends = tuple(problem.map.ends)
        return (*(ends if self.block else ends[-1:]), OUTPUT)

    def terms(
        self,
        problem: Problem,
        values: Mapping[str, Tensor],
        tangents: Mapping[str, Tensor],
        slopes: Mapping[str, Tensor] | None = None,
    ) -> Terms:
        terms = {OUTPUT: tangents[OUTPUT][:, None, None]}
        for end in self.active(problem)[:-1]:
            slope = (
                grad(lambda x, end=end: problem.local_losses(problem.params, end, x).mean())(values[end])
                if not slopes
                else slopes[end]
            )
            term = problem.batch_size * (slope * tangents[end]).sum(3)
            term = term if self.patch else term.sum(1, keepdim=True)
            terms[end] = term if self.group else term.sum(2, keepdim=True)
        return terms

    def group_rows(self, module: object) -> bool:
        guaranteed = getattr(module, "group_rows", False)
        return bool(guaranteed or (self.credit == "published" and getattr(module, "published_group_rows", False)))

    def total(
        self, problem: Problem, params: Mapping[str, Tensor], outputs: Any, values: Mapping[str, Tensor]
    ) -> Tensor:
        return _total(self, problem, params, outputs, values)


def _total(
    losses: Losses, problem: Problem, params: Mapping[str, Tensor], outputs: Any, values: Mapping[str, Tensor]
) -> Tensor:
    """Batch means of all terms, summed; a head that does not train the trunk learns behind a stop-gradient."""
    total = problem.losses(outputs).mean()
    for end, features in values.items():
        seen = features if end in losses.active(problem) else features.detach()
        total = total + problem.local_losses(params, end, seen).mean()
    return total
