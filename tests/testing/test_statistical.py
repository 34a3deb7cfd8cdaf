"""Statistical verdicts: what they catch, at which nominal rate, and what they say of it."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import fgvar
from fgvar.testing import CHECKS, DRAWS, Verdict, default_problems, unbiased
from fgvar.testing.mean_tests import mean_test


def columns(seed: int, count: int, n: int = 1024) -> torch.Tensor:
    """χ² less 1, skewness 2.8: the deviation of (g·u)u in one dimension."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((n, count)) ** 2 - 1)


def test_a_skewed_law_keeps_its_nominal_rate_in_either_tail() -> None:
    """20,000 tests, 0.5 % in each tail: counts below the 1 − 5e-7 bound, above that of a quarter of the rate.

    Student's t is out of it in one tail; Hall's transformation alone in both tails of t with 3 degrees of freedom.
    """
    low, high = stats.binom.ppf(5e-7, 20_000, 0.005 / 4), stats.binom.ppf(1 - 5e-7, 20_000, 0.005)
    for samples in (columns(0, 20_000), torch.from_numpy(np.random.default_rng(9).standard_t(3, (1024, 20_000)))):
        found = mean_test(samples, 0.0, level=0.01 * 20_000)  # each column at 0.01
        assert low <= int((found.z < -found.critical).sum()) <= high
        assert low <= int((found.z > found.critical).sum()) <= high
    t = columns(0, 20_000).mean(0) / columns(0, 20_000).std(0) * 1024**0.5
    assert int((t < -found.critical).sum()) > high, "the correction is what keeps it"


def test_the_detectable_size_is_caught_in_19_of_20_runs() -> None:
    """2,000 runs at level 1e-6: 0.95 within 5 binomial standard errors (0.024), and a third of it hardly ever."""
    samples = torch.from_numpy(np.random.default_rng(1).standard_normal((1024, 2000)))
    size = mean_test(samples[:, :1], 0.0, level=1e-6).detectable.item()
    for share, low, high in ((1.0, 0.926, 0.974), (1 / 3, 0.0, 0.01)):
        found = mean_test(samples + share * size, 0.0, level=1e-6 * 2000)
        assert low <= float((found.z.abs() > found.critical).double().mean()) <= high


def test_levels_are_split_over_components() -> None:
    one, many = (mean_test(columns(2, k), 0.0, level=1e-3).critical for k in (1, 100))
    assert one == pytest.approx(stats.t.isf(5e-4, 1023))
    assert many == pytest.approx(stats.t.isf(5e-6, 1023))


def test_what_does_not_vary_is_compared_exactly() -> None:
    still = torch.full((64, 2), 3.0, dtype=torch.float64)
    assert mean_test(still, 3.0, level=1e-6).passed
    expected, known = torch.tensor([3.0, 3.0 + 1e-6]), torch.ones(2, dtype=torch.bool)
    found = mean_test(still, expected, level=1e-6, fixed=known)
    assert found.z.tolist() == [0.0, float("inf")]
    assert found.worst == 1
    assert not found.passed
    assert mean_test(still, expected, level=1e-6, rounding=1e-5).passed
    drawn = mean_test(still, expected, level=1e-6)
    assert drawn.undecided.tolist() == [False, True], "an event that 64 draws did not meet may carry the rest"
    assert drawn.enough(1.0).tolist() == [0.0, float("inf")]


@pytest.mark.parametrize("q", [1e-4, 3e-4, 1e-3, 3e-3, 7e-3, 1e-2, 2e-2, 0.2])
@pytest.mark.parametrize("level", [8e-8, 1e-3])
def test_rare_events_are_refuted_no_more_often_than_the_level_says(q: float, level: float) -> None:
    """1/q with probability q, 4096 draws: exact, a sum over how many draws it comes in."""
    n, rate = 4096, 0.0
    counts = [k for k in range(n + 1) if stats.binom.pmf(k, n, q) > level * 1e-6]
    for events in counts:
        samples = torch.zeros(n, 1, dtype=torch.float64)
        samples[:events] = 1 / q
        rate += stats.binom.pmf(events, n, q) * (not mean_test(samples, 1.0, level=level).passed)
    assert rate <= level
    undecided = mean_test(torch.zeros(n, 1), 1.0, level=level).undecided
    assert undecided.all()


def test_a_wrong_mean_of_events_that_are_not_rare_is_refuted() -> None:
    """Half of what it should be, 1 draw in 40: 102 of them moved it."""
    samples = torch.zeros(4096, 1, dtype=torch.float64)
    samples[::40] = 20.0
    found = mean_test(samples, 1.0, level=8e-8)
    assert not found.passed
    assert int(found.moved[0]) == 103


