"""Locks: who may work on what at the same time, and what a kill leaves."""

import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import xarray as xr
from sweeping import AXES, SEEDS, assert_same, drive, ragged, trivial

import fgvar
from fgvar.storage import locks
from fgvar.training import train
from studies.common import Options

ROOT = Path(__file__).resolve().parents[2]
HOLD = """
import sys, time
from pathlib import Path
from fgvar.storage import locks
with locks.{how}:
    print("held", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def another(how: str) -> Iterator["subprocess.Popen[str]"]:
    """A process that holds a lock until it is told to go, or killed."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD.format(how=how)], cwd=ROOT, text=True, **pipes) as one:
        assert one.stdout.readline() == "held\n"
        yield one
        one.stdin.close()


def test_one_alone(tmp_path) -> None:
    """Who holds it is named; another thread of the same process is another; it is free afterwards."""
    path = tmp_path / "lock"
    with another(f"exclusive(Path({str(path)!r}))") as one:
        with pytest.raises(locks.LockHeld, match=rf"^process {one.pid} on "), locks.exclusive(path):
            pass
        one.stdin.close()
        one.wait()
        assert not path.exists()
    with locks.exclusive(path):
        assert path.read_text() == locks.this_process()
        found = []

        def enter() -> None:
            try:
                with locks.exclusive(path):
                    pass
            except locks.LockHeld as held:
                found.append(str(held))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert found == [locks.this_process()]
    assert not path.exists()


def test_a_kill_frees_it(tmp_path) -> None:
    path = tmp_path / "lock"
    with another(f"exclusive(Path({str(path)!r}))") as one:
        one.kill()
        one.wait()
        assert path.exists()
        with locks.exclusive(path):
            assert path.read_text() == locks.this_process()
    assert not path.exists()


def test_several_together_at_one_work(tmp_path) -> None:
    """The last one to go takes the file away; other work waits until then."""
    path = tmp_path / "lock"
    with another(f"shared(Path({str(path)!r}), 'this')") as one, locks.shared(path, "this"):
        with pytest.raises(locks.LockHeld, match=rf"process {one.pid} on "), locks.shared(path, "that"):
            pass
        one.stdin.close()
        one.wait()
        assert path.exists()
        with pytest.raises(locks.LockHeld), locks.shared(path, "that"):
            pass
    assert not path.exists()
    with locks.shared(path, "that"):
        pass


def test_a_lock_that_is_being_written_down(tmp_path) -> None:
    """It has no name in it yet; whoever wants to share it waits a moment."""
    path = tmp_path / "lock"
    number = locks.try_lock(path)
    with pytest.raises(locks.LockHeld, match=r"^another process$"), locks.exclusive(path):
        pass
    entered = threading.Event()

    def enter() -> None:
        with locks.shared(path, "this"):
            entered.set()

    thread = threading.Thread(target=enter)
    thread.start()
    assert not entered.wait(0.1)
    os.close(number)
    assert entered.wait(10)
    thread.join()


