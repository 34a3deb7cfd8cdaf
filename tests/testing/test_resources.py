"""Reports in bounded memory: blocks give what the whole gives, black boxes are stacked, much is announced."""

import contextlib
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import fgvar
from fgvar.testing import (
    CHECKS,
    check_estimator,
    covariance,
    default_problems,
    forecast,
    from_function,
    line_quadrature,
    mean_test,
    mean_tests,
    noise_check,
    resources,
    sampled_checks,
)
from fgvar.testing.enumeration import variances
from fgvar.testing.line_quadrature import line_mean
from fgvar.testing.mutants.published_gradients import normal, times
from fgvar.testing.resources import largest_chunk, one_thread
from fgvar.testing.under_test import EstimatorUnderTest, Failure

PROBLEMS = default_problems()
LINEAR, MIXER = PROBLEMS["linear"], PROBLEMS["mixer"]
Function = Callable[[fgvar.Problem, torch.Generator], dict[str, Tensor]]


def under_test(name: str = "FG-W", problem: fgvar.Problem = MIXER) -> EstimatorUnderTest:
    return EstimatorUnderTest(fgvar.scheme(name), problem, 1e-6)


def budget(monkeypatch: pytest.MonkeyPatch, number: int, *modules: ModuleType) -> None:
    for module in modules:
        monkeypatch.setattr(module, "BUDGET", number)


# ---- blocks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_the_largest_correlation_is_that_of_all_pairs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Held or drawn again, in one block or in many, in single precision."""
    u = noise_check._Drawn(under_test(name), 512, 1).columns(range(under_test(name).randomness.size))
    z = ((u.T @ u) / (u.square().T @ u.square()).sqrt()).fill_diagonal_(0).abs()
    assert u.dtype == torch.float64
    for together, bytes_ in ((1024, 1 << 30), (50, 1 << 30), (1024, 1 << 18)):
        monkeypatch.setattr(noise_check, "TOGETHER", together)
        budget(monkeypatch, bytes_, noise_check)
        drawn = noise_check._Drawn(under_test(name), 512, 1)
        assert (drawn.held is None) == (bytes_ < 1 << 30)
        found, i, j = noise_check._largest_correlation(drawn)
        assert found == pytest.approx(float(z.max()), rel=1e-5)
        assert i < j
        assert float(z[i, j]) == float(z.max())


class Zero:
    """Noise of any law, and estimates of nothing."""

    def __init__(self, law: object) -> None:
        self.law = law

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness({k: fgvar.Leaf(tuple(p.shape), self.law) for k, p in problem.params.items()})

    def estimate(self, problem: fgvar.Problem, noise: dict[str, Tensor]) -> fgvar.Estimate:
        return fgvar.Estimate({k: noise[k] * 0 for k in problem.params})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()


class Repeating:
    """Normal numbers, the last of a leaf that of its first."""

    def sample(self, stream, shape, dtype, device):
        u = stream.normal(shape, dtype, device)
        u.view(-1)[-1] = u.view(-1)[0]
        return u


class Clipped:
    """Normal numbers, none larger than 2.5, of unit variance."""

    def sample(self, stream, shape, dtype, device):
        return stream.normal(shape, dtype, device).clamp(-2.5, 2.5) / 0.9865


