"""Complete training runs, whose gradients are measured on the way."""

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm.auto import tqdm

from fgvar.analysis.dataset import describe, provenance
from fgvar.analysis.measurement import check_arguments, measure
from fgvar.errors import NonFiniteError
from fgvar.estimators.estimator import GradientEstimator, require_estimator
from fgvar.experiments.data import Images
from fgvar.problem import Loss, Problem

EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class Schedule:
    """SGD with momentum and a learning rate that decays linearly to 0 (Ren et al. 2023, Sec. 6).

    Args:
        epochs: passes through the train split (the last, incomplete batch of each is left out).
        batch: examples a step.
        lr: initial learning rate.
        momentum: of SGD.
        weight_decay: on weights (tensors of two axes or more), not on biases.

    Raises:
        ValueError: numbers out of range.
    """

    epochs: int = 20
    batch: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        finite = np.isfinite([self.lr, self.momentum, self.weight_decay]).all()
        positive = self.epochs >= 1 and self.batch >= 1 and self.lr > 0
        if not (finite and positive and 0 <= self.momentum < 1 and self.weight_decay >= 0):
            raise ValueError(f"{self}: epochs, batch ≥ 1, lr > 0, 0 ≤ momentum < 1 and weight_decay ≥ 0 expected")


@dataclass(frozen=True)
class Probe:
    """When and how gradients are measured during a run. Probing has its own random streams and batch.

    Args:
        estimators: what to measure, at the run's own parameters.
        batch: inputs and targets of the fixed probe batch.
        steps: after how many updates (0: before training; a zero head then has no trunk gradient).
        draws: see `measure`.
        seed: of the probes' noise.
    """

    estimators: Mapping[str, GradientEstimator]
    batch: tuple[Tensor, Tensor]
    steps: tuple[int, ...]
    draws: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """A finished run: its curves and probes, and the parameters it ended with."""

    dataset: xr.Dataset
    params: dict[str, Tensor] = field(repr=False)


def log_steps(count: int, last: int) -> tuple[int, ...]:
    """About ``count`` distinct steps from 1 to ``last``, evenly spaced in the logarithm.

    Example:
        >>> log_steps(4, 1000)
        (1, 10, 100, 1000)
    """
    return tuple(sorted({round(step) for step in np.geomspace(1, max(last, 1), count)}))


