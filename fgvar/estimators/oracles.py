"""Oracles: how each loss term moves along a direction."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fgvar.errors import require_type
from fgvar.estimators.losses import LossTerms
from fgvar.estimators.spaces import Linearised, Tensors, TermsAndLoss
from fgvar.nn.forward_mode import jvp
from fgvar.nn.reach import OUTPUT

Function = Callable[[Tensors], dict[str, Tensor]]
Pair = tuple[dict[str, Tensor], dict[str, Tensor]]
# End → tensors that move its loss → does each of their numbers move one copy alone, along patches, along groups?
Moved = dict[str, dict[str, tuple[bool, bool]]]


class Oracle(Protocol):
    """Derivatives of all loss terms along a direction, from which an estimate is made.

    Optional, of its class: ``one_sided``, that along a direction without noise its bias is of order step.
    """

    bias_order: ClassVar[int | None]  # E ĝ − ∇ = O(step^order) under symmetric noise; None: no bias

    def terms(self, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
        """How each loss term moves along ``direction``, and the batch-mean loss of the output."""


class Derivative(Protocol):
    """Value of a function at a point, and its derivative along a direction."""

    def __call__(self, function: Function, point: Tensors, direction: Tensors) -> Pair: ...


def derived(derivative: Derivative, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
    """The terms of an oracle that differentiates what is observed on a forward pass."""
    values, tangents = derivative(linearised.forward_terms, linearised.point, direction)
    return linearised.loss_terms(values, tangents), values[OUTPUT].mean()


def differenced(difference: Derivative, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
    """The same for differences, with everything behind a stop-gradient held where it is unperturbed."""
    start = linearised.forward_terms(linearised.point)

    def function(tensors: Tensors) -> LossTerms:
        return start if tensors is linearised.point else linearised.forward_terms(tensors, start)

    values, tangents = difference(function, linearised.point, direction)
    return linearised.loss_terms(values, tangents), start[OUTPUT].mean()


@dataclass(frozen=True)
class Jvp:
    """The exact directional derivative ∇f·u, by forward-mode differentiation in one pass.

    Example:
        >>> square = lambda t: {"f": t["x"] ** 2}
        >>> Jvp()(square, {"x": torch.tensor(3.0)}, {"x": torch.tensor(1.0)})[1]
        {'f': tensor(6.)}
    """

    bias_order: ClassVar[int | None] = None
    one_pass: ClassVar[bool] = True  # what a space's own forward pass can say in its place

    def terms(self, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
        return derived(self, linearised, direction)

    def __call__(self, function: Function, point: Tensors, direction: Tensors) -> Pair:
        value, derivative = jvp(function, (dict(point),), (dict(direction),))
        return value, derivative


@dataclass(frozen=True)
class ForwardDifference:
    """(f(x + step·u) − f(x))/step = ∇f·u + step/2 · uᵀHu + O(step²).

    Its first-order error is even in u, hence odd in c·u: it averages out under symmetric noise, and leaves a
    bias of order step² (the third derivatives) with more variance than `CentralDifference` has. Along a guess
    without noise it stays, a bias of order step, unless that is paired with its opposite (``antithetic``).

    Args:
        step: of the difference, in units of the direction.

    Raises:
        ValueError: a step that is not positive.

    Source: Dalm et al. 2023 (node perturbation by finite differences).

    Example:
        >>> cube = lambda t: {"f": t["x"] ** 3}
        >>> ForwardDifference(step=0.5)(cube, {"x": torch.tensor(1.0)}, {"x": torch.tensor(1.0)})[1]
        {'f': tensor(4.7500)}
    """

    step: float = 1e-3
    bias_order: ClassVar[int | None] = 2
    one_sided: ClassVar[bool] = True  # its error is of order step along one direction alone
    by_tensor: ClassVar[bool] = True  # each tensor of a direction is looked at alone, where it is added

    def __post_init__(self) -> None:
        _check_step(self.step)

    def terms(self, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
        return differenced(self, linearised, direction)

    def __call__(self, function: Function, point: Tensors, direction: Tensors) -> Pair:
        value = function(point)
        ahead = function(_moved(point, direction, self.step))
        return value, {name: (ahead[name] - value[name]) / self.step for name in value}


@dataclass(frozen=True)
class CentralDifference:
    """(f(x + step·u) − f(x − step·u))/(2·step) = ∇f·u + step²/6 · D³f(u, u, u) + O(step⁴): a bias of order step².

    Args:
        step: of the difference, in units of the direction.

    Raises:
        ValueError: a step that is not positive.

    Source: Spall 1992 (simultaneous perturbation), MeZO.

    Example:
        >>> cube = lambda t: {"f": t["x"] ** 3}
        >>> CentralDifference(step=0.5)(cube, {"x": torch.tensor(1.0)}, {"x": torch.tensor(1.0)})[1]
        {'f': tensor(3.2500)}
    """

    step: float = 1e-3
    bias_order: ClassVar[int | None] = 2
    by_tensor: ClassVar[bool] = True  # each tensor of a direction is looked at alone, where it is added

    def __post_init__(self) -> None:
        _check_step(self.step)

    def terms(self, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
        return differenced(self, linearised, direction)

    def __call__(self, function: Function, point: Tensors, direction: Tensors) -> Pair:
        ahead, behind = (function(_moved(point, direction, s)) for s in (self.step, -self.step))
        return function(point), {name: (ahead[name] - behind[name]) / (2 * self.step) for name in ahead}


@dataclass(frozen=True)
class Replay:
    """The inner product of the direction with the known gradients of all loss terms: `Jvp` without a forward pass.

    The same draws give the same estimates, to rounding. One backward pass for the loss, for each channel group
    where a site mixes groups, for each patch where one mixes patches; then every further draw of a chunk costs
    inner products alone. It replays what a perturbation scheme would have seen, to measure it at less cost.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> scheme("FG-A", oracle=Replay()).oracle
        Replay()
    """

    bias_order: ClassVar[int | None] = None

    def terms(self, linearised: Linearised, direction: Tensors) -> TermsAndLoss:
        values, to_point = torch.func.vjp(linearised.forward_terms, dict(linearised.point))[:2]
        still = {name: torch.zeros_like(value) for name, value in values.items()}
        zeros, to_tangents = torch.func.vjp(lambda tangents: linearised.loss_terms(values, tangents), still)[:2]

        def gradient(seeds: LossTerms) -> Tensors:
            found: Tensors = to_point(to_tangents({**zeros, **seeds})[0])[0]
            return found

        terms = dict(zeros)
        for moved in _sharing(linearised, direction, zeros):
            terms |= _copies(linearised, direction, moved, {end: zeros[end] for end in moved}, gradient)
        return terms, values[OUTPUT].mean()


def _copies(
    linearised: Linearised,
    direction: Tensors,
    moved: Moved,
    zeros: LossTerms,
    gradient: Callable[[LossTerms], Tensors],
) -> LossTerms:
    """Derivatives of these ends' copies: one pass for each copy that a tensor's numbers move together.

    A pass is seeded with a set of copies, and its gradient is that of their sum. Where each number of a tensor
    moves one copy alone, all copies along that axis share a pass, and its products fall into copies afterwards.
    Where a number moves several, only a pass for each tells their shares. Tensors alike share their passes.
    """
    kinds: dict[tuple[int, int], list[tuple[str, str]]] = {}
    for end, names in moved.items():
        _, patches, groups = zeros[end].shape
        for name, (by_patch, by_group) in names.items():
            mixed = (1 if by_patch else patches, 1 if by_group else groups)
            kinds.setdefault(mixed, []).append((end, name))
    total, like = dict(zeros), next(iter(zeros.values()))
    for mixed, pairs in kinds.items():
        for one in torch.eye(mixed[0] * mixed[1], dtype=like.dtype, device=like.device).reshape(-1, 1, *mixed):
            found = gradient({end: one.expand(zeros[end].shape) for end, _ in pairs})
            for end, name in pairs:
                batch, patches, groups = zeros[end].shape
                kept = zeros[end].new_zeros(batch, patches // mixed[0], groups // mixed[1])
                products = _gathered(linearised, name, found[name], direction[name], kept)
                total[end] = total[end] + one * products
    return total


def _sharing(linearised: Linearised, names: Iterable[str], ends: Iterable[str]) -> list[Moved]:
    """The ends in sets of which no tensor moves two, so that one pass serves them all: local losses behind cuts."""
    sets: list[Moved] = []
    for end in ends:
        moved = {name: alone for name in names if (alone := linearised.granularity(name, end)) is not None}
        free = (one for one in sets if not any(moved.keys() & others.keys() for others in one.values()))
        if (one := next(free, None)) is None:
            sets.append(one := {})
        one[end] = moved
    return sets


def _gathered(linearised: Linearised, name: str, gradient: Tensor, direction: Tensor, kept: Tensor) -> Tensor:
    """Sums of products of entries in the shape of ``kept``: the transpose of laying that along the tensor."""
    if kept.numel() == 1:  # of all of them: one pass, which writes no product
        return torch.dot(gradient.reshape(-1), direction.reshape(-1)).reshape(kept.shape)
    products = gradient * direction
    lay = torch.func.vjp(lambda c: linearised.broadcast(name, c).expand(products.shape), kept)[1]
    sums: Tensor = lay(products)[0]
    return sums


def _moved(point: Tensors, direction: Tensors, step: float) -> dict[str, Tensor]:
    return {name: torch.add(value, direction[name], alpha=step) for name, value in point.items()}


def _check_step(step: float) -> None:
    require_type("step", step, Real, "a positive number")
    if not step > 0:
        raise ValueError(f"step is {step!r}, expected a positive number")