@pytest.mark.parametrize("how", ["no module", "no locks here"])
def test_without_locks_everybody_has_one(tmp_path, monkeypatch, how: str) -> None:
    """Windows, and file systems without them."""
    if how == "no module":
        monkeypatch.setattr(locks, "fcntl", None)
    else:

        def refuse(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(locks.fcntl, "flock", refuse)
    lock = tmp_path / "lock"
    with locks.exclusive(lock), locks.exclusive(lock), locks.shared(lock, "this"):
        pass
    assert fgvar.save(xr.Dataset(), tmp_path / "a.nc").exists()


# ---- checkpoints -------------------------------------------------------------------------------------------------


def arguments() -> dict:
    train, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    return {
        "module": fgvar.networks.MLP(64, width=4, depth=1, classes=10, seed=0), "estimator": fgvar.scheme("BP"),
        "data": (train.subset(range(64)), test.subset(range(32))), "device": "cpu",
        "schedule": fgvar.Schedule(epochs=3, batch=16),
    }  # fmt: skip


def test_a_second_run_on_a_checkpoint_is_refused(tmp_path, monkeypatch) -> None:
    """By name or through a link, before it trains; after a kill the file is free."""
    path, link = tmp_path / "run.checkpoint", tmp_path / "link"
    link.symlink_to(path)
    lock = locks.lock_path(path)
    assert lock == locks.lock_path(link)
    with another(f"exclusive(Path({str(lock)!r}))") as one:
        with monkeypatch.context() as patch:
            patch.setattr(train.TrainingLoop, "update", lambda *_: pytest.fail("it must not train"))
            for where in (path, link):
                with pytest.raises(
                    BlockingIOError,
                    match=rf"is the checkpoint of a run that is going on, by process {one.pid} on .*; wait for its",
                ):
                    fgvar.train(**arguments(), checkpoint=where)
        one.kill()
        one.wait()
        fgvar.train(**arguments(), checkpoint=link)
    assert link.is_symlink()
    assert sorted(tmp_path.iterdir()) == [link, path]


def test_a_place_without_a_checkpoint_is_refused_before_training(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train.TrainingLoop, "update", lambda *_: pytest.fail("it must not train"))
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path, "is a folder, expected"),
        (tmp_path / "pipe", "is a pipe, expected a regular file"),
    ):
        with pytest.raises(OSError, match=what):
            fgvar.train(**arguments(), checkpoint=path)


@pytest.mark.parametrize("good", [True, False])
def test_a_full_disk_is_one_warning_and_the_run_is_returned(tmp_path, monkeypatch, good: bool) -> None:
    """Checkpoints of steps 5 to 8 fail, or all from the start; those after it are tried again."""
    path, calls = tmp_path / "run.checkpoint", []
    whole = fgvar.train(**arguments())
    going: list[train.TrainingLoop] = []
    update = train.TrainingLoop.update
    monkeypatch.setattr(
        train.TrainingLoop, "update", lambda self, batch: (going.append(self), update(self, batch))[1]
    )
    monkeypatch.setattr(train.Checkpointer, "maybe_save", train.Checkpointer.store)
    fsync = os.fsync

    def full(number: int) -> None:
        calls.append(going[-1].step)
        if not good or 5 <= calls[-1] <= 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    before = "the last good one: step 4" if good else "there is none before it"
    with pytest.warns(
        UserWarning, match=rf"no checkpoint of step .* could be written \(.*No space.*{before}"
    ) as told:
        run = fgvar.train(**arguments(), checkpoint=path)
    assert len(told) == 1
    assert set(calls) == set(range(1, 13))
    assert all(torch.equal(value, run.params[key]) for key, value in whole.params.items())
    assert list(tmp_path.iterdir()) == ([path] if good else [])


# ---- sweeps ------------------------------------------------------------------------------------------------------


def test_another_sweep_on_one_results_file_is_refused(tmp_path) -> None:
    """Before it computes; shards and a collection of the same sweep are not."""

    def cell(a, b, folder):
        tmp_path, out = Path(folder), Path(folder) / "out.nc"
        sentence = rf"out\.nc is being written by a sweep of other cells, begun by {locks.this_process()}; wait"
        with pytest.raises(BlockingIOError, match=sentence):
            fgvar.sweep(ragged, AXES, seed=SEEDS, folder=tmp_path, out=out)
        for shard, compute in (("0/2", False), ("1/2", True)):
            fgvar.sweep(trivial, {"a": (1,), "b": (2,)}, folder=tmp_path / "x", out=tmp_path / f"{a}.nc",
                        shard=shard, compute=compute)  # fmt: skip
        return trivial(a, b)

    out, config = tmp_path / "out.nc", {"folder": str(tmp_path)}
    found = fgvar.sweep(cell, {"a": (1,), "b": (2,)}, config=config, folder=tmp_path, out=out)
    assert found["status"].item() == "done", found["traceback"].item()
    fgvar.sweep(ragged, AXES, seed=SEEDS, folder=tmp_path, out=out)
    assert not list(tmp_path.rglob(".*.lock"))


