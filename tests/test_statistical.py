"""Statistical verdicts: what they catch, at which nominal rate, and what they say of it."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import fgvar
from fgvar.testing import Verdict, default_problems, unbiased
from fgvar.testing.statistical import means


def columns(seed: int, count: int, n: int = 1024) -> torch.Tensor:
    """χ² less 1, skewness 2.8: the deviation of (g·u)u in one dimension."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, count)) ** 2 - 1)


def test_a_skewed_law_keeps_its_nominal_rate_in_either_tail() -> None:
    """20,000 tests, 0.5 % in each tail: counts in their 1 - 1e-6 binomial interval. Student's t is out of it."""
    samples = columns(0, 20_000)
    critical = means(samples[:, :1], 0.0, level=0.01).critical
    low, high = stats.binom.ppf([5e-7, 1 - 5e-7], 20_000, 0.005)
    z = means(samples, 0.0, level=0.01).z
    t = samples.mean(0) / samples.std(0) * 1024**0.5
    assert low <= int((z < -critical).sum()) <= high
    assert low <= int((z > critical).sum()) <= high
    assert int((t < -critical).sum()) > high, "the correction is what keeps it"


def test_the_detectable_size_is_caught_in_19_of_20_runs() -> None:
    """2,000 runs at level 1e-6: 0.95 within 5 binomial standard errors (0.024), and a third of it hardly ever."""
    samples = torch.from_numpy(np.random.default_rng(1).standard_normal((1024, 2000)))
    size = means(samples[:, :1], 0.0, level=1e-6).detectable.item()
    for share, low, high in ((1.0, 0.926, 0.974), (1 / 3, 0.0, 0.01)):
        found = means(samples + share * size, 0.0, level=1e-6 * 2000)
        assert low <= float((found.z.abs() > found.critical).double().mean()) <= high


def test_levels_are_split_over_components() -> None:
    one, many = (means(columns(2, k), 0.0, level=1e-3).critical for k in (1, 100))
    assert one == pytest.approx(stats.t.isf(5e-4, 1023))
    assert many == pytest.approx(stats.t.isf(5e-6, 1023))


def test_what_does_not_vary_is_compared_exactly() -> None:
    still = torch.full((64, 2), 3.0, dtype=torch.float64)
    assert means(still, 3.0, level=1e-6).passed
    found = means(still, torch.tensor([3.0, 3.0 + 1e-6]), level=1e-6)
    assert found.z.tolist() == [0.0, float("inf")]
    assert found.worst == 1
    assert means(still, torch.tensor([3.0, 3.0 + 1e-6]), level=1e-6, rounding=1e-5).passed


@dataclass(frozen=True)
class Wrong:
    """A scheme with little noise (64 directions) whose estimates are changed."""

    scale: float = 1.0
    shift: float = 0.0
    hidden: bool = False

    @property
    def right(self) -> fgvar.Estimator:
        return fgvar.scheme("FG-A", noise=fgvar.Rademacher(directions=64))

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return self.right.randomness(problem)

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        if self.hidden:
            float(next(iter(noise.values())).sum())  # does not run under vmap
        found = self.right.estimate(problem, noise).gradient
        return fgvar.Estimate({k: self.scale * g + self.shift for k, g in found.items()})

    def target(self, problem: fgvar.Problem) -> dict[str, torch.Tensor]:
        return problem.backprop()


LINEAR = default_problems()["linear"]


@pytest.mark.parametrize("estimator", [Wrong(), Wrong(hidden=True), fgvar.scheme("BP")])
def test_correct_estimators_pass(estimator: Any) -> None:
    """One false alarm in 10⁶ verdicts."""
    verdict = unbiased(estimator, LINEAR, draws=512)
    assert verdict.passed, verdict
    assert verdict.draws == 512


def test_two_percent_are_caught_where_the_verdict_says_so() -> None:
    verdict = unbiased(Wrong(), LINEAR)
    sizes = [test.detectable for test in verdict.tests if test.kind == "scale" and test.layer == "total"]
    assert max(sizes) < 0.03
    scaled = unbiased(Wrong(scale=1.03), LINEAR)
    assert not scaled.scaled
    assert "the slope of" in scaled.sentence("scale")
    assert "is off its target" in scaled.sentence("scale")
    shifted = unbiased(Wrong(shift=0.02), LINEAR)
    assert not shifted.unbiased
    assert "a projection of the mean of" in shifted.sentence("bias")


@pytest.mark.parametrize("scale", [-1.0, 0.0, 2.0])
def test_gross_scales_are_caught(scale: float) -> None:
    assert not unbiased(Wrong(scale=scale), LINEAR, draws=256).scaled


def test_heads_that_are_wrong_by_little_are_caught_exactly() -> None:
    """What has no noise has to equal its target within rounding: a millionth is caught in every run."""

    class Heads(Wrong):
        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            found = self.right.estimate(problem, noise).gradient
            return fgvar.Estimate({k: g * (1 + 1e-6 * k.startswith("readout")) for k, g in found.items()})

    verdict = unbiased(Heads(), default_problems()["relu"], draws=64)
    assert {test.layer for test in verdict.failed("bias")} == {"readout.linear.weight", "readout.linear.bias"}


def test_the_verdict_says_what_it_would_have_caught() -> None:
    verdict = unbiased(fgvar.scheme("FG-W"), LINEAR)
    assert isinstance(verdict, Verdict)
    text = str(verdict)
    for part in ("4096 draws", "9 tests", "false alarms 1e-06 in all (nominal)", "caught at 95 %: a bias of"):
        assert part in text, text
    assert "proved" not in text
    assert "any size" in str(unbiased(fgvar.scheme("BP"), LINEAR, draws=32))


def test_one_level_over_several_estimators() -> None:
    one = unbiased(fgvar.scheme("FG-W"), LINEAR, draws=64)
    two = unbiased({"a": fgvar.scheme("FG-W"), "b": fgvar.scheme("FG-W")}, LINEAR, draws=64)
    assert len(two.tests) == 2 * len(one.tests)
    assert {test.estimator for test in two.tests} == {"a", "b"}
    for whole, alone in zip(two.tests, one.tests, strict=False):
        assert whole.z == pytest.approx(alone.z, rel=1e-9, abs=1e-12)
        assert whole.p == pytest.approx(min(2 * alone.p, 1))


def test_errors() -> None:
    with pytest.raises(ValueError, match="level is 0, expected a false-alarm rate between 0 and 1"):
        unbiased(fgvar.scheme("FG-W"), LINEAR, level=0)
    with pytest.raises(ValueError, match="draws is 8, expected at least 32"):
        unbiased(fgvar.scheme("FG-W"), LINEAR, draws=8)
    with pytest.raises(TypeError, match="'a' is the text 'FG-W'"):
        unbiased({"a": "FG-W"}, LINEAR)
    with pytest.raises(fgvar.NonFiniteError, match="estimator 'estimator': the estimate of draw 0 holds NaN"):
        unbiased(Wrong(shift=float("nan")), LINEAR, draws=32)
