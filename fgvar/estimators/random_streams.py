"""Random streams: the numbers of one (seed, leaf, draw, piece), made from these four alone, on any device."""

import functools
import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, library

NUMPY: dict[torch.dtype, Any] = {torch.float32: np.float32, torch.float64: np.float64}
TILE = 1 << 16  # numbers that one stream serves at most: what is larger is drawn in pieces, each of which is alone
ODD = 0x9E3779B1  # whose multiples below 2³² times it are all different modulo 2³²
THREADED = 1 << 18  # numbers; fewer are drawn before threads have started
FEW = 5000  # normal numbers; fewer are drawn one by one before a block's dozen passes have been called


@dataclass(frozen=True)
class Stream:
    """The random numbers of one (seed, leaf, draw), or of the piece of it that ``part`` names, on any device.

    On the CPU they come from NumPy: torch's CPU generator keeps only 32 bits of its seed, so among 100,000
    streams it would repeat one with probability 2/3.
    """

    seed: int
    name: str
    draw: int
    part: str = ""
    buffers: list[Tensor] = field(default_factory=list)
    """Where the numbers go that are asked for first, if in this shape and dtype; what is asked for later is new."""

    def normal(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Standard normal numbers: on the CPU the same ones in every dtype, rounded to it from single precision."""
        out = self._out(shape, dtype, device)
        if device.type != "cpu":
            return torch.randn(tuple(shape), generator=self._torch(device), out=out)
        single = out if dtype == torch.float32 else torch.empty(tuple(shape), dtype=torch.float32)
        if single.numel() < FEW:
            self._numpy().standard_normal(out=single.numpy(), dtype=np.float32)
        else:
            _box_muller(self._numpy().bit_generator, single.numpy().reshape(-1))
        return out.copy_(single) if single is not out else out

    def signs(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        out = self._out(shape, dtype, device)
        if device.type != "cpu":
            bits = torch.randint(2, tuple(shape), generator=self._torch(device), dtype=torch.uint8, device=device)
            return out.copy_(bits).mul_(2).sub_(1)
        size = out.numel()
        packed = self._numpy().bit_generator.random_raw(-(-size // 64)).astype("<u8", copy=False).view(np.uint8)
        if dtype not in NUMPY:
            signs = _signs(np.float32).take(packed, axis=0).reshape(-1)[:size]
            return out.copy_(torch.from_numpy(signs).reshape(tuple(shape)))
        table, flat = _signs(NUMPY[dtype]), out.numpy().reshape(-1)
        if size % 8:
            flat[:] = table.take(packed, axis=0).reshape(-1)[:size]
        else:
            table.take(packed[: size // 8], axis=0, out=flat.reshape(-1, 8), mode="clip")
        return out

    def uniform(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        """Uniform numbers in [0, 1)."""
        out = self._out(shape, dtype, device)
        if device.type != "cpu":
            return torch.rand(tuple(shape), generator=self._torch(device), out=out)
        return out.copy_(torch.from_numpy(self._numpy().random(tuple(shape))))

    def integer(self) -> int:
        """A number below 2⁶³ whose lowest 32 bits, all that torch's CPU generator takes of a seed, differ by draw."""
        high = int.from_bytes(self._digest()[:4], "little") >> 1
        start = int.from_bytes(replace(self, draw=-1)._digest()[:4], "little")
        return high << 32 | (start + self.draw * ODD) % (1 << 32)

    def _out(self, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if self.buffers:
            out = self.buffers.pop()
            if (tuple(out.shape), out.dtype, out.device) == (tuple(shape), dtype, device):
                return out
        return torch.empty(tuple(shape), dtype=dtype, device=device)

    def _digest(self) -> bytes:
        return hashlib.blake2b(f"{self.seed}/{self.draw}{self.part}/{self.name}".encode(), digest_size=32).digest()

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
    for start in range(0, out.size, TILE):  # which the cache holds
        piece = out[start : start + TILE]
        half = -(-piece.size // 2)
        words = bits.random_raw(half).astype("<u8", copy=False).view("<i4")
        words[:half] &= 0x7FFFFFFF
        radius = np.add(words[:half], 0.5, dtype=np.float32, casting="unsafe")
        radius *= 2.0**-31
        np.log(radius, out=radius)
        radius *= -2
        np.sqrt(radius, out=radius)
        angle = np.multiply(words[half:], math.pi / 2**31, dtype=np.float32, casting="unsafe")
        for function, numbers in ((np.cos, piece[:half]), (np.sin, piece[half:])):
            function(angle[: numbers.size], out=numbers)
            numbers *= radius[: numbers.size]


def fill(tasks: Iterable[Callable[[], None]], size: int) -> None:
    """Call the tasks, which write so many numbers: in threads where that is worth it, as each writes its own."""
    waiting = iter(list(tasks))  # of a list, so that threads can share it
    if (threads := torch.get_num_threads()) > 1 and size >= THREADED:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(lambda _: [task() for task in waiting], range(threads)))
    else:
        for task in waiting:
            task()


@functools.cache
def _signs(dtype: Any) -> np.ndarray:
    """The eight signs of every byte: numbers are written once, where unpacking bits would write them thrice."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1)
    return bits.astype(dtype) * 2 - 1


# An operator, which torch.compile takes as it is: NumPy's draws are nothing that it could compile.
@library.custom_op("fgvar::fixed_normal", mutates_args=())
def fixed_normal(seed: int, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Normal numbers that are no noise but a part of an estimator: of the seed and the name alone."""
    return Stream(seed, name, 0).normal(shape, dtype, device)


@fixed_normal.register_fake
def _(seed: int, name: str, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:  # noqa: ARG001
    return torch.empty(shape, dtype=dtype, device=device)


class _Digest(np.random.bit_generator.ISeedSequence):
    """A hash as the state of a bit generator: uniform already, so SeedSequence's own (slow) hashing is left out."""

    def __init__(self, digest: bytes) -> None:
        self.digest = digest

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> Any:
        return np.frombuffer(self.digest, dtype, n_words)
