"""Several processes: noise averaged away, parameters the same, and one checkpoint for all."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fgvar
from fgvar.experiments.checkpoints import MAGIC

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("whole", "killed", "resumed", "stopped", "resumed_again", "foreign", "draws")

# Forked from one process that has loaded all it needs, which takes seconds.
SCRIPT = """
import os, signal, sys, traceback
from pathlib import Path
import torch
from torch import distributed as dist
sys.path.insert(0, "tests")
torch.set_num_threads(1)
import test_distributed
test_distributed.warm()
folder = Path(sys.argv[1])
for name in test_distributed.RUNS:
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                dist.init_process_group("gloo", f"file://{folder}/{name}.store", rank=rank, world_size=2)
                getattr(test_distributed, name)(folder, rank)
                code = 0
            except KeyboardInterrupt:
                code = 2
            except ValueError as error:
                (folder / f"{name}{rank}.txt").write_text(str(error))
                code = 3
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    print(name, *codes, flush=True)
"""


digits = functools.cache(lambda: fgvar.data.load("digits"))


def warm() -> None:
    """Load what is loaded when it is first needed."""
    data = digits().subset(range(8)), digits().subset(range(8))
    fgvar.train(fgvar.networks.LocalMixer.preset("S/1/1", image_shape=(1, 8, 8)), fgvar.scheme("LG-FG-A"), data,
                fgvar.Schedule(1, 8))  # fmt: skip


def problem() -> fgvar.Problem:
    net = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=1, patches=2, channels=8, groups=2)
    return fgvar.Problem(net, "cross_entropy", digits().sample(8, seed=0))


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
    at_step(11, lambda: os.kill(os.getpid(), 9))
    run(folder, rank, "killed", "a")


def resumed(folder: Path, rank: int) -> None:
    run(folder, rank, "resumed", "a")


def stopped(folder: Path, rank: int) -> None:
    """Ctrl-C reaches one of them; they end together."""
    if rank == 1:
        at_step(20, lambda: os.kill(os.getpid(), 2))
    run(folder, rank, "stopped", "b")


def resumed_again(folder: Path, rank: int) -> None:
    run(folder, rank, "resumed_again", "b")


def foreign(folder: Path, rank: int) -> None:
    run(folder, rank, "foreign", "b", lr=0.2)


def at_step(number: int, act) -> None:
    from fgvar.experiments import training

    update = training.Going.update
    training.Kept.store_now_and_then = lambda self: self.store()  # type: ignore[method-assign]

    def acting(self: training.Going, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        update(self, batch)
        if self.step == number:
            act()

    training.Going.update = acting  # type: ignore[method-assign]


def draws(folder: Path, rank: int) -> None:
    from fgvar.analysis.draws import estimates
    from fgvar.experiments.distributed import averaged

    where, estimator = problem(), fgvar.scheme("FG-A")
    noise = estimator.randomness(where).sample(0, range(rank, 512, 2))
    found = averaged(estimates(estimator, where, noise))
    torch.save(torch.cat([found[k].flatten(1) for k in where.perturbed], dim=1), folder / f"draws{rank}.pt")


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> Path:
    """Where the results of all runs lie."""
    folder: Path = tmp_path_factory.mktemp("two")
    finished = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder)], cwd=ROOT, capture_output=True, text=True, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=100,
    )  # fmt: skip
    codes = {"whole": "0 0", "killed": "-9 -9", "resumed": "0 0", "stopped": "2 2", "resumed_again": "0 0"}
    codes |= {"foreign": "3 3", "draws": "0 0"}
    assert finished.stdout.splitlines() == [f"{k} {v}" for k, v in codes.items()], finished.stderr
    return folder


def load(folder: Path, name: str) -> list:
    return [torch.load(folder / f"{name}{rank}.pt", weights_only=True) for rank in range(2)]


def test_parameters_and_curves_are_the_same_on_all_and_it_learns(done) -> None:
    (params, curves), (others, same) = load(done, "whole")
    assert all(torch.equal(value, others[key]) for key, value in params.items())
    assert torch.equal(curves, same)
    assert curves[0, -1] < curves[0, 0] - 0.01


def test_evaluating_in_parts_is_evaluating(done) -> None:
    params, curves = load(done, "whole")[0]
    x, y = digits().batch(range(128))
    outputs = problem().at(params, (x, y)).run(params)[0]
    assert float(torch.nn.functional.cross_entropy(outputs, y)) == pytest.approx(float(curves[0, -1]), rel=1e-5)
    assert float((outputs.argmax(1) != y).double().mean()) == pytest.approx(float(curves[1, -1]), rel=1e-5)


@pytest.mark.parametrize("name", ["resumed", "resumed_again"])
def test_killed_or_stopped_they_go_on_together(done, name: str) -> None:
    for (params, curves), (others, same) in zip(load(done, name), load(done, "whole"), strict=True):
        assert all(torch.equal(value, others[key]) for key, value in params.items())
        assert torch.equal(curves, same)


def test_a_foreign_checkpoint_is_refused_by_all(done) -> None:
    for rank in range(2):
        assert "another run: its schedule" in (done / f"foreign{rank}.txt").read_text()
    assert (done / "b").read_bytes().startswith(MAGIC)


def test_the_average_has_half_of_the_noise_variance(done) -> None:
    """5.5 standard errors of 256 draws: a false alarm in 4e-8; the whole variance, or a quarter, would be seen."""
    found, same = load(done, "draws")
    assert torch.equal(found, same)
    whole = sum(float(v) for v in fgvar.theory.trace(fgvar.scheme("FG-A"), problem()).values())
    squares = (found - found.mean(0)).double().square().sum(1)
    variance, error = float(squares.mean()) * 256 / 255, float(squares.std()) / 16
    assert abs(variance - whole / 2) < 5.5 * error
    assert 5.5 * error < whole / 4
