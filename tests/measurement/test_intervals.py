"""Intervals: Hall's formula, that a sample cannot hide one, and the limits that hold for every law."""

import numpy as np
import pytest
import torch
from cases import CASES
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import fgvar
from fgvar.measurement.dataset import FLAGS
from fgvar.measurement.intervals import Estimated, Scatter, hall_quantiles, inflate_standard_error, interval, p_value
from fgvar.measurement.moments import init, update
from fgvar.measurement.references import References
from fgvar.measurement.stacks import Dense
from fgvar.measurement.statistics import Z, statistics
from fgvar.measurement.summary import ranged
from studies.calibration import coverage, laws


def one(value: float) -> np.ndarray:
    return np.array([value])


def test_without_skewness_it_is_student_s_interval_widened() -> None:
    for n in (32, 500):
        found = interval(n, one(3.0), one(0.2), one(0.0))
        half = stats.t.ppf(0.975, n - 1) * 0.2 * (1 + 1.7 / n)
        np.testing.assert_allclose([found.low, found.high], [[3 - half], [3 + half]])


@given(st.integers(32, 5000), st.floats(-70, 70))
def test_the_arms_are_where_the_transform_reaches_t(n: int, skewness: float) -> None:
    """Hall's transform of Student's statistic at either end is ± t; a sample's skewness is below √n."""
    skewness = float(np.clip(skewness, -(n**0.5), n**0.5))
    a, t = 1.3 * skewness / n**0.5, stats.t.ppf(0.975, n - 1)
    below, above = hall_quantiles(n, one(skewness))
    for x, end in ((below, t), (-above, -t)):
        assert x + a * x**2 / 3 + a**2 * x**3 / 27 + a / 6 == pytest.approx(end, rel=1e-5, abs=1e-5)
    assert below + above > 0


def test_a_skewed_law_reaches_further_on_the_side_of_its_tail() -> None:
    right, left = hall_quantiles(64, one(3.0)), hall_quantiles(64, one(-3.0))
    assert right[1] > 2 * right[0] > 0
    np.testing.assert_allclose(right, left[::-1])


def test_no_sample_hides_its_interval() -> None:
    """From 32 draws on there is one, whatever the skewness that the sample shows; below, none."""
    for skewness in (0.0, 5.6, -5.6):
        assert np.isfinite(interval(32, one(1.0), one(1.0), one(skewness)).high)
        assert np.isnan(interval(31, one(1.0), one(1.0), one(skewness)).high)
    assert interval(31, one(1.0), one(1.0), one(0.0)).error == 1, "an error makes no promise"


def test_the_p_value_is_the_larger_of_two() -> None:
    n, error = 64, one(1.0)
    t = 2.5 / inflate_standard_error(n, error, one(0.0))
    np.testing.assert_allclose(p_value(n, one(2.5), error, one(0.0)), 2 * stats.t.sf(t, n - 1))
    # Of a law with its tail on the right, a mean far on the right is less surprising, one on the left no more so.
    skewed = one(4.0)
    t = 2.5 / inflate_standard_error(n, error, skewed)
    np.testing.assert_allclose(p_value(n, one(2.5), error, skewed), 2 * stats.t.sf(t, n - 1))
    assert p_value(n, one(-2.5), error, skewed) > 2 * stats.t.sf(t, n - 1)


def test_numbers_with_their_ends() -> None:
    whole = Estimated(np.array([1.0, 2.0]), np.array([0.1, 0.2]), np.array([-0.5, 1.0]), np.array([1.2, 3.0]))
    assert whole.clipped(0, 2.5).low.tolist() == [0, 1]
    assert whole.clipped(0, 2.5).high.tolist() == [1.2, 2.5]
    assert whole.scaled(np.array([2.0, 0.5])).high.tolist() == [2.4, 1.5]
    first = np.array([True, False])
    assert [part[0] for part in whole.exact_where(first).parts] == [1, 0, 1, 1]
    assert whole.exact_where(first).high[1] == 3
    assert np.isnan([part[0] for part in whole.nan_where(first).parts]).all()
    assert np.isnan(whole.without_interval(first).low[0])
    assert whole.without_interval(first).error[0] == 0.1
    np.testing.assert_array_equal(Estimated.exact([1.0, np.nan]).error, [0, np.nan])
    assert np.isnan(Estimated.without_error(whole.value).high).all()
    assert Estimated.stacked([whole, whole]).low.shape == (2, 2)


