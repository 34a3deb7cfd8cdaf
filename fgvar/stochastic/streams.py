"""Streams: optimisers as maps from a gradient and a state to an output and the next state, no tensor written to."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fgvar.errors import require_type, require_word
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.transforms import Gradient, Transform, returned_shapes, shapes_of

STREAM = ("leaves", "on", "start", "__call__")  # what a stream does, of which its gain says something


class Passed(NamedTuple):
    """What a stream makes of one gradient.

    Attributes:
        gradient: its output, a dict like ``problem.params``.
        state: that the next gradient meets.
    """

    gradient: Gradient
    state: Any


class Through(Protocol):
    """What becomes of gradients that come one after another.

    ``bias_reason`` says why the mean of its output is not that of what comes in, at rest; empty where it is. It may
    declare ``gain(steps)``: the variance of the last output in units of that of independent, equally distributed
    gradients; gain(1) = 1 says that one gradient alone passes unchanged. What only delays declares ``owed(state)``:
    the sum of all gradients so far less that of all outputs. What needs the problem, or noise, says
    ``leaves(problem)`` and ``on(problem, noise) -> Through``.
    """

    @property
    def bias_reason(self) -> str: ...

    def start(self, gradient: Gradient) -> Any:
        """The state ahead of the first gradient, whose shapes are given."""

    def __call__(self, gradient: Gradient, state: Any) -> Passed:
        """The output for one gradient, and the next state: both new, as old ones may be asked for again."""


class DecayingSum(NamedTuple):
    """The decaying sum Σ_k (1 − β) β^k g_{t−k}, and of how many gradients."""

    steps: int
    sum: Gradient


@dataclass(frozen=True)
class Momentum:
    """The decaying mean Σ_k β^k g_{t−k} / Σ_k β^k of the gradients so far: momentum, bias-corrected.

    Of T independent gradients of variance V it has the variance V (1−β)(1+β^T)/((1+β)(1−β^T)), and their mean. Along
    a path its gradients are Σ k β^k/Σ β^k steps old. β = 0 is the last gradient alone.

    Args:
        beta: decay.

    Raises:
        ValueError: a decay outside of [0, 1).

    Source: Polyak 1964; the correction is Adam's (Kingma and Ba 2015).

    Example:
        >>> round(Momentum(0.9).gain(10), 3)
        0.109
    """

    beta: float = 0.9

    def __post_init__(self) -> None:
        _require_decay("beta", self.beta)

    @property
    def bias_reason(self) -> str:
        return ""

    def gain(self, steps: int) -> float:
        beta, last = self.beta, self.beta**steps
        return (1 - beta) * (1 + last) / ((1 + beta) * (1 - last))

    def start(self, gradient: Gradient) -> DecayingSum:
        return DecayingSum(0, _zeros(_wide(gradient)))

    def __call__(self, gradient: Gradient, state: DecayingSum) -> Passed:
        following = _decayed(state, _wide(gradient), self.beta)
        return Passed(_like(gradient, _corrected(following, self.beta)), following)


class Factor(Protocol):
    """What an `Adam`-like output is multiplied by, number by number."""

    def start(self, gradient: Gradient) -> Any:
        """The state ahead of the first gradient."""

    def __call__(self, gradient: Gradient, state: Any) -> Passed:
        """The factors, a dict like the gradient, and the next state."""


@dataclass(frozen=True)
class DiffGrad:
    """The factor σ(|g_{t−1} − g_t|) of diffGrad, σ the logistic function: ½ where gradients stand still; g_0 = 0.

    Source: Dubey et al. 2020.

    Example:
        >>> DiffGrad()({"w": torch.ones(1)}, {"w": torch.ones(1)}).gradient
        {'w': tensor([0.5000])}
    """

    def start(self, gradient: Gradient) -> Gradient:
        return _zeros(gradient)

    def __call__(self, gradient: Gradient, state: Gradient) -> Passed:
        # The gradient itself is kept, no copy: here nobody writes to it, as a backward pass into ``grad`` does.
        return Passed({name: torch.sigmoid((g - state[name]).abs()) for name, g in gradient.items()}, gradient)


class AdamState(NamedTuple):
    """Adam's state: means of gradients and of their squares, the largest of the latter so far, the factor's own."""

    first: DecayingSum
    second: DecayingSum
    largest: Gradient
    factor: Any


@dataclass(frozen=True)
class Adam:
    """ξ m̂/(√v̂ + ε): decaying means of gradients over the root of those of their squares, both bias-corrected.

    One gradient alone is turned into its sign. Of a steady stream of gradients far noisier than large it is momentum,
    up to a scale. Without the step size, which is the optimiser's and no part of the direction.

    Args:
        beta1: decay of the mean.
        beta2: decay of the mean of squares.
        eps: ε, in units of the gradient.
        factor: ξ, number by number; None is 1.
        amsgrad: v̂ is the largest so far.

    Raises:
        TypeError: a factor that is none.
        ValueError: a decay outside of [0, 1), an ε that is not positive.

    Source: Kingma and Ba 2015; Reddi et al. 2018 (``amsgrad``), as in `torch.optim.Adam`.

    Example:
        >>> adam = Adam()
        >>> adam({"w": torch.tensor([-3.0])}, adam.start({"w": torch.zeros(1)})).gradient
        {'w': tensor([-1.])}
    """

    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    factor: Factor | None = None
    amsgrad: bool = False

    def __post_init__(self) -> None:
        _require_decay("beta1", self.beta1)
        _require_decay("beta2", self.beta2)
        require_type("eps", self.eps, Real, "a positive number")
        if self.factor is not None:
            require_word("factor", self.factor, ("start", "__call__"), "fgvar.streams.DiffGrad()")
        if not self.eps > 0:
            raise ValueError(f"eps is {self.eps!r}, expected a positive number, as a gradient of 0 is divided by it")

    @property
    def bias_reason(self) -> str:
        return "divided by the root of its mean square"

    def start(self, gradient: Gradient) -> AdamState:
        none = DecayingSum(0, _zeros(_wide(gradient)))
        return AdamState(none, none, none.sum, self.factor.start(gradient) if self.factor else None)

    def __call__(self, gradient: Gradient, state: AdamState) -> Passed:
        wide = _wide(gradient)
        first = _decayed(state.first, wide, self.beta1)
        second = _decayed(state.second, {name: g.square() for name, g in wide.items()}, self.beta2)
        largest = second.sum
        if self.amsgrad:  # of the uncorrected ones, as torch takes it
            largest = {name: torch.maximum(v, state.largest[name]) for name, v in largest.items()}
        square = _corrected(DecayingSum(second.steps, largest), self.beta2)
        output = {name: m / (square[name].sqrt() + self.eps) for name, m in _corrected(first, self.beta1).items()}
        if not self.factor:
            return Passed(_like(gradient, output), AdamState(first, second, largest, None))
        factors, own = self.factor(gradient, state.factor)
        output = {name: factors[name] * value for name, value in output.items()}
        return Passed(_like(gradient, output), AdamState(first, second, largest, own))


@dataclass(frozen=True)
class ErrorFeedback:
    """Compressed gradients whose errors are remembered: C(g_t + e_{t−1}), with e_t what C left out of it.

    Nothing is lost, only late: Σ outputs + e_T = Σ gradients, whatever C. The state is e.

    Args:
        compress: C, a transform (`fgvar.transforms`).

    Raises:
        TypeError: ``compress`` is no transform.
        ValueError: on use, one that returns tensors of other names or shapes.

    Source: Seide et al. 2014; Karimireddy et al. 2019.

    Example:
        >>> from fgvar.stochastic.compression import TopK
        >>> feedback = ErrorFeedback(TopK(1)).on(Problem(torch.nn.Linear(1, 1), "mse", (torch.ones(1, 1),) * 2), {})
        >>> feedback({"w": torch.tensor([3.0, 2.0])}, {"w": torch.zeros(2)}).state
        {'w': tensor([0., 2.])}
    """

    compress: Transform

    def __post_init__(self) -> None:
        require_word("compress", self.compress, ("leaves", "__call__"), "fgvar.transforms.TopK(0.1)")

    @property
    def bias_reason(self) -> str:
        reason = self.compress.bias_reason
        return f"{reason}, its errors later" if reason else ""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        shapes = shapes_of(problem)
        if (returned := returned_shapes(self.compress, problem, shapes)) != shapes:
            raise ValueError(
                f"{self.compress!r} returns {', '.join(returned)}, expected tensors like the gradient's, whose "
                "errors are remembered; compress within them, as fgvar.transforms.TopK does"
            )
        return self.compress.leaves(problem, shapes)

    def on(self, problem: Problem, noise: Mapping[str, Tensor]) -> "_Compressing":
        return _Compressing(self, problem, noise)

    def start(self, gradient: Gradient) -> Gradient:
        return _zeros(gradient)

    def owed(self, state: Gradient) -> Gradient:
        """What has come in and not gone out."""
        return state


class _Compressing(NamedTuple):
    """Error feedback on one problem, with the noise of one step."""

    feedback: ErrorFeedback
    problem: Problem
    noise: Mapping[str, Tensor]

    def __call__(self, gradient: Gradient, state: Gradient) -> Passed:
        owed = {name: g + state[name] for name, g in gradient.items()}
        # Computed from what was owed, so that what is sent and what is kept add up whatever was rounded.
        output = self.feedback.compress(owed, self.problem, self.noise)
        return Passed(output, {name: value - output[name] for name, value in owed.items()})


def _zeros(gradient: Gradient) -> Gradient:
    return {name: torch.zeros_like(g) for name, g in gradient.items()}


def _wide(gradient: Gradient) -> Gradient:
    """In 32 bits at least: of 16 a mean stands still before it is there, and 0.01² · (1 − β₂), or ε, is 0."""
    return {name: g.to(torch.promote_types(g.dtype, torch.float32)) for name, g in gradient.items()}


def _like(gradient: Gradient, output: Gradient) -> Gradient:
    return {name: value.to(gradient[name].dtype) for name, value in output.items()}


def _decayed(mean: DecayingSum, gradient: Gradient, beta: float) -> DecayingSum:
    return DecayingSum(mean.steps + 1, {name: beta * mean.sum[name] + (1 - beta) * g for name, g in gradient.items()})


def _corrected(so_far: DecayingSum, beta: float) -> Gradient:
    """The sum over its factors' own: Σ β^k (1 − β) = 1 − β^steps."""
    return {name: value / (1 - beta**so_far.steps) for name, value in so_far.sum.items()}


def _require_decay(what: str, beta: float) -> None:
    require_type(what, beta, Real, "a decay from 0 on and below 1")
    if not 0 <= beta < 1:
        raise ValueError(f"{what} is {beta!r}, expected a decay from 0 on and below 1")
