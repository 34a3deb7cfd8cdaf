"""Broken words: each is the right one but for one defect that real code of the field has had."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.losses import GlobalLoss, LocalLosses, Losses, LossTerms
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.oracles import CentralDifference, Function, Jvp, Pair, derived
from fgvar.estimators.random_streams import Stream
from fgvar.estimators.spaces import Linearised, Tensors, TermsAndLoss
from fgvar.estimators.structured_noise import Sphere
from fgvar.estimators.weight_space import WeightSpace
from fgvar.problem import Problem

# ---- oracles ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ClippedJvp:
    """Directional derivatives between −limit and limit."""

    limit: float = 5.0
    bias_order: ClassVar[int | None] = None

    def terms(self, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
        return derived(self, linearised, direction)

    def __call__(self, function: Function, point: Tensors, direction: Tensors) -> Pair:
        value, derivative = Jvp()(function, point, direction)
        return value, {name: d.clamp(-self.limit, self.limit) for name, d in derivative.items()}


@dataclass(frozen=True)
class UphillJvp:
    """The derivative along −u."""

    bias_order: ClassVar[int | None] = None

    def terms(self, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
        return derived(self, linearised, direction)

    def __call__(self, function: Function, point: Tensors, direction: Tensors) -> Pair:
        return Jvp()(function, point, {name: -u for name, u in direction.items()})


@dataclass(frozen=True)
class SilentJvp:
    """Derivatives in which 0 stands for NaN."""

    bias_order: ClassVar[int | None] = None

    def terms(self, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
        return derived(self, linearised, direction)

    def __call__(self, function: Function, point: Tensors, direction: Tensors) -> Pair:
        value, derivative = Jvp()(function, point, direction)
        return value, {name: d.nan_to_num(0.0) for name, d in derivative.items()}


class BoastfulDifference(CentralDifference):
    """A central difference that declares the order of a better one."""

    bias_order: ClassVar[int | None] = 4


@dataclass(frozen=True)
class SecretDifference(CentralDifference):
    """A central difference whose repr leaves out its step."""

    step: float = field(default=1e-3, repr=False)


# ---- noise -----------------------------------------------------------------------------------------------------


class Bits(Rademacher):
    """0 or 1 instead of −1 or 1."""

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return (super().sample(stream, shape, dtype, device) + 1) / 2


class UnitSphere(Sphere):
    """Directions of length 1 instead of √d."""

    def couple(self, rows: Tensor) -> Tensor:
        return rows / torch.linalg.vector_norm(rows, dim=-1, keepdim=True)


class Flat(Gaussian):
    """Signs that pass for normal numbers."""

    kurtosis: ClassVar[float] = 3.0

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.signs(shape, dtype, device)


class HalfPrecision(Gaussian):
    """Drawn in bfloat16, then cast."""

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(stream, shape, torch.bfloat16, device).to(dtype)


class Truncated(Gaussian):
    """Normal numbers cut off at ±3."""

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(stream, shape, dtype, device).clamp(-3, 3)


class ByShape(Gaussian):
    """A stream for every shape, instead of for every tensor."""

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(replace(stream, name=str(tuple(shape))), shape, dtype, device)


class Reseeded(Gaussian):
    """A generator that is seeded anew before every draw."""

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(replace(stream, draw=0), shape, dtype, device)


class Running(Gaussian):
    """One generator that runs on from draw to draw, whichever draw is asked for."""

    calls: ClassVar[Any] = itertools.count()

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return super().sample(replace(stream, draw=next(self.calls)), shape, dtype, device)


# ---- losses ----------------------------------------------------------------------------------------------------


class BatchMean(GlobalLoss):
    """Every example gets the batch's mean derivative."""

    def terms(self, problem: Problem, *seen: Any) -> LossTerms:
        return {end: t.mean(0, keepdim=True).expand_as(t) for end, t in super().terms(problem, *seen).items()}


class FirstExample(GlobalLoss):
    """Every example gets the first one's derivative."""

    def terms(self, problem: Problem, *seen: Any) -> LossTerms:
        return {end: t[:1].expand_as(t) for end, t in super().terms(problem, *seen).items()}


@dataclass(frozen=True)
class Reaveraged(GlobalLoss):
    """Derivatives times N^power: averaged over the batch once more (−1), or not at all (1)."""

    power: int = -1

    def terms(self, problem: Problem, *seen: Any) -> LossTerms:
        factor = float(problem.batch_size) ** self.power
        return {end: t * factor for end, t in super().terms(problem, *seen).items()}


class LaterTerms(LocalLosses):
    """Every end's copies get the derivatives of all later ends added."""

    def terms(self, problem: Problem, *seen: Any) -> LossTerms:
        found: LossTerms = {}
        later: Tensor | float = 0.0
        for end, t in reversed(super().terms(problem, *seen).items()):
            found[end] = t + later
            later = later + t.sum((1, 2), keepdim=True)
        return dict(reversed(found.items()))


# ---- spaces ----------------------------------------------------------------------------------------------------


def _with(linearised: Linearised, **methods: Callable[[Tensors], dict[str, Tensor]]) -> Linearised:
    """The same with other methods."""
    public = {name: getattr(linearised, name) for name in dir(linearised) if not name.startswith("_")}
    return cast(Linearised, SimpleNamespace(**{**public, **methods}))


@dataclass(frozen=True)
class HalfScaled(WeightSpace):
    """Directions σ·v, and the estimate divided by σ instead of σ²."""

    sigma: float = 0.1

    def linearise(self, problem: Problem, losses: Losses) -> Linearised:
        linearised = super().linearise(problem, losses)
        return _with(
            linearised,
            direction=lambda noise: {name: self.sigma * u for name, u in noise.items()},
            backward=lambda credited: linearised.backward({name: u / self.sigma for name, u in credited.items()}),
        )


class WrongSlot(ActivitySpace):
    """The bias' gradient in the weight's place."""

    def linearise(self, problem: Problem, losses: Losses) -> Linearised:
        linearised = super().linearise(problem, losses)

        def backward(credited: Tensors) -> dict[str, Tensor]:
            found = linearised.backward(credited)
            biases = {name: found.get(name.removesuffix("weight") + "bias") for name in problem.perturbed}
            misplaced = {
                name: bias[..., None].expand_as(found[name]).clone()
                for name, bias in biases.items()
                if bias is not None and name.endswith("weight")
            }
            return {**found, **misplaced}

        return _with(linearised, backward=backward)
