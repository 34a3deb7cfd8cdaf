"""Losses: which loss terms there are, where gradients stop, and which term credits which number."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor
from torch.func import grad

from fgvar.errors import unknown
from fgvar.nn.reach import OUTPUT
from fgvar.nn.traits import traits_of
from fgvar.problem import Problem

LossTerms = dict[str, Tensor]  # end → directional derivative of each loss copy [batch, patches or 1, groups or 1]


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
        loss_gradients: Mapping[str, Tensor] | None = None,
    ) -> LossTerms:
        """Directional derivatives of the loss copies from those of what `forward_terms` returned.

        ``loss_gradients``: gradients of `total` by the values at the active ends, where a pass has them already.
        """

    def group_rows(self, module: object) -> bool:
        """Is each row group of this module's parameters credited by its own group's copies alone?"""

    def total(
        self, problem: Problem, params: Mapping[str, Tensor], outputs: Any, values: Mapping[str, Tensor]
    ) -> Tensor:
        """The scalar whose gradient is the target, from the output and the values at all ends."""


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
        loss_gradients: Mapping[str, Tensor] | None = None,  # noqa: ARG002
    ) -> LossTerms:
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

    @property
    def bias_reason(self) -> str:
        """Why weights credited by these terms have another mean; empty where they have not."""
        apart = self.group and self.credit == "published"
        return "rows are credited by their own group's copies alone" if apart else ""

    def check(self, problem: Problem) -> None:
        if not problem.trace.ends:
            raise ValueError(
                "the network has no local heads, so it has no local losses; give it some "
                "(fgvar.with_local_heads(net, after=…), fgvar.networks.LocalMixer), or use a scheme with the global "
                "loss (FG-W, FG-A)"
            )

    def cuts(self, problem: Problem) -> tuple[str, ...]:
        ends = tuple(problem.trace.ends)
        return ends if self.block and self.stop else ends[-1:]

    def active(self, problem: Problem) -> tuple[str, ...]:
        ends = tuple(problem.trace.ends)
        return (*(ends if self.block else ends[-1:]), OUTPUT)

    def terms(
        self,
        problem: Problem,
        values: Mapping[str, Tensor],
        tangents: Mapping[str, Tensor],
        loss_gradients: Mapping[str, Tensor] | None = None,
    ) -> LossTerms:
        terms = {OUTPUT: tangents[OUTPUT][:, None, None]}
        for end in self.active(problem)[:-1]:
            slope = (
                grad(lambda x, end=end: problem.local_losses(problem.params, end, x).mean())(values[end])
                if not loss_gradients
                else loss_gradients[end]
            )
            term = problem.batch_size * (slope * tangents[end]).sum(3)
            term = term if self.patch else term.sum(1, keepdim=True)
            terms[end] = term if self.group else term.sum(2, keepdim=True)
        return terms

    def group_rows(self, module: object) -> bool:
        traits = traits_of(module)
        return traits.group_rows or (self.credit == "published" and traits.published_group_rows)

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
