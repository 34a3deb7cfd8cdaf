"""Data variance: how per-example gradients vary within a batch, tr Cov(g_n)/N = Σ_n ‖g_n − ḡ‖²/(N − 1)N.

It is what every minibatch method pays, and the unit in which noise of an estimator may be judged.
"""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from fgvar.estimators.estimator import Estimator, ExactGradient
from fgvar.estimators.losses import GlobalLoss, Losses
from fgvar.estimators.protocol import GradientEstimator
from fgvar.measurement.draws import ranges
from fgvar.measurement.intervals import Estimated
from fgvar.measurement.mutation_guard import MutationGuard
from fgvar.measurement.protocol_checks import tensors_in
from fgvar.measurement.references import GROUPS
from fgvar.problem import Problem

PIECE = 1 << 17  # numbers that are worked on at a time, so that they stay in the CPU's cache

Gradient = Callable[[Problem], dict[str, Tensor]]


def losses_of(estimator: GradientEstimator) -> Losses | None:
    """The losses whose gradient a composed estimator has for its target; of other types nothing is known."""
    # Not of subclasses, which may have another target.
    return estimator.losses if type(estimator) in (Estimator, ExactGradient) else None  # type: ignore[attr-defined]


def aims_at_backprop(estimator: GradientEstimator, problem: Problem) -> bool:
    """Is its target known to be the gradient of the network's output alone, for which one tensor is enough?"""
    losses = losses_of(estimator)
    return isinstance(losses, GlobalLoss) and not (losses.heads and problem.trace.ends)


class DataVariance:
    """Data variance of one problem, tr Cov(per-example gradient)/N by layer: of each gradient once, whoever asks.

    Args:
        problem: network, loss and batch.
        chunk: examples whose gradients are computed at once (1: by plain calls).
    """

    def __init__(self, problem: Problem, chunk: int) -> None:
        self.problem, self.chunk = problem, chunk
        self._backprop: np.ndarray | None = None
        self._targets: list[tuple[Losses, np.ndarray]] = []

    def of(self, estimator: GradientEstimator) -> Estimated:
        """Of its target and of backprop, exact [references, layers]."""
        if self._backprop is None:
            self._backprop = self._spread(lambda one: one.backprop(), self.problem)
        own = self._backprop if aims_at_backprop(estimator, self.problem) else self._target(estimator)
        return Estimated.exact(np.stack([own, self._backprop]))

    def _target(self, estimator: GradientEstimator) -> np.ndarray:
        losses = losses_of(estimator)
        if losses is None:
            copy = MutationGuard.of(type(estimator).__name__, estimator, self.problem).problem
            return self._spread(estimator.target, copy)
        known = next((value for other, value in self._targets if other == losses), None)
        if known is None:
            known = self._spread(estimator.target, self.problem)
            self._targets.append((losses, known))
        return known

    def _spread(self, gradient: Gradient, problem: Problem) -> np.ndarray:
        """NaN for a batch of one, and where examples are coupled, so that none has a gradient of its own."""
        n = problem.batch_size
        if n == 1 or problem.coupled:
            return np.full(len(problem.params) + len(GROUPS), np.nan)
        totals = {
            name: torch.zeros(p.numel(), dtype=torch.float64, device=problem.device)
            for name, p in problem.params.items()
        }
        squares = {name: total.new_zeros(()) for name, total in totals.items()}
        # In float64: the difference of two sums of squares cancels where the examples agree.
        for found in self._stacks(gradient, problem):
            for name, total in totals.items():
                rows = found.pop(name)  # gone before the next examples' gradients are there
                _add(rows.reshape(len(rows), -1), total, squares[name])
        means = torch.stack([total @ total / n for total in totals.values()])
        spread = ((torch.stack(list(squares.values())) - means).clamp_min(0) / (n - 1) / n).cpu().numpy()
        perturbed = spread[[name in problem.perturbed for name in totals]].sum()
        return np.array([*spread, perturbed, spread.sum()])

    def _stacks(self, gradient: Gradient, problem: Problem) -> Iterator[dict[str, Tensor]]:
        """The gradients of the examples, a chunk of them stacked."""
        what = "the gradient of one example"

        def piece(numbers: range) -> dict[str, Tensor]:
            part = problem.rows(slice(numbers.start, numbers.stop))
            if len(numbers) > 1:
                stacked: dict[str, Tensor] = part.per_example(lambda one: tensors_in(what, gradient(one)))
                return stacked
            return {name: g[None] for name, g in tensors_in(what, gradient(part)).items()}

        for numbers in ranges(0, problem.batch_size, self.chunk):
            yield piece(numbers)


def _add(rows: Tensor, total: Tensor, square: Tensor) -> None:
    """Add the sum of the rows, and that of all squares, in float64 without a copy of all."""
    width = max(PIECE // len(rows), 1) if rows.device.type == "cpu" else max(rows.shape[1], 1)
    for piece, part in zip(rows.split(width, 1), total.split(width), strict=True):
        precise = piece.double()
        part += precise.sum(0)  # in place: a view of the total
        square += precise.ravel() @ precise.ravel()
