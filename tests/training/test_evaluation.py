"""Evaluation: how many examples at once, and that the curves do not depend on it."""

import functools
from pathlib import Path
from typing import ClassVar

import pytest
import torch
import xarray as xr
from torch import Tensor, nn

import fgvar
from fgvar.training import checkpoint, evaluation
from fgvar.training.evaluation import evaluation_batch


class Wide(nn.Module):
    """An activity of ``width`` numbers an example; it notes the batches that it and its copies see."""

    seen: ClassVar[list[int]] = []

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(64, width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(len(x))
        logits: Tensor = self.last(self.first(x.flatten(1)).relu())
        return logits


@pytest.mark.parametrize(
    ("device", "width", "expected"), [("cpu", 32, 1024), ("cpu", 65_536, 64), ("meta", 65_536, 1024)]
)
def test_a_wide_activity_is_evaluated_in_fewer_examples(device: str, width: int, expected: int) -> None:
    with torch.device(device):
        batch = torch.zeros(2, 64), torch.zeros(2, dtype=torch.long)
        assert evaluation_batch(fgvar.Problem(Wide(width), "cross_entropy", batch), 1024) == expected


def test_curves_do_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    digits = fgvar.data.load("digits").subset(range(96)), fgvar.data.load("digits", "test").subset(range(50))
    runs, net = [], Wide(128)
    for threshold in (evaluation.LARGEST_MMAP_THRESHOLD, 2 * 4 * 128 * 7):
        monkeypatch.setattr(evaluation, "LARGEST_MMAP_THRESHOLD", threshold)
        net.seen.clear()
        run = fgvar.train(net, fgvar.scheme("BP"), digits, fgvar.Schedule(1, 32), device="cpu")
        runs.append((run.dataset, set(net.seen)))
    (whole, sizes), (parts, fewer) = runs
    assert {96, 50} <= sizes
    assert 7 in fewer
    assert max(fewer) == 32, "the update's own"
    for name in ("loss", "test_loss", "train_error", "test_error"):
        torch.testing.assert_close(torch.tensor(parts[name].values), torch.tensor(whole[name].values))


@pytest.mark.parametrize("epochs", [4, 5])
def test_epochs_between_are_not_evaluated(epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is has the same numbers, and a run that was stopped in between goes on."""
    digits = fgvar.data.load("digits").subset(range(64)), fgvar.data.load("digits", "test").subset(range(50))
    net, schedule, steps = Wide(8), fgvar.Schedule(epochs, 32), list[int]()
    run = functools.partial(fgvar.train, net, fgvar.scheme("FG-W"), digits, schedule, device="cpu")
    whole = run()
    Wide.seen.clear()
    found = run(evaluate_every=2, logger=lambda step, _: steps.append(step))
    epoch = sorted({0, 2, 4, epochs})
    assert found.dataset["epoch"].values.tolist() == epoch
    assert steps == [2 * one for one in epoch[1:]], "two updates an epoch"
    assert Wide.seen.count(50) == len(epoch)
    xr.testing.assert_identical(found.dataset, whole.dataset.sel(epoch=epoch))
    assert all(torch.equal(found.params[name], value) for name, value in whole.params.items())

    monkeypatch.setattr(checkpoint, "SECONDS", 0)  # kept after every update

    def stop(step: int, _: object) -> None:
        if step == 4:
            raise KeyboardInterrupt

    place = tmp_path / "run.checkpoint"
    with pytest.raises(KeyboardInterrupt):
        run(evaluate_every=2, checkpoint=place, logger=stop)
    Wide.seen.clear()
    again = run(evaluate_every=2, checkpoint=place)
    assert Wide.seen.count(50) == len(epoch) - 1, "not that before training again"
    xr.testing.assert_identical(again.dataset, found.dataset)
    with pytest.raises(ValueError, match="evaluate_every"):
        run(checkpoint=place)


def test_an_interval_of_evaluation_is_a_positive_integer() -> None:
    digits = (fgvar.data.load("digits"),) * 2
    with pytest.raises(ValueError, match="evaluate_every is 0, expected an integer of at least 1"):
        fgvar.train(Wide(8), fgvar.scheme("BP"), digits, fgvar.Schedule(1, 32), evaluate_every=0)
    with pytest.raises(TypeError, match=r"evaluate_every is 0\.5, expected an integer"):
        fgvar.train(Wide(8), fgvar.scheme("BP"), digits, fgvar.Schedule(1, 32), evaluate_every=0.5)