GATED = """
import sys, time
from pathlib import Path
import xarray as xr
import fgvar

def cell(number, log, gate):
    with open(log, "a") as file:
        file.write(f"{number}\\n")
    while number == 2 and not Path(gate).exists():
        time.sleep(0.01)
    return xr.Dataset({"square": number**2})

folder = sys.argv[1]
config = {"log": f"{folder}/log", "gate": f"{folder}/gate"}
fgvar.sweep(cell, {"number": (1, 2, 3)}, config=config, folder=folder)
"""


def test_a_second_driver_of_the_same_cells_waits(tmp_path) -> None:
    """It says for whom, goes on where the first one is killed, and computes nothing twice."""
    log, said = tmp_path / "log", tmp_path / "said"
    command = [sys.executable, "-c", GATED, str(tmp_path)]
    first = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    while not (log.exists() and log.read_text() == "1\n2\n"):
        time.sleep(0.01)
    with open(said, "w") as file:
        second = subprocess.Popen(command, cwd=ROOT, stderr=file)
    while "computes these cells (shard 0/1): waiting for its end" not in said.read_text():
        assert second.poll() is None, said.read_text()
        time.sleep(0.01)
    assert f"process {first.pid} on " in said.read_text()
    first.kill()
    (tmp_path / "gate").touch()
    assert [one.wait(60) for one in (first, second)] == [-9, 0]
    assert log.read_text() == "1\n2\n2\n3\n", "2 was cut short"
    assert not list(tmp_path.rglob(".*.lock"))


def test_a_process_does_not_wait_for_itself(tmp_path) -> None:
    def cell(number, folder):
        with pytest.raises(BlockingIOError, match=r"this process computes these cells already \(shard 0/1\); give"):
            fgvar.sweep(cell, {"number": (1,)}, config={"folder": folder}, folder=folder)
        return xr.Dataset({"square": number**2})

    found = fgvar.sweep(cell, {"number": (1,)}, config={"folder": str(tmp_path)}, folder=tmp_path)
    assert found["status"].item() == "done", found["traceback"].item()


def test_results_that_are_the_folder_are_refused(tmp_path) -> None:
    for out in (tmp_path / "x", tmp_path / "x" / "cells"):
        with pytest.raises(
            ValueError, match=r"out is .*, the folder of the cells; give it a name of its own, as .*\.nc"
        ):
            fgvar.sweep(trivial, {"a": (1,), "b": (2,)}, folder=tmp_path / "x", out=out)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="is a pipe, expected a regular file"):
        fgvar.sweep(trivial, {"a": (1,), "b": (2,)}, folder=tmp_path / "x", out=tmp_path / "pipe")
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match=r"--out .*x has no suffix, and is its own folder of cells; give .*x\.nc"):
        Options(tmp_path / "x").arguments()


def test_killed_sweeps_leave_nothing_that_stops_others(tmp_path) -> None:
    """Locks of a driver that was killed are taken over."""
    expected = drive(str(tmp_path / "a"), 0.0)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / ".sweep.nc.lock").write_text("of other cells\nprocess 1 on nowhere")
    assert_same(drive(str(tmp_path / "b"), 0.0), expected)
    assert not list((tmp_path / "b").glob(".*"))


def test_results_that_cannot_be_written_leave_the_cells(tmp_path, monkeypatch) -> None:
    fsync = os.fsync

    def full(number: int) -> None:
        if os.readlink(f"/proc/self/fd/{number}").endswith(".sweep.nc.partial"):
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        OSError, match=r"sweep\.nc could not be written \(No space.*all cells are kept: make room and sweep again"
    ):
        drive(str(tmp_path), 0.0)
    assert len(list((tmp_path / "cells").glob("*.cell"))) == 24
    assert [path.name for path in tmp_path.iterdir()] == ["cells"]
