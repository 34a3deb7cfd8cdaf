"""References and controls: what an estimator has to be compared with before its numbers mean anything."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fgvar.estimators.lengths import length, rescaled
from fgvar.estimators.loss_terms import gradient
from fgvar.estimators.losses import GlobalLoss, Losses
from fgvar.estimators.noise import Gaussian
from fgvar.estimators.protocol import Estimate, GradientEstimator
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.problem import Problem

T = TypeVar("T")


@dataclass(frozen=True)
class FrozenTrunk:
    """Heads and read-outs learn exactly, all other parameters not at all.

    What training by it reaches is reached by a random trunk: an estimator that gets no further has taught its
    trunk nothing.

    Args:
        losses: by which heads and read-outs learn.

    Source: the paper's FG-W row on MNIST, 9.25 % (Ren et al. 2023, Table 3), is what a frozen trunk reaches.

    Example:
        >>> FrozenTrunk().bias_reason
        'a control: the trunk has no gradient'
    """

    losses: Losses = GlobalLoss()

    additive: ClassVar[bool] = True  # its estimate is the mean of those of each example alone

    @property
    def bias_reason(self) -> str:
        return "a control: the trunk has no gradient"

    def randomness(self, problem: Problem) -> Randomness:
        self.losses.check(problem)
        return Randomness({})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:  # noqa: ARG002
        heads = {name: value for name, value in problem.params.items() if name in problem.network.exact}
        found = gradient(self.losses, problem, heads)
        return Estimate({name: found.get(name, torch.zeros_like(value)) for name, value in problem.params.items()})

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return gradient(self.losses, problem, problem.params)

    def learns(self, problem: Problem) -> tuple[str, ...]:
        """Names of the parameters that training moves: weight decay, too, leaves the others alone."""
        return tuple(name for name in problem.params if name in problem.network.exact)


@dataclass(frozen=True)
class MatchedNoise:
    """A target plus isotropic noise, in every tensor of the same variance as another estimator's.

    Is it the amount of noise that matters, or where it points? ĝ = g + ‖â − b̂‖/√(2d) u for two independent
    estimates â, b̂ and normal u over the tensor's d numbers: E ĝ = g, tr Cov(ĝ) = tr Cov(â).

    Source: Zhu et al. 2019 (isotropic noise of the size of SGD's), there for all parameters together.

    Args:
        like: the estimator whose variance is matched at every point.
        mean: whose target g is; default: that of ``like``. Another one parts noise from mean: the global gradient
            under the noise of local losses.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> MatchedNoise(scheme("FG-A")).bias_reason
        ''
        >>> MatchedNoise(scheme("LG-FG-A"), mean=scheme("BP")).mean
        ExactGradient(losses=GlobalLoss(heads=False))
    """

    like: GradientEstimator
    mean: GradientEstimator | None = None

    @property
    def bias_reason(self) -> str:
        return ""

    def randomness(self, problem: Problem) -> Randomness:
        own = self.like.randomness(problem).leaves
        # Of each copy in a group of its own: coupled leaves are coupled within an estimate, not between the two.
        parts = {
            copy: {name: replace(leaf, group=copy + leaf.group) for name, leaf in own.items()} for copy in ("a", "b")
        }
        parts["u"] = {name: Leaf(tuple(value.shape), Gaussian()) for name, value in problem.params.items()}
        return Randomness(_flattened(parts))

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        parts = _nested(noise)
        # Of an estimator without noise there is no "a" and no "b".
        a, b = (self.like.estimate(problem, parts.get(copy, {})) for copy in ("a", "b"))
        estimate = {}
        for name, value in self.target(problem).items():
            spread = length({name: a.gradient[name] - b.gradient[name]}) / (2 * value.numel()) ** 0.5
            estimate[name] = value + rescaled({name: parts["u"][name]}, spread)[name]
        return Estimate(estimate, a.loss)

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return (self.mean or self.like).target(problem)


@dataclass(frozen=True)
class IsotropicNull:
    """Noise of the gradient's own length that knows nothing of it: ĝ = ‖g‖/√d u in every tensor of the trunk.

    E ĝ = 0 there; heads and read-outs learn exactly. The cosine that chance gives in each layer, and what following
    pure noise of that length does to training.

    Args:
        losses: whose gradient has the length.

    Example:
        >>> IsotropicNull().bias_reason
        'a control: E ĝ = 0 in the trunk'
    """

    losses: Losses = GlobalLoss()

    @property
    def bias_reason(self) -> str:
        return "a control: E ĝ = 0 in the trunk"

    def randomness(self, problem: Problem) -> Randomness:
        self.losses.check(problem)
        return Randomness(
            {f"u.{name}": Leaf(tuple(problem.params[name].shape), Gaussian()) for name in problem.perturbed}
        )

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        target = self.target(problem)
        for name in problem.perturbed:
            spread = length({name: target[name]}) / target[name].numel() ** 0.5
            target[name] = rescaled({name: noise[f"u.{name}"]}, spread)[name]
        return Estimate(target)

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return gradient(self.losses, problem, problem.params)


def _flattened(parts: Mapping[str, Mapping[str, T]]) -> dict[str, T]:
    """A nested mapping as one: part → name → value becomes "part.name" → value."""
    return {f"{part}.{name}": value for part, values in parts.items() for name, value in values.items()}


def _nested(flat: Mapping[str, T]) -> dict[str, dict[str, T]]:
    """What `_flattened` made one; names may have dots of their own, and parts have none."""
    parts: dict[str, dict[str, T]] = {}
    for key, value in flat.items():
        part, _, name = key.partition(".")
        parts.setdefault(part, {})[name] = value
    return parts
