"""The check of streams: right ones pass it, and each thing that it looks at can fail."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import fgvar
from fgvar import sampling, streams, transforms
from fgvar.stochastic.streams import DecayingSum, Passed
from fgvar.testing import CHECKS, default_problems
from fgvar.testing.mutants.broken_streams import LosesResidual

LINEAR = {"linear": default_problems()["linear"]}
FORWARD = fgvar.scheme("FG-W")


def note(through: object, of: fgvar.GradientEstimator = FORWARD, steps: int = 3, lr: float = 0.0) -> str:
    (row,) = CHECKS["stream"](fgvar.History(of, through, steps, lr), LINEAR)
    assert row.outcome == "passed"
    return row.note


def test_momentum_passes_exactly() -> None:
    """At rest, whatever the path that is asked for."""
    for lr in (0.0, 0.1):
        found = note(streams.Momentum(0.5), lr=lr)
        assert found.startswith("its states are its own; one step is the estimate; 0.4286 of its variance (exact")


@pytest.mark.parametrize("through", [streams.Adam(), streams.Adam(factor=streams.DiffGrad(), amsgrad=True)])
@pytest.mark.parametrize("of", [FORWARD, fgvar.ExactGradient(), fgvar.Stochastic(sample=sampling.Draw(1))])
def test_what_declares_no_gain_has_states_of_its_own(through: object, of: fgvar.GradientEstimator) -> None:
    assert note(through, of) == "its states are its own; it declares no gain"


def test_what_is_no_stream_has_nothing_to_test() -> None:
    (row,) = CHECKS["stream"](FORWARD, LINEAR)
    assert (row.outcome, row.note) == ("not applicable", "is no stream of estimates")


def test_a_stream_that_is_drawn_has_its_variance_by_traces() -> None:
    """4096 draws at a nominal false-alarm rate of 1e-6 in all."""
    (row,) = CHECKS["stream"](fgvar.History(FORWARD, streams.Momentum(0.5), 4), default_problems()["relu"])
    assert row.outcome == "passed"
    assert "of its variance (z = " in row.note


@dataclass(frozen=True)
class Uncorrected(streams.Momentum):
    """Momentum that starts from 0 and forgets that it did."""

    def __call__(self, gradient: dict[str, Tensor], state: DecayingSum) -> Passed:
        following = super().__call__(gradient, state).state
        return Passed(following.sum, following)


@dataclass(frozen=True)
class Boastful(streams.Momentum):
    """Momentum that declares less noise than it leaves."""

    def gain(self, steps: int) -> float:
        return super().gain(steps) ** 2


@dataclass(frozen=True)
class Heavy(streams.Momentum):
    """Momentum whose buffer is the first gradient, no copy of it, as an optimiser that forgets a clone has it."""

    def start(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        return gradient

    def __call__(self, gradient: dict[str, Tensor], state: dict[str, Tensor]) -> Passed:
        for name, g in gradient.items():
            state[name].mul_(self.beta).add_(g)
        return Passed({name: value.clone() for name, value in state.items()}, state)


@pytest.mark.parametrize(
    ("through", "of", "message"),
    [
        (Uncorrected(0.9), FORWARD, "declares that one gradient passes unchanged, but 'weight' is off by 0.9"),
        (Boastful(0.5), FORWARD, r"the variance of 'weight' is 2.333 times the declared one \(exact"),
        (Heavy(0.5), FORWARD, "its state shares memory with gradients that come, or is written to"),
        (Heavy(0.5), fgvar.ExactGradient(), "its state shares memory with gradients that come, or is written to"),
    ],
    ids=["uncorrected", "boastful", "in place", "in place, without noise"],
)
def test_a_broken_stream_fails(through: object, of: fgvar.GradientEstimator, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        CHECKS["stream"](fgvar.History(of, through, 3), LINEAR)


def test_a_boast_is_found_by_draws_too() -> None:
    """4096 draws at a nominal false-alarm rate of 1e-6 in all, which a boast of 2.7 times is 30 errors away from."""
    with pytest.raises(AssertionError, match="times the declared one: z = "):
        CHECKS["stream"](fgvar.History(FORWARD, Boastful(0.5), 4), default_problems()["relu"])


def test_a_gain_that_raises_is_a_sentence() -> None:
    class Raises(streams.Momentum):
        def gain(self, steps: int) -> float:
            raise RuntimeError(f"of {steps} steps nothing is known")

    with pytest.raises(AssertionError, match="gain raised RuntimeError: of 1 steps nothing is known"):
        CHECKS["stream"](fgvar.History(FORWARD, Raises(), 3), LINEAR)


def test_an_optimiser_with_noise_is_asked_with_its_noise() -> None:
    @dataclass(frozen=True)
    class Jittered(streams.Momentum):
        """Momentum that needs noise, and adds none."""

        def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:
            return {name: fgvar.Leaf(tuple(p.shape), fgvar.Gaussian()) for name, p in problem.params.items()}

        def on(self, problem: fgvar.Problem, noise: dict[str, Tensor]) -> streams.Momentum:
            assert noise.keys() == problem.params.keys()
            assert all(torch.isfinite(u).all() for u in noise.values())
            return streams.Momentum(self.beta)

    assert "one step is the estimate" in note(Jittered(0.5))


def test_what_is_owed_is_what_came_in_less_what_went_out() -> None:
    top = transforms.TopK(0.5)
    assert note(streams.ErrorFeedback(top)) == "its states are its own; what it owes comes later; it declares no gain"
    with pytest.raises(AssertionError, match=r"what it owes of '.*' is off by .* it is lost"):
        CHECKS["stream"](fgvar.History(FORWARD, LosesResidual(top), 3), LINEAR)
