"""Evaluation: how many examples at once, and that the curves do not depend on it."""

from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

import fgvar
from fgvar.training import evaluation
from fgvar.training.evaluation import examples_at_once


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
        assert examples_at_once(fgvar.Problem(Wide(width), "cross_entropy", batch), 1024) == expected


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
