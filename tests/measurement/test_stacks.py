"""Stacks: estimates as factors, their noise held or drawn again, have the moments of the estimates themselves."""

import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import CASES
from copies import copies_taken

import fgvar
import fgvar.estimators.random_streams as random_streams
import fgvar.estimators.randomness as randomness_module
import fgvar.measurement.budget as budget_module
from fgvar.measurement import references, sampled, stacks

ESTIMATORS = {
    "FG-W": fgvar.scheme("FG-W"),
    "MeZO": fgvar.scheme("MeZO"),
    "EGGROLL": fgvar.scheme("EGGROLL"),
    "low rank": fgvar.scheme("EGGROLL", directions=2),
    "sphere": fgvar.scheme("FG-W", noise=fgvar.noise.Sphere()),
    "replayed": fgvar.scheme("FG-W", oracle=fgvar.oracles.Replay()),
    "directions": fgvar.scheme("FG-W", directions=3),
    "antithetic": fgvar.scheme("FG-W", directions=2, antithetic=True, oracle=fgvar.oracles.ForwardDifference(1e-4)),
    "projection": fgvar.scheme("FG-W", directions=3, combine=fgvar.combine.Projection()),
    "local": fgvar.scheme("LG-FG-W"),
    "published": fgvar.scheme("LG-FG-W", losses=fgvar.LocalLosses(credit="published")),
}


class Plain:
    """An estimator by its methods alone: nobody knows that its estimates have factors."""

    def __init__(self, estimator: fgvar.Estimator) -> None:
        self.randomness, self.estimate, self.target = estimator.randomness, estimator.estimate, estimator.target


@pytest.mark.parametrize("anew", [False, True], ids=["held", "anew"])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_factors_are_measured_as_estimates_are(name: str, anew: bool, monkeypatch) -> None:
    """Every number of the dataset, in blocks that are cut and one that is short, to rounding."""
    if anew:  # in windows that are narrower than leaves, and tiles that are narrower yet
        for module in (sampled, budget_module):
            monkeypatch.setattr(module, "draws_anew", lambda randomness, *_: not joint(randomness))
        monkeypatch.setattr(stacks, "WINDOW", 32)
    for module in (random_streams, randomness_module):
        monkeypatch.setattr(module, "TILE", 16)
    problem, estimator = CASES["mixer_tiny"](), ESTIMATORS[name]
    assert estimator.factored
    options = {"draws": 39, "seed": 3, "keep_draws": True}
    ours, theirs = (fgvar.measure({"one": one}, problem, **options) for one in (estimator, Plain(estimator)))
    for variable in set(ours.data_vars) - {"seconds"}:
        np.testing.assert_allclose(ours[variable], theirs[variable], rtol=1e-8, atol=1e-11, err_msg=variable)


def test_projections_by_kept_signs_are_those_by_signs_that_are_drawn_again(monkeypatch) -> None:
    problem, estimators = CASES["mixer_tiny"](), {"FG-W": fgvar.scheme("FG-W")}
    kept = fgvar.measure(estimators, problem, draws=64)
    monkeypatch.setattr(references, "KEPT", 0)
    assert not references.References.of(problem.backprop(), problem.backprop(), problem.perturbed).signs
    again = fgvar.measure(estimators, problem, draws=64)
    assert bool(kept["bias_z"].sel(layer="total").notnull().all())
    for variable in ("bias_z", "bias_p"):
        np.testing.assert_array_equal(kept[variable], again[variable])


def joint(randomness: fgvar.Randomness) -> bool:
    return any(hasattr(leaf.noise, "couple") for leaf in randomness.leaves.values())


@pytest.mark.parametrize(
    "estimator",
    [
        fgvar.scheme("FG-A"),
        fgvar.scheme("FG-W", shared=False),
        fgvar.scheme("FG-W", space=fgvar.WeightSpace(per_tensor=True)),
        replace(fgvar.scheme("FG-W"), guess=fgvar.guesses.BackpropGradient()),
    ],
)
def test_what_has_no_factors(estimator: fgvar.Estimator) -> None:
    assert not estimator.factored


def test_a_subclass_estimates_in_its_own_way() -> None:
    class Doubled(fgvar.Estimator):
        def estimate(self, problem, noise):
            return fgvar.Estimate({name: 2 * g for name, g in super().estimate(problem, noise).gradient.items()})

    problem = CASES["mlp_relu"]()
    found = fgvar.measure({"doubled": Doubled(), "plain": fgvar.Estimator()}, problem, draws=32)
    doubled, plain = found["slope"].sel(layer="perturbed", reference="target").values
    assert doubled == pytest.approx(2 * plain)


def test_large_noise_is_drawn_again() -> None:
    """Where 16 draws of it take more than half of the budget; a joint law's never."""
    leaf = fgvar.Leaf((1000,), fgvar.Gaussian())
    whole, half = (fgvar.Randomness({"w": replace(leaf, shape=(size,))}) for size in (1000, 500))
    budget = 16 * 4 * 1000
    assert budget_module.draws_anew(whole, torch.float32, budget)
    assert not budget_module.draws_anew(half, torch.float32, budget)
    sphere = fgvar.Randomness({"w": replace(leaf, noise=fgvar.noise.Sphere())})
    assert not budget_module.draws_anew(sphere, torch.float32, budget)


@pytest.mark.parametrize(("name", "large"), [("FG-W", True), ("FG-W", False), ("BP", True)])
def test_more_than_the_budget_is_said_beforehand(name: str, large: bool) -> None:
    """By shapes, of the estimator that takes most; nothing of one without noise, which makes one estimate."""
    problem, budget = CASES["mlp_relu"](), 2000 if large else 10**8
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fgvar.measure({"mine": fgvar.scheme(name)}, problem, draws=2, budget=budget)
    said = [str(one.message) for one in caught]
    assert len(said) == (large and name == "FG-W")
    assert all(
        re.fullmatch(r"measuring 'mine' takes about \d\.\d GB beside the network, .* is meant", s) for s in said
    )


PREPARE = """
x, y = torch.randn(4, 1024), torch.zeros(4, dtype=torch.long)
fgvar.measure({"one": fgvar.scheme("FG-W")}, fgvar.Problem(small, "cross_entropy", (x, y)), draws=2)
"""
MEASURE = """
for p in net.parameters():
    p.data.mul_({scale})
fgvar.measure({{"one": fgvar.scheme("{name}")}}, fgvar.Problem(net, "cross_entropy", (x, y)), draws={draws})
"""


@pytest.mark.timeout(600)  # a quarter of a minute on a quiet machine
@pytest.mark.parametrize(("name", "draws", "scale"), [("MeZO", 4, 0.3), ("FG-W", 20, 1.0)])
def test_large_networks_take_few_copies(name: str, draws: int, scale: float) -> None:
    """Of 29 million numbers at most 8 copies beyond the network, at any number of draws.

    Of smaller weights the first layers' gradients vanish, so that float64 tells which of them are dead.
    """
    assert copies_taken(PREPARE, MEASURE.format(name=name, draws=draws, scale=scale)) <= 8


def test_copies_are_counted_of_the_child_alone() -> None:
    """A parent that has held more hides nothing: a copy is a copy."""
    held = bytearray(900 << 20)
    held[:: 1 << 12] = b"1" * (900 << 8)  # every page is there
    assert 0.9 <= copies_taken("", "kept = [p.clone() for p in net.parameters()]") <= 1.2
