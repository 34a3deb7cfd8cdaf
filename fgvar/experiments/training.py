"""Complete training runs, whose gradients are measured on the way."""

import copy
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn
from tqdm.auto import tqdm

from fgvar.analysis.dataset import describe, provenance
from fgvar.errors import NonFiniteError
from fgvar.estimators.estimator import GradientEstimator, require_estimator
from fgvar.experiments.checkpoints import State, fingerprint, restore, store
from fgvar.experiments.data import Images
from fgvar.experiments.distributed import averaged, from_first, world
from fgvar.experiments.probes import Probe, log_steps, moved
from fgvar.experiments.schedule import Optimiser, Schedule
from fgvar.problem import Loss, Problem

__all__ = ["Probe", "Run", "Schedule", "choose_device", "log_steps", "steps_of", "train"]

EVALUATION_BATCH = 1024
SECONDS = 10.0  # between checkpoints at the ends of epochs

Logger = Callable[[int, Mapping[str, float]], None]  # (updates made, name → value)
Gradient = Callable[[dict[str, Tensor], tuple[Tensor, Tensor], dict[str, Tensor]], dict[str, Tensor]]

CURVES = {
    "loss": ("mean loss on the train split", "loss"),
    "train_error": ("error on the train split", "1"),
    "test_error": ("error on the test split", "1"),
}


@dataclass(frozen=True)
class Run:
    """A finished run: its curves and probes, and the parameters it ended with."""

    dataset: xr.Dataset
    params: dict[str, Tensor] = field(repr=False)


def steps_of(schedule: Schedule, examples: int) -> int:
    """Number of updates of a run on ``examples`` training examples."""
    return schedule.epochs * (examples // (schedule.batch * world()[1]))


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
    checkpoint: str | Path | None = None,
    resume: bool = True,
    autocast: bool = False,
    compile: bool = False,
    logger: Logger | None = None,
) -> Run:
    """Train a network by any gradient estimator, to the end of its schedule.

    An estimator that has ``learns(problem)``, names of parameters, leaves all others exactly as they are
    (`FrozenTrunk`). Under ``torch.distributed`` (torchrun) every process takes its own part of each batch and
    noise of its own, and gradients are averaged.

    Args:
        module: the network, not changed: training starts from a copy of its parameters.
        estimator: its estimates are the gradients that the optimiser follows.
        data: train and test split.
        schedule: optimiser and length.
        loss: see `Problem`.
        seed: of data order and of the noise (step k takes draw k).
        probe: what to measure on the way; it never changes the run.
        device: "auto" takes CUDA where there is one.
        name: shown in the progress bar.
        checkpoint: a file from which the run goes on, if it is there, and where it is kept: at the ends of epochs,
            on Ctrl-C and at the end. Killed at any moment and started again, it ends with the same bits.
        resume: False starts anew and writes over the checkpoint.
        autocast: matrix products in bfloat16; parameters stay in their own type.
        compile: of the estimate, by torch.compile: half a minute once, then several times as fast on small networks.
        logger: called at the end of each epoch, ``lambda step, values: [writer.add_scalar(k, v, step) for k, v in
            values.items()]`` for TensorBoard.

    Returns:
        ``loss``, ``train_error`` and ``test_error`` over ``epoch`` (0: before training), and the probes'
        measurements over ``step``, in one dataset; and the final parameters.

    Raises:
        ValueError: fewer training examples than one batch, or a problem that the estimator does not fit; a
            checkpoint that is truncated or of another run.
        NonFiniteError: NaN or infinity in a gradient or loss, naming the parameter and the step; the checkpoint
            before it stays.
    """
    require_estimator(name or "estimator", estimator)
    where = choose_device(device)
    module = copy.deepcopy(module).to(where)
    images, test = data
    total = steps_of(schedule, len(images))
    if total == 0:
        raise ValueError(f"{len(images)} training examples are fewer than one batch of {schedule.batch * world()[1]}")
    dtype = next(module.parameters()).dtype
    problem = Problem(module, loss, images.sample(schedule.batch, seed=seed, device=where, dtype=dtype))
    if probe is not None:
        probe = replace(probe, batch=moved(probe.batch, where, dtype))
        probe.check(Problem(module, loss, probe.batch))
    going = Going(
        problem, estimator, schedule, total, seed, gradient_of(problem, estimator, autocast, compile), probe
    )
    kept = _Kept(Path(checkpoint), going, images) if checkpoint is not None and world()[0] == 0 else None
    if kept is not None and resume:
        kept.restore()
    if not going.curves:
        going.curves.append(_evaluate(problem, going.params, images, test))
    with _Interrupt() as interrupt:
        going.run(images, test, name or "training", kept, logger, interrupt)
    if kept is not None:
        kept.store()
    return Run(_dataset(going, images), going.params)


