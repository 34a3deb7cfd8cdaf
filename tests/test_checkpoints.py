"""Checkpoints: a run that is killed, stopped or broken goes on as if nothing had been; others are refused."""

import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from fgvar.experiments import training
from fgvar.experiments.checkpoints import restore

ROOT = Path(__file__).resolve().parents[1]
SCHEDULE = fgvar.Schedule(epochs=4, batch=16, lr=0.1)

# Slowed down, so that a signal meets it on the way; checkpoints at the end of every epoch.
SCRIPT = """
import sys, time
import torch
sys.path.insert(0, "tests")
import fgvar
from fgvar.experiments import training
from test_checkpoints import arguments, on_disk
training.SECONDS = 0
torch.set_num_threads(1)
path, out, pause = sys.argv[1], sys.argv[2], float(sys.argv[3])
update = training.Going.update
def slow(self, batch):
    update(self, batch)
    time.sleep(pause)
    print(self.step, flush=True)
training.Going.update = slow
on_disk(fgvar.train(**arguments(), checkpoint=path), out)
"""


def arguments() -> dict:
    train, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    data = train.subset(range(64)), test.subset(range(32))
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=8, groups=2, head_init="zero")
    probe = fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, data[0].sample(4, seed=1), (1, 6, 16), draws=4, route="both")
    return {
        "module": net, "estimator": fgvar.scheme("LG-FG-A"), "data": data, "schedule": SCHEDULE, "seed": 3,
        "probe": probe, "device": "cpu",
    }  # fmt: skip


def on_disk(run: training.Run, out: str) -> None:
    fgvar.save(run.dataset, f"{out}.nc")
    torch.save(run.params, f"{out}.pt")


def start(folder: Path, name: str, pause: float) -> subprocess.Popen:
    command = [sys.executable, "-c", SCRIPT, str(folder / "run.checkpoint"), str(folder / name), str(pause)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)


def until(process: subprocess.Popen, step: int) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if int(line) >= step:
            return
    raise AssertionError(process.stderr.read().decode() if process.stderr else "")


def assert_same(run: training.Run, folder: Path, name: str) -> None:
    params = torch.load(folder / f"{name}.pt", weights_only=True)
    assert all(torch.equal(value, params[key]) for key, value in run.params.items())
    found = fgvar.open_dataset(folder / f"{name}.nc")
    assert set(found.data_vars) == set(run.dataset.data_vars)
    for key in set(found.data_vars) - {"seconds"}:
        xr.testing.assert_equal(found[key], run.dataset[key])


@pytest.fixture(scope="module")
def undisturbed() -> training.Run:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return fgvar.train(**arguments())
    finally:
        torch.set_num_threads(threads)


def test_killed_stopped_and_started_again_it_ends_with_the_same_bits(tmp_path, undisturbed) -> None:
    """kill -9 in the third epoch, Ctrl-C in the fourth, then to the end."""
    for step, name in ((10, signal.SIGKILL), (14, signal.SIGINT)):
        process = start(tmp_path, "run", 0.05)
        until(process, step)
        process.send_signal(name)
        _, errors = process.communicate(timeout=60)
        assert process.returncode != 0
        if name == signal.SIGINT:
            assert b"KeyboardInterrupt" in errors
            left = torch.load(tmp_path / "run.checkpoint", weights_only=True)["step"]
            assert left >= 14, "the step at which it was stopped, within an epoch"
    assert not list(tmp_path.glob(".*")), "no temporary file is left by what could clean up"
    torch.set_num_threads(1)
    on_disk(fgvar.train(**arguments(), checkpoint=tmp_path / "run.checkpoint"), str(tmp_path / "run"))
    assert_same(undisturbed, tmp_path, "run")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> bytes:
    """The checkpoint of the whole run."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("finished") / "run.checkpoint"
    fgvar.train(**arguments(), checkpoint=path)
    return path.read_bytes()


def test_a_finished_run_is_not_repeated(tmp_path, undisturbed, finished: bytes, monkeypatch) -> None:
    path = tmp_path / "run.checkpoint"
    path.write_bytes(finished)
    monkeypatch.setattr(training.Going, "update", lambda *_: pytest.fail("it was finished"))
    again = fgvar.train(**arguments(), checkpoint=path)
    on_disk(again, str(tmp_path / "again"))
    assert_same(undisturbed, tmp_path, "again")


def test_resume_false_starts_anew(tmp_path) -> None:
    path = tmp_path / "run.checkpoint"
    short = arguments() | {"schedule": fgvar.Schedule(epochs=1, batch=16), "probe": None}
    first = fgvar.train(**short, checkpoint=path)
    before = path.stat().st_mtime_ns
    time.sleep(0.01)
    again = fgvar.train(**short, checkpoint=path, resume=False)
    assert path.stat().st_mtime_ns > before
    assert all(torch.equal(value, again.params[key]) for key, value in first.params.items())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 4}, "seed is 3, this run's is 4"),
        ({"schedule": fgvar.Schedule(epochs=4, batch=16, lr=0.2)}, "its schedule is Schedule.*lr=0.1.*lr=0.2"),
        ({"estimator": fgvar.scheme("BP")}, "its estimator is Estimator.*this run's is ExactGradient"),
        (
            {"module": fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=1, patches=2, channels=8, groups=2)},
            "its network",
        ),
        ({"probe": None}, "its probe is"),
    ],
    ids=["seed", "schedule", "estimator", "network", "probe"],
)
def test_a_foreign_checkpoint_is_refused(tmp_path, finished: bytes, change, what: str) -> None:
    path = tmp_path / "run.checkpoint"
    path.write_bytes(finished)
    with pytest.raises(ValueError, match=f"is the checkpoint of another run: .*{what}"):
        fgvar.train(**(arguments() | change), checkpoint=path)
    assert path.read_bytes() == finished


def test_a_truncated_or_unknown_file_is_refused_and_runs_no_code(tmp_path, finished: bytes) -> None:
    path, device = tmp_path / "run.checkpoint", torch.device("cpu")
    for content in (finished[: len(finished) // 2], b"", b"not a checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"cannot be read as a checkpoint .*; give another checkpoint= path"):
            restore(path, {}, device)
    torch.save({"format": 0}, path)
    with pytest.raises(ValueError, match="is no checkpoint of this version of fgvar"):
        restore(path, {}, device)

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match="cannot be read"):
        restore(path, {}, device)
    torch.save({"format": 1, "evil": Evil()}, path)
    with pytest.raises(ValueError, match="cannot be read"):
        restore(path, {}, device)
    assert not (tmp_path / "ran").exists()


def test_a_run_that_breaks_leaves_its_last_good_checkpoint(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(training, "SECONDS", 0)
    path, update = tmp_path / "run.checkpoint", training.Going.update

    def poisoned(self: training.Going, batch) -> None:
        if self.step == 9:
            self.params["block0.channel.weight"].data[0, 0] = torch.nan
        update(self, batch)

    monkeypatch.setattr(training.Going, "update", poisoned)
    with pytest.raises(fgvar.NonFiniteError, match=r"held NaN or infinity at step 9"):
        fgvar.train(**(arguments() | {"probe": None}), checkpoint=path)
    assert torch.load(path, weights_only=True)["step"] == 8
    monkeypatch.setattr(training.Going, "update", update)
    run = fgvar.train(**(arguments() | {"probe": None}), checkpoint=path)
    assert all(bool(value.isfinite().all()) for value in run.params.values())
    assert np.isfinite(run.dataset["loss"]).all()