def measured(draws: np.ndarray, target: np.ndarray) -> dict[str, Estimated]:
    references = References.of({"w": torch.from_numpy(target)}, {"w": torch.from_numpy(target)}, ("w",))
    state = init(references)
    for start in range(0, len(draws), 16):
        state = update(state, references, Dense({"w": torch.from_numpy(draws[start : start + 16])}))[0]
    return statistics(state, references)


@pytest.mark.parametrize("bias", [0.0, 2.0])
def test_the_limit_of_the_squared_bias_solves_its_equation(bias: float) -> None:
    """With λ = √τ, for the larger root; here Σ = 1, so that τ is near the number of dimensions."""
    n, d = 256, 30
    draws = np.random.default_rng(1).normal(size=(n, d)) + bias / d**0.5
    found = measured(draws, np.zeros(d))["sq_bias"]
    value, limit = max(found.value[0, 0], 0), found.high[0, 0]
    trace = draws.var(0, ddof=1).sum()
    # (θ − U)²/z² = 2τ/n(n − 1) + 4θ√τ/n, solved for √τ.
    a, b, c = 2 / (n * (n - 1)), 4 * limit / n, -(((limit - value) / Z) ** 2)
    tau = ((-b + (b * b - 4 * a * c) ** 0.5) / (2 * a)) ** 2
    assert tau >= trace**2 / d * (1 - 1e-9), "the least that tr Σ² can be"
    assert tau == pytest.approx(d, rel=0.25)
    assert limit > max(bias**2, value)
    assert np.isnan(found.low).all()


def test_the_limit_of_one_number_is_that_of_its_slope() -> None:
    found = measured(np.random.default_rng(5).exponential(size=(64, 1)), np.full(1, 2.0))
    low, high = found["slope"].low[0, 0], found["slope"].high[0, 0]
    assert found["sq_bias"].high[0, 0] == pytest.approx(4 * max((low - 1) ** 2, (high - 1) ** 2))
    dead = measured(np.random.default_rng(5).exponential(size=(64, 1)), np.zeros(1))["sq_bias"]
    assert dead.high[0, 0] > max(1.0, dead.value[0, 0]), "without a slope, as of more numbers"


def test_the_spread_that_is_left_without_that_of_the_means() -> None:
    """Of distances: most of them where the law has some, half of what is seen where it has none."""
    rng = np.random.default_rng(6)
    for draws, true in ((rng.normal(size=(4096, 4)), 8.0), (np.sign(rng.normal(size=(4096, 1))), 0.0)):
        references = References.of(*({"w": torch.zeros(draws.shape[1]).double()} for _ in range(2)), ("w",))
        state = init(references)
        for start in range(0, len(draws), 16):
            state = update(state, references, Dense({"w": torch.from_numpy(draws[start : start + 16])}))[0]
        square = Scatter.of(len(draws), state).square[-1]
        seen = (
            float(state.of("apart")[-1, 1] / 4096 - (state.of("apart")[-1, 0] / 4096) ** 2)
            * 4096**2
            / 4095
            / state.share
        )
        left = seen - state.excess / state.share * Scatter.of(len(draws), state).trace_square[-1]
        assert square == pytest.approx(max(left, seen / 2))
        assert square == pytest.approx(true, rel=0.15, abs=0.02)


def test_limits_and_ratios_stay_where_they_can_be() -> None:
    """Of an estimator of pure noise: efficiency and snr reach down to 0, a variance is not negative."""
    draws = np.random.default_rng(3).standard_t(2, size=(64, 20))
    found = measured(draws, np.ones(20))
    assert (found["efficiency"].low == 0).all()
    assert (found["efficiency"].high > 0).all()
    assert found["snr"].low[-1] == 0
    assert (found["variance"].low >= 0).all()
    assert (found["cosine"].high <= 1).all()


