"""Ctrl-C in a run: it ends after the step that it is making, with a checkpoint, and never goes unheard."""

import os
import signal
from pathlib import Path

import pytest

import fgvar
from fgvar.training import checkpoint, train

STEPS = 4


def run(**how) -> train.Run:
    digits = fgvar.data.load("digits").subset(range(32 * STEPS // 2))
    net = fgvar.networks.MLP(64, width=4, depth=1, classes=10)
    return fgvar.train(net, fgvar.scheme("BP"), (digits, digits), fgvar.Schedule(2, 32), device="cpu", **how)


@pytest.mark.parametrize("after", [STEPS // 2, STEPS])
def test_ctrl_c_while_an_epoch_is_evaluated_ends_the_run(tmp_path: Path, monkeypatch, after: int) -> None:
    """After the last one, too, where no step is left: what is kept then is the whole run."""
    stored = []
    monkeypatch.setattr(checkpoint, "store", lambda *given: stored.append(given[-1].step))

    def stop(step: int, _values: object) -> None:
        if step == after:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(checkpoint=tmp_path / "run", logger=stop)
    assert stored == [min(after + 1, STEPS)]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
