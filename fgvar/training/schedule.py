"""Schedules: the optimiser that a run follows, its learning rate at each step, and how many epochs.

rate(k) = lr·(k + 1)/w in w steps of warm-up, then lr times 1 − x, (1 + cos πx)/2 or 1 at the share x of the rest.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from fgvar.errors import require_type, unknown
from fgvar.nn.heads import LocalHead, ReadOut
from fgvar.nn.traits import traits_of
from fgvar.problem import Problem


@dataclass(frozen=True)
class Schedule:
    """An optimiser with a learning rate that warms up and decays (Ren et al. 2023, Sec. 6).

    Args:
        epochs: passes through the train split (the last, incomplete batch of each is left out).
        batch: examples a step, of each process.
        lr: highest learning rate.
        momentum: of SGD; β₁ of Adam.
        weight_decay: on weights (tensors of two axes or more), not on biases.
        optimiser: "sgd" or "adam".
        decay: "linear" or "cosine", to 0 at the end; or "constant".
        warmup: epochs in which the rate grows linearly from 0, before it decays.
        head_factor, readout_factor: of the learning rate of local heads, and of the read-out or whatever else learns
            exactly (the paper's code takes 0.1 for the read-out of local schemes).

    Raises:
        TypeError: what is no number.
        ValueError: numbers out of range, unknown names.

    Example:
        >>> [round(Schedule(epochs=4, lr=1.0, warmup=1).rate(step, 8), 3) for step in range(8)]
        [0.5, 1.0, 1.0, 0.833, 0.667, 0.5, 0.333, 0.167]
    """

    epochs: int = 20
    batch: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    optimiser: str = "sgd"
    decay: str = "linear"
    warmup: int = 0
    head_factor: float = 1.0
    readout_factor: float = 1.0

    OPTIMISERS: ClassVar[tuple[str, ...]] = ("sgd", "adam")
    DECAYS: ClassVar[tuple[str, ...]] = ("linear", "cosine", "constant")

    def __post_init__(self) -> None:
        for what in ("epochs", "batch", "warmup"):
            require_type(what, getattr(self, what), Integral, "an integer")
        for what in ("lr", "momentum", "weight_decay", "head_factor", "readout_factor"):
            require_type(what, getattr(self, what), Real, "a number")
        numbers = [self.lr, self.momentum, self.weight_decay, self.head_factor, self.readout_factor]
        positive = self.epochs >= 1 and self.batch >= 1 and self.lr > 0
        if not (np.isfinite(numbers).all() and positive and 0 <= self.momentum < 1 and min(numbers) >= 0):
            raise ValueError(
                f"{self}: epochs, batch ≥ 1, lr > 0, 0 ≤ momentum < 1, weight_decay ≥ 0 and factors ≥ 0 expected"
            )
        if not 0 <= self.warmup < self.epochs:
            raise ValueError(
                f"warmup is {self.warmup} epochs, expected at least 0 and less than epochs={self.epochs}"
            )
        if not isinstance(self.optimiser, str):
            raise TypeError(
                f"optimiser is {type(self.optimiser).__name__}, expected {' or '.join(map(repr, self.OPTIMISERS))}; "
                "of an optimiser of your own the output is an estimate, too: fgvar.History(estimator, through=…)"
            )
        for what, name, names in (
            ("optimiser", self.optimiser, self.OPTIMISERS),
            ("decay", self.decay, self.DECAYS),
        ):
            if name not in names:
                raise ValueError(unknown(what, name, names))

    def rate(self, step: int, total: int) -> float:
        """Learning rate of step ``step`` of ``total``."""
        warm = total * self.warmup // self.epochs
        if step < warm:
            return self.lr * (step + 1) / warm
        done = (step - warm) / max(total - warm, 1)
        if self.decay == "constant":
            return self.lr
        return self.lr * ((1 - done) if self.decay == "linear" else (1 + math.cos(math.pi * done)) / 2)


class Optimiser:
    """The optimiser of a schedule on some parameters of a problem: those that learn."""

    def __init__(self, schedule: Schedule, problem: Problem, params: Mapping[str, Tensor], total: int) -> None:
        self.schedule, self.total = schedule, total
        # Nothing may learn at all: the frozen trunk of a network whose heads are off.
        groups: dict[tuple[float, float], list[Tensor]] = {} if params else {(1.0, 0.0): []}
        for name, value in params.items():
            decay = schedule.weight_decay if value.ndim > 1 else 0.0
            groups.setdefault((_factor(schedule, problem, name), decay), []).append(value)
        self.factors = [factor for factor, _ in groups]
        described = [{"params": values, "weight_decay": decay} for (_, decay), values in groups.items()]
        # One pass over memory, where torch's default makes one for each operation.
        # Of float16 and bfloat16 torch's fused SGD leaves whole vectors where they are (up to 2.13, issue 191763).
        fused = problem.device.type == "cpu" and problem.dtype.itemsize > 2
        self.torch: torch.optim.Optimizer = (
            torch.optim.SGD(described, lr=schedule.lr, momentum=schedule.momentum, fused=fused)
            if schedule.optimiser == "sgd"
            else torch.optim.Adam(described, lr=schedule.lr, betas=(schedule.momentum, 0.999), fused=fused)
        )

    def step(self, step: int) -> None:
        """Move along the gradients that the parameters hold."""
        for group, factor in zip(self.torch.param_groups, self.factors, strict=True):
            group["lr"] = factor * self.schedule.rate(step, self.total)
        self.torch.step()


def _factor(schedule: Schedule, problem: Problem, name: str) -> float:
    # The innermost module decides: a read-out may hold what looks like a head. The last is the network itself.
    paths = name.split(".")
    for end in range(len(paths) - 1, -1, -1):
        module = problem.network.skeleton.get_submodule(".".join(paths[:end]))
        if isinstance(module, LocalHead):
            return schedule.head_factor
        if isinstance(module, ReadOut) or traits_of(module).learns_exactly:
            return schedule.readout_factor
    return 1.0
