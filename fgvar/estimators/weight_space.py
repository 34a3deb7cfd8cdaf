"""Weight perturbation: directions in the parameters themselves."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast, final

import torch
from torch import Tensor

from fgvar.errors import require_word
from fgvar.estimators.credit import Plan, broadcast_over_rows, row_plans, sum_terms
from fgvar.estimators.loss_terms import forward_terms, gradient, jvp_terms
from fgvar.estimators.losses import Losses, LossTerms
from fgvar.estimators.spaces import Keep, Linearised, Tensors, TermsAndLoss, require_perturbed
from fgvar.nn.forward_mode import jvp
from fgvar.nn.reach import OUTPUT
from fgvar.problem import Problem


@final
@dataclass(frozen=True)
class LinearisedWeights:
    """The perturbed parameters at one problem (see `Linearised`).

    Attributes:
        live: 0/1 of all parameters, where some are dead.
        loss_gradients: as a pass along noise has found them (see `Losses.terms`).
        heads_gradient: the heads' exact gradient, where such a pass has found it; None: worked out when asked for.
    """

    problem: Problem
    losses: Losses
    point: dict[str, Tensor]
    plans: dict[str, Plan]
    live: dict[str, Tensor] | None = None
    loss_gradients: LossTerms | None = None
    heads_gradient: dict[str, Tensor] | None = None

    def bind(self, tensors: Tensors) -> tuple[Tensors, Tensors]:
        return {**self.problem.params, **tensors}, {}

    def forward_terms(self, tensors: Tensors, unperturbed: LossTerms | None = None) -> LossTerms:
        return forward_terms(self.losses, self.problem, *self.bind(tensors), unperturbed)

    def loss_terms(self, values: Tensors, tangents: Tensors) -> LossTerms:
        # A weight is credited by the whole batch, and by all patches.
        each = self.losses.terms(self.problem, values, tangents, self.loss_gradients)
        return {end: t.mean(0, keepdim=True).sum(1, keepdim=True) for end, t in each.items()}

    def direction(self, noise: Tensors) -> dict[str, Tensor]:
        return self._masked(noise)

    def credit(self, terms: LossTerms) -> dict[str, Tensor]:
        return {
            name: broadcast_over_rows(sum_terms(terms, plan), self.point[name]) for name, plan in self.plans.items()
        }

    def granularity(self, name: str, end: str) -> tuple[bool, bool] | None:
        # Rows that published credit keeps to their own group's copy move the other groups' copies, too.
        return (False, False) if end in self.plans[name] else None

    def broadcast(self, name: str, c: Tensor) -> Tensor:
        return broadcast_over_rows(c, self.point[name])

    def backward(self, credited: Tensors) -> dict[str, Tensor]:
        exact = self.heads_gradient
        if exact is None:
            exact = gradient(self.losses, self.problem, _heads(self.problem))
        return {**credited, **self._masked(exact)}  # directions are masked, and with them what they credit

    def _masked(self, tensors: Tensors) -> dict[str, Tensor]:
        live = self.live
        return dict(tensors) if live is None else {name: live[name] * value for name, value in tensors.items()}


@dataclass(frozen=True)
class WeightSpace:
    """Weight perturbation: ĝ = (∇·v) v, with v a direction in all perturbed parameters together.

    E ĝ = ∇ for noise with E vvᵀ = I. Gaussian noise shared by the batch: tr Cov(ĝ) = (d + 1)‖∇‖² for d
    parameters and one loss. With local losses a block's weights are credited by the block's terms alone.

    Args:
        per_tensor: move each tensor alone (one directional derivative each, which leaves the noise of the others
            out) in place of all at once (one).
        keep: which parameters are live, such as `fgvar.transforms.Magnitude`: the others are not moved, and have no
            gradient, so that E ĝ = M∇ and tr Cov(ĝ) = (d_live + 1)‖M∇‖²; of heads the exact gradient is masked. None
            keeps all. Of ``shared=False`` it is asked for every example's own problem.

    Raises:
        TypeError: a ``keep`` that is none.

    Source: Ren et al. 2023, eq. 2; Baydin et al. 2022.

    Example:
        >>> WeightSpace()
        WeightSpace(per_tensor=False, keep=None)
    """

    per_tensor: bool = False
    keep: Keep | None = None

    per_example: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.keep is not None:
            require_word("keep", self.keep, ("mask",), "fgvar.transforms.Magnitude(0.4)")

    @property
    def one_pass(self) -> bool:
        return not self.per_tensor

    @property
    def bias_reason(self) -> str:
        return "" if self.keep is None else "dead parameters have no gradient"

    def check(self, problem: Problem) -> None:
        require_perturbed(problem)

    def shapes(self, problem: Problem) -> dict[str, tuple[int, ...]]:
        return {name: tuple(problem.params[name].shape) for name in problem.perturbed}

    def linearise(self, problem: Problem, losses: Losses) -> Linearised:
        point = {name: problem.params[name] for name in problem.perturbed}
        live = None if self.keep is None else self.keep.mask(problem)
        return LinearisedWeights(problem, losses, point, row_plans(problem, losses, point), live)

    def linearise_along(self, problem: Problem, losses: Losses, noise: Tensors) -> tuple[Linearised, TermsAndLoss]:
        linearised = cast(LinearisedWeights, self.linearise(problem, losses))
        heads = _heads(problem)
        noise = linearised.direction(noise)
        if not heads:  # nothing to pull back: the derivative's own pass is the only one
            values, tangents = jvp(linearised.forward_terms, (linearised.point,), (noise,))
            return linearised, (linearised.loss_terms(values, tangents), values[OUTPUT].mean())

        # Differentiated by the heads, the pass that carries the direction gives their exact gradient, too.
        def forward(some: Tensors) -> tuple[Tensor, tuple[LossTerms, LossTerms, LossTerms]]:
            params = {**problem.params, **some}
            seen = jvp_terms(
                losses, problem, params, lambda weights: ({**params, **weights}, {}), linearised.point, noise
            )
            return seen.total, (seen.values, seen.tangents, seen.loss_gradients)

        total, pullback, (values, tangents, loss_gradients) = cast(Any, torch.func.vjp(forward, heads, has_aux=True))
        exact = pullback(torch.ones_like(total))[0]
        found = replace(linearised, loss_gradients=loss_gradients, heads_gradient=exact)
        return found, (found.loss_terms(values, tangents), values[OUTPUT].mean())


def _heads(problem: Problem) -> dict[str, Tensor]:
    """The parameters that learn exactly."""
    return {name: value for name, value in problem.params.items() if name in problem.network.exact}