class Going:
    """A run on its way: everything that changes, and the next step."""

    def __init__(
        self,
        problem: Problem,
        estimator: GradientEstimator,
        schedule: Schedule,
        total: int,
        seed: int,
        gradient: Gradient,
        probe: Probe | None,
    ) -> None:
        self.problem, self.estimator, self.schedule, self.total, self.seed = problem, estimator, schedule, total, seed
        self.gradient, self.probe = gradient, probe
        self.randomness = estimator.randomness(problem)
        self.params = {key: value.clone() for key, value in problem.params.items()}
        from_first(self.params)
        learns = getattr(estimator, "learns", None)
        self.learning = tuple(self.params) if learns is None else tuple(learns(problem))
        self.optimiser = Optimiser(schedule, problem, {key: self.params[key] for key in self.learning}, total)
        self.watch = _Watch(self.learning, problem.device)
        self.step = 0
        self.curves: list[tuple[float, ...]] = []
        self.probes: list[xr.Dataset] = []

    def run(
        self,
        images: Images,
        test: Images,
        name: str,
        kept: "_Kept | None",
        logger: Logger | None,
        interrupt: "_Interrupt",
    ) -> None:
        """From the present step to the last."""
        per_epoch = self.total // self.schedule.epochs
        with tqdm(total=self.total, initial=self.step, desc=name, unit="step", disable=None) as bar:
            if self.step == 0:
                self.look()
            # As many rows as epochs have ended: where it was stopped just before, the evaluation comes first.
            for epoch in range(len(self.curves) - 1, self.schedule.epochs):
                for batch in self._batches(images, epoch, self.step - epoch * per_epoch):
                    self.update(batch)
                    bar.update()
                    self.look()
                    if interrupt.asked:
                        if kept is not None:
                            kept.store()
                        raise KeyboardInterrupt
                self.watch.read()
                self.curves.append(_evaluate(self.problem, self.params, images, test))
                row = dict(zip(CURVES, self.curves[-1], strict=True))
                if not np.isfinite(row["loss"]):
                    raise NonFiniteError(
                        f"the loss after epoch {epoch + 1} (step {self.step}) is NaN or infinity; "
                        "lower the learning rate"
                    )
                bar.set_postfix(loss=f"{row['loss']:.3f}", test_error=f"{row['test_error']:.1%}")
                if logger is not None:
                    logger(self.step, row)
                if kept is not None:
                    kept.store_now_and_then()

    def _batches(self, images: Images, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        rank, processes = world()
        return images.batches(
            self.schedule.batch, seed=self.seed, epoch=epoch, device=self.problem.device, dtype=self.problem.dtype,
            part=(rank, processes), start=start,
        )  # fmt: skip

    def update(self, batch: tuple[Tensor, Tensor]) -> None:
        """One step along the estimate."""
        rank, processes = world()
        draw = self.step * processes + rank
        noise = self.randomness.sample(self.seed, [draw], dtype=self.problem.dtype, device=self.problem.device)
        found = self.gradient(self.params, batch, {key: u[0] for key, u in noise.items()})
        found = averaged({key: found[key] for key in self.learning})
        self.watch.see(self.step, found)
        for key, value in found.items():
            self.params[key].grad = value
        self.optimiser.step(self.step)
        self.step += 1

    def look(self) -> None:
        """Probe, where it is time to."""
        if self.probe is None or self.step not in self.probe.steps:
            return
        self.watch.read()
        frozen = self.problem.at({key: value.clone() for key, value in self.params.items()}, self.probe.batch)
        self.probes.append(self.probe.measure(frozen, self.step))


class _Interrupt:
    """Ctrl-C asks for an end after the step that is being made, so that no checkpoint holds half of one."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> "_Interrupt":
        # Only the main thread may handle signals.
        self.before = signal.signal(signal.SIGINT, self._ask) if _in_main_thread() else None
        return self

    def __exit__(self, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)

    def _ask(self, *_: object) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


class _Kept:
    """The checkpoint of a run."""

    def __init__(self, path: Path, going: Going, images: Images) -> None:
        self.path, self.going, self.last = path, going, time.monotonic()
        sample = images.sample(min(len(images), 16), seed=0)
        probe, looks = going.probe, "none"
        if probe is not None:
            looks = f"{dict(probe.estimators)} at {list(probe.steps)}, {probe.draws} draws, seed {probe.seed}"
            looks += f", {probe.route}, batch {fingerprint(dict(zip('xy', probe.batch, strict=True)))}"
        self.identity = {
            "network": fingerprint(going.params),
            "estimator": repr(going.estimator),
            "schedule": repr(going.schedule),
            "seed": repr(going.seed),
            "steps": repr(going.total),
            "data": f"{images.name}, {len(images)} examples, {fingerprint(dict(zip('xy', sample, strict=True)))}",
            "dtype": repr(going.problem.dtype),
            "processes": repr(world()[1]),
            "probe": looks,
        }

    def store(self) -> None:
        going = self.going
        going.watch.read()
        state = State(going.step, going.params, going.optimiser.torch.state_dict(), going.curves, going.probes)
        store(self.path, self.identity, state)
        self.last = time.monotonic()

    def store_now_and_then(self) -> None:
        if time.monotonic() - self.last > SECONDS:
            self.store()

    def restore(self) -> None:
        going = self.going
        state = restore(self.path, self.identity, going.problem.device)
        if state is None:
            return
        with torch.no_grad():
            for key, value in going.params.items():
                value.copy_(state.params[key])
        going.optimiser.torch.load_state_dict(state.optimiser)
        going.step, going.curves, going.probes = state.step, state.curves, state.probes


def gradient_of(problem: Problem, estimator: GradientEstimator, autocast: bool, compile: bool) -> Gradient:
    def gradient(
        params: dict[str, Tensor], batch: tuple[Tensor, Tensor], noise: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        return estimator.estimate(problem.at(params, batch), noise).gradient

    if autocast:
        gradient = torch.autocast(problem.device.type, dtype=torch.bfloat16)(gradient)
    return torch.compile(gradient) if compile else gradient


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
                right = here.right(outputs)
            # Without classes there is no error: NaN.
            wrong.append((~right).double().sum() if right is not None else torch.tensor(torch.nan))
        found.append((torch.stack(losses).sum() / len(split), torch.stack(wrong).sum() / len(split)))
    (loss, error), (_, test_error) = found
    return float(loss), float(error), float(test_error)


def _dataset(going: Going, images: Images) -> xr.Dataset:
    rows = zip(CURVES, zip(*going.curves, strict=True), strict=True)
    dataset = xr.Dataset(
        {key: ("epoch", list(column)) for key, column in rows}, coords={"epoch": range(going.schedule.epochs + 1)}
    )
    for key, (long_name, units) in CURVES.items():
        dataset[key].attrs = {"long_name": long_name, "units": units}
    if going.probes:
        dataset = dataset.merge(xr.concat(going.probes, "step"), compat="no_conflicts", combine_attrs="override")
        dataset.attrs = dict(going.probes[0].attrs)
    dataset.attrs |= {f"train_{key}": value for key, value in asdict(going.schedule).items()}
    dataset.attrs |= {"train_estimator": repr(going.estimator), "train_seed": going.seed, "data": images.name}
    dataset.attrs |= provenance(going.problem.device, going.problem.dtype)
    return describe(dataset)
