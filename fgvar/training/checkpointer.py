"""Keeping: when a run is written to its checkpoint, and what tells it from others."""

import contextlib
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch

from fgvar.storage import locks
from fgvar.storage.atomic import require_place
from fgvar.storage.packing import pack, unpack
from fgvar.training.checkpoint import State, described, fingerprint, restore, store
from fgvar.training.distributed import world
from fgvar.training.gradients import require_finite
from fgvar.training.loop import TrainingLoop

SECONDS = 10.0  # between checkpoints, or fifty times what one takes, if that is longer


class Checkpointer:
    """The checkpoint of a run, and what the run is told by. The first of several processes writes it.

    Raises:
        OSError: on entering, before any training: it cannot be written, or another run has it.
    """

    def __init__(self, path: Path, going: TrainingLoop, more: Mapping[str, str]) -> None:
        self.path, self.going = path, going
        self.last, self.pause = time.monotonic(), SECONDS
        self.packed: list[bytes] = []  # probes, each packed once
        self.good: int | None = None  # step of the last one that was written
        self.failing = False
        self.entered = contextlib.ExitStack()
        self.identity = {
            "network": fingerprint(going.params),
            "estimator": described(going.estimator),
            "schedule": repr(going.schedule),
            "seed": repr(going.seed),
            "steps": repr(going.total),
            "dtype": repr(going.problem.dtype),
            "processes": repr(world()[1]),
            "probe": "none" if going.probe is None else going.probe.identity,
            **more,
        }

    def __enter__(self) -> "Checkpointer":
        if world()[0] == 0:
            require_place(self.path)
            try:
                self.entered.enter_context(locks.exclusive(locks.lock_path(self.path)))
            except locks.LockHeld as holder:
                raise BlockingIOError(
                    f"{self.path} is the checkpoint of a run that is going on, by {holder}; wait for its end, stop "
                    "it, or give another checkpoint= path"
                ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.entered.close()

    def store(self) -> None:
        """Raises where the run has left the finite numbers: the checkpoint before stays.

        One that cannot be written is a warning, the first time: the run is worth more than its checkpoint.
        """
        going, began = self.going, time.monotonic()
        going.monitor.check()
        require_finite(going.params, going.step)
        self.packed += map(pack, going.probes[len(self.packed) :])
        if world()[0] == 0:
            state = State(
                going.step, going.params, going.optimiser.torch.state_dict(), going.curves, self.packed, going.losses
            )
            try:
                store(self.path, self.identity, state)
                self.good, self.failing = going.step, False
            except OSError as error:
                if not self.failing:
                    before = (
                        "there is none before it" if self.good is None else f"the last good one: step {self.good}"
                    )
                    warnings.warn(
                        f"{self.path}: no checkpoint of step {going.step} could be written ({error}); {before}. The "
                        "run goes on, and later ones are tried; make room",
                        stacklevel=2,
                    )
                self.failing = True
        self.last = time.monotonic()
        self.pause = max(SECONDS, 50 * (self.last - began))

    def maybe_save(self) -> None:
        if time.monotonic() - self.last >= self.pause:
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
        self.good = state.step
        going.step, going.curves, going.losses = state.step, [tuple(row) for row in state.curves], state.losses
        self.packed, going.probes = state.probes, [unpack(probe) for probe in state.probes]
