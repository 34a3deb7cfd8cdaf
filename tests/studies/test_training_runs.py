"""Runs of a table by several processes: the first one sweeps, the others follow."""

import math
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import xarray as xr

import fgvar
from fgvar.training import checkpoint
from fgvar.training.distributed import summed
from fgvar.training.loop import TrainingLoop
from studies import training
from studies.common import Options

ROOT = Path(__file__).resolve().parents[2]
# Both are forked from a process that has loaded all they need.
SCRIPT = """
import os, sys, traceback
from pathlib import Path
sys.path[:0] = ["tests/studies"]
import test_training_runs
pids = []
for rank in range(2):
    pids.append(os.fork())
    if pids[-1] == 0:
        try:
            test_training_runs.run(Path(sys.argv[1]), rank)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
sys.exit(any([os.waitpid(pid, 0)[1] for pid in pids]))
"""


@training.by_all
def cell(*, number: int, scratch: Path) -> xr.Dataset:
    """What all processes give together."""
    if number == 2:
        raise RuntimeError("this one fails on all")
    with open(scratch.parent.parent / "log", "a") as log:
        log.write(f"{number}\n")
    return xr.Dataset({"value": float(summed(torch.tensor(float(number))))})


@training.by_all
def trained(*, lr: float, scratch: Path) -> xr.Dataset:
    """A run of 32 updates, which diverges at a large rate, and is stopped by Ctrl-C at none."""
    digits = fgvar.data.load("digits").subset(range(64))
    net = fgvar.networks.MLP(64, width=4, depth=1, classes=10)
    update = TrainingLoop.update

    def stopped(self: TrainingLoop, batch) -> None:
        update(self, batch)
        if self.step == 3 and not lr:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingLoop, "update", stopped)
        schedule = fgvar.Schedule(epochs=1, batch=1, lr=lr or 0.1)
        found = fgvar.train(net, fgvar.scheme("BP"), (digits, digits), schedule, checkpoint=scratch / "run")
    return xr.Dataset({"value": found.dataset["loss"][-1]})


def run(folder: Path, rank: int) -> None:
    """One process's part; how it ended, into ``end<rank>``."""
    torch.distributed.init_process_group(
        "gloo", f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=30)
    )
    ends = []
    for numbers, options in (((1, 2, 3), {}), ((1, 3), {}), ((1,), {"workers": 1})):
        try:
            first = training.train_all(cell, [({"number": numbers}, {})], Options(folder / "a.nc", **options), folder)
            ends.append(f"first: {first}")
        except ValueError as error:
            ends.append(str(error))
    checkpoint.SECONDS = math.inf if rank else 0.0  # processes need not agree on when a checkpoint is due
    for rates in ((1e30, 0.1), (0.0,)):
        try:
            training.train_all(trained, [({"lr": rates}, {})], Options(folder / "a.nc"), folder / "trained")
        except (ValueError, KeyboardInterrupt) as error:
            ends.append(f"{type(error).__name__}: {str(error)[:31]}".rstrip())
    (folder / f"end{rank}").write_text("\n".join(ends))


def test_all_processes_train_every_run_together(tmp_path: Path) -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=110
    )
    assert done.returncode == 0, done.stderr
    together = "torchrun's processes train each run together; leave out --workers, --scheduler, --timeout"
    failed = "1 runs failed, see above (RuntimeError: this one fails on all); the same command tries them again"
    ends = [(tmp_path / f"end{rank}").read_text().splitlines() for rank in range(2)]
    assert ends[0][:3] == [failed, "first: True", together]
    assert ends[1][:3] == ["first: False", "first: False", together]
    assert ends[0][3:] == ["ValueError: 1 runs failed, see above (fgvar", "KeyboardInterrupt:"], "one has diverged"
    assert ends[1][3:] == ["KeyboardInterrupt:"]
    assert len(training.finished(tmp_path / "trained")) == 1
    assert sorted(one["value"].item() for one in training.finished(tmp_path)) == [2, 6], "sums over both"
    assert sorted((tmp_path / "log").read_text().split()) == ["1", "1", "3", "3"], "each once by each"
