"""Broken unlearning: what the released code of SFR-on does besides what it is described to do (Huang et al. 2024)."""

from collections.abc import Mapping

from torch import Tensor
from torch.func import grad

from fgvar.estimators.estimator import Estimator
from fgvar.nn.heads import blank_linear
from fgvar.nn.sites import with_sites
from fgvar.problem import Problem
from fgvar.stochastic.history import History
from fgvar.stochastic.retained import Retained
from fgvar.stochastic.sentence import Stochastic
from fgvar.stochastic.streams import DecayingSum, Momentum, Passed
from fgvar.stochastic.targets import Against, Propagated
from fgvar.stochastic.transforms import Gradient
from fgvar.testing.mutants.mutant import Mutant
from fgvar.testing.problems import randn, randomise


class MomentumMixed(Retained):
    """One optimiser makes both kinds of steps: its momentum carries the step g on through the others."""

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:  # noqa: ARG002
        slope = grad(self.problem.to(problem.dtype).at(problem.params).loss)
        path, ahead, velocity = dict(problem.params), gradient, gradient
        for _ in range(self.steps):
            other = {name: p + self.lr * ahead[name] for name, p in path.items()}
            along, beside = slope(path), slope(other)
            velocity = {name: 0.9 * v - (beside[name] - along[name]) for name, v in velocity.items()}
            ahead = {name: a + velocity[name] for name, a in ahead.items()}
            path = {name: p - self.lr * along[name] for name, p in path.items()}
        return ahead


class SlowAverageOff(Momentum):
    """The average β·new + (1 − β)·old with β = 1 (``ema_beta = 1.0``), which is what is new."""

    def __call__(self, gradient: Gradient, state: DecayingSum) -> Passed:
        following = super().__call__(gradient, state).state
        return Passed({name: 1.0 * g + (1 - 1.0) * following.sum[name] for name, g in gradient.items()}, following)


def _kept() -> Problem:
    """A quadratic of the parameters of the default problem "linear": what is retained there."""
    module = blank_linear(2, 2).double()
    randomise(module, 0)
    return Problem(with_sites(module), "mse", (randn(2, 2, seed=8), randn(2, 2, seed=9)))


KEPT = _kept()

UNLEARNING = (
    Mutant(
        "momentum-mixed",
        Against(Stochastic(then=(MomentumMixed(KEPT, steps=2, lr=0.1),)), Propagated(KEPT, steps=2, lr=0.1)),
        "unbiased",
        "One optimiser forgets and retains: what it forgot by comes again with every step on what it retains.",
        reported="SFR-on, released code",
    ),
    Mutant(
        "slow-average-off", History(Estimator(), SlowAverageOff(), steps=3), "stream",
        "A slow average whose weight of what is new is 1: it averages nothing, and keeps all of the noise.",
        reported="SFR-on, released code",
    ),
)  # fmt: skip
