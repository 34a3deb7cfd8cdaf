"""Several processes: noise averaged away, parameters the same, and one checkpoint for all."""

import functools
import os
import signal
import subprocess
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import rows
import torch

import fgvar
from fgvar.estimators.protocol import GradientEstimator
from fgvar.storage import locks
from fgvar.training.checkpoint import MAGIC

ROOT = Path(__file__).resolve().parents[2]
RUNS = ("whole", "killed", "resumed", "stopped", "resumed_again", "foreign", "held", "draws", "weighted", "sampled")

# Both are forked from a process that has loaded all they need, which takes seconds (torch.optim asks for dynamo).
SCRIPT = """
import os, sys, traceback
from pathlib import Path
import torch, torch._dynamo
sys.path[:0] = ["tests/training", "tests/support"]
torch.set_num_threads(1)
import test_distributed
pids = []
for rank in range(2):
    pids.append(os.fork())
    if pids[-1] == 0:
        try:
            test_distributed.run_all(Path(sys.argv[1]), rank)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
sys.exit(any([os.waitpid(pid, 0)[1] for pid in pids]))
"""


digits = functools.cache(lambda: fgvar.data.load("digits"))


def problem() -> fgvar.Problem:
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=1, patches=2, channels=8, groups=2)
    return fgvar.Problem(net, "cross_entropy", digits().sample(8, seed=0))


def run_all(folder: Path, rank: int) -> None:
    """One process's part in every run, and how each ended, into ``ends<rank>``."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=2)
    with open(folder / f"ends{rank}", "w") as ends:
        for name in RUNS:
            try:
                globals()[name](folder, rank)
                end = "done"
            except (KeyboardInterrupt, OSError, ValueError, ZeroDivisionError) as error:
                end = f"{type(error).__name__} {error}"
            print(name, end, file=ends)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def run(folder: Path, rank: int, out: str, checkpoint: str | None, lr: float = 0.1) -> None:
    data = digits().subset(range(128)), digits().subset(range(128, 161))
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=1, patches=2, channels=8, groups=2, seed=rank)
    found = fgvar.train(
        net, fgvar.scheme("LG-FG-A"), data, fgvar.Schedule(5, 8, lr), checkpoint=checkpoint and folder / checkpoint
    )
    rows = [found.dataset[name].values for name in ("loss", "train_error", "test_error")]
    torch.save((found.params, torch.tensor(np.array(rows))), folder / f"{out}{rank}.pt")


def whole(folder: Path, rank: int) -> None:
    run(folder, rank, "whole", None)


def killed(folder: Path, rank: int) -> None:
    with at_step(11, lambda: 1 // 0):
        run(folder, rank, "killed", "a")


def resumed(folder: Path, rank: int) -> None:
    run(folder, rank, "resumed", "a")


def stopped(folder: Path, rank: int) -> None:
    """Ctrl-C reaches one of them; they end together."""
    with at_step(20, lambda: os.kill(os.getpid(), signal.SIGINT) if rank else None):
        run(folder, rank, "stopped", "b")


def resumed_again(folder: Path, rank: int) -> None:
    run(folder, rank, "resumed_again", "b")


def foreign(folder: Path, rank: int) -> None:
    run(folder, rank, "foreign", "b", lr=0.2)


def held(folder: Path, rank: int) -> None:
    """The first process finds the checkpoint in use; they end together."""
    with nullcontext() if rank else locks.exclusive(locks.lock_path(folder / "b")):
        run(folder, rank, "held", "b")


@contextmanager
def at_step(number: int, act):
    """A checkpoint at every step, and ``act()`` after the update of that number."""
    from fgvar.training import train

    def acting(self: train.TrainingLoop, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        update(self, batch)
        if self.step == number:
            act()

    update = train.TrainingLoop.update
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Checkpointer, "maybe_save", train.Checkpointer.store)
        patch.setattr(train.TrainingLoop, "update", acting)
        yield


def draws(folder: Path, rank: int) -> None:
    from fgvar.measurement.draws import estimates
    from fgvar.training.distributed import averaged

    where, estimator = problem(), fgvar.scheme("FG-A")
    noise = estimator.randomness(where).sample(0, range(rank, 512, 2))
    found = averaged(estimates(estimator, where, noise))
    torch.save(torch.cat([found[k].flatten(1) for k in where.perturbed], dim=1), folder / f"draws{rank}.pt")


def weighted(folder: Path, rank: int) -> None:
    """One step of backprop on texts of one token to four, and of none: the processes have unequal shares."""
    torch.save(step_on_texts(batch=4), folder / f"weighted{rank}.pt")


SAMPLED = ("DP-SGD", "by losses", "momentum")  # noise drawn ahead, by probabilities of the step, of several estimates


def sampled(folder: Path, rank: int) -> None:
    """Two steps by rows, whose examples each process draws from its own batch."""
    data = digits().subset(range(16)), digits().subset(range(16))
    schedule = fgvar.Schedule(2, 8, 0.1, momentum=0, weight_decay=0, decay="constant")
    net = rows.network().double()
    found = {name: fgvar.train(net, row, data, schedule).params for name, row in sampled_rows().items()}
    torch.save(found, folder / f"sampled{rank}.pt")


def sampled_problem() -> fgvar.Problem:
    return fgvar.Problem(rows.network().double(), "cross_entropy", digits().batch(range(8), dtype=torch.float64))


def sampled_rows() -> dict[str, GradientEstimator]:
    made = rows.rows(sampled_problem())
    return {name: made[name] for name in SAMPLED}


def step_on_texts(batch: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What a step of so many examples a process ends with, and the loss before and after."""
    ids = torch.arange(40).reshape(8, 5) % 7
    labels = torch.where(torch.arange(5) <= torch.tensor([[1], [2], [3], [4], [1], [0], [1], [1]]), ids, -100)
    net = torch.nn.Sequential(torch.nn.Embedding(7, 4), torch.nn.Linear(4, 7)).double()
    for seed, p in enumerate(net.parameters()):
        p.data = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)).double()
    found = fgvar.train(
        net, fgvar.scheme("BP"), fgvar.data.Examples(ids, labels), fgvar.Schedule(1, batch, 0.5), loss="causal_lm"
    )
    rows = [found.dataset[name].values for name in ("loss", "train_perplexity", "batch_loss")]
    return found.params, torch.tensor(np.concatenate(rows))


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, list[dict[str, str]]]:
    """Where the results of all runs lie, and how each ended on each process."""
    folder: Path = tmp_path_factory.mktemp("two")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = [(folder / f"ends{rank}").read_text().splitlines() for rank in range(2)]
    ends = [dict(line.split(" ", 1) for line in lines if line) for lines in told]
    for end, refused in zip(ends, ("BlockingIOError", "OSError"), strict=True):
        words = {name: what.split()[0] for name, what in end.items()}
        stops = {
            "killed": "ZeroDivisionError",
            "stopped": "KeyboardInterrupt",
            "foreign": "ValueError",
            "held": refused,
        }
        assert words == dict.fromkeys(RUNS, "done") | stops
    return folder, ends


