"""Enumerations: all nodes of a law, in any pieces, with the moments that make a mean exact."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from refusals import problem, says

import fgvar
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.measurement.draws import Enumeration, ranges
from fgvar.testing import expectation


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


def test_enumerations() -> None:
    leaves = Randomness({"w": Leaf((19,), fgvar.Rademacher())})
    with pytest.raises(ValueError, match=says("unknown method 'sings'", "mean 'signs'", "hermite, nodes, signs")):
        Enumeration(leaves, "sings")
    with pytest.raises(ValueError, match=says(r"19 random numbers have 2\^19", r"2\^18", "smaller problem.*'nodes'")):
        Enumeration(leaves, "signs")
    with pytest.raises(ValueError, match=says(r"19 random numbers have 3\^19", r"3\^11")):
        Enumeration(leaves, "hermite")
    with pytest.raises(ValueError, match=says("needs no noise", "its only estimate is its expectation")):
        expectation(fgvar.scheme("BP"), problem())
