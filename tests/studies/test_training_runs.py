"""Runs of a table by several processes: the first one sweeps, the others follow."""

import os
import subprocess
import sys
from pathlib import Path

import torch
import xarray as xr

from fgvar.training.distributed import summed
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


def run(folder: Path, rank: int) -> None:
    """One process's part; how it ended, into ``end<rank>``."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    ends = []
    for numbers, options in (((1, 2, 3), {}), ((1, 3), {}), ((1,), {"workers": 1})):
        try:
            first = training.train_all(cell, [({"number": numbers}, {})], Options(folder / "a.nc", **options), folder)
            ends.append(f"first: {first}")
        except ValueError as error:
            ends.append(str(error))
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
    assert (tmp_path / "end0").read_text().splitlines() == [failed, "first: True", together]
    assert (tmp_path / "end1").read_text().splitlines() == ["first: False", "first: False", together]
    assert sorted(one["value"].item() for one in training.finished(tmp_path)) == [2, 6], "sums over both"
    assert sorted((tmp_path / "log").read_text().split()) == ["1", "1", "3", "3"], "each once by each"
