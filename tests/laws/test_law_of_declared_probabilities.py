"""The law of declared probabilities: ω is by what indices are drawn by, wherever the gradient is taken."""

from collections.abc import Callable

import pytest
import torch
from cases import linear
from torch import Tensor

import fgvar
from fgvar import points, sampling, streams
from fgvar.estimators.choices import Choice
from fgvar.testing import CHECKS, default_problems, expectation
from fgvar.testing.mutants.moved_probabilities import AtPoint, MovedProbabilities

AHEAD = points.Ahead(by=fgvar.ExactGradient(), step=1.0)
SAMPLE = sampling.Draw(1, by=sampling.GradientNorms())
RIGHT = fgvar.Stochastic(sample=SAMPLE, at=AHEAD)


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.detach().double().flatten() for g in gradient.values()])


def off(estimator: fgvar.GradientEstimator, expected: dict[str, Tensor], problem: fgvar.Problem) -> float:
    """‖E ĝ − expected‖ over ‖expected‖, E by all draws."""
    mean = flat(expectation(estimator, problem, method="support"))
    return float((mean - flat(expected)).norm() / flat(expected).norm())


def mean_weights(
    sample: sampling.Draw, here: fgvar.Problem, declared: fgvar.Problem, drawn_at: fgvar.Problem
) -> Tensor:
    """E ω of every example, indices drawn by the probabilities at ``drawn_at``."""
    leaf, found = sample.leaves(drawn_at)[""], torch.zeros(here.batch_size, dtype=torch.float64)
    # Every example's own number, so that the sampled problem says which it has.
    counted = here._with(targets=torch.arange(here.batch_size))
    for value, chance in zip(*leaf.support(), strict=True):
        seen = sample.view(counted, {"": value}, declared)
        share = here.batch_size / seen.batch_size
        found.index_add_(0, seen.targets, chance * share * seen.importance)
    return found


@pytest.mark.parametrize(
    "sample",
    [
        SAMPLE,
        sampling.Draw(2, by=sampling.GradientNorms(), replace=False),
        sampling.Draw(2, top=1, by=sampling.GradientNorms()),
    ],
    ids=["put back", "not put back", "top"],
)
def test_weights_have_the_mean_1_at_a_moved_point_by_the_probabilities_of_the_start_alone(sample) -> None:
    problem = linear()
    moved = AHEAD.view(problem, {})
    assert moved.origin is problem
    assert float((mean_weights(sample, moved, problem, problem) - 1).abs().max()) < 1e-12
    assert float((mean_weights(sample, moved, moved, problem) - 1).abs().max()) > 0.05


def test_the_right_estimator_is_unbiased_and_the_mutant_is_not() -> None:
    problem = linear()
    expected = AtPoint(AHEAD)(problem)
    assert off(RIGHT, expected, problem) < 1e-12
    assert off(MovedProbabilities(), expected, problem) > 0.05


def test_the_check_tells_them_apart() -> None:
    """The right one by 8192 draws at a nominal false-alarm rate of 1e-6, where it is not enumerated."""
    problems = {"linear": default_problems()["linear"]}
    CHECKS["unbiased"](fgvar.Against(RIGHT, AtPoint(AHEAD)), problems)
    with pytest.raises(AssertionError, match=r"^unbiased, linear: "):
        CHECKS["unbiased"](fgvar.Against(MovedProbabilities(), AtPoint(AHEAD)), problems)


def test_a_sampler_inside_of_a_moved_gradient_weighs_by_the_start() -> None:
    problem = linear()
    nested = fgvar.Stochastic(of=fgvar.Stochastic(sample=SAMPLE), at=AHEAD)
    assert off(nested, AtPoint(AHEAD)(problem), problem) < 1e-12


def test_what_is_taken_ahead_by_weighs_by_its_own_point() -> None:
    problem = linear()
    by = fgvar.Stochastic(sample=SAMPLE)
    ahead = fgvar.Stochastic(at=points.Ahead(by=by, step=0.3))
    expected = AtPoint(points.Ahead(by=fgvar.ExactGradient(), step=0.3))(problem)  # linear in what it is ahead by
    assert off(ahead, expected, problem) < 1e-12


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_path_weighs_by_its_start(steps: int) -> None:
    """Of quadratics the mean of a path's last gradient is the gradient at the end of the mean path."""
    problem, rate = linear(), 0.3
    history = fgvar.History(fgvar.Stochastic(sample=SAMPLE), streams.Momentum(0.0), steps=steps, lr=rate)
    params = dict(problem.params)
    for _ in range(steps - 1):
        params = {name: params[name] - rate * g for name, g in problem.at(params).backprop().items()}
    assert off(history, problem.at(params).backprop(), problem) < 1e-12


@pytest.mark.parametrize(
    "change", [lambda p: p.rows(torch.tensor([0, 2])), lambda p: p.example(1)], ids=["rows", "example"]
)
def test_some_examples_have_probabilities_of_their_own(change: Callable[[fgvar.Problem], fgvar.Problem]) -> None:
    assert change(linear().moved(linear().params)).origin is None


def test_what_is_drawn_is_a_choice_by_the_gradients_at_the_start() -> None:
    problem = linear()
    law = RIGHT.randomness(problem).leaves["sample"].noise
    scores = sampling.GradientNorms().scores(problem, "batch")
    assert isinstance(law, Choice)
    torch.testing.assert_close(law.probabilities, scores / scores.sum(), rtol=1e-12, atol=0)
