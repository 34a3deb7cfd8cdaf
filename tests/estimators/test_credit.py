"""Spaces: credit plans are made once, where a space is linearised."""

import itertools
from collections import Counter

import pytest
import torch
from cases import mixer

import fgvar
from fgvar.estimators import credit
from fgvar.testing import default_problems

WALKS = {
    "jvp": {},
    "differences": {"oracle": fgvar.oracles.CentralDifference()},
    "replay": {"oracle": fgvar.oracles.Replay()},
    "projection": {"directions": 2, "combine": fgvar.combine.Projection("mean")},
}


@pytest.fixture
def made(monkeypatch) -> Counter:
    """How often the plan of each perturbed tensor has been made."""
    plan, found = credit.credit_plan, Counter()

    def counted(*args):
        found[args[2]] += 1
        return plan(*args)

    monkeypatch.setattr(credit, "credit_plan", counted)
    return found


@pytest.mark.parametrize("words", WALKS.values(), ids=WALKS)
@pytest.mark.parametrize("name", ["LG-FG-W", "LG-FG-A"])
def test_an_estimate_visits_each_credit_plan_once(name: str, words, made: Counter) -> None:
    problem, estimator = mixer(), fgvar.scheme(name, **words)
    noise = {key: u[0] for key, u in estimator.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    estimator.estimate(problem, noise)
    assert made == dict.fromkeys(estimator.space.shapes(problem), 1)


@pytest.mark.parametrize("name", ["LG-FG-W", "LG-FG-A"])
def test_a_closed_form_visits_each_credit_plan_once(name: str, made: Counter) -> None:
    problem, estimator = mixer(), fgvar.scheme(name)
    fgvar.theory.variance(estimator, problem)
    assert made == dict.fromkeys(estimator.space.shapes(problem), 1)


@pytest.mark.parametrize("name", ["LG-FG-W", "LG-FG-A"])
def test_credit_makes_no_plan_of_its_own(name: str, made: Counter) -> None:
    problem, estimator = mixer(), fgvar.scheme(name)
    linearised = estimator.space.linearise(problem, estimator.losses)
    before = made.copy()
    terms, _ = estimator.oracle.terms(linearised, linearised.direction(linearised.point))
    credited = linearised.credit(terms)
    assert made == before
    assert credited.keys() == linearised.point.keys() == linearised.plans.keys()


def test_published_credit_says_where_it_is_biased() -> None:
    """Of weights whose copies are replicated over groups, and nowhere else."""
    problem = default_problems()["mixer"]
    for group, space in itertools.product((True, False), (fgvar.WeightSpace(), fgvar.ActivitySpace())):
        estimator = fgvar.Estimator(space, losses=fgvar.LocalLosses(group=group, credit="published"))
        mean, target = fgvar.theory.mean(estimator, problem), estimator.target(problem)
        off = max(float((mean[name] - g).abs().max()) for name, g in target.items())
        biased = group and not space.per_example
        assert (off > 1e-3) == biased == bool(estimator.bias_reason)
    published = fgvar.scheme("LG-FG-W", credit="published")
    assert published.bias_reason == "rows are credited by their own group's copies alone"
    assert fgvar.Stochastic(of=published).bias_reason == published.bias_reason
    assert fgvar.ExactGradient(published.losses).bias_reason == fgvar.scheme("LG-FG-W").bias_reason == ""
