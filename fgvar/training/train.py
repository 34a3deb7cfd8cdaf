"""Training: `train` runs any gradient estimator to the end of a schedule, and measures gradients on the way."""

import contextlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from torch import Tensor, nn

from fgvar import identity
from fgvar.allocator import LARGEST_MMAP_THRESHOLD, MEGABYTE, keep_freed_memory
from fgvar.data.augmentation import Views
from fgvar.data.examples import Examples, refuse_loaders
from fgvar.data.split import Split
from fgvar.errors import require_integer, require_seed
from fgvar.estimators.protocol import GradientEstimator, require_estimator
from fgvar.loss_functions import Loss
from fgvar.measurement.dataset import describe, provenance
from fgvar.nn.sites import copied, require_module
from fgvar.problem_checks import require_parameters, usable_device
from fgvar.training.checkpoint import Checkpointer, described_split
from fgvar.training.distributed import join, local_rank, world
from fgvar.training.gradients import by_tensor, gradient_of
from fgvar.training.interrupt import Interrupt
from fgvar.training.loop import Logger, RunConfig, TrainingLoop
from fgvar.training.objectives import task_of
from fgvar.training.probes import Probe, log_steps, moved
from fgvar.training.schedule import Schedule

__all__ = ["Probe", "Run", "Schedule", "choose_device", "log_steps", "steps_of", "train"]


@dataclass(frozen=True)
class Run:
    """A finished run: its curves and probes, and what it ended with.

    Attributes:
        dataset: curves and probes.
        params: the module's whole state dict: parameters, trained or frozen, by all names that it has for them, and
            buffers, so that ``module.load_state_dict(run.params, strict=True)`` works.
    """

    dataset: xr.Dataset
    params: dict[str, Tensor] = field(repr=False)


