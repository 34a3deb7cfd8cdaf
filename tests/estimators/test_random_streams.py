"""Streams: the numbers of one (seed, leaf, draw), the same bits in every dtype and on every processor."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from noises import CPU, noises, seeds

from fgvar.estimators.laws import Law
from fgvar.estimators.random_streams import FEW, TILE, Stream
from fgvar.estimators.randomness import Leaf, Randomness


@given(seed=seeds, size=st.integers(0, 40), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_signs_are_the_bits(seed: int, size: int, dtype: torch.dtype) -> None:
    """Of the stream's bytes, the highest first."""
    stream = Stream(seed, "u", 1)
    bits = np.unpackbits(np.frombuffer(stream._numpy().bytes(-(-size // 8)), np.uint8), count=size)
    found = stream.signs((size,), dtype, CPU)
    assert found.dtype == dtype
    assert found.tolist() == [2.0 * bit - 1 for bit in bits]


def test_streams_whose_torch_generators_coincide_differ() -> None:
    """The same trap behind the hash: among 300,000 torch generators ten pairs coincide (none: probability 3e-5)."""
    found: dict[int, Stream] = {}
    for stream in (Stream(0, "w", draw) for draw in range(300_000)):
        other = found.setdefault(stream._torch(CPU).initial_seed() % 2**32, stream)
        if other is not stream:
            break
    ours, torchs = [], []
    for s in (stream, other):
        ours.append(s.normal((8,), torch.float64, CPU))
        torchs.append(torch.randn(8, generator=s._torch(CPU)))
    assert torch.equal(*torchs)
    assert not torch.equal(*ours)


@noises
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [11, FEW + 1])
def test_numbers_are_the_same_in_every_dtype(noise: Law, dtype: torch.dtype, size: int) -> None:
    leaves = Randomness({"u": Leaf((size,), noise)})
    assert torch.equal(leaves.sample(0, range(3), dtype=dtype)["u"], leaves.sample(0, range(3))["u"].to(dtype))


@pytest.mark.parametrize("size", [FEW, FEW + 1, TILE, TILE + 1, 2 * TILE - 1])
def test_many_normal_numbers_follow_box_and_muller(size: int) -> None:
    """Word by word in float64, but for uniform numbers: words of a block give its radii, then its angles."""
    stream, rest = Stream(0, "u", 1), size
    bits, expected = stream._numpy().bit_generator, []
    while rest:
        half = -(-min(rest, TILE) // 2)
        first, last = np.split(bits.random_raw(half).astype("<u8").view(np.int32).astype(float), [half])
        uniform = ((first % 2**31).astype(np.float32) + np.float32(0.5)).astype(float) / 2**31
        angle = last * np.pi / 2**31
        both = np.sqrt(-2 * np.log(uniform)) * np.stack([np.cos(angle), np.sin(angle)])
        expected.append(both.reshape(-1)[: min(rest, TILE)])
        rest -= expected[-1].size
    found = stream.normal((size,), torch.float64, CPU).numpy()
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=0, atol=2e-6)  # rounding of angles below π


def test_processors_with_longer_vectors_make_the_same_bits() -> None:
    """Normal numbers made by AVX-512 and without it."""
    code = (
        "import hashlib, numpy, torch\n"
        "from fgvar.estimators.random_streams import Stream\n"
        "numbers = Stream(0, 'u', 1).normal((100_001,), torch.float32, torch.device('cpu')).numpy()\n"
        "print(hashlib.sha256(numbers.tobytes()).hexdigest())\n"
        "print(*numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', []))"
    )

    def made(without: str = "") -> list[str]:
        env = {**os.environ, "NPY_DISABLE_CPU_FEATURES": without}
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
        ).stdout.splitlines()

    with_all, found = made()
    longer = [name for name in found.split() if "AVX512" in name or name == "X86_V4"]
    if not longer:
        pytest.skip("NumPy finds no AVX-512 here")
    without, left = made(" ".join(longer))
    assert not {*left.split()} & {*longer}
    assert without == with_all
