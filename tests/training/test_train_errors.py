"""What `train` refuses, before the run where it can be known, and how a run that diverges is stopped."""

import math
from collections.abc import Mapping

import pytest
from refusals import says
from torch import Tensor

import fgvar
from fgvar.errors import NonFiniteError
from fgvar.estimators.randomness import Randomness
from fgvar.networks import MLP


@pytest.fixture(scope="module")
def digits():
    return fgvar.data.load("digits").subset(range(64)), fgvar.data.load("digits", "test").subset(range(8))


def digit_net(**words) -> MLP:
    return MLP((1, 8, 8), **{"width": 6, "depth": 1, "classes": 10} | words)


BRIEF = fgvar.Schedule(epochs=2, batch=32)


def test_fewer_examples_than_a_batch(digits) -> None:
    with pytest.raises(ValueError, match=says("64 training examples", "fewer than one batch of 65")):
        fgvar.train(digit_net(), fgvar.scheme("BP"), digits, fgvar.Schedule(batch=65))


def test_training_refuses_what_does_not_fit(digits) -> None:
    with pytest.raises(ValueError, match=says("targets range from 0 to 9", "3 classes")):
        fgvar.train(digit_net(classes=3), fgvar.scheme("BP"), digits, BRIEF)
    with pytest.raises(ValueError, match="no local heads"):
        fgvar.train(digit_net(), fgvar.scheme("LG-FG-A"), digits, BRIEF)
    with pytest.raises(ValueError, match="unknown loss 'msee'; did you mean 'mse'"):
        fgvar.train(digit_net(), fgvar.scheme("BP"), digits, BRIEF, loss="msee")
    with pytest.raises(ValueError, match="non-negative"):
        fgvar.train(digit_net(), fgvar.scheme("FG-W"), digits, BRIEF, seed=-1)


class SpoiltAt:
    """Backprop whose estimate number ``step`` is spoilt in one parameter."""

    def __init__(self, step: int, layer: str, value: float = math.nan) -> None:
        self.step, self.layer, self.value, self.calls = step, layer, value, 0

    def randomness(self, where: fgvar.Problem) -> Randomness:  # noqa: ARG002
        return Randomness({})

    def estimate(self, where: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:  # noqa: ARG002
        gradient = where.backprop()
        if self.calls == self.step:
            gradient[self.layer] = gradient[self.layer] + self.value
        self.calls += 1
        return fgvar.Estimate(gradient)

    def target(self, where: fgvar.Problem) -> dict[str, Tensor]:
        return where.backprop()


@pytest.mark.parametrize("step", [0, 1, 3])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_non_finite_gradient_in_training_is_named_by_parameter_and_step(digits, step: int, value: float) -> None:
    message = says("gradient of 'layer0.bias'", rf"at step {step}\b", "NaN or infinity", "lower the learning rate")
    with pytest.raises(NonFiniteError, match=message):
        fgvar.train(digit_net(), SpoiltAt(step, "layer0.bias", value), digits, BRIEF)


def test_a_run_that_diverges_is_stopped(digits) -> None:
    """In the first epoch, and where only the last update of all goes wrong: no gradient sees it, the loss does."""
    with pytest.raises(NonFiniteError, match=says("NaN or infinity", r"step \d", "lower the learning rate")):
        fgvar.train(digit_net(), fgvar.scheme("BP"), digits, fgvar.Schedule(epochs=3, batch=8, lr=1e30))
    with pytest.raises(NonFiniteError, match=says("loss", "NaN or infinity", "lower the learning rate")):
        fgvar.train(digit_net(), fgvar.scheme("BP"), digits, fgvar.Schedule(epochs=1, batch=64, lr=1e38))


def test_probes_are_refused_before_the_run(digits) -> None:
    """Raised before any computing where it can be known: not after hours, at the first probe."""
    batch = digits[0].sample(4, seed=0)
    wrong = [
        fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, batch, steps=(4,), draws=1),
        fgvar.Probe({"LG-FG-W": fgvar.scheme("LG-FG-W")}, batch, steps=(4,)),
        fgvar.Probe({"FG-W": fgvar.scheme("FG-W")}, (batch[0], batch[1] + 90), steps=(4,)),
    ]
    for probe, message in zip(wrong, ("draws is 1", "no local heads", "targets range"), strict=True):
        counting = SpoiltAt(-1, "layer0.bias")
        with pytest.raises(ValueError, match=message):
            fgvar.train(digit_net(), counting, digits, BRIEF, probe=probe)
        assert counting.calls == 0
