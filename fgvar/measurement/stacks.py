"""Stacks: estimates of several draws, which moments read piece by piece: tensors, or factors of noise drawn anew."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fgvar.estimators.factors import Factors
from fgvar.estimators.random_streams import fill
from fgvar.estimators.randomness import Randomness

WINDOW = 1 << 19  # numbers of every draw that are drawn anew at a time: enough work for threads


class Stack(Protocol):
    """Estimates of consecutive draws."""

    @property
    def draws(self) -> int:
        """How many there are."""

    def pieces(self, name: str, draws: range) -> Iterator[tuple[int, Tensor]]:
        """The estimates of a parameter by some of the draws, [draws, numbers], and where in it they begin."""


@dataclass(frozen=True)
class Dense:
    """Estimates as tensors, parameter → [draws, …]."""

    gradients: Mapping[str, Tensor]

    @property
    def draws(self) -> int:
        return len(next(iter(self.gradients.values())))

    def pieces(self, name: str, draws: range) -> Iterator[tuple[int, Tensor]]:
        yield 0, self.gradients[name][draws.start : draws.stop].reshape(len(draws), -1)


@dataclass(frozen=True)
class Drawing:
    """Noise by its numbers, to be drawn again piece by piece: nothing of the size draws × numbers is held."""

    randomness: Randomness
    seed: int
    numbers: range
    noise_device: torch.device | str | None

    def piece(self, name: str, draws: range, first: int, like: Tensor) -> Tensor:
        """Numbers of some of the draws of a leaf, from ``first`` on, of the shape, type and device of ``like``."""
        out = like if self.noise_device is None else torch.empty_like(like, device=self.noise_device)
        numbers = self.numbers[draws.start : draws.stop]
        tasks = self.randomness.leaves[name].tasks(self.seed, name, numbers, out, first)
        fill(tasks, out.numel() if out.device.type == "cpu" else 0)
        return out.to(like.device)


@dataclass(frozen=True)
class Factored:
    """Estimates ĝ = Σ_k c_k ⊙ u_k, as their coefficients and their noise.

    Attributes:
        factors: of every draw, their credit stacked along a first axis.
        noise: [draws, …] of every leaf, or its drawing.
    """

    factors: Factors
    noise: Mapping[str, Tensor] | Drawing

    @property
    def draws(self) -> int:
        return len(next(iter(self.factors.credit.values())))

    def pieces(self, name: str, draws: range) -> Iterator[tuple[int, Tensor]]:
        if name in self.factors.exact:
            yield 0, self.factors.exact[name].flatten().expand(len(draws), -1)
            return
        credit = self.factors.credit[name][draws.start : draws.stop]
        credit = credit.reshape(*credit.shape[:2], -1)  # [draws, directions, rows or 1]
        if isinstance(self.noise, Drawing) and self.noise.randomness.leaves[name].elementwise:
            yield from self._windows(self.noise, name, draws, credit)
            return
        u = self._whole(name, draws).reshape(*credit.shape[:2], -1)
        each = _along(credit, u.shape[2], 0, u.shape[2])
        yield 0, each[:, 0] * u[:, 0] if u.shape[1] == 1 else (each * u).sum(1)

    def _whole(self, name: str, draws: range) -> Tensor:
        """The noise of some of the draws."""
        if not isinstance(self.noise, Drawing):
            return self.noise[name][draws.start : draws.stop]
        size = self.noise.randomness.leaves[name].size
        return self.noise.piece(name, draws, 0, self.factors.credit[name].new_empty(len(draws), size))

    def _windows(self, noise: Drawing, name: str, draws: range, credit: Tensor) -> Iterator[tuple[int, Tensor]]:
        """The same window by window, of noise whose pieces can be drawn alone."""
        directions = credit.shape[1]
        numbers = noise.randomness.leaves[name].size // directions
        for start in range(0, numbers, WINDOW):
            width = min(WINDOW, numbers - start)
            each = _along(credit, numbers, start, width)
            total = credit.new_empty(len(draws), width)
            for k in range(directions):
                out = torch.empty_like(total) if k else total
                u = noise.piece(name, draws, k * numbers + start, out).mul_(each[:, k])
                total = total.add_(u) if k else u
            yield start, total


def _along(credit: Tensor, numbers: int, start: int, width: int) -> Tensor:
    """Coefficients [draws, directions, rows or 1] laid along some of a tensor's numbers."""
    rows = credit.shape[2]
    if rows == 1:
        return credit
    return credit[:, :, torch.arange(start, start + width, device=credit.device) * rows // numbers]
