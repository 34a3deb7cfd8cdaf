"""Data variance: of every gradient once, whoever asks for it."""

import numpy as np
import pytest
import torch
from cases import CASES, mixer

import fgvar
from fgvar.measurement import data_variance
from fgvar.measurement.data_variance import DataVariance, aims_at_backprop


def by_hand(gradient, problem: fgvar.Problem) -> dict[str, float]:
    """tr Cov/N from the examples' gradients, one by one."""
    n = problem.batch_size
    each = [gradient(problem.example(i)) for i in range(n)]
    return {name: float(torch.stack([g[name] for g in each]).var(0).sum() / n) for name in problem.params}


@pytest.mark.parametrize("chunk", [1, 2, 16])
@pytest.mark.parametrize("piece", [5, 1 << 12])
def test_it_is_that_of_examples_one_by_one(chunk: int, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_variance, "PIECE", piece)
    problem, estimator = mixer(batch=5), fgvar.scheme("LG-FG-A")
    its = DataVariance(problem, chunk).of(estimator)
    target, backprop = its.value
    for found, gradient in ((target, estimator.target), (backprop, lambda one: one.backprop())):
        expected = by_hand(gradient, problem)
        names = list(problem.params)
        np.testing.assert_allclose(found[: len(names)], [expected[k] for k in names], rtol=1e-12, atol=1e-20)
        np.testing.assert_allclose(found[-2], sum(expected[k] for k in problem.perturbed), rtol=1e-12)
        np.testing.assert_allclose(found[-1], sum(expected.values()), rtol=1e-12)
    assert not its.error.any()
    np.testing.assert_array_equal(its.high, its.value)


def test_estimators_of_the_same_losses_share_their_target_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four schemes, two targets and backprop: three gradients; an estimator of another type has one of its own."""
    computed = []
    once = DataVariance._spread
    monkeypatch.setattr(DataVariance, "_spread", lambda self, *one: computed.append(one) or once(self, *one))
    problem, data_variance = mixer(batch=3), DataVariance(mixer(batch=3), 16)
    schemes = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")}
    found = {name: data_variance.of(scheme).value for name, scheme in schemes.items()}
    assert len(computed) == 3
    for name, scheme in schemes.items():
        np.testing.assert_array_equal(found[name], DataVariance(problem, 16).of(scheme).value)
    computed.clear()
    data_variance.of(fgvar.scheme("frozen"))
    data_variance.of(fgvar.scheme("frozen"))
    assert len(computed) == 2


class Halved(fgvar.Estimator):
    """Its target is its own."""

    def target(self, problem: fgvar.Problem) -> dict[str, torch.Tensor]:
        return {name: g / 2 for name, g in super().target(problem).items()}


@pytest.mark.parametrize("case", CASES)
def test_backprop_stands_for_a_target_that_it_is(case: str) -> None:
    """Of the output's loss where no head learns beside it, and of no type whose target nobody knows."""
    problem, told = CASES[case](), []
    without = fgvar.Estimator(losses=fgvar.GlobalLoss(heads=False))
    for estimator in (without, fgvar.scheme("MeZO"), fgvar.scheme("BP"), fgvar.scheme("LG-FG-W"), Halved()):
        if aims_at_backprop(estimator, problem):
            target, backprop = estimator.target(problem), problem.backprop()
            for name, g in backprop.items():
                torch.testing.assert_close(target[name], g, rtol=1e-12, atol=1e-15)
            told.append(estimator)
    beside = [] if problem.trace.ends else [fgvar.scheme("MeZO")]
    assert told == [without, *beside, fgvar.scheme("BP")]