@pytest.mark.parametrize(
    ("law", "sentence"),
    [
        (Repeating(), r"^noise, problem: a number of leaf '(\w+)' and one of '\1' are correlated \(z = \d+"),
        (Clipped(), r"numbers of noise '\S+' are -?2\.53\d+ of \d+ values: it was clipped"),
    ],
    ids=["repeating", "clipped"],
)
@pytest.mark.parametrize("bytes_", [1 << 30, 1 << 10], ids=["held", "drawn again"])
def test_blocks_catch_what_the_whole_caught(
    law: object, sentence: str, bytes_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget(monkeypatch, bytes_, noise_check)
    with pytest.raises(AssertionError, match=sentence):
        CHECKS["noise"](Zero(law), LINEAR)


@pytest.mark.parametrize("level", [1e-10, 1e-14, 1e-18])
def test_a_correlation_is_caught_at_any_level(level: float) -> None:
    """As of tens of thousands of numbers, whose pairs share the level: 1 less a share of 10⁻¹⁷ is 1."""
    (row,) = check_estimator(Zero(Repeating()), LINEAR, checks=["noise"], level=level).rows
    assert row.outcome == "failed"
    assert "are correlated" in row.note
    (row,) = check_estimator(fgvar.scheme("FG-W"), LINEAR, checks=["noise"], level=level).rows
    assert row.outcome == "passed"
    assert max(row.caught) < 0.25


def test_a_report_is_the_same_whatever_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the sentence: noise that is drawn again, estimates that are made twice, small chunks and blocks."""
    x, y = torch.linspace(-1, 1, 34, dtype=torch.float64).reshape(2, 17), torch.ones(2, 9, dtype=torch.float64)
    wide = fgvar.Problem(fgvar.with_sites(torch.nn.Linear(17, 9, dtype=torch.float64)), "mse", (x, y))
    held = check_estimator(fgvar.scheme("FG-W"), wide)
    assert held.passed, held
    budget(monkeypatch, 1 << 18, noise_check, sampled_checks, resources)
    monkeypatch.setattr(mean_tests, "AT_ONCE", 1 << 18)
    small = check_estimator(fgvar.scheme("FG-W"), wide)
    assert str(small) == str(held)


def test_squares_are_about_the_mean_of_all_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = under_test()
    whole = tested.estimates(tested.noise(range(300), seed=2))
    for bytes_ in (1 << 30, 1):
        budget(monkeypatch, bytes_, sampled_checks)
        for name, found in sampled_checks._squares(tested, 300, 2).items():
            rows = whole[name].flatten(1)
            expected = (rows - rows.mean(0)).square().sum(1) * 300 / 299
            torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-20)


def test_columns_are_tested_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(200, 13, generator=generator, dtype=torch.float64)
    samples[:, 3] = 1
    expected, fixed = torch.linspace(0, 1, 13), torch.arange(13) == 3
    one = mean_test(samples, expected, level=1e-3, fixed=fixed)
    monkeypatch.setattr(mean_tests, "AT_ONCE", 1000)
    many = mean_test(samples, expected, level=1e-3, fixed=fixed)
    assert one.critical == many.critical
    for name in ("z", "error", "moved"):
        assert torch.equal(getattr(one, name), getattr(many, name)), name


@pytest.mark.parametrize(
    ("name", "noise", "method"),
    [
        ("FG-W", fgvar.Rademacher(), "signs"),
        ("FG-W", fgvar.Gaussian(), "hermite"),
        ("FG-A", fgvar.Gaussian(), "polarisation"),
        ("BP", None, "polarisation"),
    ],
)
def test_variances_are_the_diagonals_of_the_covariance(name: str, noise: object, method: str) -> None:
    estimator = fgvar.scheme(name) if noise is None else fgvar.scheme(name, noise=noise)
    matrices = covariance(estimator, LINEAR, method=method)
    for key, found in variances(estimator, LINEAR, method=method).items():
        torch.testing.assert_close(found, matrices[key].diagonal(), rtol=1e-12, atol=1e-15)


def test_a_line_mean_does_not_depend_on_the_chunk() -> None:
    estimator = fgvar.scheme("FG-W", oracle=fgvar.oracles.CentralDifference(1e-3))
    one, many = (line_mean(estimator, LINEAR, chunk=chunk) for chunk in (256, 7))
    assert one is not None
    assert many is not None
    assert one.points == many.points
    for name, value in one.gradient.items():
        torch.testing.assert_close(value, many.gradient[name], rtol=1e-9, atol=1e-12)


def test_chunks_keep_to_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    estimator = fgvar.scheme("FG-W")
    randomness = estimator.randomness(MIXER)
    found = []
    for bytes_ in (1 << 30, 1 << 19, 1 << 10):
        budget(monkeypatch, bytes_, resources)
        found.append(largest_chunk(estimator, MIXER, randomness))
    assert found[0] == resources.CHUNK
    assert found[0] > found[1] > found[2] == 1


PEAK = """
import torch, fgvar
from fgvar.testing import check_estimator
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
x = torch.randn(2, 63, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
layer = torch.nn.Linear(63, 64, dtype=torch.float64)
torch.nn.init.constant_(layer.weight, 0.1)
problem = fgvar.Problem(fgvar.with_sites(layer), "cross_entropy", (x, torch.tensor([0, 1])))
check_estimator(fgvar.scheme("FG-W"), problem, checks=["structure"])
before = peak()
assert check_estimator(fgvar.scheme("FG-W"), problem, checks=["noise", "unbiased", "variance"]).passed
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of memory from /proc")
def test_4096_random_numbers_take_less_than_800_mb() -> None:
    """Of 4,096 draws: 0.54 GB; all copies of the noise, all products of pairs and all estimates took 1.48 GB."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 800_000, f"{done.stdout} kB"


# ---- one thread ------------------------------------------------------------------------------------------------


def threads_of_a_new_one() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def test_one_thread_is_put_back_after_nested_use_and_errors() -> None:
    usual = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with contextlib.suppress(ZeroDivisionError), one_thread():
            with one_thread():
                pass
            assert torch.get_num_threads() == 1
            raise ZeroDivisionError
        assert torch.get_num_threads() == threads_of_a_new_one() == 2
    finally:
        torch.set_num_threads(usual)


def test_one_thread_is_put_back_by_the_last_to_leave() -> None:
    usual = torch.get_num_threads()
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with one_thread():
            inside.set()
            leave.wait()

    torch.set_num_threads(2)
    try:
        thread = threading.Thread(target=other)
        with one_thread():
            thread.start()
            inside.wait()
        assert torch.get_num_threads() == 2
        leave.set()
        thread.join()
        assert torch.get_num_threads() == threads_of_a_new_one() == 2
    finally:
        torch.set_num_threads(usual)


# ---- black boxes, stacked --------------------------------------------------------------------------------------


def forward(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
    u = normal(problem, generator)
    return times(torch.func.jvp(problem.loss, (problem.params,), (u,))[1], u)


def chosen(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
    """Some of the examples, and signs of integers."""
    at = torch.randint(problem.batch_size, (1,), generator=generator)
    sign = 2 * torch.randint(2, (), generator=generator) - 1
    return {k: g * sign * torch.rand((), generator=generator) for k, g in problem.rows(at).backprop().items()}


def in_place(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
    return {k: torch.empty_like(p).normal_(generator=generator) for k, p in problem.params.items()}


def item(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
    size = torch.randn((), generator=generator).item()
    return {k: size * g for k, g in problem.backprop().items()}


def by_its_seed(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
    """Numbers that the generator did not make: stacked, all draws would share them."""
    size = 1 + generator.initial_seed() % 7
    return {k: size * g * torch.randn((), generator=generator) for k, g in problem.backprop().items()}


def by_its_state(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
    other = torch.Generator().manual_seed(0)
    other.set_state(generator.get_state())
    return {k: g * torch.randn((), generator=other) for k, g in problem.backprop().items()}


@pytest.mark.parametrize(
    ("function", "stacks"),
    [(forward, True), (in_place, False), (item, False), (by_its_seed, False), (by_its_state, False), (chosen, None)],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_stacked_draws_are_those_of_plain_calls(function: Function, stacks: bool | None) -> None:
    box = from_function(function)
    seeds = box.randomness(MIXER).sample(0, range(9))["seed"]
    found, plain = box.estimates(MIXER, seeds), box._plain(MIXER, seeds)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-12)
    equal = all(torch.equal(found[name], value) for name, value in plain.items())
    if stacks is not None:
        calls = 0

        def counted(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
            nonlocal calls
            calls += 1
            return function(problem, generator)

        from_function(counted).estimates(MIXER, seeds)
        assert (calls == 4) == stacks, "two plain calls, two stacks"
        assert equal or stacks


def test_what_a_function_raises_is_its_own_sentence() -> None:
    def broken(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        if torch.randn((), generator=generator) > 2:
            raise ValueError("a number is large")
        return problem.backprop()

    tested = EstimatorUnderTest(from_function(broken), LINEAR, 1e-6)
    with pytest.raises(Failure, match=r"^estimate raised ValueError: a number is large$"):
        tested.verdict()


# ---- forecast --------------------------------------------------------------------------------------------------


def test_a_report_that_takes_long_says_so_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "LONG", 1e-3)
    sentence = (
        r"^check_estimator on 'small' takes about \d+ (seconds|minutes|hours) on this machine, and up to 1\.1 GB: "
        r"up to 8,192 estimates of 6 parameters by 6 random numbers, .*; a smaller problem or batch, or fewer checks "
        r"\(checks=\), take less$"
    )
    with pytest.warns(UserWarning, match=sentence) as caught:
        report = check_estimator(fgvar.scheme("FG-W"), {"small": LINEAR}, checks=["unbiased", "noise"])
    assert report.passed
    assert [row.check for row in report.rows] == ["unbiased", "noise"], "nothing is left out"
    assert len(caught) == 1


def test_a_report_beyond_the_budget_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    budget(monkeypatch, 1 << 10, forecast)
    with pytest.warns(UserWarning, match=r"and up to 0\.0 GB: up to 0 estimates of 6 parameters by 0 random numbers"):
        check_estimator(fgvar.scheme("BP"), LINEAR, checks=["unbiased"])


def test_small_reports_and_refused_problems_are_not_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    tested = under_test()
    assert not forecast.forecast(tested, CHECKS).large
    monkeypatch.setattr(forecast, "LONG", 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not check_estimator(fgvar.scheme("LG-FG-A"), LINEAR, checks=["unbiased"]).passed


def test_what_is_counted() -> None:
    """Nodes of isotropic noise, points along axes of finite differences, draws; correlations grow with the square."""
    weights = sum(p.numel() for p in MIXER.params.values())
    by_nodes, difference = fgvar.scheme("FG-W"), fgvar.scheme("FG-W", oracle=fgvar.oracles.CentralDifference(1e-3))
    counts = {
        one: forecast.forecast(EstimatorUnderTest(one, MIXER, 1e-6, 64), ["unbiased", "noise"])
        for one in (by_nodes, difference)
    }
    r = by_nodes.randomness(MIXER).size
    assert counts[by_nodes].estimates == 2 * r
    assert counts[difference].estimates == 2 * line_quadrature.PANELS * line_quadrature.ORDER * r
    assert counts[by_nodes].correlations == 2 * noise_check.NOISE_DRAWS * r**2
    assert counts[by_nodes].memory > 8 * forecast.HELD * weights
    enough = forecast.forecast(EstimatorUnderTest(by_nodes, MIXER, 1e-6, "enough"), ["unbiased", "variance"])
    assert enough.estimates == (1 << 18) + sampled_checks.VARIANCE_DRAWS
    assert [forecast._duration(seconds) for seconds in (9, 300, 9000)] == ["9 seconds", "5 minutes", "2 hours"]
