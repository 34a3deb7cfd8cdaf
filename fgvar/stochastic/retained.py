"""Retained: what is left of a step on one problem after steps of gradient descent on another, in rounds of both."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import require_integer, require_type
from fgvar.estimators.choices import Choice
from fgvar.estimators.protocol import require_problem
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.transforms import Gradient, Moments, Shapes, moments_without_noise, require_parameters


@dataclass(frozen=True)
class Retained:
    """Where a step g leads after K steps of gradient descent on another problem, less where they lead without it.

    (θ_K(θ + lr·g) − θ_K(θ))/lr, with θ_K the point after the K steps: (I − lr·H)ᴷ g to first order in lr, with the
    Hessian H of the other problem. With many steps, the direction that the other problem does not resist. Of several
    rounds, each the step g and K of the others, Σ_r (I − lr·H)^(rK) g, r from 1 to their number
    (`fgvar.targets.Propagated`).

    Args:
        problem: the other one: the same network, with the batch that is to be retained.
        steps: K; 0 returns g.
        lr: learning rate, of these steps and of the step g.
        rounds: how often the step g is made, K of the others after each.
        size: examples of each of the others' minibatches, put back, both paths by the same ones; None takes all.

    Raises:
        TypeError: what is no problem.
        ValueError: a negative number of steps, a learning rate that is not positive, no round, an empty minibatch.

    Source: Huang et al. 2024 (arXiv 2409.19732): forget steps between steps on what is retained. Their code has
    momentum and weight decay in both kinds of steps, which are not here.

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> retain = Problem(net, "mse", (torch.ones(1, 1), torch.ones(1, 1)))  # H = 2
        >>> g = Retained(retain, steps=2, lr=0.25)({"weight": torch.ones(1, 1)}, retain, {})
        >>> round(float(g["weight"]), 4)
        0.25
    """

    problem: Problem
    steps: int
    lr: float
    rounds: int = 1
    size: int | None = None

    linear: ClassVar[bool] = False

    def __post_init__(self) -> None:
        require_problem(self.problem)
        require_integer("steps", self.steps, 0)
        require_type("lr", self.lr, Real, "a positive number")
        if not self.lr > 0:
            raise ValueError(f"lr is {self.lr!r}, expected a positive number")
        require_integer("rounds", self.rounds, 1)
        if self.size is not None:
            require_integer("size", self.size, 1)

    @property
    def bias_reason(self) -> str:
        if self.steps:
            return f"{self.steps} steps on another problem turn it: (I − lr H)^steps g"
        return f"{self.rounds} rounds add up" if self.rounds > 1 else ""

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        require_parameters(self, problem, shapes)
        if self.size is None or not self.steps:
            return {}
        even = torch.ones(self.rounds, self.steps, self.problem.batch_size, device=problem.device)
        return {"": Leaf((self.rounds, self.steps, self.size), Choice(even, even=True))}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        whole = self.problem.to(problem.dtype)
        # The path without the steps g, and how far the other one is from it in units of lr: their difference itself
        # would lose the digits that both share.
        path, ahead = dict(problem.params), {name: torch.zeros_like(g) for name, g in gradient.items()}
        for turn in range(self.rounds):
            ahead = {name: a + gradient[name] for name, a in ahead.items()}
            for step in range(self.steps):
                other = {name: torch.add(p, ahead[name], alpha=self.lr) for name, p in path.items()}
                # The problems at both: keys that a problem makes of its parameters move with them.
                here, there = whole.at(path), whole.at(other)
                if noise:
                    here, there = (one.rows(noise[""][turn, step]) for one in (here, there))
                along, beside = here.backprop(), there.backprop()
                ahead = {name: a - (beside[name] - along[name]) for name, a in ahead.items()}
                path = {name: torch.sub(p, along[name], alpha=self.lr) for name, p in path.items()}
        return ahead

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        if self.size is not None and self.steps:
            raise ValueError(
                f"{self!r} draws its minibatches, and the mean over them is not known but to first order in lr; draw "
                "(fgvar.measure), or enumerate small problems (fgvar.testing.expectation)"
            )
        return moments_without_noise(self, mean, variance, problem)