@dataclass(frozen=True)
class Wrong:
    """A scheme with little noise (64 directions) whose estimates are changed."""

    scale: float = 1.0
    shift: float = 0.0
    hidden: bool = False

    @property
    def right(self) -> fgvar.Estimator:
        return fgvar.scheme("FG-A", noise=fgvar.Rademacher(), directions=64)

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


class Heads(Wrong):
    """Heads, which have no noise, are off by a millionth."""

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        found = self.right.estimate(problem, noise).gradient
        return fgvar.Estimate({k: g * (1 + 1e-6 * k.startswith("readout")) for k, g in found.items()})


def test_what_no_draw_moves_has_no_verdict_by_drawing_and_an_exact_one_by_nodes() -> None:
    problem = default_problems()["relu"]
    verdict = unbiased(Heads(), problem, draws=64)
    assert {test.layer for test in verdict.undecided("bias")} == {"readout.linear.weight", "readout.linear.bias"}
    assert not verdict.failed("bias")
    sentence = (
        r"never moved in 'readout\.linear\.weight'.*, and is off its target: wrong, unless fewer than 1 draw in 4"
    )
    assert re.search(sentence, verdict.sentence("bias")), verdict.sentence("bias")
    with pytest.raises(AssertionError, match=r"E ĝ of 'readout\.linear\.\w+' is off its target by 1e-06"):
        CHECKS["unbiased"](Heads(), problem)


def test_the_verdict_says_what_it_would_have_caught() -> None:
    verdict = unbiased(fgvar.scheme("FG-W"), LINEAR)
    assert isinstance(verdict, Verdict)
    text = str(verdict)
    for part in ("8192 draws", "9 tests", "false alarms 1e-06 in all (nominal)", "caught at 95 %: a bias of"):
        assert part in text, text
    assert "proved" not in text
    assert "any size" in str(unbiased(fgvar.scheme("BP"), LINEAR, draws=64))


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
    with pytest.raises(ValueError, match="draws is 8, expected at least 64"):
        unbiased(fgvar.scheme("FG-W"), LINEAR, draws=8)
    with pytest.raises(TypeError, match="draws is 'plenty', expected an integer of at least 64, or 'enough'"):
        unbiased(fgvar.scheme("FG-W"), LINEAR, draws="plenty")
    with pytest.raises(TypeError, match="'a' is the text 'FG-W'"):
        unbiased({"a": "FG-W"}, LINEAR)


class Doubled(fgvar.Estimator):
    """Weight perturbation, twice too long."""

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        return fgvar.Estimate({k: 2 * g for k, g in super().estimate(problem, noise).gradient.items()})


def test_too_few_draws_say_so_and_enough_are_fixed_by_a_pilot() -> None:
    """FG-W with 80 draws would not see a doubled tensor; the sentence says how many would."""
    few = unbiased(fgvar.scheme("FG-W"), LINEAR, draws=80)
    assert not few.passed
    assert not few.failed("scale")
    advised = re.search(
        r"a turned sign in 'weight', 'bias', 'total'; \d+ draws would \(draws=(\d+), or", few.sentence("scale")
    )
    assert advised, few.sentence("scale")
    assert unbiased(fgvar.scheme("FG-W"), LINEAR, draws=2 * int(advised[1])).passed, (
        "80 draws know a spread to a fifth"
    )
    enough = unbiased(fgvar.scheme("FG-W"), LINEAR, draws="enough")
    assert enough.passed
    assert enough.draws == DRAWS, "never fewer than the default"
    doubled = unbiased(Doubled(), LINEAR, draws="enough")
    assert doubled.failed("scale")


def test_what_has_no_variance_is_never_passed() -> None:
    """Divided by normal numbers, whichever its sign: a mean that does not exist is neither right nor wrong."""

    @dataclass(frozen=True)
    class Divided(Wrong):
        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            found = self.right.estimate(problem, noise).gradient
            u = next(iter(noise.values())).flatten()
            return fgvar.Estimate({k: self.scale * g / (u[0] + u[1] * u[2] / 3) for k, g in found.items()})

        @property
        def right(self) -> fgvar.Estimator:
            return fgvar.scheme("FG-W")

    for sign in (1.0, -1.0):
        verdict = unbiased(Divided(sign), LINEAR)
        assert verdict.undecided("scale")
        assert not verdict.passed
        assert re.search(
            r"a turned sign in .*draws would: what moves it is too rare, or its tails too heavy",
            verdict.sentence("scale"),
        )
    with pytest.raises(fgvar.NonFiniteError, match="estimator 'estimator': the estimate of draw 0 holds NaN"):
        unbiased(Wrong(shift=float("nan")), LINEAR, draws=64)
