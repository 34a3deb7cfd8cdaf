"""Randomness: which random tensors an estimate needs, their laws, and draw number i of them by (seed, i) alone."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from fgvar.estimators.declared import declared
from fgvar.estimators.factors import LazyTensors
from fgvar.estimators.laws import LAW, JointLaw, Law
from fgvar.estimators.random_streams import TILE, Stream, fill

MOST_VALUES = 1 << 20  # of a leaf that are listed
TOGETHER = 16  # consecutive draws of a small leaf that one stream serves: to open it takes longer than its numbers


@dataclass(frozen=True)
class Leaf:
    """One named tensor of noise.

    Attributes:
        shape: of the tensor, leading axes included.
        noise: its law.
        batch_dims: how many leading axes number directions and examples, each with numbers of its own.
        group: leaves of a joint law are one direction together with those of the same law and name here.
        copies: how many of the leading axes, the first ones, number estimates: a joint law is one of each by itself.

    Example:
        >>> from fgvar.estimators.noise import Rademacher
        >>> four = Leaf((4, 2, 3), Rademacher(), batch_dims=1)  # directions for a weight [2, 3]
        >>> four.size
        24
    """

    shape: tuple[int, ...]
    noise: Law
    batch_dims: int = 0
    group: str = ""
    copies: int = 0

    def repeated(self, count: int) -> "Leaf":
        """So many independent ones, along a new first axis."""
        return replace(self, shape=(count, *self.shape), batch_dims=self.batch_dims + 1, copies=self.copies + 1)

    def within(self, word: str) -> "Leaf":
        """The leaf as a part of something larger, whose other parts have joint laws of their own."""
        return replace(self, group=f"{word}.{self.group}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def dtype(self, floating: torch.dtype) -> torch.dtype:
        """Of its tensor: that of the other noise, unless the law has one of its own."""
        return getattr(self.noise, "dtype", floating)

    @property
    def is_finite(self) -> bool:
        """Has its law finitely many values, and says which?"""
        return declared(self.noise, "support", *LAW) is not None

    @property
    def is_isotropic(self) -> bool:
        """Does its law declare E uuᵀ = I?"""
        return bool(declared(self.noise, "isotropic", *LAW))

    @property
    def values(self) -> int:
        """How many values it has; `MOST_VALUES` + 1 where there is no end of them, or more than are listed."""
        alone = self.elementwise  # each number's values are then those of any other's
        shape = (1,) if alone else self.shape[self.batch_dims :]
        try:
            each = len(self._listed(shape)[1]) if self.is_finite else MOST_VALUES + 1
        except ValueError:
            return MOST_VALUES + 1
        copies = self.size if alone else math.prod(self.shape[: self.batch_dims])
        return MOST_VALUES + 1 if copies * math.log2(each) > math.log2(MOST_VALUES) else each**copies

    def support(self) -> tuple[Tensor, Tensor]:
        """All values of the tensor, [values, *shape], and their probabilities [values], in float64."""
        if self.elementwise:
            return self._listed(self.shape)
        lead = self.shape[: self.batch_dims]
        values, probabilities = self._listed(self.shape[self.batch_dims :])
        # Each direction and example is a draw of its own: all combinations of theirs.
        digits = combinations([len(values)] * math.prod(lead))
        return values[digits].reshape(len(digits), *self.shape), probabilities[digits].prod(1)

    def _listed(self, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        law: Any = self.noise
        found = law.support(shape)
        if not (isinstance(found, tuple) and len(found) == 2):
            raise TypeError(
                f"the support of {law!r} is {type(found).__name__}, expected a pair (values, probabilities)"
            )
        values, probabilities = found
        return torch.as_tensor(values), torch.as_tensor(probabilities, dtype=torch.float64)

    @property
    def elementwise(self) -> bool:
        """Is every number made by itself?"""
        return bool(declared(self.noise, "elementwise", "sample"))

    def tasks(
        self, seed: int, name: str, draws: Sequence[int], out: Tensor, first: int = 0
    ) -> Iterator[Callable[[], None]]:
        """Calls that write the draws' numbers, from ``first`` on, into ``out`` [draws, numbers]; each writes its own.

        Of an elementwise law a stream serves a tile: 16 draws of a small leaf, or up to 2¹⁶ numbers of one draw (2²²
        where they are not made on the CPU, whose cache holds no more).
        """
        tile_size = TILE if out.device.type == "cpu" else TILE << 6
        if not self.elementwise:
            for draw, row in zip(draws, out, strict=True):
                yield from self._whole(seed, name, draw, row)
        elif 0 < self.size <= TILE // TOGETHER:
            rows: dict[int, list[int]] = {}
            for row, draw in enumerate(draws):
                rows.setdefault(draw // TOGETHER, []).append(row)
            for tile, own in rows.items():
                stream = Stream(seed, name, tile, f"*{TOGETHER}")
                yield partial(self._together, stream, [draws[row] % TOGETHER for row in own], own, first, out)
        else:
            for draw, row in zip(draws, out, strict=True):
                for start in range(first - first % tile_size, first + len(row), tile_size):
                    stream = Stream(seed, name, draw, f"+{start}" if start else "")
                    yield partial(self._piece, stream, slice(start, min(start + tile_size, self.size)), first, row)

    def _sample(self, stream: Stream, out: Tensor) -> None:
        stream.buffers.append(out)
        found = self.noise.sample(stream, tuple(out.shape), out.dtype, out.device)
        if found is not out:
            out.copy_(found)

    def _whole(self, seed: int, name: str, draw: int, row: Tensor) -> Iterator[Callable[[], None]]:
        """A draw of a law that makes a tensor as a whole: each direction and example by a stream of its own."""
        lead = self.shape[: self.batch_dims]
        for index, one in enumerate(row.reshape(math.prod(lead), *self.shape[self.batch_dims :])):
            yield partial(self._sample, Stream(seed, f"{name}[{index}]" if lead else name, draw), one)

    def _together(self, stream: Stream, places: list[int], rows: list[int], first: int, out: Tensor) -> None:
        """Some of 16 draws of a small leaf; all of them, whole and in order, without a copy."""
        own = slice(rows[0], rows[0] + TOGETHER)
        if out.shape[1] == self.size and places == list(range(TOGETHER)) and rows == list(range(own.start, own.stop)):
            return self._sample(stream, out[own])
        tile = out.new_empty(TOGETHER, self.size)
        self._sample(stream, tile)
        out[rows] = tile[places, first : first + out.shape[1]]
        return None

    def _piece(self, stream: Stream, at: slice, first: int, row: Tensor) -> None:
        """A tile of one draw, or what a row that begins at ``first`` has of it."""
        low, high = max(at.start, first), min(at.stop, first + len(row))
        if (low, high) == (at.start, at.stop):
            return self._sample(stream, row[low - first : high - first])
        tile = row.new_empty(at.stop - at.start)
        self._sample(stream, tile)
        row[low - first : high - first] = tile[low - at.start : high - at.start]
        return None


@dataclass(frozen=True)
class Randomness:
    """What an estimator needs to be random: named leaves. An estimator without any is deterministic.

    Leaves are keyed by name: two estimators that need a leaf of the same name, shape and distribution get
    the same noise for the same seed and draw, which is what paired comparisons stand on.

    Example:
        >>> from fgvar.estimators.noise import Gaussian
        >>> needed = Randomness({"weight": Leaf((2, 3), Gaussian()), "bias": Leaf((2,), Gaussian())})
        >>> {name: tuple(u.shape) for name, u in needed.sample(seed=0, draws=range(5)).items()}
        {'weight': (5, 2, 3), 'bias': (5, 2)}
    """

    leaves: Mapping[str, Leaf]

    @property
    def adapted(self) -> bool:
        """Does a law here depend on the parameters, or on the batch?"""
        return any(getattr(leaf.noise, "adapted", False) for leaf in self.leaves.values())

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
        fill(
            (
                task
                for name, leaf in self.leaves.items()
                for task in leaf.tasks(seed, name, numbers, found[name].reshape(len(numbers), leaf.size))
            ),
            len(numbers) * self.size if where.type == "cpu" else 0,
        )
        for (law, _), names in self._joint().items():
            for index in range(len(numbers)):
                self._join(law, {name: found[name][index] for name in names})
        return {name: value.to(device) for name, value in found.items()}

    def lazily(self, seed: int, draw: int, *, dtype: torch.dtype, device: torch.device | str) -> LazyTensors:
        """Noise of one draw, bit by bit that of `sample`, of which each leaf is drawn when it is asked for.

        Not of joint laws, of which no leaf is drawn alone.
        """

        def one(name: str) -> Tensor:
            leaf = Randomness({name: self.leaves[name]})
            return leaf.sample(seed, [draw], dtype=dtype, device=device)[name][0]

        return LazyTensors(self.leaves, one)

    def _joint(self) -> dict[tuple[JointLaw, str], list[str]]:
        """Leaves that are one direction together."""
        found: dict[tuple[JointLaw, str], list[str]] = {}
        for name, leaf in self.leaves.items():
            if hasattr(leaf.noise, "couple"):
                found.setdefault((cast(JointLaw, leaf.noise), leaf.group), []).append(name)
        return found

    def _join(self, law: JointLaw, drawn: dict[str, Tensor]) -> None:
        """Make one draw follow its joint law: of a stack of draws the last bits would depend on its size."""
        copies, rows = next(self.leaves[name].copies for name in drawn), []
        for name, value in drawn.items():
            lead = value.shape[copies : self.leaves[name].batch_dims]
            rows.append(value.reshape(math.prod(value.shape[:copies]), *lead, -1))
        joined = [law.couple(copy) for copy in torch.cat(rows, dim=-1)]
        joint = torch.stack(joined) if copies else joined[0][None]  # of one estimate without another copy
        for value, piece in zip(drawn.values(), joint.split([row.shape[-1] for row in rows], dim=-1), strict=True):
            value.copy_(piece.reshape(value.shape))


def combinations(counts: Sequence[int]) -> Tensor:
    """All combinations of a value below each count, [combinations, counts], the last one running fastest."""
    if math.prod(counts) > MOST_VALUES:
        raise ValueError(
            f"{math.prod(counts)} combinations of values, expected at most {MOST_VALUES}; take a smaller problem"
        )
    if not counts:
        return torch.zeros(1, 0, dtype=torch.int64)
    return torch.cartesian_prod(*(torch.arange(count) for count in counts)).reshape(-1, len(counts))
