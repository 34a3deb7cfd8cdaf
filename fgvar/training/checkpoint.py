"""Checkpoints: store and restore all that a run needs to go on as if it had never stopped, in one file.

A file is a line that names the format, a line with a hash of the rest, and the rest: plain tensors, numbers,
text and bytes by ``torch.save``. What was cut short or damaged has another hash; reading runs no pickled code.
"""

import contextlib
import hashlib
import io
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgvar.data.split import Split
from fgvar.identity import behaviour, described, fingerprint
from fgvar.storage import locks
from fgvar.storage.atomic import replace, require_place
from fgvar.storage.packing import pack, unpack
from fgvar.training.distributed import any_rank_now, broadcast_bytes, world
from fgvar.training.gradients import require_finite
from fgvar.training.loop import TrainingLoop

MAGIC = b"fgvar checkpoint 9\n"  # another number is another format, or other noise for a run to go on with
SECONDS = 10.0  # between checkpoints, or fifty times what one takes, if that is longer


@dataclass
class State:
    """Where a run is.

    Attributes:
        step: updates made.
        params: name → value.
        optimiser: torch's state of the optimiser.
        curves: rows of the curves so far.
        probes: measurements so far, each packed.
        losses: of every update's batch; NaN where there is none yet.
    """

    step: int
    params: dict[str, Tensor]
    optimiser: dict[str, Any]
    curves: list[dict[str, float]]
    probes: list[bytes]
    losses: Tensor


def store(path: Path, identity: Mapping[str, str], state: State) -> None:
    """Write the state of the run with this identity: a reader sees the old file or the whole new one.

    Raises:
        OSError: it cannot be written; what stood there stays.
    """
    body = io.BytesIO()
    torch.save({"identity": dict(identity), **{name: getattr(state, name) for name in _FIELDS}}, body)
    replace(path, [MAGIC, _hash(body.getbuffer()), b"\n", body.getbuffer()])


def restore(path: Path, identity: Mapping[str, str], device: torch.device) -> State | None:
    """The state of the run with this identity; None where there is no checkpoint yet.

    Of several processes the first one reads the file, for all.

    Raises:
        ValueError: a file that is truncated, damaged or no checkpoint, or another run's, naming what differs.
    """
    content = broadcast_bytes(path.read_bytes() if path.exists() else None)
    if content is None:
        return None
    if not content.startswith(MAGIC):
        raise ValueError(f"{path} is no checkpoint of this version of fgvar, or cut short; {_REMEDY}")
    digest, _, body = content[len(MAGIC) :].partition(b"\n")
    if digest != _hash(body):
        raise ValueError(f"{path} is truncated or damaged: its content has another hash than it states; {_REMEDY}")
    try:
        stored = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except Exception as error:  # zip files, pickles and torch raise errors of their own
        raise ValueError(f"{path} cannot be read as a checkpoint ({_line(error)}); {_REMEDY}") from error
    theirs = stored["identity"]
    for key in sorted({*theirs, *identity}):
        if theirs.get(key) != identity.get(key):
            raise ValueError(
                f"{path} is the checkpoint of another run: its {key} is {theirs.get(key)}, this run's is "
                f"{identity.get(key)}; {_REMEDY}"
            )
    return State(**{name: stored[name] for name in _FIELDS})


_FIELDS = tuple(State.__dataclass_fields__)
_REMEDY = "give another checkpoint= path, delete the file, or train with resume=False"


def described_split(split: Split | None) -> str:
    """A split: its name and size, and a hash of what it holds."""
    return "none" if split is None else f"{split.title}, {len(split)} examples, {fingerprint(split.hashed())}"


