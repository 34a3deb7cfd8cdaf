"""A stranger's sampler, score, transform and optimiser, in one file and of no base class."""
# ruff: noqa: ARG002 (protocols have arguments that not every word needs)

from dataclasses import dataclass

import torch

from fgvar import Leaf
from fgvar.estimators.choices import Bernoulli, Choice


@dataclass(frozen=True)
class Systematic:
    """Every k-th example, from a random one on: E ω = k · 1/k."""

    k: int
    bias_reason, linear = "", True

    def leaves(self, problem):
        return {"": Leaf((1,), Choice(torch.full((self.k,), 1 / self.k), even=True))}

    def batch_size(self, problem):
        return problem.batch_size

    def view(self, here, noise, problem):
        drawn = torch.arange(problem.batch_size) % self.k == noise[""]
        return here.weighted(self.k * drawn.to(problem.dtype))


@dataclass(frozen=True)
class InputSizes:
    """Examples by the size of their inputs."""

    adapted, of_loss, linear = True, False, True

    def scores(self, problem, over):
        return problem.inputs.flatten(1).norm(dim=1)


@dataclass(frozen=True)
class Dropped:
    """Each number with probability p, over p."""

    p: float
    bias_reason, linear = "", True

    def leaves(self, problem, shapes):
        return {name: Leaf(tuple(shape), Bernoulli(self.p)) for name, shape in shapes.items()}

    def __call__(self, gradient, problem, noise):
        return {name: g * noise[name] / self.p for name, g in gradient.items()}


@dataclass(frozen=True)
class RunningMean:
    """The mean of all gradients so far, of 1/T of their variance."""

    bias_reason = ""

    def start(self, gradient):
        return 0, {name: torch.zeros_like(g) for name, g in gradient.items()}

    def __call__(self, gradient, state):
        count, total = state[0] + 1, {name: state[1][name] + g for name, g in gradient.items()}
        return {name: g / count for name, g in total.items()}, (count, total)

    def gain(self, steps):
        return 1 / steps