def test_the_error_of_a_ratio_is_never_that_of_an_exact_one() -> None:
    """Over 200 samples of 32 directional derivatives it is at least what pairs of draws leave, √(2 tr Σ²/n(n − 1))/tr
    Cov with tr Σ² ≥ tr²/d, and its mean square is near the variance of the ratio."""
    n, d, rng = 32, 6, np.random.default_rng(9)
    target, found = np.ones(d), []
    for _ in range(200):
        u = rng.normal(size=(n, d))
        found.append(measured((u @ target)[:, None] * u, target)["snr"])
    values, errors = (np.array([one.parts[part][-1] for one in found]) for part in (0, 1))
    assert errors.min() >= (2 / (d * n * (n - 1))) ** 0.5
    assert 0.55 < (errors**2).mean() / values.var(ddof=1) < 1.8


def test_one_sign_of_a_single_number_is_no_exact_cosine() -> None:
    """64 draws that all point along the target do not show how often one does not."""
    found = measured(np.random.default_rng(3).normal(size=(64, 1)) ** 2, np.ones(1))["cosine"]
    assert np.isnan(found.error).all()
    two = measured(np.random.default_rng(3).normal(size=(64, 1)), np.ones(1))["cosine"]
    np.testing.assert_allclose(two.error, np.sqrt((1 - two.value**2) / 63), rtol=1e-10)


def test_single_numbers_have_no_interval_of_ratios_and_say_why() -> None:
    found = measured(np.random.default_rng(3).normal(size=(64, 1)) ** 2, np.ones(1))
    np.testing.assert_allclose(found["cosine"].value, 1, rtol=1e-12)
    for name in ("cosine", "snr", "efficiency"):
        assert np.isnan(found[name].high).all(), name
    for name in ("variance", "slope"):
        assert np.isfinite(found[name].high).all(), name
    net = fgvar.with_sites(torch.nn.Linear(3, 1).double())
    x = torch.linspace(-1, 1, 12, dtype=torch.float64).reshape(4, 3)
    problem = fgvar.Problem(net, "mse", (x, x[:, :1]))
    few, flag = (fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=n)["flag"] for n in (31, 64))
    assert (flag.sel(layer="bias") == FLAGS["one_number"]).all()
    assert (flag.sel(layer="weight") == 0).all()
    assert (few.sel(layer="bias") == FLAGS["one_number"] | FLAGS["few_draws"]).all()
    assert (few.sel(layer="weight") == FLAGS["few_draws"]).all()
    assert "one_number" in flag.attrs["flag_meanings"]


def test_p_values_are_given_from_64_draws_on() -> None:
    for draws in (63, 64):
        ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, CASES["mlp_relu"](), draws=draws).sel(layer="perturbed")
        assert np.isfinite(ds["bias_z"]).all()
        assert (np.isfinite(ds["bias_p"]) == (draws == 64)).all()
        assert ((ds["flag"] & FLAGS["few_draws"] > 0) == (draws == 63)).all()


def test_intervals_cover_where_errors_used_to_be_chosen_by_the_sample() -> None:
    """1,000 runs of 64 draws of 4 perturbed weights: 91 to 98.5 %, 5 binomial errors below and above 95 %; a right
    interval leaves this in fewer than 1 of 10⁵ choices of seeds."""
    law = laws.weights(laws.Weights("Gaussian", 4), coverage.generator(8, "test"))
    found = coverage.simulated([law], {64: 1000})
    for name in ("variance", "slope", "cosine", "snr", "efficiency"):
        at = coverage.STATISTICS.index(name)
        covered = (1 - found["below"] - found["above"])[at, 0, 0]
        assert 0.91 < covered < 0.985, (name, covered)
        assert found["shown"][at, 0, 0] == 1, name


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((16.63, 15.21, 18.88), "16.6 [15.2, 18.9]"),
        ((0.05674, 0.0471, 0.0702), "0.057 [0.047, 0.070]"),
        ((222.3, 160.1, 318.2), "222 [160, 318]"),
        ((2.5, 2.5, 2.5), "2.5"),
        ((2.5, np.nan, np.nan), "2.5 [–]"),
        ((np.nan, np.nan, np.nan), "–"),
    ],
)
def test_how_an_interval_is_written(numbers: tuple[float, float, float], text: str) -> None:
    assert ranged(*numbers) == text
