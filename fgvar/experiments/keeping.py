"""Keeping: when a run is written to its checkpoint, and what tells it from others."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch

from fgvar.analysis.packing import pack, unpack
from fgvar.experiments.checkpoints import State, described, fingerprint, restore, store
from fgvar.experiments.distributed import world
from fgvar.experiments.going import Going
from fgvar.experiments.gradients import require_finite

SECONDS = 10.0  # between checkpoints, or fifty times what one takes, if that is longer


class Kept:
    """The checkpoint of a run, and what the run is told by. The first of several processes writes it."""

    def __init__(self, path: Path, going: Going, more: Mapping[str, str]) -> None:
        self.path, self.going = path, going
        self.last, self.pause = time.monotonic(), SECONDS
        self.packed: list[bytes] = []  # probes, each packed once
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

    def store(self) -> None:
        """Raises where the run has left the finite numbers: the checkpoint before stays."""
        going, began = self.going, time.monotonic()
        going.watch.read()
        require_finite(going.params, going.step)
        self.packed += map(pack, going.probes[len(self.packed) :])
        if world()[0] == 0:
            state = State(
                going.step, going.params, going.optimiser.torch.state_dict(), going.curves, self.packed, going.losses
            )
            store(self.path, self.identity, state)
        self.last = time.monotonic()
        self.pause = max(SECONDS, 50 * (self.last - began))

    def store_now_and_then(self) -> None:
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
        going.step, going.curves, going.losses = state.step, [tuple(row) for row in state.curves], state.losses
        self.packed, going.probes = state.probes, [unpack(probe) for probe in state.probes]
