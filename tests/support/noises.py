"""The two laws of independent numbers, and one draw of a law: what the tests of noise share."""

import pytest
import torch
from hypothesis import strategies as st

from fgvar.estimators.laws import Law
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.randomness import Leaf, Randomness

NOISES = [Gaussian(), Rademacher()]
CPU = torch.device("cpu")

noises = pytest.mark.parametrize("noise", NOISES, ids=["gaussian", "rademacher"])
seeds = st.integers(0, 2**70)


def one(noise: Law, *, seed: int = 0, draw: int = 0, name: str = "w", shape: tuple[int, ...] = (64,)) -> torch.Tensor:
    return Randomness({name: Leaf(shape, noise)}).sample(seed, [draw], dtype=torch.float64)[name][0]
