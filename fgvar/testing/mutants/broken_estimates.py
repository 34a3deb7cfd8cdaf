"""Broken estimates: composed estimators with a defect that no word can have. They declare what the right one does."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.estimator import Estimator
from fgvar.estimators.losses import LocalLosses
from fgvar.estimators.noise import Gaussian
from fgvar.estimators.oracles import Tensors
from fgvar.estimators.protocol import Estimate
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.problem import Problem
from fgvar.testing.mutants.broken_words import LaterTerms
from fgvar.theory import closed_forms


class Broken(Estimator):
    """An estimator that declares the variance of the right one; subclasses break its estimate or its target."""

    @property
    def right(self) -> Estimator:
        return Estimator(*(getattr(self, field.name) for field in fields(Estimator)))

    def variance(self, problem: Problem) -> dict[str, Tensor]:
        return closed_forms.variance(self.right, problem)


def perturbed(problem: Problem, estimate: Estimate, change: Callable[[str, Tensor], Tensor]) -> Estimate:
    """The estimate with every perturbed parameter's gradient changed."""
    own = {name: change(name, estimate.gradient[name]) for name in problem.perturbed}
    return replace(estimate, gradient={**estimate.gradient, **own})


class Summed(Broken):
    """The sum over directions instead of their mean."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        return perturbed(problem, super().estimate(problem, noise), lambda _, g: g * self.directions)


class Repeated(Broken):
    """The first of K directions, K times."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        if self.directions > 1:
            noise = {name: u[:1].expand_as(u) for name, u in noise.items()}
        return super().estimate(problem, noise)


class OneForAll(Broken):
    """The first example's noise for every example."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        batch = int(self.directions > 1)  # the axis after that of directions
        return super().estimate(problem, {name: u.narrow(batch, 0, 1).expand_as(u) for name, u in noise.items()})


class OneForLayers(Broken):
    """Every tensor reads the same noise from its beginning."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        stream = torch.cat([u.flatten() for u in noise.values()])
        return super().estimate(problem, {name: stream[: u.numel()].reshape(u.shape) for name, u in noise.items()})


class Unpaired(Broken):
    """An antithetic pair whose second direction is another one."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        if not self.antithetic:
            return super().estimate(problem, noise)
        alone = replace(self.right, antithetic=False)
        other = {name: -u.roll(1, dims=-1) for name, u in noise.items()}
        one, two = alone.estimate(problem, noise), alone.estimate(problem, other)
        return Estimate({name: (g + two.gradient[name]) / 2 for name, g in one.gradient.items()})


class GlobalNumbers(Broken):
    """Noise of its own from the global generator."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        return super().estimate(problem, {name: torch.empty_like(u).normal_() for name, u in noise.items()})


class Leaking(Broken):
    """Credit by the losses of later blocks, too, in spite of the gradient stops."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        assert isinstance(self.losses, LocalLosses)
        return replace(self.right, losses=replace(self.losses, stop=False)).estimate(problem, noise)


class Crowded(Broken):
    """Credit by the losses of later blocks, too, although the stops keep their derivatives from depending on it."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        assert isinstance(self.losses, LocalLosses)
        switches = (self.losses.block, self.losses.patch, self.losses.group, self.losses.stop)
        return replace(self.right, losses=LaterTerms(*switches)).estimate(problem, noise)


class Unmasked(Broken):
    """Noise on inactive units, although they are declared to be masked."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        assert isinstance(self.space, ActivitySpace)
        return replace(self.right, space=replace(self.space, mask_inactive=False)).estimate(problem, noise)


class BackpropGradient(Broken):
    """Local losses held against the end-to-end gradient."""

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return problem.backprop()


class UnitTensors(Broken):
    """Each tensor of the estimate divided by its own norm."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        return perturbed(problem, super().estimate(problem, noise), lambda _, g: g / g.norm().clamp_min(1e-12))


class Decayed(Broken):
    """Weight decay added to the gradient."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        return perturbed(problem, super().estimate(problem, noise), lambda name, g: g + 1e-4 * problem.params[name])


class TwiceBiased(Broken):
    """Gradients of a network whose linear layers add their bias twice."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        return perturbed(
            problem, super().estimate(problem, noise), lambda name, g: 2 * g if name.endswith("bias") else g
        )


