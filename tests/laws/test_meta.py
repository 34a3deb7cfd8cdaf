"""Everything that a training step and a measurement do runs on the meta device: no stray tensor, no host sync."""

import pytest
import torch

import fgvar
from fgvar.measurement.draws import estimates
from fgvar.measurement.moments import init, update
from fgvar.measurement.references import References
from fgvar.measurement.stacks import Dense
from fgvar.training.objectives import Supervised
from fgvar.training.train import RunConfig, TrainingLoop, gradient_of

NAMES = ("BP", "L-BP", "LG-BP", "FG-W", "FG-A", "LG-FG-W", "LG-FG-A")


@pytest.fixture(scope="module")
def problem() -> fgvar.Problem:
    model = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=8, groups=2).to("meta")
    batch = torch.empty(4, 1, 8, 8, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    return fgvar.Problem(model, "cross_entropy", batch)


@pytest.mark.parametrize("name", NAMES)
def test_estimate_target_moments(problem: fgvar.Problem, name: str) -> None:
    estimator = fgvar.scheme(name)
    randomness = estimator.randomness(problem)
    target = estimator.target(problem)
    references = References.of(target, problem.backprop(), problem.perturbed)
    if randomness.size:
        noise = randomness.sample(0, range(16), device="meta")
        gradients = estimates(estimator, problem, noise)
    else:
        gradients = {k: g[None] for k, g in estimator.estimate(problem, {}).gradient.items()}
    moments, _, features = update(init(references), references, Dense(gradients))
    for tensor in (*target.values(), *gradients.values(), moments.sums, features):
        assert tensor.is_meta
    for key, value in problem.params.items():
        assert gradients[key].shape[1:] == value.shape


@pytest.mark.parametrize(("noise", "shared"), [(fgvar.Gaussian(), False), (fgvar.Rademacher(), True)])
@pytest.mark.parametrize("space", [fgvar.WeightSpace(), fgvar.ActivitySpace()])
def test_every_noise(problem: fgvar.Problem, space, noise, shared) -> None:
    estimator = fgvar.Estimator(space, noise, shared=shared)
    one = {k: u[0] for k, u in estimator.randomness(problem).sample(0, [0], device="meta").items()}
    assert all(g.is_meta for g in estimator.estimate(problem, one).gradient.values())


@pytest.mark.parametrize("name", ["BP", "LG-FG-A", "FG-W"])
def test_one_training_step(problem: fgvar.Problem, name: str) -> None:
    estimator = fgvar.scheme(name)
    gradient = gradient_of(problem, estimator, autocast=False, compile=False)
    task, config = Supervised("cross_entropy"), RunConfig(fgvar.Schedule(), total=10, seed=0)
    going = TrainingLoop(problem, estimator, gradient, task, config)
    going.update((problem.inputs, problem.targets))
    assert going.step == 1
    assert all(value.is_meta and value.grad is None for value in going.params.values())
