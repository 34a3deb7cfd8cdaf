"""Noise: draw i is a function of (seed, leaf name, i) alone, with the moments that its name promises."""

import itertools
import math
import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import fgvar
import fgvar.estimators.randomness as randomness_module
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.random_streams import BLOCK, FEW, Stream
from fgvar.estimators.randomness import Law, Leaf, Randomness
from fgvar.measurement.draws import Enumeration, ranges

NOISES = [Gaussian(), Rademacher()]
LEAVES = {"w": Leaf((3, 5), Gaussian()), "s": Leaf((11,), Rademacher()), "one": Leaf((), Gaussian())}
CPU = torch.device("cpu")

noises = pytest.mark.parametrize("noise", NOISES, ids=["gaussian", "rademacher"])
seeds = st.integers(0, 2**70)
draw_lists = st.lists(st.integers(0, 2**40), min_size=1, max_size=6)


def one(noise: Law, *, seed: int = 0, draw: int = 0, name: str = "w", shape: tuple[int, ...] = (64,)) -> torch.Tensor:
    return Randomness({name: Leaf(shape, noise)}).sample(seed, [draw], dtype=torch.float64)[name][0]


# ---- what a draw depends on --------------------------------------------------------------------------------


@given(seed=seeds, draws=draw_lists)
def test_a_draw_does_not_depend_on_its_company(seed: int, draws: list[int]) -> None:
    """Any subset, in any order, with repetitions."""
    together = Randomness(LEAVES).sample(seed, draws)
    for row, draw in enumerate(draws):
        alone = Randomness(LEAVES).sample(seed, [draw])
        assert all(torch.equal(together[name][row], alone[name][0]) for name in LEAVES)


@given(seed=seeds, names=st.permutations(list(LEAVES)), kept=st.integers(1, len(LEAVES)))
def test_a_leaf_does_not_depend_on_the_others(seed: int, names: list[str], kept: int) -> None:
    whole = Randomness(LEAVES).sample(seed, [4, 2])
    part = Randomness({name: LEAVES[name] for name in names[:kept]}).sample(seed, [4, 2])
    assert list(part) == names[:kept]
    assert all(torch.equal(part[name], whole[name]) for name in part)


@given(seed=seeds, chunk=st.integers(1, 12))
def test_chunks_join_to_the_whole(seed: int, chunk: int) -> None:
    whole = Randomness(LEAVES).sample(seed, range(12))
    parts = [Randomness(LEAVES).sample(seed, range(s, min(s + chunk, 12))) for s in range(0, 12, chunk)]
    assert all(torch.equal(torch.cat([part[name] for part in parts]), whole[name]) for name in LEAVES)


