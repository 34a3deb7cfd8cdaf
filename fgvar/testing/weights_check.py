"""Weights check: holds what samples the terms of a sum to E ω = 1 for each of them, exactly where it can be enumerated."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from fgvar.estimators.randomness import Randomness
from fgvar.measurement.draws import Enumeration, ranges
from fgvar.problem import Problem
from fgvar.testing.exact_moments import FEW_VALUES, number_of_values, tolerance
from fgvar.testing.mean_tests import mean_test
from fgvar.testing.statistical import DRAWS
from fgvar.testing.under_test import EstimatorUnderTest, Failure, Gradients, NotApplicable, Undecided
from fgvar.testing.verdict import advice

TOGETHER = 256  # values of noise, or draws, that are looked at at once
ELSEWHERE = 0.1  # how far parameters are moved: ω is by the probabilities at those that are declared


def weights(tested: EstimatorUnderTest) -> str:
    """Every term of a sampled sum counts once in the mean: Σ probability · ω = 1, wherever the gradient is taken."""
    samples = list(_samples(tested.estimator))
    if not samples:
        raise NotApplicable("declares no sample word")
    return "; ".join(dict.fromkeys(_of_sample(tested, sample) for sample in samples))


def _samples(estimator: Any) -> Iterator[Any]:
    """The sample words of a sentence, and of the estimators within."""
    while estimator is not None:
        sample = getattr(estimator, "sample", None)
        if hasattr(sample, "view") and hasattr(sample, "leaves"):
            yield sample
        estimator = getattr(estimator, "of", None)


def _of_sample(tested: EstimatorUnderTest, sample: Any) -> str:
    randomness = Randomness(tested.ask("the sample's leaves", lambda: sample.leaves(tested.problem)))
    if randomness.size and number_of_values(randomness) > FEW_VALUES:
        return _drawn(tested, sample, randomness)
    mean: Gradients = {}
    for noise, chances in _values(randomness, tested.problem):
        for name, omega in tested.ask(
            "the sample's view", lambda n=noise: _omegas(sample, tested.problem, n)
        ).items():  # type: ignore[misc]
            mean[name] = mean.get(name, 0) + torch.tensordot(chances, omega.double().cpu(), dims=1)
    for name, omega in mean.items():
        if float((omega - 1).abs().max()) > tolerance(tested):
            raise Failure(f"E ω of {_term(name, omega, (omega - 1).abs())} (exact), expected 1")
    return f"E ω = 1 for each of {sum(omega.numel() for omega in mean.values())} terms, exactly"


def _drawn(tested: EstimatorUnderTest, sample: Any, randomness: Randomness) -> str:
    problem, draws = tested.problem, tested.draws if isinstance(tested.draws, int) else DRAWS
    found: dict[str, list[Tensor]] = {}
    for window in ranges(0, draws, TOGETHER):
        noise = randomness.sample(3, window, dtype=problem.dtype, device=problem.device)
        for name, omega in tested.ask("the sample's view", lambda n=noise: _omegas(sample, problem, n)).items():  # type: ignore[misc]
            found.setdefault(name, []).append(omega.double().cpu())
    for name, parts in found.items():
        omega = torch.cat(parts)
        verdict = mean_test(omega.flatten(1), 1.0, level=tested.level / len(found))
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


def _omegas(sample: Any, problem: Problem, noise: Mapping[str, Tensor]) -> Gradients:
    """ω of every example, and of every term of sums inside the network, for each of the stacked noise."""
    count = problem.batch_size
    here = problem.moved({name: p + ELSEWHERE * p.cos() for name, p in problem.params.items()})
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
            if tap is not here.taps.get(name) and hasattr(module := problem.network.modules[name], "omega_of"):
                found[name] = module.omega_of(tap)
        return found

    if not noise:
        return {name: omega[None] for name, omega in one({}).items()}
    stacked: Gradients = problem.network.stack(sample, one, dict(noise))
    return stacked


def _term(name: str, omega: Tensor, off: Tensor) -> str:
    """The term that is most off, and its E ω."""
    place = torch.unravel_index(off.argmax(), off.shape)
    where = ", ".join(str(int(at)) for at in place)
    what = f"example {where}" if name == "batch" else f"term ({where}) of {name!r}"
    return f"{what} is {float(omega[place]):.4g}"
