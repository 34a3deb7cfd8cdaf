"""Everything that a training step and a measurement do runs on the meta device: no stray tensor, no host sync."""

import pytest
import rows
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import fgvar
from fgvar.estimators.protocol import GradientEstimator
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
    require_measurable(problem, fgvar.scheme(name))


def require_measurable(problem: fgvar.Problem, estimator: GradientEstimator) -> None:
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
    take_a_step(problem, fgvar.scheme(name))


def take_a_step(problem: fgvar.Problem, estimator: GradientEstimator) -> None:
    gradient = gradient_of(problem, estimator, autocast=False, compile=False)
    task, config = Supervised("cross_entropy"), RunConfig(fgvar.Schedule(), total=10, seed=0)
    going = TrainingLoop(problem, estimator, gradient, task, config)
    going.update((problem.inputs, problem.targets))
    assert going.step == 1
    assert all(value.is_meta and value.grad is None for value in going.params.values())


@pytest.fixture(scope="module")
def sampled() -> fgvar.Problem:
    batch = torch.empty(4, 64, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    return fgvar.Problem(rows.network().to("meta"), "cross_entropy", batch)


class HostTensors(TorchDispatchMode):
    """Operations that make tensors on the CPU, of which a device would have to be given a copy.

    But for single numbers, which torch makes of those that Python has, and hands to kernels as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves(out) if isinstance(value, torch.Tensor)]
        if any(value.ndim and value.device.type == "cpu" for value in tensors):
            self.found.append(str(func))
        return out


@pytest.mark.parametrize("name", rows.NAMES)
def test_estimates_of_rows(sampled: fgvar.Problem, name: str) -> None:
    require_measurable(sampled, rows.rows(sampled)[name])


@pytest.mark.parametrize("name", rows.NAMES)
def test_a_training_step_by_rows_makes_nothing_on_the_host(sampled: fgvar.Problem, name: str) -> None:
    with HostTensors() as made:
        take_a_step(sampled, rows.rows(sampled)[name])
    # Their numbers are the same on every device, so that they are made on the host.
    assert not made.found or name in ("carriers", "shuffled mask")


def test_all_words_are_in_rows(sampled: fgvar.Problem) -> None:
    text = repr(list(rows.rows(sampled).values()))
    for module in (fgvar.sampling, fgvar.points, fgvar.transforms, fgvar.streams):
        assert [word for word in module.__all__ if f"{word}(" not in text] == []
