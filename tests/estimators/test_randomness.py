"""Draws: number i is a function of (seed, leaf name, i) alone, of the shape, type and device asked for."""

import itertools
import random

import numpy as np
import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from noises import noises, one, seeds
from refusals import says

import fgvar
import fgvar.estimators.random_streams as streams_module
from fgvar.estimators.laws import Law
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.random_streams import Stream
from fgvar.estimators.randomness import Leaf, Randomness

LEAVES = {"w": Leaf((3, 5), Gaussian()), "s": Leaf((11,), Rademacher()), "one": Leaf((), Gaussian())}
draw_lists = st.lists(st.integers(0, 2**40), min_size=1, max_size=6)


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
    monkeypatch.setattr(streams_module, "THREADED", 0)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    together = Randomness(leaves).sample(3, [0, 5])
    assert all(torch.equal(together[name], alone[name]) for name in leaves)


@pytest.mark.parametrize("threaded", [0, streams_module.THREADED])
def test_errors_of_a_law_come_through(monkeypatch, threaded: int) -> None:
    """An IndexError, too, which ends the work of a thread when it is no law's."""

    class Broken(Gaussian):
        def sample(self, *_: object) -> torch.Tensor:
            raise IndexError("of the law")

    monkeypatch.setattr(streams_module, "THREADED", threaded)
    with pytest.raises(IndexError, match="of the law"):
        Randomness({"a": Leaf((3,), Gaussian()), "b": Leaf((3,), Broken())}).sample(0, [0, 1])


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


@pytest.mark.parametrize(("seed", "draws"), [(-1, [0]), (0, []), (0, [3, -1])])
def test_seeds_and_draws_are_not_negative(seed: int, draws: list[int]) -> None:
    leaves = Randomness({"w": Leaf((2,), fgvar.Gaussian())})
    message = says(rf"seed {seed} and draws \[{', '.join(map(str, draws))}\]", "non-negative integers, at least one")
    with pytest.raises(ValueError, match=message):
        leaves.sample(seed, draws)
