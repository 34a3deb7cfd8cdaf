"""Checkpoints: a run that is killed, stopped or broken goes on as if nothing had been; others are refused."""

import dataclasses
import functools
import io
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
from torch import nn

import fgvar
from fgvar.training import checkpoint, noise_ahead, train
from fgvar.training.checkpoint import MAGIC, restore

ROOT = Path(__file__).resolve().parents[2]
SCHEDULE = fgvar.Schedule(epochs=4, batch=16, lr=0.1)

# Every run is a process of its own, forked from one that has loaded all it needs (which takes seconds).
SCRIPT = """
import os, signal, sys, traceback
from pathlib import Path
import torch
sys.path[:0] = ["tests/training", "tests/support"]
torch.set_num_threads(1)
import fgvar
from test_checkpoint import ENDS, PAIRS, arguments, contrastive, resumed_until
for own in (arguments, contrastive):
    fgvar.train(**own())
each = [(*end, arguments) for end in ENDS.items()] + [(*end, contrastive) for end in PAIRS.items()]
for name, stop, own in each:
    pid = os.fork()
    if pid == 0:
        try:
            resumed_until(stop, Path(sys.argv[1]) / own.__name__, own)
            code = 0
        except KeyboardInterrupt:
            code = 2
        except BaseException:
            traceback.print_exc()
            code = 1
        os._exit(code)
    print(name, os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def after(owner: object, method: str, when, act) -> None:
    """Let ``act`` follow a call of the method after which ``when(self)``."""
    original = getattr(owner, method)

    def wrapped(self, *arguments):
        found = original(self, *arguments)
        if when(self):
            act()
        return found

    setattr(owner, method, wrapped)


def instead(name: str, at_step: int, act) -> None:
    """Let ``act(original, *arguments)`` stand for a call of ``os.<name>`` by the checkpoint of that step or later."""
    now, original, store = [0], getattr(os, name), train.Checkpointer.store

    def following(self):
        now[0] = self.loop.step
        store(self)
        now[0] = 0

    train.Checkpointer.store = following
    setattr(os, name, lambda *a: act(original, *a) if now[0] >= at_step else original(*a))


def halved(_fsync, number: int) -> None:
    os.ftruncate(number, os.fstat(number).st_size // 2)
    kill()


def replaced(original, *paths) -> None:
    original(*paths)
    kill()


# Sixteen steps in four epochs, probed after 1, 6 and 16: where each run ends that goes on from the one before.
ENDS = {
    "first update": lambda: after(train.TrainingLoop, "update", lambda going: going.step == 1, kill),
    "within an epoch": lambda: after(train.TrainingLoop, "update", lambda going: going.step == 3, kill),
    "after a probe": lambda: after(train.TrainingLoop, "probe_if_due", lambda going: going.step == 6, kill),
    "half of a checkpoint": lambda: instead("fsync", 7, halved),
    "before it is in place": lambda: instead("replace", 8, lambda *_: kill()),
    "once it is": lambda: instead("replace", 9, replaced),
    "last of an epoch": lambda: after(train.TrainingLoop, "update", lambda going: going.step == 12, kill),
    "Ctrl-C": lambda: after(
        train.TrainingLoop, "update", lambda going: going.step == 14, lambda: os.kill(os.getpid(), signal.SIGINT)
    ),
    "to the end": lambda: None,
}


# The same of views: what a step sees depends on its number, not on what a generator has been through.
PAIRS = {
    "contrastive, within an epoch": ENDS["within an epoch"],
    "contrastive, after a probe": ENDS["after a probe"],
    "contrastive, to the end": ENDS["to the end"],
}


def resumed_until(stop, folder: Path, own) -> None:
    train.Checkpointer.maybe_save = lambda self: self.store()
    noise_ahead.AHEAD = 1 << 11  # a thread draws two updates' noise while two are made, here too
    stop()
    on_disk(fgvar.train(**own(), checkpoint=folder / "run.checkpoint"), str(folder / "run"))


@functools.cache
def digits() -> tuple[fgvar.data.Images, fgvar.data.Images]:
    train, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    return train.subset(range(64)), test.subset(range(32))


def arguments() -> dict:
    data = digits()
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=1, patches=2, channels=8, groups=2, head_init="zero")
    probe = fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, data[0].sample(4, seed=1), (1, 6, 16), draws=4, route="both")
    return {
        "module": net, "estimator": fgvar.scheme("LG-FG-A"), "data": data, "schedule": SCHEDULE, "seed": 3,
        "probe": probe, "device": "cpu",
    }  # fmt: skip


def contrastive() -> dict:
    probe = dataclasses.replace(arguments()["probe"], route="drawn", steps=(1, 6))
    return arguments() | {"loss": fgvar.contrastive.InfoNCE(), "views": fgvar.data.Views(flip=0.0), "probe": probe}


def on_disk(run: train.Run, out: str) -> None:
    fgvar.save(run.dataset, f"{out}.nc")
    torch.save(run.params, f"{out}.pt")


def assert_same(run: train.Run, folder: Path, name: str) -> None:
    params = torch.load(folder / f"{name}.pt", weights_only=True)
    assert all(torch.equal(value, params[key]) for key, value in run.params.items())
    found = fgvar.open_dataset(folder / f"{name}.nc")
    assert set(found.data_vars) == set(run.dataset.data_vars)
    for key in set(found.data_vars) - {"seconds"}:
        xr.testing.assert_equal(found[key], run.dataset[key])


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def undisturbed() -> train.Run:
    return fgvar.train(**arguments())


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> bytes:
    """The checkpoint of a finished run."""
    path = tmp_path_factory.mktemp("finished") / "run.checkpoint"
    fgvar.train(**arguments(), checkpoint=path)
    return path.read_bytes()


def content_of(path: Path) -> dict:
    return torch.load(io.BytesIO(path.read_bytes().split(b"\n", 2)[2]), weights_only=True)


def test_killed_stopped_and_started_again_it_ends_with_the_same_bits(tmp_path, undisturbed) -> None:
    """kill -9 within and between steps, probes, epochs and the writing of a checkpoint; Ctrl-C; then to the end."""
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=100,
    )  # fmt: skip
    codes = dict.fromkeys({**ENDS, **PAIRS}, -int(signal.SIGKILL))
    codes |= {"Ctrl-C": 2, "to the end": 0, "contrastive, to the end": 0}
    assert done.stdout.splitlines() == [f"{name} {code}" for name, code in codes.items()], done.stderr
    for own, whole in ((arguments, undisturbed), (contrastive, fgvar.train(**contrastive()))):
        folder = tmp_path / own.__name__
        assert sorted(path.name for path in folder.iterdir()) == ["run.checkpoint", "run.nc", "run.pt"]
        assert_same(whole, folder, "run")


def test_a_finished_run_is_not_repeated(tmp_path, undisturbed, finished, monkeypatch) -> None:
    path = tmp_path / "run.checkpoint"
    path.write_bytes(finished)
    monkeypatch.setattr(train.TrainingLoop, "update", lambda *_: pytest.fail("it was finished"))
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


def smoothed(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(outputs, targets, reduction="none", label_smoothing=0.1)


def relabelled(number: int, images: fgvar.data.Images) -> fgvar.data.Images:
    labels = images.labels.clone()
    labels[number] = (labels[number] + 1) % 10
    return dataclasses.replace(images, labels=labels)


DATA = digits()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"seed": 4}, "seed is 3, this run's is 4"),
        ({"schedule": fgvar.Schedule(epochs=4, batch=16, lr=0.2)}, "its schedule is Schedule.*lr=0.1.*lr=0.2"),
        ({"estimator": fgvar.scheme("BP")}, "its estimator is Estimator.*this run's is ExactGradient"),
        (
            {"module": fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=1, patches=1, channels=8, groups=2)},
            "its network",
        ),
        ({"probe": None}, "its probe is"),
        ({"loss": smoothed}, r"its loss is cross_entropy, this run's is \S+\.smoothed"),
        ({"autocast": True}, "its autocast is False, this run's is True"),
        ({"data": (relabelled(63, DATA[0]), DATA[1])}, r"its train is digits \(train\), 64 examples"),
        ({"data": (DATA[0], DATA[1].subset(range(31)))}, "its test is .* 32 examples, .* 31 examples"),
        ({"data": (dataclasses.replace(DATA[0], mean=(0.3,)), DATA[1])}, "its train is"),
    ],
    ids=lambda found: next(iter(found)) if isinstance(found, dict) else "",
)
def test_a_foreign_checkpoint_is_refused(tmp_path, finished, change, what: str) -> None:
    path = tmp_path / "run.checkpoint"
    path.write_bytes(finished)
    with pytest.raises(ValueError, match=f"is the checkpoint of another run: .*{what}"):
        fgvar.train(**(arguments() | change), checkpoint=path)
    assert path.read_bytes() == finished


def masked(mask: float, activation: nn.Module) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), activation, nn.Linear(4, 10))
    net[1].register_buffer("mask", torch.tensor(mask))
    for p in net.parameters():
        nn.init.constant_(p, 0.1)
    return net


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"loss": nn.CrossEntropyLoss(reduction="none", label_smoothing=0.1)}, "loss"),
        ({"module": masked(1.0, nn.Tanh())}, "network"),
        ({"module": masked(2.0, nn.ReLU())}, "network"),
    ],
    ids=["a loss's setting", "another activation", "another buffer"],
)
def test_what_has_equal_parameters_and_an_equal_text_may_be_another_run(tmp_path, change, what: str) -> None:
    """Of which what was trained by the first would be told as the second's."""
    own = {
        "module": masked(1.0, nn.ReLU()), "loss": nn.CrossEntropyLoss(reduction="none"),
        "schedule": fgvar.Schedule(epochs=1, batch=16), "probe": None, "estimator": fgvar.scheme("BP"),
    }  # fmt: skip
    for _ in range(2):
        fgvar.train(**(arguments() | own), checkpoint=tmp_path / "run.checkpoint")
    with pytest.raises(ValueError, match=f"is the checkpoint of another run: its {what} is"):
        fgvar.train(**(arguments() | own | change), checkpoint=tmp_path / "run.checkpoint")


