"""Spaces: what is perturbed, and how credit becomes a gradient of the weights."""

from collections.abc import Mapping
from typing import ClassVar, Protocol

from torch import Tensor

from fgvar.estimators.credit import Plan
from fgvar.estimators.declared import declared
from fgvar.estimators.losses import Losses, LossTerms
from fgvar.problem import Problem

Tensors = Mapping[str, Tensor]
TermsAndLoss = tuple[LossTerms, Tensor]  # how each loss term moves along a direction; the output's batch-mean loss


class Linearised(Protocol):
    """A space at one problem: where directions start, how they are credited, and the way back."""

    @property
    def point(self) -> dict[str, Tensor]:
        """The perturbed tensors, unperturbed. Of a space linearised along noise, shapes alone."""

    @property
    def plans(self) -> dict[str, Plan]:
        """How each perturbed tensor is credited."""

    def bind(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        """Perturbed tensors → (parameters, taps) to run the network with."""

    def forward_terms(self, tensors: Tensors, unperturbed: LossTerms | None = None) -> LossTerms:
        """Perturbed tensors → what an oracle differentiates (see `fgvar.estimators.loss_terms.forward_terms`)."""

    def loss_terms(self, values: Tensors, tangents: Tensors) -> LossTerms:
        """Values and tangents of that → derivatives of the loss copies that the space tells apart.

        end → [batch or 1, patches or 1, groups or 1]; linear in the tangents.
        """

    def direction(self, noise: Tensors) -> dict[str, Tensor]:
        """Noise of the shapes of ``point``, with a batch axis or one for all examples → direction."""

    def credit(self, terms: LossTerms) -> dict[str, Tensor]:
        """Loss terms → what credits each perturbed number, to broadcast with ``point``; linear."""

    def granularity(self, name: str, end: str) -> tuple[bool, bool] | None:
        """Does each number of a tensor move one copy of an end's loss alone, along patches, along groups?

        None where it moves none. Credit by one copy alone (``plans``) does not imply it: credit may be incomplete.
        """

    def broadcast(self, name: str, c: Tensor) -> Tensor:
        """``c`` [batch or 1, patches or 1, groups or 1] laid along a perturbed tensor, to broadcast with it."""

    def backward(self, credited: Tensors) -> dict[str, Tensor]:
        """Credited noise, of the shapes of ``point`` → gradient of all parameters (batch mean).

        The perturbed ones' estimate, the heads' exact gradient.
        """


class Keep(Protocol):
    """Which parameters are live: a frozen class, as `fgvar.transforms.Magnitude`.

    One that looks at the parameters alone, not at the batch, may say so: ``of_parameters = True``.
    """

    def mask(self, problem: Problem) -> dict[str, Tensor]:
        """Ones for what is live, zeros for what is dead: a dict like ``problem.params``."""


def of_parameters_alone(keep: Keep) -> bool:
    """Does a mask look at the parameters alone, not at the batch, by what it says of itself?"""
    return bool(declared(keep, "of_parameters", "mask"))


def require_perturbed(problem: Problem) -> None:
    """Raise where no parameter is left that schemes perturb."""
    if not problem.perturbed:
        raise ValueError(
            "all trainable parameters belong to heads, which learn exactly: nothing is left to perturb; let others "
            'require a gradient, or take fgvar.scheme("BP"), which is exact and draws nothing'
        )


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

    def linearise(self, problem: Problem, losses: Losses) -> Linearised:
        """What an estimate needs beside noise and directional derivatives."""


class OnePassSpace(Space, Protocol):
    """A space whose forward pass, the one that local VJPs come from, can carry a direction, too."""

    @property
    def one_pass(self) -> bool:
        """Is noise a direction as it is, but for numbers that no loss depends on?"""

    def linearise_along(self, problem: Problem, losses: Losses, noise: Tensors) -> tuple[Linearised, TermsAndLoss]:
        """`linearise`, and what the exact derivative along this noise says, in one forward pass."""
