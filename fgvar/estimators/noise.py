"""Noise: from which distribution directions come, and how draw number i is made from (seed, i) alone."""

import collections
import functools
import hashlib
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, cast

import numpy as np
import torch
from torch import Tensor

NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
THREADED = 1 << 18  # numbers; fewer are drawn before threads have started
BLOCK = 1 << 17  # normal numbers made at once, in the cache
ODD = 0x9E3779B1  # whose multiples below 2³² times it are all different modulo 2³²
FEW = 5000  # normal numbers; fewer are drawn one by one before a block's dozen passes have been called


class Law(Protocol):
    """How one tensor of random numbers is drawn: zero mean, unit variance, no correlation between numbers.

    A law of other numbers, such as indices, states the dtype of its tensors as an attribute ``dtype``.
    """

    def sample(self, stream: "Stream", shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """One draw of the given shape."""


class JointLaw(Law, Protocol):
    """A law of all numbers of one direction together, over all leaves that have it."""

    def couple(self, rows: Tensor) -> Tensor:
        """What was filled, [directions, examples, numbers] or without the leading ones, by the law."""


class Noise(Law, Protocol):
    """The word of a composed estimator: a law, and how its draws are used."""

    @property
    def shared(self) -> bool | None:
        """One draw for the whole batch? None: the custom of the space (weights yes, activities no)."""

    @property
    def directions(self) -> int:
        """How many independent directions one estimate is the mean of."""

    @property
    def antithetic(self) -> bool:
        """Does every direction u come with −u?"""


@dataclass(frozen=True)
class Gaussian:
    """Independent standard normal coordinates: E u = 0, E uuᵀ = I, E u⁴ = 3.

    For one scalar loss over d perturbed numbers, tr Cov(ĝ) = (d + 1)‖∇‖² (Ren et al. 2023, Table 1).

    Args:
        shared: one draw for the whole batch; None takes the custom of the space.
        directions: independent directions, the mean of whose estimates is the estimate: variance / directions.
        antithetic: pair every direction u with −u. Their estimates differ only by the error of finite
            differences: with the `Jvp` oracle, which has none, a pair repeats one estimate.

    Raises:
        ValueError: fewer than 1 direction.

    Example:
        >>> Gaussian(shared=True)
        Gaussian(shared=True, directions=1, antithetic=False)
    """

    shared: bool | None = None
    directions: int = 1
    antithetic: bool = False
    kurtosis: ClassVar[float] = 3.0
    spans_evenly: ClassVar[bool] = True  # E of the projection on K directions is a multiple of the identity

    def __post_init__(self) -> None:
        check_directions(self.directions)

    def sample(self, stream: "Stream", shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.normal(shape, dtype, device)


@dataclass(frozen=True)
class Rademacher:
    """Independent signs: E u = 0, E uuᵀ = I, E u⁴ = 1; every law over them is a finite sum.

    For one scalar loss over d perturbed numbers, tr Cov(ĝ) = (d − 1)‖∇‖²: the least of all noise with
    independent coordinates.

    Args:
        shared, directions, antithetic: as of `Gaussian`.

    Raises:
        ValueError: fewer than 1 direction.

    Example:
        >>> noise = Randomness({"w": Leaf((3,), Rademacher())}).sample(seed=0, draws=[0, 1])
        >>> bool((noise["w"].abs() == 1).all())
        True
    """

    shared: bool | None = None
    directions: int = 1
    antithetic: bool = False
    kurtosis: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_directions(self.directions)

    @property
    def spans_evenly(self) -> bool:
        """Two sign vectors can be parallel."""
        return self.directions == 1

    def sample(self, stream: "Stream", shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.signs(shape, dtype, device)


def check_directions(directions: int) -> None:
    if not isinstance(directions, int) or directions < 1:
        raise ValueError(f"directions is {directions!r}, expected an integer of at least 1")


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
        rooms = {name: room.unbind() for name, room in found.items()}
        each = [{name: room[index] for name, room in rooms.items()} for index in range(len(numbers))]
        self._fill(each, seed, numbers)
        for (law, _), names in self._joint().items():
            for one in each:
                self._join(law, {name: one[name] for name in names})
        return {name: value.to(device) for name, value in found.items()}

    def _fill(self, rooms: list[dict[str, Tensor]], seed: int, numbers: list[int]) -> None:
        """All draws. Every leaf has a stream of its own, so that several threads make the same numbers."""

        pending = collections.deque(itertools.product(range(len(rooms)), self.leaves))

        def draw(_: int = 0) -> None:
            while True:
                try:
                    index, name = pending.popleft()
                except IndexError:  # this or another thread took the last one
                    return
                self.leaves[name].draw(seed, name, numbers[index], rooms[index][name])

        cpu = all(room.device.type == "cpu" for room in rooms[0].values())
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


@dataclass(frozen=True)
class Stream:
    """The random numbers of one (seed, leaf, draw), on any device.

    On the CPU they come from NumPy: torch's CPU generator keeps only 32 bits of its seed, so among 100,000
    streams it would repeat one with probability 2/3.
    """

    seed: int
    name: str
    draw: int
    rooms: list[Tensor] = field(default_factory=list)
    """Where the numbers go that are asked for first, if in this shape and dtype; what is asked for later is new."""

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal numbers: on the CPU the same ones in every dtype, rounded to it from single precision."""
        room = self._room(shape, dtype, device)
        if device.type != "cpu":
            return torch.randn(tuple(shape), generator=self._torch(device), out=room)
        single = room if dtype == torch.float32 else torch.empty(tuple(shape), dtype=torch.float32)
        if single.numel() < FEW:
            self._numpy().standard_normal(out=single.numpy(), dtype=np.float32)
        else:
            _box_muller(self._numpy().bit_generator, single.numpy().reshape(-1))
        return room.copy_(single) if single is not room else room

    def signs(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        room = self._room(shape, dtype, device)
        if device.type != "cpu":
            bits = torch.randint(2, tuple(shape), generator=self._torch(device), dtype=torch.uint8, device=device)
            return room.copy_(bits).mul_(2).sub_(1)
        size = room.numel()
        packed = self._numpy().bit_generator.random_raw(-(-size // 64)).astype("<u8", copy=False).view(np.uint8)
        if dtype not in NUMPY:
            signs = _signs(np.float32).take(packed, axis=0).reshape(-1)[:size]
            return room.copy_(torch.from_numpy(signs).reshape(tuple(shape)))
        table, out = _signs(NUMPY[dtype]), room.numpy().reshape(-1)
        if size % 8:
            out[:] = table.take(packed, axis=0).reshape(-1)[:size]
        else:
            table.take(packed[: size // 8], axis=0, out=out.reshape(-1, 8), mode="clip")
        return room

    def integer(self) -> int:
        """A number below 2⁶³ whose lowest 32 bits, all that torch's CPU generator takes of a seed, differ by draw."""
        high = int.from_bytes(self._digest()[:4], "little") >> 1
        start = int.from_bytes(replace(self, draw=-1)._digest()[:4], "little")
        return high << 32 | (start + self.draw * ODD) % (1 << 32)

    def _room(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.rooms:
            room = self.rooms.pop()
            if (tuple(room.shape), room.dtype, room.device) == (tuple(shape), dtype, device):
                return room
        return torch.empty(tuple(shape), dtype=dtype, device=device)

    def _digest(self) -> bytes:
        return hashlib.blake2b(f"{self.seed}/{self.draw}/{self.name}".encode(), digest_size=32).digest()

    def _numpy(self) -> np.random.Generator:
        seed: Any = _Digest(self._digest())  # numpy annotates SeedSequence, where any ISeedSequence will do
        return np.random.Generator(np.random.SFC64(seed))

    def _torch(self, device: torch.device) -> torch.Generator | None:
        if device.type == "meta":
            return None
        generator = torch.Generator(device)
        return generator.manual_seed(int.from_bytes(self._digest()[:8], "little") >> 1)


def _box_muller(bits: np.random.BitGenerator, out: np.ndarray) -> None:
    """Normal numbers r cos φ and r sin φ of uniform φ and r² / 2 = −log of a uniform number (Box and Muller 1958).

    In float32 of 32-bit words: none is larger than 6.7, as 1 of 4·10¹⁰ normal numbers is. Every x86 processor with
    AVX2 makes the same bits; others round some of the last ones differently.
    """
    for start in range(0, out.size, BLOCK):
        room = out[start : start + BLOCK]
        half = -(-room.size // 2)
        words = bits.random_raw(half).astype("<u8", copy=False).view("<i4")
        words[:half] &= 0x7FFFFFFF
        radius = np.add(words[:half], 0.5, dtype=np.float32, casting="unsafe")
        radius *= 2.0**-31
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        angle = np.multiply(words[half:], math.pi / 2**31, dtype=np.float32, casting="unsafe")
        for function, numbers in ((np.cos, room[:half]), (np.sin, room[half:])):
            function(angle[: numbers.size], out=numbers)
            numbers *= radius[: numbers.size]


@functools.cache
def _signs(dtype: Any) -> np.ndarray:
    """The eight signs of every byte: numbers are written once, where unpacking bits would write them thrice."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return bits.astype(dtype) * 2 - 1


class _Digest(np.random.bit_generator.ISeedSequence):
    """A hash as the state of a bit generator: uniform already, so SeedSequence's own (slow) hashing is left out."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return np.frombuffer(self.digest, dtype, n_words)
