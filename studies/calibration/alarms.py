"""How often right means are refused: laws of a deviation whose mean is 0, drawn, or exact where they are rare events.

A test of one mean over the verdicts' draws, at a nominal rate of its own. What fewer than 30 draws moved has no
verdict, hence no alarm; how often that is stands beside the rates.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats

from fgvar.testing import DRAWS, MeanTest, mean_test
from studies.calibration.coverage import generator

Array = Any
Rng = np.random.Generator
NOMINAL = (1e-1, 1e-2, 1e-3, 1e-4, 8e-8)  # the last: a test's share of a verdict's 1e-6, where it has twelve
TAILS = ("below", "above")  # where the refused mean lies
AT_ONCE = 250  # runs, which keep within the caches
NEGLIGIBLE = 1e-18  # probability of a number of events that is left out
NUMBERS, PROJECTIONS = 10_000, 16  # of a layer with coordinate noise


def lognormal(sigma: float) -> Callable[[Rng, tuple[int, int]], Array]:
    return lambda rng, shape: rng.lognormal(0, sigma, shape) - np.exp(sigma**2 / 2)


def coordinate(rng: Rng, shape: tuple[int, int], *, slope: bool) -> Array:
    """FG-W's d gᵢ eᵢ for one i a draw: its deviation along the target, or along one of 16 projections of signs.

    The gradient is that of a linear layer for one example, another one for each piece of runs.
    """
    side = round(NUMBERS**0.5)
    gradient = np.outer(rng.standard_normal(side), rng.standard_normal(side)).ravel()
    along = gradient if slope else np.where(np.arange(NUMBERS) % PROJECTIONS == 0, rng.choice([-1, 1], NUMBERS), 0)
    moves = NUMBERS * gradient * along
    return ((moves - moves.mean()) / (gradient @ along if slope else 1))[rng.integers(NUMBERS, size=shape)]


# Family → law → sampler [runs, draws].
DRAWN: dict[str, dict[str, Callable[[Rng, tuple[int, int]], Array]]] = {
    "perturbation": {
        "u² − 1": lambda rng, shape: rng.standard_normal(shape) ** 2 - 1,
        "u v": lambda rng, shape: rng.standard_normal(shape) * rng.standard_normal(shape),
        "coordinate, slope": lambda rng, shape: coordinate(rng, shape, slope=True),
        "coordinate, projection": lambda rng, shape: coordinate(rng, shape, slope=False),
    },
    "heavy tails": {
        "t, 3 degrees": lambda rng, shape: rng.standard_t(3, shape),
        "u v × lognormal 1": lambda rng, shape: (
            rng.standard_normal(shape) * rng.standard_normal(shape) * rng.lognormal(0, 1, shape)
        ),
        "u² × lognormal 1": lambda rng, shape: (
            rng.standard_normal(shape) ** 2 * rng.lognormal(0, 1, shape) - np.exp(0.5)
        ),
        **{f"lognormal {sigma:g}": lognormal(sigma) for sigma in (0.5, 1.0, 1.5, 2.0)},
    },
}
# 1/q with probability q; 1e-4 is one number of 10⁴ with coordinate noise.
RARE = {f"1/q, q = {q:g}": q for q in (0.1, 0.02, 0.01, 0.003, 0.001, 3e-4, 1e-4)}
FAMILIES = {name: family for family, laws in DRAWN.items() for name in laws} | dict.fromkeys(RARE, "rare events")
SMOKE = ("u² − 1", "1/q, q = 0.01")


def rates(law: str, runs: int, seed: int) -> tuple[Array, float]:
    """Rate of alarms [tails, nominal], and the share of runs without a verdict; exact of `RARE`."""
    return exact(RARE[law]) if law in RARE else drawn(law, runs, generator(seed, "alarms", law))


def drawn(law: str, runs: int, rng: Rng) -> tuple[Array, float]:
    """Shares of runs."""
    sampler = DRAWN[FAMILIES[law]][law]
    alarms, undecided = np.zeros((len(TAILS), len(NOMINAL))), 0
    for done in range(0, runs, AT_ONCE):
        columns = torch.from_numpy(sampler(rng, (min(AT_ONCE, runs - done), DRAWS))).T
        found = mean_test(columns, 0.0, level=NOMINAL[0])
        alarms += refused(found).sum(-1)
        undecided += int(found.undecided.sum())
    return alarms / runs, undecided / runs


def exact(q: float) -> tuple[Array, float]:
    """Of 1/q with probability q: a binomial sum over the number of draws that it comes in."""
    chance = stats.binom.pmf(np.arange(DRAWS + 1), DRAWS, q)
    counts = np.flatnonzero(chance > NEGLIGIBLE)
    columns = torch.from_numpy((np.arange(DRAWS)[:, None] < counts) / q - 1)
    found = mean_test(columns, 0.0, level=NOMINAL[0])
    return refused(found) @ chance[counts], float(found.undecided.numpy() @ chance[counts])


def refused(found: MeanTest) -> Array:
    """Which columns raise an alarm, each at the nominal rates [tails, nominal, columns]."""
    z = np.where(found.undecided, 0.0, found.z)
    critical = -stats.t.ppf(np.array(NOMINAL)[:, None] / 2, found.draws - 1)
    return np.stack([z < -critical, z > critical])
