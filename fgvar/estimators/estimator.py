"""The protocol of every gradient estimator, and the composed one: ĝ = pullback(oracle(losses, u) · u)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.func import vmap

from fgvar.estimators.losses import GlobalLoss, Losses, Terms, gradient, observe
from fgvar.estimators.noise import Gaussian, Leaf, Noise, Randomness
from fgvar.estimators.oracles import Jvp, Oracle
from fgvar.estimators.spaces import Linearised, Space, WeightSpace
from fgvar.network import OUTPUT
from fgvar.problem import Problem


@dataclass(frozen=True)
class Estimate:
    """One estimate: ``gradient`` is a dict like ``problem.params``; ``loss`` the batch-mean output loss."""

    gradient: dict[str, Tensor]
    loss: Tensor | None = None


@runtime_checkable
class GradientEstimator(Protocol):
    """All that measuring, testing and training ask of anybody's estimator.

    ``estimate`` must be a deterministic function of its arguments; it is called under ``torch.func.vmap``
    over a batch of noise (or plainly, one draw at a time, with ``measure(…, chunk=1)``).
    """

    def randomness(self, problem: Problem) -> Randomness:
        """Names, shapes and distributions of the noise that one estimate needs."""

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        """The estimate for this noise."""

    def target(self, problem: Problem) -> dict[str, Tensor]:
        """The gradient that the estimator should be unbiased for."""


def require_estimator(name: str, candidate: object) -> None:
    """Raise a TypeError where ``candidate`` is not a `GradientEstimator`, saying what to give instead."""
    if isinstance(candidate, type):
        raise TypeError(f"{name!r} is the class {candidate.__name__}, expected an instance: {candidate.__name__}(…)")
    if isinstance(candidate, str):
        raise TypeError(f"{name!r} is the text {candidate!r}, expected an estimator: fgvar.scheme({candidate!r})")
    if not isinstance(candidate, GradientEstimator):
        kind = type(candidate).__name__
        raise TypeError(f"{name!r} is {kind}, expected randomness, estimate and target methods")


@dataclass(frozen=True)
class Estimator:
    """A perturbation scheme, composed of words: space, noise, losses, oracle.

    u ~ noise on the space; c = oracle(losses, u), how each credited loss term moves along u; the estimate is
    pullback(c · u), averaged over the noise's directions. With E uuᵀ = I its mean is the gradient of the
    losses, its ``target``; its variance is in closed form in `fgvar.theory`. Parameters of heads and read-outs
    are not perturbed: they get their exact gradient (Ren et al. 2023, Sec. 5).

    Gradients are of batch means, in a dict like ``problem.params``.

    Example:
        >>> import torch
        >>> from fgvar.estimators.spaces import WeightSpace
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> estimator = Estimator(WeightSpace())
        >>> noise = estimator.randomness(problem).sample(seed=0, draws=[7])
        >>> one = {name: u[0] for name, u in noise.items()}
        >>> estimator.estimate(problem, one).gradient["weight"].shape
        torch.Size([2, 3])
    """

    space: Space = WeightSpace()  # noqa: RUF009 (frozen)
    noise: Noise = Gaussian()  # noqa: RUF009 (frozen)
    losses: Losses = GlobalLoss()  # noqa: RUF009 (frozen)
    oracle: Oracle = Jvp()  # noqa: RUF009 (frozen)

    @property
    def shared(self) -> bool:
        """Is one direction used for the whole batch?"""
        return not self.space.per_example if self.noise.shared is None else self.noise.shared

    def randomness(self, problem: Problem) -> Randomness:
        self.losses.check(problem)
        self.space.check(problem)
        k = self.noise.directions
        lead = (*(() if k == 1 else (k,)), *(() if self.shared else (problem.batch_size,)))
        shapes = self.space.shapes(problem)
        return Randomness({name: Leaf((*lead, *shape), self.noise, len(lead)) for name, shape in shapes.items()})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        if self.noise.antithetic:
            noise = {name: torch.stack([u, -u]) for name, u in noise.items()}
        axes = int(self.noise.antithetic) + int(self.noise.directions > 1)
        if not axes:
            return self._one_direction(problem, noise)

        def one(own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
            estimate = self._one_direction(problem, own)
            return estimate.gradient, estimate.loss

        flat = {name: u.flatten(0, axes - 1) for name, u in noise.items()}
        gradients, losses = vmap(one)(flat)
        return Estimate({name: g.mean(0) for name, g in gradients.items()}, losses.mean())

    def _one_direction(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        if self.shared or self.space.per_example:
            return self._estimate(problem, noise)

        # Every example perturbs the weights its own way: a batch of problems of one example each.
        def one(x: Tensor, y: Tensor, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
            estimate = self._estimate(problem.at(batch=(x[None], y[None])), own)
            return estimate.gradient, estimate.loss

        gradients, losses = vmap(one)(problem.inputs, problem.targets, dict(noise))
        return Estimate({name: g.mean(0) for name, g in gradients.items()}, losses.mean())

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return gradient(self.losses, problem, problem.params)

    def terms(self, problem: Problem, noise: Mapping[str, Tensor]) -> Terms:
        """Directional derivatives of one direction: end → [batch, patches or 1, groups or 1], for each loss copy."""
        return self._move(problem, noise)[2]

    def _estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        here, direction, terms, loss = self._move(problem, noise)
        found = here.pullback(terms, direction)
        return Estimate({name: found[name] for name in problem.params}, loss)

    def _move(self, problem: Problem, noise: Mapping[str, Tensor]) -> tuple[Linearised, Terms, Terms, Tensor]:
        """Where we are, the direction, how each loss copy moves along it, and the loss."""
        here = self.space.linearise(problem, self.losses)
        direction = here.direction(noise)
        values, tangents = self.oracle(
            lambda tensors: observe(self.losses, problem, *here.place(tensors)), here.point, direction
        )
        return here, direction, self.losses.terms(problem, values, tangents), values[OUTPUT].mean()


@dataclass(frozen=True)
class ExactGradient:
    """The gradient of the losses by reverse mode: no noise, no bias to its target. BP, L-BP and LG-BP.

    Its cosine to backprop tells what the choice of losses alone costs.

    Example:
        >>> ExactGradient(GlobalLoss(heads=False)).losses.heads
        False
    """

    losses: Losses = GlobalLoss(heads=False)  # noqa: RUF009 (frozen)

    def randomness(self, problem: Problem) -> Randomness:
        self.losses.check(problem)
        return Randomness({})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:  # noqa: ARG002
        return Estimate(self.target(problem))

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return gradient(self.losses, problem, problem.params)
