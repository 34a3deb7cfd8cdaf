"""Split: the examples of a train or test set, whatever they hold, drawn in an order that depends on a seed alone."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from fgvar.errors import require_integer

Batch = tuple[Any, Any]  # inputs and targets, each a tensor or a structure of tensors
Device = torch.device | str
Indices = Tensor | Sequence[int]


class Split(ABC):
    """What training asks of its data: a name, batches of chosen examples, and all tensors, to be hashed."""

    name: str

    @abstractmethod
    def __len__(self) -> int: ...

    @property
    @abstractmethod
    def title(self) -> str:
        """The name in errors and in a run's identity."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What it holds, by name."""

    @abstractmethod
    def hashed(self) -> dict[str, Tensor]:
        """What tells it from other data, by a hash: all that a batch depends on, or enough of it."""

    @abstractmethod
    def batch(self, indices: Indices, *, device: Device = "cpu", dtype: torch.dtype | None = None) -> Batch:
        """The examples at ``indices`` [b], with floating-point numbers of a dtype."""

    @abstractmethod
    def subset(self, indices: Indices) -> Self:
        """The examples at ``indices`` alone."""

    @abstractmethod
    def to(self, device: Device) -> Self:
        """On another device, so that batches there cost no transfer."""

    @property
    def device(self) -> torch.device:
        return next(iter(self.tensors().values())).device

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def sample(self, n: int, *, seed: int, device: Device = "cpu", dtype: torch.dtype | None = None) -> Batch:
        """``n`` distinct examples that depend on ``seed`` only; a larger ``n`` begins with the smaller one's."""
        return self.batch(self._order(n, seed, 0)[:n], device=device, dtype=dtype)

    def batches(
        self,
        size: int,
        *,
        seed: int,
        epoch: int,
        device: Device = "cpu",
        dtype: torch.dtype | None = None,
        drop_last: bool = True,
        part: tuple[int, int] = (0, 1),
        start: int = 0,
    ) -> Iterator[Batch]:
        """One epoch in batches of ``size``, in an order that depends on (seed, epoch) only.

        ``drop_last`` leaves out the examples that would make a smaller last batch (others in each epoch). Process
        ``part`` = (rank, processes) gets batches of its own out of the same order; ``start`` leaves the first out.
        """
        order = self._order(size, seed, 1, epoch).to(self.device)
        rank, whole = part[0], size * part[1]
        stop = len(self) - whole + 1 if drop_last else len(self)
        firsts = range(start * whole + rank * size, stop + rank * size, whole)
        return (self.batch(order[first : first + size], device=device, dtype=dtype) for first in firsts)

    def _order(self, wanted: int, seed: int, *key: int) -> Tensor:
        if not 1 <= wanted <= len(self):
            raise ValueError(f"{self.title}: asked for {wanted} of 1 … {len(self)} examples")
        require_integer("seed", seed, 0)
        state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0]
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(int(state)))