def load(folder: Path, name: str) -> list:
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]


def test_parameters_and_curves_are_the_same_on_all_and_it_learns(done) -> None:
    (params, curves), (others, same) = load(done[0], "whole")
    assert all(torch.equal(value, others[key]) for key, value in params.items())
    assert torch.equal(curves, same)
    assert curves[0, -1] < curves[0, 0] - 0.01


def test_evaluating_in_parts_is_evaluating(done) -> None:
    params, curves = load(done[0], "whole")[0]
    x, y = digits().batch(range(128))
    outputs = problem().at(params, (x, y)).run(params)[0]
    assert float(torch.nn.functional.cross_entropy(outputs, y)) == pytest.approx(float(curves[0, -1]), rel=1e-5)
    assert float((outputs.argmax(1) != y).double().mean()) == pytest.approx(float(curves[1, -1]), rel=1e-5)


@pytest.mark.parametrize("name", ["resumed", "resumed_again"])
def test_killed_or_stopped_they_go_on_together(done, name: str) -> None:
    for (params, curves), (others, same) in zip(load(done[0], name), load(done[0], "whole"), strict=True):
        assert all(torch.equal(value, others[key]) for key, value in params.items())
        assert torch.equal(curves, same)


def test_a_foreign_checkpoint_is_refused_by_all(done) -> None:
    assert all("another run: its schedule" in end["foreign"] for end in done[1])
    assert (done[0] / "b").read_bytes().startswith(MAGIC)


def test_a_checkpoint_in_use_is_refused_by_all(done) -> None:
    assert all("is the checkpoint of a run that is going on, by process" in end["held"] for end in done[1])


def test_the_average_has_half_of_the_noise_variance(done) -> None:
    """5.5 standard errors of 256 draws: a false alarm in 4e-8; the whole variance, or a quarter, would be seen."""
    found, same = load(done[0], "draws")
    assert torch.equal(found, same)
    whole = sum(float(v) for v in fgvar.theory.trace(fgvar.scheme("FG-A"), problem()).values())
    squares = (found - found.mean(0)).double().square().sum(1)
    variance, error = float(squares.mean()) * 256 / 255, float(squares.std()) / 16
    assert abs(variance - whole / 2) < 5.5 * error
    assert 5.5 * error < whole / 4


@pytest.mark.parametrize("name", SAMPLED)
def test_each_process_draws_examples_of_its_own(done, name: str) -> None:
    """A step is along the mean of two estimates: of each process's batch, by its own draw number."""
    at, row = sampled_problem(), sampled_rows()[name]
    for step in range(2):
        each = []
        for rank in range(2):
            (batch,) = digits().subset(range(16)).batches(8, seed=0, epoch=step, part=(rank, 2), dtype=at.dtype)
            here = at.at(batch=batch)
            noise = row.randomness(here).sample(0, [2 * step + rank], dtype=at.dtype)
            each.append(row.estimate(here, {key: u[0] for key, u in noise.items()}).gradient)
        at = at.at({key: p - 0.1 * (each[0][key] + each[1][key]) / 2 for key, p in at.params.items()})
    for found in load(done[0], "sampled"):
        for key, value in at.params.items():
            torch.testing.assert_close(found[name][key], value, rtol=1e-12, atol=1e-14)


def test_weights_are_shared_by_all_processes(done) -> None:
    """Two processes of four texts make the step of one with all eight: Σ w ℓ / Σ w, not the mean of two such."""
    expected, curves = step_on_texts(batch=8)
    for found, told in load(done[0], "weighted"):
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(told, curves, rtol=1e-12, atol=1e-12)