def test_threads_make_the_same_numbers(monkeypatch) -> None:
    """Leaves of a joint law, too, which are joined after they were drawn."""
    leaves = {**LEAVES, **{k: Leaf((2, 3), fgvar.noise.Orthogonal(), batch_dims=1) for k in "ab"}}
    alone = Randomness(leaves).sample(3, [0, 5])
    monkeypatch.setattr(randomness_module, "THREADED", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = Randomness(leaves).sample(3, [0, 5])
    assert all(torch.equal(together[name], alone[name]) for name in leaves)


@pytest.mark.parametrize("threaded", [0, randomness_module.THREADED])
def test_errors_of_a_law_come_through(monkeypatch, threaded: int) -> None:
    """An IndexError, too, which ends the work of a thread when it is no law's."""

    class Broken(Gaussian):
        def sample(self, *_: object) -> torch.Tensor:
            raise IndexError("of the law")

    monkeypatch.setattr(randomness_module, "THREADED", threaded)
    with pytest.raises(IndexError, match="of the law"):
        Randomness({"a": Leaf((3,), Gaussian()), "b": Leaf((3,), Broken())}).sample(0, [0, 1])


@given(seed=seeds, size=st.integers(0, 40), dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]))
def test_signs_are_the_bits(seed: int, size: int, dtype: torch.dtype) -> None:
    """Of the stream's bytes, the highest first."""
    stream = Stream(seed, "u", 1)
    bits = np.unpackbits(np.frombuffer(stream._numpy().bytes(-(-size // 8)), np.uint8), count=size)
    found = stream.signs((size,), dtype, CPU)
    assert found.dtype == dtype
    assert found.tolist() == [2.0 * bit - 1 for bit in bits]


def test_more_draws_extend_fewer() -> None:
    few, many = (Randomness(LEAVES).sample(3, range(n)) for n in (5, 50))
    assert all(torch.equal(few[name], many[name][:5]) for name in LEAVES)


@noises
def test_seeds_names_and_draws_all_differ(noise: Law) -> None:
    """All of 12 × 12 × 5 streams: as texts, some of their keys are permutations or prefixes of each other."""
    numbers, names = [0, 1, 2, 3, 10, 11, 12, 100, 101, 110, 111, 112], ["w", "w.w", "1/w", "/", ""]
    keys = list(itertools.product(numbers, names, numbers))
    found = {one(noise, seed=s, name=n, draw=d).numpy().tobytes() for s, n, d in keys}
    assert len(found) == len(keys)


@noises
@pytest.mark.parametrize("power", [31, 32, 33, 63, 64, 128])
def test_seeds_and_draws_keep_their_high_bits(noise: Law, power: int) -> None:
    """torch's CPU generator keeps 32 bits of its seed: manual_seed(s) and manual_seed(s + 2**32) are one stream."""
    for base in (0, 5):
        assert not torch.equal(one(noise, seed=base), one(noise, seed=base + 2**power))
        assert not torch.equal(one(noise, draw=base), one(noise, draw=base + 2**power))


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
def test_global_generators_are_neither_read_nor_moved(noise: Law) -> None:
    torch_state, numpy_state, python_state = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = one(noise, shape=(1000,))
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert random.getstate() == python_state
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(12345)
        assert torch.equal(one(noise, shape=(1000,)), first)


def test_estimators_that_need_the_same_leaves_get_the_same_noise() -> None:
    problem = CASES["mixer_tiny"]()
    for kind in ("W", "A"):
        ours, theirs = (fgvar.scheme(f"{name}FG-{kind}").randomness(problem).sample(7, [3]) for name in ("", "LG-"))
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


# ---- shapes, types, devices --------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [None, True, False])
def test_leaves_are_shared_or_independent_by_the_custom_of_the_space(shared: bool | None) -> None:
    problem = CASES["mlp_relu"]()
    batch = (problem.batch_size,)
    for space, custom in ((fgvar.WeightSpace(), True), (fgvar.ActivitySpace(), False)):
        estimator = fgvar.Estimator(space, shared=shared)
        lead = () if (custom if shared is None else shared) else batch
        shapes = {name: leaf.shape for name, leaf in estimator.randomness(problem).leaves.items()}
        if isinstance(space, fgvar.WeightSpace):
            expected = {name: tuple(problem.params[name].shape) for name in problem.perturbed}
        else:
            expected = {"site0": (6,), "site1": (6,)}
        assert shapes == {name: (*lead, *shape) for name, shape in expected.items()}


def test_size_counts_the_random_numbers_of_one_draw() -> None:
    assert [leaf.size for leaf in LEAVES.values()] == [15, 11, 1]
    assert Randomness(LEAVES).size == 27
    assert Randomness({}).size == 0


@noises
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (8,), (9,), (2, 3, 5)])
def test_shape_and_dtype_are_those_asked_for(noise: Law, dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    u = Randomness({"w": Leaf(shape, noise)}).sample(0, [0, 1], dtype=dtype)["w"]
    assert u.dtype == dtype
    assert u.shape == (2, *shape)
    assert u.isfinite().all()


@noises
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("size", [11, FEW + 1])
def test_numbers_are_the_same_in_every_dtype(noise: Law, dtype: torch.dtype, size: int) -> None:
    leaves = Randomness({"u": Leaf((size,), noise)})
    assert torch.equal(leaves.sample(0, range(3), dtype=dtype)["u"], leaves.sample(0, range(3))["u"].to(dtype))


@pytest.mark.parametrize("size", [FEW, FEW + 1, BLOCK, BLOCK + 1, 2 * BLOCK - 1])
def test_many_normal_numbers_follow_box_and_muller(size: int) -> None:
    """Word by word in float64, but for uniform numbers: words of a block give its radii, then its angles."""
    stream, rest = Stream(0, "u", 1), size
    bits, expected = stream._numpy().bit_generator, []
    while rest:
        half = -(-min(rest, BLOCK) // 2)
        first, last = np.split(bits.random_raw(half).astype("<u8").view(np.int32).astype(float), [half])
        uniform = ((first % 2**31).astype(np.float32) + np.float32(0.5)).astype(float) / 2**31
        angle = last * np.pi / 2**31
        both = np.sqrt(-2 * np.log(uniform)) * np.stack([np.cos(angle), np.sin(angle)])
        expected.append(both.reshape(-1)[: min(rest, BLOCK)])
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


@noises
@pytest.mark.parametrize("options", [{"device": "meta"}, {"device": "meta", "noise_device": "cpu"}])
def test_noise_on_the_meta_device_has_shapes_only(noise: Law, options: dict[str, str]) -> None:
    u = Randomness({"w": Leaf((3, 5), noise)}).sample(0, range(4), dtype=torch.bfloat16, **options)["w"]
    assert u.is_meta
    assert u.shape == (4, 3, 5)
    assert u.dtype == torch.bfloat16


@pytest.mark.cuda
@noises
def test_on_cuda_draws_keep_the_same_promises(noise: Law) -> None:
    leaves = Randomness({"w": Leaf((3, 5), noise)})
    whole = leaves.sample(0, range(6), device="cuda")["w"]
    assert whole.device.type == "cuda"
    assert all(torch.equal(leaves.sample(0, [i], device="cuda")["w"][0], whole[i]) for i in (5, 0, 3))
    assert not torch.equal(leaves.sample(2**32, range(6), device="cuda")["w"], whole)
    on_cpu = leaves.sample(0, range(6))["w"]
    assert torch.equal(leaves.sample(0, range(6), device="cuda", noise_device="cpu")["w"].cpu(), on_cpu)


# ---- moments -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_signs_are_exactly_plus_and_minus_one(dtype: torch.dtype) -> None:
    u = Randomness({"s": Leaf((1001,), Rademacher())}).sample(0, range(8), dtype=dtype)["s"]
    assert torch.equal(u.square(), torch.ones_like(u))  # second and fourth moments are exactly 1
    assert set(u.unique().tolist()) == {-1.0, 1.0}


MOST = 5.6  # |z| of a refuted null hypothesis
FALSE_ALARM = 7 * math.erfc(MOST / math.sqrt(2))  # seven z-scores


def gaussian_scores(u: np.ndarray) -> dict[str, float]:
    """z-scores of draws [draws, numbers] under the null hypothesis of independent standard normal numbers.

    Their laws are normal to 1 part in 1000 at a million numbers, but for the fourth moment's tails: there the
    false-alarm rate may be several times the normal one.
    """
    n = u.size
    return {
        "mean": u.sum() / math.sqrt(n),
        "variance": (u**2 - 1).sum() / math.sqrt(2 * n),
        "third moment": (u**3).sum() / math.sqrt(15 * n),
        "kurtosis": (u**4 - 6 * u**2 + 3).sum() / math.sqrt(24 * n),  # Hermite: uncorrelated with the variance
        "neighbouring numbers": (u[:, 1:] * u[:, :-1]).sum() / math.sqrt(u[:, 1:].size),
        "neighbouring draws": (u[1:] * u[:-1]).sum() / math.sqrt(u[1:].size),
        "squares of halves": ((u[:, : -(u.shape[1] // 2)] ** 2 - 1) * (u[:, -(u.shape[1] // 2) :] ** 2 - 1)).sum()
        / math.sqrt(2 * n),  # n / 2 products of variance 4: a radius and an angle make one of each
    }


@pytest.mark.parametrize("size", [1000, 10_000])
def test_gaussian_moments(size: int) -> None:
    """A million numbers; false alarms ≤ 1e-6 in total over the seeds that could have been chosen.

    Would be caught with probability 0.999 (at z = 5.6 + 3.1): a mean of 0.009, a variance off by 1.3 %, a
    kurtosis off by 0.043, a correlation of 0.009 between neighbours, of 1.3 % between the squares of what one
    radius and one angle make.
    """
    assert FALSE_ALARM < 1e-6 / 5
    draws = Randomness({"w": Leaf((size,), Gaussian())}).sample(0, range(1_000_000 // size), dtype=torch.float64)
    scores = gaussian_scores(draws["w"].numpy())
    assert max(map(abs, scores.values())) < MOST, scores


@pytest.mark.parametrize("size", [1000, 10_000])
def test_gaussian_distribution(size: int) -> None:
    """Kolmogorov and Smirnov's distance of a million numbers: false alarms 1e-7, a distance of 0.0045 is caught."""
    u = Randomness({"w": Leaf((size,), Gaussian())}).sample(1, range(1_000_000 // size))["w"]
    assert stats.kstest(u.numpy().reshape(-1), "norm").pvalue > 1e-7


@pytest.mark.parametrize(
    ("score", "spoil"),
    [
        ("mean", lambda u: u + 0.01),
        ("variance", lambda u: u * 1.01),
        ("kurtosis", lambda u: u + 0.0022 * (u**3 - 3 * u)),  # excess kurtosis 24 · 0.0022
        ("neighbouring numbers", lambda u: u + 0.01 * np.roll(u, 1, axis=1)),
        ("neighbouring draws", lambda u: u + 0.01 * np.roll(u, 1, axis=0)),
        ("squares of halves", lambda u: u * (1 + 0.007 * (np.roll(u, u.shape[1] // 2, axis=1) ** 2 - 1))),
    ],
)
def test_a_slightly_wrong_gaussian_would_be_caught(score: str, spoil) -> None:
    u = np.random.default_rng(0).standard_normal((1000, 1000))
    assert abs(gaussian_scores(spoil(u))[score]) > MOST


def test_signs_are_balanced_and_uncorrelated() -> None:
    """A million signs; false alarms ≤ 1e-6 in total: 8 + 8 + 2 z-scores below 5.6, 2.1e-8 each.

    Would be caught with probability 0.999: a surplus of 0.9 % of one sign, a correlation of 0.9 % between
    neighbours or draws (2.5 % in one of the eight bits of a byte).
    """
    assert 18 * math.erfc(MOST / math.sqrt(2)) < 1e-6
    u = Randomness({"s": Leaf((1000,), Rademacher())}).sample(0, range(1000), dtype=torch.float64)["s"].numpy()
    bits = u.reshape(-1, 8)  # signs come from the bits of bytes
    scores = [
        *(bits.sum(0) / math.sqrt(len(bits))),
        *((bits * np.roll(bits, 1, axis=1)).sum(0) / math.sqrt(len(bits))),
        u.sum() / math.sqrt(u.size),
        (u[1:] * u[:-1]).sum() / math.sqrt(u[1:].size),
    ]
    assert max(map(abs, scores)) < MOST, scores


@noises
def test_kurtosis_is_the_fourth_moment(noise: Law) -> None:
    """Within six standard errors of a million Gaussian numbers' fourth moment, 0.0098 each: false alarms < 1e-8."""
    u = one(noise, shape=(1_000_000,))
    assert u.pow(4).mean().item() == pytest.approx(noise.kurtosis, abs=6 * math.sqrt(96 / u.numel()))


# ---- enumeration -------------------------------------------------------------------------------------------


def flat(enumeration: Enumeration) -> torch.Tensor:
    """All noise values [count, random numbers]."""
    noise = enumeration.take(range(len(enumeration)))
    return torch.cat([u.reshape(len(enumeration), -1) for u in noise.values()], dim=1)


@given(sizes=st.lists(st.integers(1, 4), min_size=1, max_size=4))
def test_nodes_average_to_zero_and_identity(sizes: list[int]) -> None:
    """Exactly, but for the rounding of (√d)² in the diagonal."""
    d = sum(sizes)
    u = flat(Enumeration(Randomness({str(i): Leaf((s,), Gaussian()) for i, s in enumerate(sizes)}), "nodes"))
    assert u.shape == (2 * d, d)
    assert torch.equal(u.sum(0), torch.zeros(d, dtype=torch.float64))
    second = u.T @ u / len(u)
    assert torch.equal(second - second.diagonal().diag(), torch.zeros(d, d, dtype=torch.float64))
    torch.testing.assert_close(second.diagonal(), torch.ones(d, dtype=torch.float64), rtol=0, atol=4e-16)


@pytest.mark.parametrize("d", [1, 4, 9, 16])
def test_nodes_average_to_identity_exactly_where_the_root_is(d: int) -> None:
    u = flat(Enumeration(Randomness({"w": Leaf((d,), Gaussian())}), "nodes"))
    assert torch.equal(u.T @ u / len(u), torch.eye(d, dtype=torch.float64))


@given(sizes=st.lists(st.integers(1, 3), min_size=1, max_size=3))
def test_sign_vectors_are_all_and_distinct(sizes: list[int]) -> None:
    d = sum(sizes)
    u = flat(Enumeration(Randomness({str(i): Leaf((s,), Rademacher()) for i, s in enumerate(sizes)}), "signs"))
    assert len(u) == 2**d
    assert set(map(tuple, u.int().tolist())) == set(itertools.product((-1, 1), repeat=d))
    assert torch.equal(u.mean(0), torch.zeros(d, dtype=torch.float64))
    assert torch.equal(u.T @ u / len(u), torch.eye(d, dtype=torch.float64))


@given(d=st.integers(1, 4), degrees=st.lists(st.integers(0, 5), min_size=4, max_size=4))
def test_hermite_nodes_have_the_gaussian_moments_up_to_the_fifth(d: int, degrees: list[int]) -> None:
    """E Π u_i^k_i in every coordinate, to the rounding of a sum of 3^d terms."""
    enumeration = Enumeration(Randomness({"w": Leaf((d,), Gaussian())}), "hermite")
    weights = enumeration.probabilities(range(len(enumeration)))
    gaussian = {0: 1, 2: 1, 4: 3}
    expected = math.prod(gaussian.get(degree, 0) for degree in degrees[:d])
    found = weights @ flat(enumeration).pow(torch.tensor(degrees[:d])).prod(1)
    assert found.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("method", ["nodes", "signs", "hermite"])
def test_enumerations_are_taken_in_any_pieces_and_shapes(method: str) -> None:
    leaves = {"w": Leaf((2, 3), Gaussian()), "b": Leaf((), Gaussian()), "z": Leaf((2, 1, 1), Gaussian())}
    enumeration = Enumeration(Randomness(leaves), method)
    whole = enumeration.take(range(len(enumeration)), dtype=torch.float32)
    assert len(enumeration) == {"nodes": 18, "signs": 2**9, "hermite": 3**9}[method]
    for name, leaf in leaves.items():
        assert whole[name].shape == (len(enumeration), *leaf.shape)
        assert whole[name].dtype == torch.float32
        parts = list(ranges(0, len(enumeration), 701))
        pieces = [enumeration.take(part, dtype=torch.float32)[name] for part in parts]
        assert torch.equal(torch.cat(pieces), whole[name])
        probabilities = torch.cat([enumeration.probabilities(part) for part in parts])
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)


def test_a_law_may_ask_its_stream_twice() -> None:
    """Numbers are written into the sample's memory: what is asked for second must not overwrite what came first."""

    class Product:
        def sample(self, stream, shape, dtype, device):
            return stream.normal(shape, dtype, device) * stream.signs(shape, dtype, device)

    found = Randomness({"w": Leaf((8,), Product())}).sample(seed=3, draws=[5])["w"][0]
    fresh = Stream(3, "w", 5)
    cpu = torch.device("cpu")
    expected = fresh.normal((8,), torch.float32, cpu) * fresh.signs((8,), torch.float32, cpu)
    assert torch.equal(found, expected)
    assert not torch.equal(found, torch.ones(8))
