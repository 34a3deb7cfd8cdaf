"""Forecast: says before a report what it will take, where that is much.

Whether anything is said depends on numbers that are counted, not on the machine; the time that is said is measured,
on one chunk of estimates and one block of correlations.
"""

import math
import time
import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

import torch

from fgvar.measurement.arguments import BUDGET
from fgvar.measurement.budget import sizes
from fgvar.measurement.references import BUCKETS
from fgvar.testing.exact_moments import FEW_ESTIMATES, claim
from fgvar.testing.line_quadrature import LARGEST, ORDER, PANELS
from fgvar.testing.noise_check import noise_draws
from fgvar.testing.sampled_checks import VARIANCE_DRAWS
from fgvar.testing.statistical import DRAWS
from fgvar.testing.under_test import EstimatorUnderTest, Failure, NotApplicable
from fgvar.testing.verdict import MAX_DRAWS

LONG = 60.0  # seconds, by the rates below, from which a report is announced
RATE, FLOPS = 2e8, 5e10  # numbers of estimates, and operations of correlations, a second: of one usual core
HELD = 24  # copies of the parameters and, at most, of noise that checks of a few draws hold


@dataclass(frozen=True)
class Forecast:
    """What a report on one problem takes.

    Attributes:
        estimates: how many there will be at most, but for checks of a few draws.
        correlations: operations of the products of all pairs of random numbers.
        numbers: of one estimate: its parameters, noise and activations, as often as they occur in it.
        memory: bytes beside model and problem.
    """

    estimates: int
    correlations: float
    numbers: int
    memory: int

    @property
    def large(self) -> bool:
        """Is it worth a word beforehand?"""
        return self.memory > BUDGET or self.estimates * self.numbers / RATE + self.correlations / FLOPS > LONG


def forecast(tested: EstimatorUnderTest, checks: Collection[str]) -> Forecast:
    """What these checks take, by what can be counted beforehand."""
    problem, r = tested.problem, tested.randomness.size
    activations, parameters = sizes(problem)
    draws = MAX_DRAWS if tested.draws == "enough" else tested.draws or DRAWS
    plain = None if tested.draws == "enough" else tested.draws  # whose number is known by a pilot alone
    mean = bool({"unbiased", "scale"} & set(checks))
    looked = 0 if "noise" not in checks or tested.opaque else noise_draws(replace(tested, draws=plain))
    columns = 16 * draws * sum(min(p.numel(), BUCKETS) + 1 for p in problem.params.values()) if mean else 0
    return Forecast(
        estimates=mean * max(draws, _points(tested)) + ("variance" in checks) * VARIANCE_DRAWS if r else 0,
        correlations=2.0 * looked * r * r,  # sums of products and of their squares, of half of the pairs
        numbers=2 * r + 3 * parameters + activations,
        memory=8 * (HELD * (parameters + r) + 5 * activations) + columns,
    )


def _points(tested: EstimatorUnderTest) -> int:
    """Estimates of which the mean of one that is what it declares is made, where it is not drawn."""
    r = tested.randomness.size
    if claim(tested.estimator, "bias_order") is None:
        leaves = tested.randomness.leaves.values()
        values = math.prod(leaf.values for leaf in leaves if not leaf.is_isotropic)
        nodes = 2 * values * sum(leaf.size for leaf in leaves if leaf.is_isotropic)
        return nodes if values == 1 or nodes <= FEW_ESTIMATES else 0
    points = 2 * PANELS * ORDER * r
    return points if points <= LARGEST else 0


def announce(name: str, tested: EstimatorUnderTest, checks: Collection[str]) -> None:
    """Warn of a report that takes long, or more than the budget, on this problem; nothing is left out for it."""
    try:
        found = forecast(tested, checks)
        if not found.large:
            return
        seconds = _seconds(tested, found)
    except (Failure, NotApplicable):
        return  # which the checks say
    warnings.warn(
        f"check_estimator on {name!r} takes about {_duration(seconds)} on this machine, and up to "
        f"{max(found.memory, BUDGET) / 1e9:.1f} GB: up to {found.estimates:,} estimates of "
        f"{sum(p.numel() for p in tested.problem.params.values()):,} parameters by {tested.randomness.size:,} random "
        "numbers, whose correlations are looked at in pairs; a smaller problem or batch, or fewer checks (checks=), "
        "take less",
        stacklevel=3,
    )


def _seconds(tested: EstimatorUnderTest, found: Forecast) -> float:
    """By one chunk of estimates, after one that warms up, and by a block of products."""
    draws = min(tested.chunk, max(found.estimates, 1))
    noise = tested.noise(range(draws))
    block = torch.ones(1024, 512)
    one = _timed(lambda: tested.estimates(noise) if noise else tested.estimate({})) / draws
    return found.estimates * one + found.correlations / (2 * 1024 * 512**2) * _timed(lambda: block.T @ block)


def _timed(call: Callable[[], object]) -> float:
    call()
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def _duration(seconds: float) -> str:
    for size, unit in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
