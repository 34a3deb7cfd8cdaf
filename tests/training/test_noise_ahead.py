"""Noise ahead: a thread changes no bit, ends with the run, and raises where its noise is needed."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

import fgvar
from fgvar.training import noise_ahead
from fgvar.training.noise_ahead import AHEAD, NoiseAhead

SIZE = 650  # numbers of an update's noise
drawn_by: dict[int, str] = {}  # draw → name of the thread that made it


@dataclass(frozen=True)
class Recorded:
    """Normal numbers that tell which thread drew them; number ``broken`` is an error."""

    broken: int = -1
    isotropic: ClassVar[bool] = True

    def sample(self, stream, shape, dtype, device) -> torch.Tensor:
        drawn_by[stream.draw] = threading.current_thread().name
        if stream.draw == self.broken:
            raise ArithmeticError(f"there is no draw {self.broken}")
        return stream.normal(shape, dtype, device)


@pytest.fixture
def train(monkeypatch) -> Callable[..., dict[str, torch.Tensor]]:
    """Eight updates, whose noise is drawn for two at once."""
    monkeypatch.setattr(noise_ahead, "AHEAD", 2 * SIZE)
    images = fgvar.data.load("digits").subset(range(128))

    def run(law: Recorded, **words) -> dict[str, torch.Tensor]:
        drawn_by.clear()
        torch.manual_seed(0)
        module, schedule = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), fgvar.Schedule(epochs=2, batch=32)
        return fgvar.train(module, fgvar.scheme("FG-W", noise=law), (images, images), schedule, **words).params

    return run


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("noise")]


def test_a_thread_draws_the_same_bits_and_ends_with_the_run(train, monkeypatch) -> None:
    ahead = train(Recorded())
    assert set(drawn_by) == set(range(8)), "none beyond the last update"
    assert {drawn_by[0], drawn_by[1]} == {"MainThread"}, "there is nothing to do before the first update"
    assert all(drawn_by[draw].startswith("noise") for draw in range(2, 8))
    assert not threads()
    monkeypatch.setattr(NoiseAhead, "in_thread", lambda _: nullcontext())
    at_once = train(Recorded())
    assert set(drawn_by.values()) == {"MainThread"}
    assert all(torch.equal(p, at_once[name]) for name, p in ahead.items())


def test_an_error_in_the_thread_is_raised_by_the_update_that_needs_its_noise(train) -> None:
    rows = []
    with pytest.raises(ArithmeticError, match="there is no draw 5"):
        train(Recorded(broken=5), logger=lambda step, _: rows.append(step))
    assert drawn_by[5].startswith("noise")
    assert rows == [4], "the first epoch needs draws 0 to 3"
    assert not threads()


def test_a_thread_ends_with_a_run_that_fails(train) -> None:
    def stop(*_) -> None:
        raise RuntimeError("the logger's own")

    with pytest.raises(RuntimeError, match="the logger's own"):
        train(Recorded(), logger=stop)
    assert not threads()


@pytest.mark.parametrize(("size", "device"), [(0, "cpu"), (AHEAD + 1, "cpu"), (SIZE, "meta")])
def test_large_draws_and_other_devices_need_no_thread(size: int, device: str) -> None:
    noise = NoiseAhead(lambda steps: {"u": torch.empty(len(steps), 1)}, size, 40, torch.device(device))
    with noise.in_thread():
        assert noise.thread is None
        assert noise.of(7)["u"].shape == (1,)
