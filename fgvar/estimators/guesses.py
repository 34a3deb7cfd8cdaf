"""Guesses: how noise is shaped into directions by what the network knows about its gradient."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.func import grad

from fgvar.estimators.loss_terms import forward_terms
from fgvar.estimators.losses import GlobalLoss, LocalLosses, Losses
from fgvar.estimators.random_streams import fixed_normal
from fgvar.estimators.spaces import Linearised, Space, Tensors
from fgvar.nn.heads import initial_std
from fgvar.nn.reach import OUTPUT
from fgvar.problem import Problem

Shapes = dict[str, tuple[int, ...]]


class Guess(Protocol):
    """What a direction is made of. One that takes no noise says so, of its class: ``noiseless = True``."""

    @property
    def bias_reason(self) -> str:
        """Why E ĝ is not the target; empty where it is."""

    def check(self, problem: Problem) -> None:
        """Raise where the network lacks what this guess needs."""

    def shapes(self, problem: Problem, space: Space, losses: Losses, examples: int) -> Shapes:
        """Shape of each tensor of noise that one direction needs (of one example, where noise is independent)."""

    def direction(
        self, problem: Problem, losses: Losses, linearised: Linearised, noise: Tensors
    ) -> dict[str, Tensor]:
        """Noise → direction, of the shapes of ``linearised.point``."""


@dataclass(frozen=True)
class Isotropic:
    """The noise itself: nothing is known. E uuᵀ = I, so that E c·u = ∇.

    Source: Baydin et al. 2022; Fournier et al. 2023 (guess: random).

    Example:
        >>> Isotropic().bias_reason
        ''
    """

    bias_reason: ClassVar[str] = ""
    one_pass: ClassVar[bool] = True  # noise is the direction, and needs nothing of the linearised space

    def check(self, problem: Problem) -> None:
        """Every network has directions."""

    def shapes(self, problem: Problem, space: Space, losses: Losses, examples: int) -> Shapes:
        return space.shapes(problem)

    def direction(
        self, problem: Problem, losses: Losses, linearised: Linearised, noise: Tensors
    ) -> dict[str, Tensor]:
        return linearised.direction(noise)


@dataclass(frozen=True)
class LocalGradient:
    """The gradient of the local losses: with `Normalised`, what of the target lies along it.

    One direction without noise, so that the estimate is deterministic and its bias exact: it is the part of the
    target at right angles to the guess. Of each example for activities, and for weights with
    ``shared=False``; of the batch for weights with shared noise.

    Raises:
        ValueError: on use, a network without local heads.

    Source: Fournier et al. 2023 (guess: local).

    Example:
        >>> LocalGradient().bias_reason
        'a guess without noise never leaves its line'
    """

    bias_reason: ClassVar[str] = "a guess without noise never leaves its line"
    noiseless: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        LocalLosses().check(problem)

    def shapes(self, problem: Problem, space: Space, losses: Losses, examples: int) -> Shapes:
        return {}

    def direction(
        self, problem: Problem, losses: Losses, linearised: Linearised, noise: Tensors
    ) -> dict[str, Tensor]:
        return _local_gradient(problem, linearised, problem.params)


@dataclass(frozen=True)
class NTK:
    """The gradient of local losses whose heads are frozen at a random initialisation.

    `LocalGradient` without any learning of the auxiliary network.

    Args:
        seed: of the heads' weights, drawn as `LocalHead` initialises them; a sweep over it shows their spread.

    Raises:
        ValueError: on use, a network without local heads.

    Source: Fournier et al. 2023 (guess: NTK, fixed).

    Example:
        >>> NTK(seed=3)
        NTK(seed=3)
    """

    seed: int = 0

    bias_reason: ClassVar[str] = LocalGradient.bias_reason
    noiseless: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        LocalLosses().check(problem)

    def shapes(self, problem: Problem, space: Space, losses: Losses, examples: int) -> Shapes:
        return {}

    def direction(
        self, problem: Problem, losses: Losses, linearised: Linearised, noise: Tensors
    ) -> dict[str, Tensor]:
        heads = tuple(f"{head}." for head in problem.trace.ends.values())
        frozen = {
            name: drawn(problem, name, self.seed) if value.ndim > 1 else torch.zeros_like(value)
            for name, value in {**problem.frozen, **problem.params}.items()
            if name.startswith(heads)
        }
        return _local_gradient(problem, linearised, {**problem.params, **frozen})


@dataclass(frozen=True)
class BackpropGradient:
    """The end-to-end gradient: with `Normalised`, the best that any guess can do; with `GlobalLoss`, exact.

    Source: Fournier et al. 2023 (guess: global).

    Example:
        >>> BackpropGradient()
        BackpropGradient()
    """

    bias_reason: ClassVar[str] = "a guess without noise never leaves its line: the gradient's own for the global loss"
    noiseless: ClassVar[bool] = True

    def check(self, problem: Problem) -> None:
        """Every network has an output."""

    def shapes(self, problem: Problem, space: Space, losses: Losses, examples: int) -> Shapes:
        return {}

    def direction(
        self, problem: Problem, losses: Losses, linearised: Linearised, noise: Tensors
    ) -> dict[str, Tensor]:
        def objective(tensors: Tensors) -> Tensor:
            return forward_terms(GlobalLoss(), problem, *linearised.bind(tensors))[OUTPUT].sum()

        return linearised.direction(grad(objective)(dict(linearised.point)))


def is_weight(value: Tensor) -> bool:
    """Can this be drawn? Frozen parameters may be integers or eight-bit codes, which their module scales."""
    return value.ndim > 1 and value.is_floating_point() and value.itemsize > 1


def drawn(problem: Problem, name: str, seed: int) -> Tensor:
    """A weight as it could have been initialised: N(0, min(2/√fan-in, 0.1)²) from the seed alone."""
    weight = {**problem.buffers, **problem.params}[name]
    fan_in = getattr(owner(problem, name), "in_features", weight[0].numel())
    law = fixed_normal(seed, f"initial {name}", weight.shape, weight.dtype, weight.device)
    return law * initial_std(int(fan_in))


def owner(problem: Problem, name: str) -> nn.Module:
    return problem.network.modules.get(problem.network.owners[name][0], problem.network.skeleton)


def _local_gradient(problem: Problem, linearised: Linearised, params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gradient of all local losses, stopped between blocks, by the perturbed tensors."""
    losses = LocalLosses(patch=False, group=False)

    def objective(tensors: Tensors) -> Tensor:
        values = forward_terms(losses, problem, *linearised.bind(tensors))
        each = [problem.local_losses(params, end, values[end]).sum() for end in values if end != OUTPUT]
        return torch.stack(each).sum()

    return linearised.direction(grad(objective)(dict(linearised.point)))