def steps_of(schedule: Schedule, examples: int) -> int:
    """Number of updates of a run on ``examples`` training examples.

    Args:
        schedule: whose epochs and batch count.

    Example:
        >>> steps_of(Schedule(epochs=2, batch=32), 64)
        4
    """
    return schedule.epochs * (examples // (schedule.batch * world()[1]))


def train(
    module: nn.Module,
    estimator: GradientEstimator,
    data: Examples | tuple[Split, Split],
    schedule: Schedule,
    *,
    loss: str | Loss = "cross_entropy",
    views: Views | None = None,
    seed: int = 0,
    probe: Probe | None = None,
    evaluate_every: int = 1,
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
    (`FrozenTrunk`). Started by torchrun, every process takes batches and noise of its own, and gradients are
    averaged: n processes make steps of n batches. Frozen parameters (``requires_grad`` is False) stay as they are.
    On Linux memory that a step frees stays with the process until the run has ended
    (`fgvar.allocator.keep_freed_memory`).

    Weight perturbation of eight million numbers or more (float32) goes tensor by tensor, with the same bits: noise is
    drawn again wherever it is needed, and an estimate is gone as soon as its tensor has moved. A step of MeZO holds
    the parameters and the moved ones, one by `Jvp` the parameters and its noise; momentum adds a copy, Adam two.

    Args:
        module: the network, not changed: training starts from a copy of its parameters.
        estimator: its estimates are the gradients that the optimiser follows.
        data: `fgvar.data.Examples` (tensors of any structure, with or without a test set), or a pair of train and
            test split, as `fgvar.data.load` gives them.
        schedule: optimiser and length.
        loss: see `Problem`; an `InfoNCE` learns without labels, to tell each image's two views from the others'.
        views: for `InfoNCE`: every update sees two new views of its batch. What is learned are the features under
            the read-out (see `Contrastive`); `read_out` then trains a classifier of them.
        seed: of data order, of the noise (step k takes draw k) and of the views.
        probe: what to measure on the way, with InfoNCE on one pair of views of its batch; it never changes the run.
        evaluate_every: epochs from one evaluation of both splits to the next; the start and the end have one, too.
        device: "auto" takes CUDA where there is one.
        name: shown in the progress bar.
        checkpoint: a file from which the run goes on, if it is there, and where it is kept: every ten seconds, on
            Ctrl-C and at the end. Killed at any moment and started again, it ends with the same bits. What belongs
            to another run (data, network, loss, estimator, any setting above) is refused, and what a run that is
            going on writes; networks and losses are told by structure, tensors, plain attributes and code, with what
            that names of its module; of an estimator's settings those count that its ``repr`` shows. Where one
            cannot be written, a warning names the last good one, and the run goes on.
        resume: False starts anew and writes over the checkpoint.
        autocast: matrix products in bfloat16; parameters stay in their own type.
        compile: of the estimate, by torch.compile: half a minute once, then several times as fast on small networks;
            what is no single graph, as weights drawn inside of an estimate, runs as it is, with a warning.
        logger: called after each evaluation, ``lambda step, values: [writer.add_scalar(k, v, step) for k, v in
            values.items()]`` for TensorBoard.

    Returns:
        Over ``epoch`` (those evaluated; 0: before training) ``loss`` and ``test_loss``, each Σ w ℓ / Σ w over its
        whole split; ``train_error`` and ``test_error`` where targets are classes, ``train_perplexity`` and
        ``test_perplexity`` where the loss is "causal_lm", ``train_retrieval_error`` and ``test_retrieval_error`` with
        InfoNCE.
        ``batch_loss`` over ``update`` (of its batch, before it; only of estimators that tell it), and the probes'
        measurements over ``step``, all in one dataset; and the final state.

    Raises:
        TypeError: no module, estimator, data or schedule.
        ValueError: ``evaluate_every`` below 1; a device that is not there, fewer training examples than one batch, a
            problem that the estimator does not fit, `InfoNCE` without views or views without it; a checkpoint that is
            truncated or of another run.
        OSError: the checkpoint's place cannot be written, before any training, or another run has it.
        NonFiniteError: NaN or infinity in a gradient or loss, naming the parameter and the step; the checkpoint
            before it stays.

    Example:
        >>> import fgvar
        >>> digits = fgvar.data.load("digits").subset(range(64))
        >>> net = fgvar.networks.MLP(64, width=16, depth=1, classes=10)
        >>> run = train(net, fgvar.scheme("FG-A"), (digits, digits), Schedule(epochs=1, batch=32))
        >>> run.dataset["train_error"].sizes["epoch"]
        2
    """
    require_module(module)
    require_parameters(module)
    require_estimator(name or "estimator", estimator)
    splits = splits_of(data)
    _require_schedule(schedule)
    require_seed(seed)
    require_integer("evaluate_every", evaluate_every, 1)
    task = task_of(loss, views, seed, schedule.batch)
    join()
    where = choose_device(device)
    if any(tensor.device != where for tensor in (*module.parameters(), *module.buffers())):
        module = copied(module).to(where)
    total = steps_of(schedule, len(splits["train"]))
    if total == 0:
        raise ValueError(
            f"{len(splits['train'])} training examples are fewer than one batch of {schedule.batch * world()[1]}"
        )
    dtype = next(p.dtype for p in module.parameters() if p.requires_grad)
    near = {key: _near(split, where) for key, split in splits.items()}
    first = near["train"].sample(schedule.batch, seed=seed, device=where, dtype=dtype)
    problem = task.problem(module, task.eval_batch(first))
    if probe is not None:
        probe = replace(probe, batch=task.eval_batch(moved(probe.batch, where, dtype)))
        probe.check(task.problem(module, probe.batch), total)
    gradient = gradient_of(problem, estimator, autocast, compile)
    module = copied(module, {**problem.frozen, **problem.params})  # one copy of them: what the run moves
    lazy = by_tensor(estimator, estimator.randomness(problem), problem.dtype, compile)
    loop = TrainingLoop(
        problem, estimator, gradient, task, RunConfig(schedule, total, seed, probe, evaluate_every, lazy)
    )
    largest = MEGABYTE if lazy else LARGEST_MMAP_THRESHOLD
    numerics = {"autocast": str(autocast), "compile": str(compile)}  # other rounding is another run
    with _checkpointer(checkpoint, loop, splits, numerics) as checkpointer:
        if checkpointer is not None and resume:
            checkpointer.restore()
        with keep_freed_memory(largest), Interrupt(problem.device) as interrupt:
            if not loop.curves:
                loop.curves.append(task.evaluate(problem, loop.params, near))
            loop.run(near, name or "training", checkpointer, logger, interrupt)
            if checkpointer is not None:
                checkpointer.store()
    return Run(_dataset(loop, splits["train"].name, numerics), dict(module.state_dict()))


def _checkpointer(
    path: str | Path | None, loop: TrainingLoop, splits: Mapping[str, Split], numerics: Mapping[str, str]
) -> contextlib.AbstractContextManager[Checkpointer | None]:
    """The checkpoint at a path, which knows all that the run depends on; of no path, none."""
    if path is None:
        return contextlib.nullcontext()
    data = {key: described_split(split) for key, split in splits.items()}
    return Checkpointer(Path(path), loop, {**loop.task.identity, **numerics, **data})


def splits_of(data: object) -> dict[str, Split]:
    """The split to train on, and the one to test with, where there is one."""
    if isinstance(data, Examples):
        return {"train": data} | ({} if data.test is None else {"test": data.test})
    pair = data if isinstance(data, tuple | list) else ()
    if len(pair) == 2 and isinstance(pair[0], Examples) and isinstance(pair[1], Examples):
        return splits_of(replace(pair[0], test=pair[1]))
    refuse_loaders(data, *pair)
    if len(pair) != 2 or not all(isinstance(one, Split) for one in pair):
        kinds = f" of {', '.join(type(one).__name__ for one in pair)}" if pair else ""
        raise TypeError(
            f"data is {type(data).__name__}{kinds}, expected fgvar.data.Examples(inputs, targets, test=…) of "
            "tensors, Examples.from_dataset(…) of a torch Dataset, or a pair (train, test) of fgvar.data.Images, as "
            'fgvar.data.load("digits"), fgvar.data.load("digits", "test")'
        )
    return dict(zip(("train", "test"), pair, strict=True))


def _require_schedule(schedule: object) -> None:
    """Raise a TypeError where this is no schedule."""
    if not isinstance(schedule, Schedule):
        kind = f"the class {schedule.__name__}" if isinstance(schedule, type) else type(schedule).__name__
        raise TypeError(f"schedule is {kind}, expected an instance: fgvar.Schedule(epochs=20, batch=64)")


def _near(split: Split, device: torch.device) -> Split:
    """On the device, where the data take less than a quarter of its free memory."""
    if device.type != "cuda" or split.nbytes > torch.cuda.mem_get_info(device)[0] // 4:
        return split
    return split.to(device)


def choose_device(device: torch.device | str) -> torch.device:
    """The device of that name; "auto" is CUDA where there is one (of torchrun, each process's), else the CPU."""
    if device == "auto":
        device = f"cuda:{local_rank()}" if torch.cuda.is_available() else "cpu"
    return usable_device("device", device)


def _dataset(loop: TrainingLoop, data: str, numerics: Mapping[str, str]) -> xr.Dataset:
    config = loop.config
    rows = {epoch: row for epoch, row in enumerate(loop.curves) if row}
    dataset = xr.Dataset(coords={"epoch": list(rows)})
    for key in rows[0]:
        long_name, units = loop.task.curves[key]
        dataset[key] = "epoch", [row[key] for row in rows.values()], {"long_name": long_name, "units": units}
    losses = loop.losses.cpu().double().numpy()  # NumPy has no bfloat16
    # An estimator either tells the loss of every batch or of none.
    if not np.isnan(losses).all():
        attrs = {"long_name": "mean loss of an update's batch, before the update", "units": "loss"}
        dataset["batch_loss"] = ("update", losses, attrs)
        dataset["update"] = range(config.total)
    if loop.probes:
        dataset = dataset.merge(xr.concat(loop.probes, "step"), compat="no_conflicts", combine_attrs="override")
        dataset.attrs = dict(loop.probes[0].attrs)
    # A probe's own seed and estimators are attributes, too: the run's have a prefix.
    dataset.attrs |= {f"train_{key}": value for key, value in asdict(config.schedule).items()}
    dataset.attrs |= {"train_estimator": identity.described(loop.estimator), "train_seed": config.seed, "data": data}
    dataset.attrs |= {f"train_{key}": value for key, value in {**loop.task.identity, **numerics}.items()}
    dataset.attrs |= provenance(loop.problem.device, loop.problem.dtype)
    return describe(dataset)