def test_an_own_estimator_goes_on_wherever_it_lies_in_memory(tmp_path) -> None:
    class Mine:
        def randomness(self, problem):  # noqa: ARG002
            return fgvar.Randomness({})

        def estimate(self, problem, noise):  # noqa: ARG002
            return fgvar.Estimate(problem.backprop())

        def target(self, problem):
            return problem.backprop()

    short = arguments() | {"schedule": fgvar.Schedule(epochs=1, batch=16), "probe": None}
    several = [Mine(), Mine()]
    for mine in several:
        fgvar.train(**(short | {"estimator": mine}), checkpoint=tmp_path / "run.checkpoint")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.999])
def test_what_is_cut_short_or_damaged_is_refused(tmp_path, finished, share: float) -> None:
    """Damaged by a single bit, too: within a tensor no reader would notice it."""
    path = tmp_path / "run.checkpoint"
    end = int(share * len(finished))
    damaged = bytearray(finished)
    damaged[end] ^= 1
    for content in (finished[:end], bytes(damaged), finished + b"more"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"is truncated or damaged: .*; give another checkpoint= path, delete"):
            fgvar.train(**arguments(), checkpoint=path)
        assert path.read_bytes() == content


def test_an_unknown_file_is_refused_and_runs_no_code(tmp_path) -> None:
    path, device = tmp_path / "run.checkpoint", torch.device("cpu")

    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    body = io.BytesIO()
    torch.save({"identity": {}, "evil": Evil()}, body)
    for content in (b"", MAGIC[:-3], b"not a checkpoint", pickle.dumps(Evil()), body.getvalue()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is no checkpoint of this version of fgvar, or cut short; give another"):
            restore(path, {}, device)
    digest = checkpoint._hash(body.getvalue())
    path.write_bytes(MAGIC + digest + b"\n" + body.getvalue())
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        restore(path, {}, device)
    assert not (tmp_path / "ran").exists()


def test_a_run_that_breaks_leaves_its_last_good_checkpoint(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(train.Checkpointer, "maybe_save", train.Checkpointer.store)
    path, update = tmp_path / "run.checkpoint", train.TrainingLoop.update

    def poisoned(self: train.TrainingLoop, batch) -> None:
        if self.step == 9:
            self.params["block0.channel.weight"].data[0, 0] = torch.nan
        update(self, batch)

    monkeypatch.setattr(train.TrainingLoop, "update", poisoned)
    with pytest.raises(fgvar.NonFiniteError, match=r"held NaN or infinity at step 9"):
        fgvar.train(**(arguments() | {"probe": None}), checkpoint=path)
    assert content_of(path)["step"] == 9
    monkeypatch.setattr(train.TrainingLoop, "update", update)
    run = fgvar.train(**(arguments() | {"probe": None}), checkpoint=path)
    assert all(bool(value.isfinite().all()) for value in run.params.values())
    assert np.isfinite(run.dataset["loss"]).all()


def test_an_update_that_overflows_is_not_kept(tmp_path, monkeypatch) -> None:
    """Its gradient was finite: the weights are looked at before they are kept."""
    monkeypatch.setattr(train.Checkpointer, "maybe_save", train.Checkpointer.store)
    path = tmp_path / "run.checkpoint"
    schedule = fgvar.Schedule(epochs=2, batch=16, lr=1e38, momentum=0, decay="constant", warmup=1)
    with pytest.raises(fgvar.NonFiniteError, match=r"NaN or infinity"):
        fgvar.train(**(arguments() | {"probe": None, "schedule": schedule}), checkpoint=path)
    assert not path.exists() or all(value.isfinite().all() for value in content_of(path)["params"].values())


def test_probing_outside_of_the_run_is_refused() -> None:
    probe = dataclasses.replace(arguments()["probe"], steps=(1, 17))
    with pytest.raises(ValueError, match=r"the probe's step 17 is none of the run's, which are 0 … 16"):
        fgvar.train(**(arguments() | {"probe": probe}))
    probe = dataclasses.replace(probe, steps=(1,), estimators={"SPSA": fgvar.scheme("SPSA")}, route="exact")
    with pytest.raises(ValueError, match="estimator 'SPSA' has no closed form"):
        fgvar.train(**(arguments() | {"probe": probe}))
