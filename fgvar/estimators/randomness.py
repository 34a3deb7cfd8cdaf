"""Randomness: which random tensors an estimate needs, their laws, and draw number i of them by (seed, i) alone."""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor

from fgvar.estimators.random_streams import Stream

THREADED = 1 << 18  # numbers; fewer are drawn before threads have started


class Law(Protocol):
    """How one tensor of random numbers is drawn: zero mean, unit variance, no correlation between numbers.

    It asks the stream once, and nothing else, for random numbers: a stream that is asked again begins with the same
    bits. It may declare, as attributes of its class: ``isotropic = True`` (E uuᵀ = I exactly: means of quadratic
    estimates are enumerated), ``kurtosis`` (E u⁴ of independent numbers: variances have closed forms),
    ``spans_evenly`` (as `Gaussian`), ``one_by_one`` (a stream for each direction and example), and ``dtype``, that of
    its tensors, where they are of other numbers, such as indices.
    """

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """One draw of the given shape."""


class JointLaw(Law, Protocol):
    """A law of all numbers of one direction together, over all leaves that have it."""

    def couple(self, rows: Tensor) -> Tensor:
        """What was filled, [directions, examples, numbers] or without the leading ones, by the law."""


@dataclass(frozen=True)
class Leaf:
    """One named tensor of noise.

    Attributes:
        shape: of the tensor, leading axes included.
        noise: its law.
        batch_dims: how many leading axes number directions and examples, each with numbers of its own.
        group: leaves of a joint law are one direction together with those of the same law and name here.
    """

    shape: tuple[int, ...]
    noise: Law
    batch_dims: int = 0
    group: str = ""

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def dtype(self, floating: torch.dtype) -> torch.dtype:
        """Of its tensor: that of the other noise, unless the law has one of its own."""
        return getattr(self.noise, "dtype", floating)

    def draw(self, seed: int, name: str, number: int, out: Tensor) -> None:
        """Write draw number ``number`` into ``out``, before leaves of a joint law are joined."""
        if not (self.batch_dims and getattr(self.noise, "one_by_one", False)):
            found = self.noise.sample(Stream(seed, name, number, [out]), self.shape, out.dtype, out.device)
            if found is not out:
                out.copy_(found)
            return
        lead, shape = self.shape[: self.batch_dims], self.shape[self.batch_dims :]
        for index, one in enumerate(out.reshape(int(np.prod(lead)), *shape)):
            one.copy_(self.noise.sample(Stream(seed, f"{name}[{index}]", number), shape, out.dtype, out.device))


@dataclass(frozen=True)
class Randomness:
    """What an estimator needs to be random: named leaves. An estimator without any is deterministic.

    Leaves are keyed by name: two estimators that need a leaf of the same name, shape and distribution get
    the same noise for the same seed and draw, which is what paired comparisons stand on.
    """

    leaves: Mapping[str, Leaf]

    @property
    def size(self) -> int:
        """Number of random numbers in one draw."""
        return sum(leaf.size for leaf in self.leaves.values())

    def unflatten(self, rows: Tensor) -> dict[str, Tensor]:
        """Rows of all random numbers [draws, size] as the leaves, stacked along the first axis."""
        pieces = rows.split([leaf.size for leaf in self.leaves.values()], dim=1)
        return {
            name: piece.reshape(-1, *leaf.shape)
            for (name, leaf), piece in zip(self.leaves.items(), pieces, strict=True)
        }

    def sample(
        self,
        seed: int,
        draws: Iterable[int],
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        noise_device: torch.device | str | None = None,
    ) -> dict[str, Tensor]:
        """Noise of the given draw numbers, stacked along a new first axis.

        Draw i depends on (seed, leaf name, i) only: not on which draws come with it, nor on the global random
        state. Noise is bit-identical on one device type (of CPUs: on those that NumPy rounds alike on, as on every
        x86 with AVX2); ``noise_device="cpu"`` makes it so everywhere.

        Args:
            seed: any integer ≥ 0.
            draws: draw numbers, ≥ 0.
            dtype: floating-point type of the noise.
            device: where the noise is wanted.
            noise_device: where it is made (default: there).

        Raises:
            ValueError: a negative seed or draw number, or no draw at all.
            TypeError: a dtype that is not floating point.
        """
        numbers = list(draws)
        if seed < 0 or not numbers or min(numbers) < 0:
            raise ValueError(
                f"seed {seed} and draws {numbers[:5]}: expected non-negative integers, at least one draw"
            )
        if not dtype.is_floating_point:
            raise TypeError(f"noise cannot be {dtype}; give a floating-point dtype, as problem.dtype")
        where = torch.device(noise_device if noise_device is not None else device)
        # Here, not where numbers are made: memory of threads goes back to the system, and costs page faults again.
        found = {
            name: torch.empty((len(numbers), *leaf.shape), dtype=leaf.dtype(dtype), device=where)
            for name, leaf in self.leaves.items()
        }
        buffers = {name: stacked.unbind() for name, stacked in found.items()}
        each = [{name: draws[index] for name, draws in buffers.items()} for index in range(len(numbers))]
        self._fill(each, seed, numbers)
        for (law, _), names in self._joint().items():
            for one in each:
                self._join(law, {name: one[name] for name in names})
        return {name: value.to(device) for name, value in found.items()}

    def _fill(self, out: list[dict[str, Tensor]], seed: int, numbers: list[int]) -> None:
        """All draws. Every leaf has a stream of its own, so that several threads make the same numbers."""

        pending = collections.deque(itertools.product(range(len(out)), self.leaves))

        def draw(_: int = 0) -> None:
            while True:
                try:
                    index, name = pending.popleft()
                except IndexError:  # this or another thread took the last one
                    return
                self.leaves[name].draw(seed, name, numbers[index], out[index][name])

        cpu = all(buffer.device.type == "cpu" for buffer in out[0].values())
        threads = min(torch.get_num_threads(), len(pending)) if cpu else 1
        if threads > 1 and len(numbers) * self.size >= THREADED:
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(draw, range(threads)))
        else:
            draw()

    def _joint(self) -> dict[tuple[JointLaw, str], list[str]]:
        """Leaves that are one direction together."""
        found: dict[tuple[JointLaw, str], list[str]] = {}
        for name, leaf in self.leaves.items():
            if hasattr(leaf.noise, "couple"):
                found.setdefault((cast(JointLaw, leaf.noise), leaf.group), []).append(name)
        return found

    def _join(self, law: JointLaw, drawn: dict[str, Tensor]) -> None:
        """Make one draw follow its joint law: of a stack of draws the last bits would depend on its size."""
        rows = [value.reshape(*value.shape[: self.leaves[name].batch_dims], -1) for name, value in drawn.items()]
        joint = law.couple(torch.cat(rows, dim=-1))
        for value, piece in zip(drawn.values(), joint.split([row.shape[-1] for row in rows], dim=-1), strict=True):
            value.copy_(piece.reshape(value.shape))
