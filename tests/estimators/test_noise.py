"""Noise: laws of independent numbers have the moments that their names promise."""

import math

import numpy as np
import pytest
import torch
from noises import noises, one
from scipy import stats

from fgvar.estimators.laws import Law
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.randomness import Leaf, Randomness


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