class Checkpointer:
    """Stores and restores the checkpoint of a run. The first of several processes writes it.

    Raises:
        OSError: on entering, before any training: it cannot be written, or another run has it.
    """

    def __init__(self, path: Path, loop: TrainingLoop, settings: Mapping[str, str]) -> None:
        self.path, self.loop = path, loop
        self.stored_at, self.interval = time.monotonic(), SECONDS
        self.packed: list[bytes] = []  # probes, each packed once
        self.last_good: int | None = None  # step of the last one that was written
        self.failing = False
        self.lock = contextlib.ExitStack()
        config = loop.config
        # What stays by another name than what learns: unfreezing it makes another run.
        fixed = {f"fixed {name}": value for name, value in loop.problem.buffers.items()}
        network = loop.problem.network.skeleton
        self.identity = {
            "network": f"{type(network).__name__} {behaviour(network)} {fingerprint({**fixed, **loop.params})}",
            "estimator": described(loop.estimator),
            "schedule": repr(config.schedule),
            "seed": repr(config.seed),
            "steps": repr(config.total),
            "dtype": repr(loop.problem.dtype),
            "processes": repr(world()[1]),
            "probe": "none" if config.probe is None else config.probe.identity,
            "evaluate_every": repr(config.evaluate_every),
            **settings,
        }

    def __enter__(self) -> "Checkpointer":
        refused = None
        if world()[0] == 0:
            try:
                self._take()
            except OSError as error:
                refused = error
        # The others wait for its word, and must not wait for the run.
        if (told := broadcast_bytes(None if refused is None else str(refused).encode())) is not None:
            raise refused or OSError(told.decode())
        return self

    def _take(self) -> None:
        require_place(self.path)
        try:
            self.lock.enter_context(locks.exclusive(locks.lock_path(self.path)))
        except locks.LockHeld as holder:
            raise BlockingIOError(
                f"{self.path} is the checkpoint of a run that is going on, by {holder}; wait for its end, stop "
                "it, or give another checkpoint= path"
            ) from None

    def __exit__(self, *_: object) -> None:
        self.lock.close()

    def store(self) -> None:
        """Raises where the run has left the finite numbers: the checkpoint before stays.

        One that cannot be written is a warning, the first time: the run is worth more than its checkpoint.
        """
        loop, began = self.loop, time.monotonic()
        loop.monitor.check()
        require_finite(loop.params, loop.step)
        self.packed += map(pack, loop.probes[len(self.packed) :])
        if world()[0] == 0:
            state = State(
                loop.step, loop.params, loop.optimiser.torch.state_dict(), loop.curves, self.packed, loop.losses
            )
            try:
                store(self.path, self.identity, state)
                self.last_good, self.failing = loop.step, False
            except OSError as error:
                if not self.failing:
                    self._warn(error)
                self.failing = True
        self.stored_at = time.monotonic()
        # At most 2 % of a run's time goes into its checkpoints, however large they are.
        self.interval = max(SECONDS, 50 * (self.stored_at - began))

    def _warn(self, error: OSError) -> None:
        good = "there is none before it" if self.last_good is None else f"the last good one: step {self.last_good}"
        warnings.warn(
            f"{self.path}: no checkpoint of step {self.loop.step} could be written ({error}); {good}. The run goes "
            "on, and later ones are tried; make room",
            stacklevel=3,
        )

    def maybe_save(self) -> None:
        """Store, where the last checkpoint is old enough by the clock of the process that writes it."""
        due = world()[0] == 0 and time.monotonic() - self.stored_at >= self.interval
        # All together: a run that has left the finite numbers ends in all of them.
        if any_rank_now(due, self.loop.step, self.loop.problem.device):
            self.store()

    def restore(self) -> None:
        """Go on from the checkpoint, where there is one."""
        loop = self.loop
        state = restore(self.path, self.identity, loop.problem.device)
        if state is None:
            return
        with torch.no_grad():
            for key, value in loop.params.items():
                value.copy_(state.params[key])  # in place: the optimiser holds these tensors
        loop.optimiser.torch.load_state_dict(state.optimiser)
        self.last_good = state.step
        loop.step, loop.curves, loop.losses = state.step, state.curves, state.losses
        self.packed, loop.probes = state.probes, [unpack(probe) for probe in state.probes]


def _hash(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
