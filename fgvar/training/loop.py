"""The training loop: holds everything of a run that changes, and takes the next step.

θ ← θ − rate(step) · ĝ(θ, batch, noise of draw ``step``), by the schedule's optimiser; several processes average ĝ.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import xarray as xr
from torch import Tensor
from tqdm.auto import tqdm

from fgvar.data.split import Batch, Split
from fgvar.errors import NonFiniteError
from fgvar.estimators.factors import LazyTensors
from fgvar.estimators.protocol import GradientEstimator, is_builtin
from fgvar.estimators.randomness import Randomness
from fgvar.measurement.protocol_checks import require_like, require_randomness
from fgvar.problem import Problem
from fgvar.training.distributed import averaged, broadcast_params, world
from fgvar.training.evaluation import sums_of
from fgvar.training.gradients import Gradient, NonFiniteMonitor
from fgvar.training.interrupt import Interrupt
from fgvar.training.noise_ahead import NoiseAhead
from fgvar.training.objectives import Task
from fgvar.training.probes import Probe
from fgvar.training.schedule import Optimiser, Schedule

LOSS = ""  # beside gradients by parameter, none of which has this name

Logger = Callable[[int, Mapping[str, float]], None]  # (updates made, name → value)


class CheckpointWriter(Protocol):
    """What a loop asks of a `Checkpointer`, which knows the loop."""

    def store(self) -> None: ...

    def maybe_save(self) -> None: ...


@dataclass(frozen=True)
class RunConfig:
    """What a run follows.

    Attributes:
        schedule: optimiser and learning rate.
        total: updates of the whole run.
        seed: of data order and noise.
        probe: what is measured on the way, if anything.
        evaluate_every: epochs between two rows of the curves.
        by_tensor: is one tensor of noise and estimate made at a time (see `fgvar.training.gradients.by_tensor`)?
    """

    schedule: Schedule
    total: int
    seed: int
    probe: Probe | None = None
    evaluate_every: int = 1
    by_tensor: bool = False

    def evaluates(self, epoch: int) -> bool:
        """Have the curves a row after so many epochs?"""
        return epoch % self.evaluate_every == 0 or epoch == self.schedule.epochs


class TrainingLoop:
    """All that a checkpoint has to hold, and how it goes on from there. It moves the problem's own parameters."""

    def __init__(
        self,
        problem: Problem,
        estimator: GradientEstimator,
        gradient: Gradient,
        task: Task,
        config: RunConfig,
    ) -> None:
        self.problem, self.estimator, self.gradient = problem, estimator, gradient
        self.task, self.config = task, config
        self.randomness = require_randomness(estimator.randomness(problem), "estimator")
        self.params = dict(problem.params)
        self.trusted = is_builtin(estimator)
        broadcast_params({**problem.frozen, **self.params})
        learns = getattr(estimator, "learns", None)
        self.learning = tuple(self.params) if learns is None else tuple(learns(problem))
        learning = {key: self.params[key] for key in self.learning}
        self.optimiser = Optimiser(config.schedule, problem, learning, config.total)
        self.monitor = NonFiniteMonitor(learning, problem.device)
        self.noise = NoiseAhead(self._sample, self.randomness.size, config.total, problem.device)
        self.step = 0
        # A row before training, and after each epoch: an empty one where none is evaluated.
        self.curves: list[dict[str, float]] = []
        self.probes: list[xr.Dataset] = []
        # Losses of a run differ by less than bfloat16 tells.
        wide = torch.promote_types(problem.dtype, torch.float32)
        self.losses = torch.full((config.total,), torch.nan, dtype=wide, device=problem.device)

    def run(
        self,
        splits: Mapping[str, Split],
        name: str,
        checkpointer: CheckpointWriter | None,
        logger: Logger | None,
        interrupt: Interrupt,
    ) -> None:
        """From the present step to the last."""
        epochs, total = self.config.schedule.epochs, self.config.total
        disable = None if world()[0] == 0 else True  # None shows the bar on a terminal
        bar = tqdm(total=total, initial=self.step, desc=name, unit="step", disable=disable)
        with self.noise.in_thread(), bar:
            self._show(bar)
            if self.step == 0:
                self.probe_if_due()
            # As many rows as epochs have ended: where it was stopped just before, the evaluation comes first.
            for epoch in range(len(self.curves) - 1, epochs):
                for batch in self._batches(splits["train"], epoch, self.step - epoch * (total // epochs)):
                    self.update(batch)
                    bar.update()
                    self.probe_if_due()
                    if interrupt.ends(self.step):
                        if checkpointer is not None:
                            checkpointer.store()
                        raise KeyboardInterrupt
                    if checkpointer is not None:
                        checkpointer.maybe_save()
                self.monitor.check()
                evaluates = self.config.evaluates(epoch + 1)
                self.curves.append(row := self.task.evaluate(self.problem, self.params, splits) if evaluates else {})
                if not evaluates:
                    continue
                self._show(bar)
                if not np.isfinite(row["loss"]):
                    raise NonFiniteError(
                        f"the loss after epoch {epoch + 1} (step {self.step}) is NaN or infinity; "
                        "lower the learning rate"
                    )
                if logger is not None and world()[0] == 0:
                    logger(self.step, row)

    def _show(self, bar: tqdm) -> None:
        row = next(row for row in reversed(self.curves) if row)
        last = next(reversed(row))  # an error on the test split, where there is one
        bar.set_postfix({name: f"{row[name]:.4g}" for name in dict.fromkeys(("loss", last))}, refresh=False)

    def _batches(self, train: Split, epoch: int, start: int) -> Iterator[Batch]:
        config, problem = self.config, self.problem
        return train.batches(
            config.schedule.batch, seed=config.seed, epoch=epoch, device=problem.device, dtype=problem.dtype,
            part=world(), start=start,
        )  # fmt: skip

    def update(self, batch: Batch) -> None:
        """One step along the estimate."""
        batch = self.task.train_batch(batch, self._draw(self.step))
        noise = self._noise(batch)
        gradient, loss = self.gradient(self.params, batch, noise)
        batch_loss = {} if loss is None else {LOSS: loss.detach().to(self.losses.dtype)}
        if isinstance(gradient, LazyTensors):  # of one process alone; each is gone when its parameter has moved
            for key in self.learning:
                self._move({key: gradient[key]})
        else:
            if not self.trusted:
                require_like("the estimate", self.problem, gradient)
            # The loss travels with the gradients: one message between processes, not two.
            mean = averaged({key: gradient[key] for key in self.learning} | batch_loss, self._weight(batch))
            batch_loss = {LOSS: mean.pop(LOSS)} if batch_loss else {}
            self._move(mean)
        if batch_loss:
            self.losses[self.step] = batch_loss[LOSS]
        self.monitor.update(self.step)
        self.step += 1

    def _move(self, gradient: Mapping[str, Tensor]) -> None:
        """Move some of the parameters along their gradients."""
        for key, value in gradient.items():
            like = self.params[key]
            # Fused optimisers take the memory of both as it lies, number by number: transposed, or by channels last.
            found = value if value.stride() == like.stride() else torch.empty_like(like).copy_(value)
            self.monitor.see(key, found)
            self.params[key].grad = found
        self.optimiser.step(self.step)
        for key in gradient:
            self.params[key].grad = None

    def _weight(self, batch: Batch) -> Tensor | None:
        """Σ w of this process's batch, for a step along Σ w ℓ / Σ w of all; None where examples count the same."""
        if world()[1] == 1 or not self.problem.weighs:
            return None
        return sums_of(self.problem, self.params, batch)[1]

    def _draw(self, step: int) -> int:
        """Number of the draw that this process takes in this update."""
        rank, processes = world()
        return step * processes + rank

    def _noise(self, batch: Batch) -> Mapping[str, Tensor]:
        """Of this update; lazily where one tensor of it is made at a time."""
        if self.randomness.adapted:  # to this step's parameters and batch, so that none is drawn ahead
            at = self.problem.at(self.params, batch)
            return {key: u[0] for key, u in self._sampled(self.estimator.randomness(at), [self.step]).items()}
        if not self.config.by_tensor:
            return self.noise.of(self.step)
        problem = self.problem
        return self.randomness.lazily(
            self.config.seed, self._draw(self.step), dtype=problem.dtype, device=problem.device
        )

    def _sample(self, steps: range) -> dict[str, Tensor]:
        """Noise of some updates, stacked."""
        return self._sampled(self.randomness, steps)

    def _sampled(self, randomness: Randomness, steps: Iterable[int]) -> dict[str, Tensor]:
        return randomness.sample(
            self.config.seed, map(self._draw, steps), dtype=self.problem.dtype, device=self.problem.device
        )

    def probe_if_due(self) -> None:
        """Probe, where it is time to."""
        probe = self.config.probe
        if probe is None or self.step not in probe.steps:
            return
        self.monitor.check()  # the device is waited for now: a probe of NaN would be blamed on the probe
        frozen = self.problem.at({key: value.clone() for key, value in self.params.items()}, probe.batch)
        self.probes.append(probe.measure(frozen, self.step))
