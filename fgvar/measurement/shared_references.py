"""References of one problem: made once for estimators of equal losses that follow one another."""

import contextlib
from functools import cache, partial
from typing import cast

import torch
from torch import Tensor

from fgvar.allocator import MEGABYTE, keep_freed_memory
from fgvar.estimators.losses import Losses
from fgvar.estimators.protocol import GradientEstimator
from fgvar.measurement.data_variance import aims_at_backprop, losses_of
from fgvar.measurement.intervals import Array
from fgvar.measurement.mutation_guard import MutationGuard
from fgvar.measurement.protocol_checks import require_finite_gradient, tensors_in
from fgvar.measurement.references import References
from fgvar.measurement.relative import Relations, dead_layers, lengths, rounding_of
from fgvar.problem import Problem


class _Rounding:
    """How far references of one problem are from the same in float64."""

    def __init__(self, problem: Problem, budget: int) -> None:
        self.problem, self.budget = problem, budget
        self._of_backprop: dict[str, Tensor] | None = None

    def of(self, estimator: GradientEstimator, references: References) -> Array | None:
        """`rounding_of` both references in each layer, by the same in float64.

        None where that takes more than the budget, or is not to be had. Of what has size nothing stays, and one
        gradient is there at a time: where measurements are large they would hold most of the memory.
        """
        numbers = sum(p.numel() for p in self.problem.params.values())
        if 3 * 8 * numbers > self.budget or self.problem.device.type == "mps":
            return None
        with contextlib.suppress(Exception):  # networks, losses and estimators may know one precision alone
            wide = self.problem.to(torch.float64)
            if self._of_backprop is None:
                self._of_backprop = rounding_of(references.backprop, wide.backprop())
            own = self._of_backprop
            if any(g is not references.backprop[name] for name, g in references.target.items()):
                own = rounding_of(references.target, estimator.target(wide))
            both = [torch.stack([own[name], self._of_backprop[name]]) for name in own]
            return cast(Array, references.grouped(both).cpu().numpy().T)
        return None


class SharedReferences:
    """References of one problem: made once for estimators of equal losses that follow one another."""

    def __init__(self, problem: Problem, backprop: dict[str, Tensor], budget: int) -> None:
        self.problem, self.backprop, self.rounding = problem, backprop, _Rounding(problem, budget)
        self._known: tuple[Losses, Relations] | None = None

    def of(self, guard: MutationGuard, estimator: GradientEstimator) -> Relations:
        """The estimator's references, and what is known of them."""
        losses = losses_of(estimator)
        if self._known is not None and self._known[0] == losses:
            return self._known[1]
        self._known = None  # gone before the next target is there: a copy of the parameters
        # Gradients in float64 leave blocks of sizes that drawing has no use for: they go back to the system.
        with keep_freed_memory(MEGABYTE):
            found = References.of(self._target(guard, estimator), self.backprop, self.problem.perturbed)
            squares = lengths(found)
            their_rounding = cache(partial(self.rounding.of, estimator, found))
            dead = dead_layers(squares, self.problem.dtype, their_rounding)
            relations = Relations(found, squares, dead, their_rounding)
        self._known = None if losses is None else (losses, relations)
        return relations

    def _target(self, guard: MutationGuard, estimator: GradientEstimator) -> dict[str, Tensor]:
        """Backprop's own tensors where they are the target."""
        if aims_at_backprop(estimator, self.problem):
            return self.backprop
        what = f"the target of estimator {guard.name!r}"
        target = tensors_in(what, estimator.target(guard.problem))
        require_finite_gradient(what, self.problem, target)
        return {name: g.clone() for name, g in target.items()} if guard.is_needed else target