class SlowHeads(Broken):
    """Heads and read-outs with a tenth of their gradient."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        found = super().estimate(problem, noise)
        slow = {name: found.gradient[name] / 10 for name in problem.network.exact}
        return Estimate({**found.gradient, **slow}, found.loss)


class Autocast(Broken):
    """Single-precision estimates pass through bfloat16; those of a double-precision problem do not."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        found = super().estimate(problem, noise)
        if problem.dtype != torch.float32:
            return found
        return Estimate({name: g.bfloat16().float() for name, g in found.gradient.items()}, found.loss)


class CutOff(Broken):
    """Noise beyond ±3 is cut off inside the estimate, and declared to be normal."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        return super().estimate(problem, {name: u.clamp(-3, 3) for name, u in noise.items()})


class Recycled(Broken):
    """A buffer of 64 random numbers serves tensors of any length, over and over."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        def recycled(u: Tensor) -> Tensor:
            return u.flatten()[torch.arange(u.numel()) % 64].reshape(u.shape)

        return super().estimate(problem, {name: recycled(u) for name, u in noise.items()})


class Flipped(Broken):
    """Kernels of convolutions get the gradient of the flipped ones."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        return perturbed(problem, super().estimate(problem, noise), lambda _, g: g.flip(-2, -1) if g.ndim == 4 else g)


class Alone(Broken):
    """A batch of one loses its batch axis, and its first number stands for the mean: half of it is missing."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        factor = 0.5 if problem.batch_size == 1 else 1.0
        return perturbed(problem, super().estimate(problem, noise), lambda _, g: factor * g)


class FirstThree(Broken):
    """Examples after the third are left out of the mean: a buffer was made for three."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        return super().estimate(problem.at(batch=(problem.inputs[:3], problem.targets[:3])), noise)


class Capped(Broken):
    """Losses above 10⁴ are taken for outliers, and give no gradient."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        kept = (problem.loss() <= 1e4).to(problem.dtype)
        return perturbed(problem, super().estimate(problem, noise), lambda _, g: kept * g)


class Underflowing(Broken):
    """Entries below 10⁻⁴ are lost, as those below 6·10⁻⁸ are in half precision without a scaled loss."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        found = super().estimate(problem, noise)
        return perturbed(problem, found, lambda _, g: torch.where(g.abs() < 1e-4, torch.zeros_like(g), g))


class Forgetful(Broken):
    """No entry for the last parameter."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        found = super().estimate(problem, noise)
        return Estimate(dict(list(found.gradient.items())[:-1]), found.loss)


class Single(Broken):
    """A gradient in float32, whatever the parameters are."""

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        found = super().estimate(problem, noise)
        return Estimate({name: g.float() for name, g in found.gradient.items()}, found.loss)


class Kept:
    """The gradient of its first call, for all others of the same names, shapes and dtype."""

    def __init__(self) -> None:
        self._seen: dict[tuple[object, ...], dict[str, Tensor]] = {}

    def randomness(self, problem: Problem) -> Randomness:  # noqa: ARG002
        return Randomness({})

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:  # noqa: ARG002
        key = tuple((name, p.shape, p.dtype) for name, p in problem.params.items())
        return Estimate(self._seen.setdefault(key, problem.backprop()))

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return problem.backprop()


@dataclass(frozen=True)
class InPlace:
    """Two-sided differences that move the weights and (with ``restore``) move them back; plain calls only."""

    step: float = 1e-3
    restore: bool = False
    bias_order: ClassVar[int | None] = 2

    def randomness(self, problem: Problem) -> Randomness:
        return Randomness({name: Leaf(tuple(p.shape), Gaussian()) for name, p in problem.params.items()})

    def estimate(self, problem: Problem, noise: Tensors) -> Estimate:
        def moved(by: float) -> Tensor:
            for name, p in problem.params.items():
                p.add_(by * noise[name])
            return problem.loss()

        ahead, behind = moved(self.step), moved(-2 * self.step)
        if self.restore:
            moved(self.step)
        c = (ahead - behind) / (2 * self.step)
        return Estimate({name: c * u for name, u in noise.items()})

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return problem.backprop()
