"""Tiles: a stream serves 16 draws of a small leaf, or a piece of a large one; who asks for what changes no number."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import fgvar
from fgvar.estimators.random_streams import TILE
from fgvar.estimators.randomness import TOGETHER, Leaf, Randomness

LARGE = Leaf((3, TILE - 7), fgvar.Rademacher())
SMALL, MEDIUM = TILE // TOGETHER, TILE // TOGETHER + 1


def piece(leaf: Leaf, draws: list[int], first: int, width: int) -> torch.Tensor:
    out = torch.empty(len(draws), width)
    for task in leaf.tasks(5, "w", draws, out, first):
        task()
    return out


@given(first=st.integers(0, LARGE.size - 1), width=st.integers(1, 2 * TILE))
def test_a_piece_is_that_of_the_whole(first: int, width: int) -> None:
    width = min(width, LARGE.size - first)
    whole = Randomness({"w": LARGE}).sample(5, [9])["w"].flatten()
    assert torch.equal(piece(LARGE, [9], first, width)[0], whole[first : first + width])


@pytest.mark.parametrize("size", [1, SMALL, MEDIUM, TILE, TILE + 1])
def test_draws_and_tiles_are_uncorrelated(size: int) -> None:
    """Signs of neighbouring draws and tiles: a mean of n products beyond 6/√n has a probability below 2e-9."""
    draws = 4096 // min(size, 4096) + 40
    u = Randomness({"w": Leaf((size,), fgvar.Rademacher())}).sample(1, range(draws))["w"].double()
    for one, other in ((u[1:], u[:-1]), (u[TOGETHER:], u[:-TOGETHER]), (u[:, 1:], u[:, :-1])):
        if one.numel():
            assert abs(float((one * other).mean())) < 6 / one.numel() ** 0.5
    ends = u[:, [0, min(TILE, size - 1)]]  # the first numbers of two tiles
    assert size <= TILE or abs(float(ends.prod(1).mean())) < 6 / draws**0.5


def test_whoever_samples_in_its_own_way_is_asked_for_whole_tensors() -> None:
    """A subclass does not inherit that its numbers are made one by one: this one's are not."""
    asked = []

    class Centred(fgvar.Gaussian):
        def sample(self, stream, shape, dtype, device):
            asked.append(tuple(shape))
            u = super().sample(stream, shape, dtype, device)
            return u - u.mean()

    leaves = {"one": Leaf((2, 5), Centred(), batch_dims=1), "large": Leaf((TILE + 1,), Centred())}
    found = Randomness(leaves).sample(0, range(3))
    assert asked == [(5,)] * 6 + [(TILE + 1,)] * 3
    assert found["one"].mean(2).abs().max() < 1e-6
