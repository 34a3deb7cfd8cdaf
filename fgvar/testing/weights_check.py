"""Weights check: holds samplers to E ω = 1 for every term of the sum, exactly where their noise can be enumerated."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fgvar.estimators.randomness import Randomness
from fgvar.measurement.draws import Enumeration, ranges
from fgvar.problem import Problem
from fgvar.testing.exact_moments import FEW_VALUES, number_of_values, tolerance
from fgvar.testing.mean_tests import mean_test
from fgvar.testing.polynomials import Gradients
from fgvar.testing.statistical import DRAWS
from fgvar.testing.under_test import EstimatorUnderTest, Failure, NotApplicable, Undecided
from fgvar.testing.verdict import advice

TOGETHER = 256  # values of noise, or draws, that are looked at at once
ELSEWHERE = 0.1  # how far parameters are moved: ω is by the probabilities at those that are declared


def weights(tested: EstimatorUnderTest) -> str:
    """Every term of a sampled sum counts once in the mean: Σ probability · ω = 1, wherever the gradient is taken."""
    samples = list(_samples(tested))
    if not samples:
        raise NotApplicable("declares no sample word")
    return "; ".join(dict.fromkeys(_of_sample(one, sample) for one, sample in samples))


def _samples(tested: EstimatorUnderTest) -> Iterator[tuple[EstimatorUnderTest, Any]]:
    """The sample words of a sentence, and of the estimators within, each with the problem that it samples."""
    estimator: Any = tested.estimator
    while estimator is not None:
        sample = getattr(estimator, "sample", None)
        if hasattr(sample, "view") and hasattr(sample, "leaves"):
            yield tested, sample
        if template := getattr(estimator, "template", None):
            tested = tested.on(tested.ask("template", functools.partial(template, tested.problem)))
        estimator = getattr(estimator, "of", getattr(estimator, "estimator", None))


def _of_sample(tested: EstimatorUnderTest, sample: Any) -> str:
    randomness = Randomness(tested.ask("the sample's leaves", lambda: sample.leaves(tested.problem)))
    if randomness.size and number_of_values(randomness) > FEW_VALUES:
        return _drawn(tested, sample, randomness)
    mean: Gradients = {}
    for noise, chances in _values(randomness, tested.problem):
        for name, omega in _omegas(tested, sample, noise).items():
            mean[name] = mean.get(name, 0) + torch.tensordot(chances, omega, dims=1)
    for name, omega in mean.items():
        omega = omega.where(~_without_gradient(tested, name, omega), 1)
        if not float((omega - 1).abs().max()) <= tolerance(tested):
            raise Failure(f"E ω of {_term(name, omega, (omega - 1).abs())} (exact), expected 1")
    return f"E ω = 1 for each of {sum(omega.numel() for omega in mean.values())} terms, exactly"


def _drawn(tested: EstimatorUnderTest, sample: Any, randomness: Randomness) -> str:
    problem, draws = tested.problem, tested.draws if isinstance(tested.draws, int) else DRAWS
    parts = [
        _omegas(tested, sample, randomness.sample(3, window, dtype=problem.dtype, device=problem.device))
        for window in ranges(0, draws, TOGETHER)
    ]
    for name in parts[0]:
        omega = torch.cat([part[name] for part in parts])
        omega = omega.where(~_without_gradient(tested, name, omega.mean(0)), 1)
        verdict = mean_test(omega.flatten(1), 1.0, level=tested.level / len(parts[0]))
        if not verdict.passed:
            off = verdict.z.abs().masked_fill(verdict.undecided, -1.0).reshape(omega.shape[1:])
            raise Failure(f"E ω of {_term(name, omega.mean(0), off)}, expected 1: {verdict}")
        if bool(verdict.undecided.any()):
            enough = advice(float(verdict.enough(torch.inf)[verdict.undecided].max()))
            raise Undecided(f"terms of {name!r} were drawn too seldom for a verdict; {enough}")
    return f"E ω = 1: {draws} draws, false alarms {tested.level:.1g} (nominal)"


def _values(randomness: Randomness, problem: Problem) -> Iterator[tuple[Gradients, Tensor]]:
    """All noise, stacked, and its probabilities."""
    if not randomness.size:
        yield {}, torch.ones(1, dtype=torch.float64)
        return
    every = Enumeration(randomness, "support")
    for window in ranges(0, len(every), TOGETHER):
        noise = every.take(window, dtype=problem.dtype)
        yield {name: u.to(problem.device) for name, u in noise.items()}, every.probabilities(window)


def _omegas(tested: EstimatorUnderTest, sample: Any, noise: Mapping[str, Tensor]) -> Gradients:
    """ω of every example, and of every term of sums inside the network, for each of the stacked noise."""
    problem, count = tested.problem, tested.problem.batch_size
    # Factors and ω that the problem has already are not the sampler's.
    own_sums = {name for name, module in problem.network.modules.items() if hasattr(module, "omega_of")}
    taps = {name: tap for name, tap in problem.taps.items() if name not in own_sums}
    here = _elsewhere(problem).unweighted()._with(taps=taps)
    # Examples carry their numbers as weights of the loss, which go where they go.
    here.weights = torch.arange(count, dtype=torch.float64, device=problem.device)

    def one(own: Mapping[str, Tensor]) -> Gradients:
        seen = sample.view(here, own, problem)
        if seen.weights is None:
            raise ValueError("view makes a batch of its own; take problem.rows(…), and weigh them with .weighted(…)")
        factors = torch.ones_like(seen.weights) if seen.importance is None else seen.importance.double()
        at = seen.weights.long() == torch.arange(count, device=problem.device)[:, None]
        found = {"batch": (at * factors).sum(1) * (count / len(factors))}
        for name, tap in seen.taps.items():
            omega_of: Any = getattr(problem.network.modules[name], "omega_of", None)
            if omega_of is not None and tap is not here.taps.get(name):
                found[name] = omega_of(tap)
        return found

    def stacked() -> Gradients:
        if noise:
            return dict(problem.network.stack(sample, one, dict(noise)))
        return {name: omega[None] for name, omega in one({}).items()}

    return {name: omega.double().cpu() for name, omega in tested.ask("the sample's view", stacked).items()}


def _elsewhere(problem: Problem) -> Problem:
    return problem.moved({name: p + ELSEWHERE * p.cos() for name, p in problem.params.items()})


def _without_gradient(tested: EstimatorUnderTest, name: str, omega: Tensor) -> Tensor:
    """Examples that need not be drawn, as scores of their gradients say: it is 0, here and where ω is asked for."""
    none = torch.zeros_like(omega, dtype=torch.bool)
    if name == "batch" and not tested.problem.coupled:
        for n in (omega == 0).nonzero().flatten().tolist():
            both = (one.example(n).backprop() for one in (tested.problem, _elsewhere(tested.problem)))
            none[n] = not any(bool(g.any()) for gradient in both for g in gradient.values())
    return none


def _term(name: str, omega: Tensor, off: Tensor) -> str:
    """The term that is most off, and its E ω."""
    place = torch.unravel_index(off.argmax(), off.shape)
    where = ", ".join(str(int(at)) for at in place)
    what = f"example {where}" if name == "batch" else f"term ({where}) of {name!r}"
    return f"{what} is {float(omega[place]):.4g}"
