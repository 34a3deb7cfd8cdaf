"""Spread of the data: how per-example gradients vary within a batch."""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from fgvar.analysis.draws import ranges
from fgvar.analysis.intervals import Estimated
from fgvar.analysis.moments import GROUPS
from fgvar.estimators.estimator import Estimator, ExactGradient, GradientEstimator
from fgvar.estimators.losses import Losses
from fgvar.problem import Problem

PIECE = 1 << 12  # numbers of every example that are worked on at a time, so that they stay in the CPU's cache

Gradient = Callable[[Problem], dict[str, Tensor]]


class Spreads:
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
            self._backprop = self._spread(lambda one: one.backprop())
        return Estimated.exact(np.stack([self._target(estimator), self._backprop]))

    def _target(self, estimator: GradientEstimator) -> np.ndarray:
        # Composed estimators of the same losses have the same target; of other types nothing is known.
        if type(estimator) not in (Estimator, ExactGradient):
            return self._spread(estimator.target)
        losses: Losses = estimator.losses  # type: ignore[attr-defined]
        known = next((value for other, value in self._targets if other == losses), None)
        if known is None:
            known = self._spread(estimator.target)
            self._targets.append((losses, known))
        return known

    def _spread(self, gradient: Gradient) -> np.ndarray:
        """NaN for a batch of one, and where examples are coupled, so that none has a gradient of its own."""
        problem, n = self.problem, self.problem.batch_size
        if n == 1 or problem.coupled:
            return np.full(len(problem.params) + len(GROUPS), np.nan)
        totals = {
            name: torch.zeros(p.numel(), dtype=torch.float64, device=problem.device)
            for name, p in problem.params.items()
        }
        squares = {name: total.new_zeros(()) for name, total in totals.items()}
        for numbers in ranges(0, n, self.chunk):
            part = problem.rows(slice(numbers.start, numbers.stop))
            found = gradient(part) if self.chunk == 1 else part.per_example(gradient)
            for name, total in totals.items():
                _add(found[name].reshape(len(numbers), -1), total, squares[name])
        means = torch.stack([total @ total / n for total in totals.values()])
        spread = ((torch.stack(list(squares.values())) - means).clamp_min(0) / (n - 1) / n).cpu().numpy()
        perturbed = spread[[name in problem.perturbed for name in totals]].sum()
        return np.array([*spread, perturbed, spread.sum()])


def _add(rows: Tensor, total: Tensor, square: Tensor) -> None:
    """Add the sum of the rows, and that of all squares, in float64 without a copy of all."""
    width = PIECE if rows.device.type == "cpu" else max(rows.shape[1], 1)
    for piece, here in zip(rows.split(width, 1), total.split(width), strict=True):
        precise = piece.double()
        here += precise.sum(0)
        square += precise.ravel() @ precise.ravel()