def steps_of(schedule: Schedule, examples: int) -> int:
    """Number of updates of a run on ``examples`` training examples."""
    return schedule.epochs * (examples // schedule.batch)


def train(
    module: nn.Module,
    estimator: GradientEstimator,
    data: tuple[Images, Images],
    schedule: Schedule,
    *,
    loss: str | Loss = "cross_entropy",
    seed: int = 0,
    probe: Probe | None = None,
    device: torch.device | str = "auto",
    name: str = "",
) -> Run:
    """Train a network by any gradient estimator, to the end of its schedule.

    Args:
        module: the network, not changed: training starts from a copy of its parameters.
        estimator: its estimates are the gradients that SGD follows.
        data: train and test split.
        schedule: optimiser and length.
        loss: see `Problem`.
        seed: of data order and of the noise (step k takes draw k).
        probe: what to measure on the way; it never changes the run.
        device: "auto" takes CUDA where there is one.
        name: shown in the progress bar.

    Returns:
        ``loss``, ``train_error`` and ``test_error`` over ``epoch`` (0: before training), and the probes'
        measurements over ``step``, in one dataset; and the final parameters.

    Raises:
        ValueError: fewer training examples than one batch, or a problem that the estimator does not fit.
        NonFiniteError: NaN or infinity in a gradient or loss, naming the parameter and the step.
    """
    require_estimator(name or "estimator", estimator)
    where = choose_device(device)
    module = copy.deepcopy(module).to(where)
    images, test = data
    total = steps_of(schedule, len(images))
    if total == 0:
        raise ValueError(f"{len(images)} training examples are fewer than one batch of {schedule.batch}")
    dtype = next(module.parameters()).dtype
    first = images.sample(schedule.batch, seed=seed, device=where, dtype=dtype)
    problem = Problem(module, loss, first)
    randomness = estimator.randomness(problem)
    params = {key: value.clone() for key, value in problem.params.items()}
    optimiser, decay = _optimiser(params, schedule, total)
    if probe is not None:
        check_arguments(probe.estimators, probe.draws, None, probe.seed)
        probed = Problem(module, loss, _moved(probe.batch, where, problem.dtype))
        for other in probe.estimators.values():
            other.randomness(probed)
    watch = _Watch(tuple(params), where)
    curves = [_evaluate(problem, params, images, test)]
    probes: list[xr.Dataset] = []
    step = 0

    def look() -> None:
        if probe is None or step not in probe.steps:
            return
        watch.read()
        frozen = problem.at({key: value.clone() for key, value in params.items()}, _moved(probe.batch, where, dtype))
        measured = measure(probe.estimators, frozen, draws=probe.draws, seed=probe.seed)
        probes.append(measured.rename({"loss": "probe_loss"}).expand_dims(step=[step]))

    look()
    with tqdm(total=total, desc=name or "training", unit="step", disable=None) as bar:
        for epoch in range(schedule.epochs):
            for batch in images.batches(schedule.batch, seed=seed, epoch=epoch, device=where, dtype=dtype):
                here = problem.at(params, batch)
                noise = randomness.sample(seed, [step], dtype=problem.dtype, device=where)
                one = {key: u[0] for key, u in noise.items()}
                watch.see(step, training_step(here, estimator, one, optimiser))
                decay.step()
                step += 1
                bar.update()
                look()
            watch.read()
            curves.append(_evaluate(problem, params, images, test))
            if not np.isfinite(curves[-1][0]):
                raise NonFiniteError(
                    f"the loss after epoch {epoch + 1} (step {step}) is NaN or infinity; lower the learning rate"
                )
            bar.set_postfix(loss=f"{curves[-1][0]:.3f}", test_error=f"{curves[-1][2]:.1%}")
    dataset = xr.Dataset(
        {key: ("epoch", list(column)) for key, column in zip(CURVES, zip(*curves, strict=True), strict=True)},
        coords={"epoch": range(schedule.epochs + 1)},
    )
    for key, (long_name, units) in CURVES.items():
        dataset[key].attrs = {"long_name": long_name, "units": units}
    if probes:
        dataset = dataset.merge(xr.concat(probes, "step"), compat="no_conflicts", combine_attrs="override")
        dataset.attrs = dict(probes[0].attrs)
    dataset.attrs |= {f"train_{key}": value for key, value in asdict(schedule).items()}
    dataset.attrs |= {"train_estimator": repr(estimator), "train_seed": seed, "data": images.name}
    dataset.attrs |= provenance(where, problem.dtype)
    return Run(describe(dataset), params)


CURVES = {
    "loss": ("mean loss on the train split", "loss"),
    "train_error": ("error on the train split", "1"),
    "test_error": ("error on the test split", "1"),
}


def training_step(
    problem: Problem, estimator: GradientEstimator, noise: Mapping[str, Tensor], optimiser: torch.optim.Optimizer
) -> dict[str, Tensor]:
    """One update of ``problem.params`` (which the optimiser holds) along the estimate, which is returned."""
    gradient = estimator.estimate(problem, noise).gradient
    for key, parameter in problem.params.items():
        parameter.grad = gradient[key]
    optimiser.step()
    return gradient


def choose_device(device: torch.device | str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one, else the CPU."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


class _Watch:
    """Remembers on the device which parameter's gradient was first non-finite, and when."""

    def __init__(self, names: tuple[str, ...], device: torch.device) -> None:
        self.names = names
        self.first = torch.full((len(names),), -1, dtype=torch.int64, device=device)

    def see(self, step: int, gradient: Mapping[str, Tensor]) -> None:
        finite = torch.stack([gradient[name].isfinite().all() for name in self.names])
        self.first = torch.where(finite | (self.first >= 0), self.first, step)

    def read(self) -> None:
        if self.first.is_meta:
            return
        bad = {step: name for name, step in zip(self.names, self.first.tolist(), strict=True) if step >= 0}
        if bad:
            step = min(bad)
            raise NonFiniteError(
                f"the gradient of {bad[step]!r} held NaN or infinity at step {step}; lower the learning rate"
            )


def _optimiser(
    params: dict[str, Tensor], schedule: Schedule, total: int
) -> tuple[torch.optim.SGD, torch.optim.lr_scheduler.LinearLR]:
    weights = [p for p in params.values() if p.ndim > 1]
    biases = [p for p in params.values() if p.ndim <= 1]
    groups = [
        {"params": weights, "weight_decay": schedule.weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.SGD(groups, lr=schedule.lr, momentum=schedule.momentum)
    return optimiser, torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.0, total_iters=total)


def _evaluate(problem: Problem, params: Mapping[str, Tensor], images: Images, test: Images) -> tuple[float, ...]:
    """Mean training loss, training error and test error."""
    found = []
    for split in (images, test):
        losses, wrong = [], []
        for start in range(0, len(split), EVALUATION_BATCH):
            numbers = torch.arange(start, min(start + EVALUATION_BATCH, len(split)))
            batch = split.batch(numbers, device=problem.device, dtype=problem.dtype)
            here = problem.at(params, batch)
            with torch.no_grad():
                outputs = here.run(params)[0]
                losses.append(here.losses(outputs).double().sum())
            wrong.append((outputs.argmax(1) != here.targets).sum())
        found.append((torch.stack(losses).sum() / len(split), torch.stack(wrong).sum() / len(split)))
    (loss, error), (_, test_error) = found
    return float(loss), float(error), float(test_error)


def _moved(batch: tuple[Tensor, Tensor], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return batch[0].to(device, dtype), batch[1].to(device)
