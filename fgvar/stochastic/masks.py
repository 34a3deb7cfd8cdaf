"""Masks: gradients of some parameters, the live ones, and which those are."""

from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import require_integer, require_type, require_word
from fgvar.estimators.protocol import require_problem
from fgvar.estimators.random_streams import Stream
from fgvar.estimators.randomness import Leaf
from fgvar.estimators.spaces import Keep, of_parameters_alone
from fgvar.problem import Problem
from fgvar.stochastic.transforms import Gradient, Moments, Shapes, require_parameters


@dataclass(frozen=True)
class Mask:
    """Masked: M g, with M of zeros and ones; slope and squared cosine are the share ‖Mg‖²/‖g‖² of energy kept.

    Args:
        keep: which parameters are live, such as `Magnitude` or `Saliency`.

    Raises:
        TypeError: a ``keep`` that is none.

    Example:
        >>> from fgvar.stochastic.sentence import Stochastic
        >>> Stochastic(then=(Mask(Magnitude(0.4)),)).bias_reason
        'dead parameters have no gradient'
    """

    keep: Keep

    linear: ClassVar[bool] = True
    contracts: ClassVar[bool] = True
    bias_reason: ClassVar[str] = "dead parameters have no gradient"

    def __post_init__(self) -> None:
        require_word("keep", self.keep, ("mask",), "fgvar.transforms.Magnitude(0.4)")

    @property
    def of_batch(self) -> bool:
        """Does the mask look at the batch, of which one example then changes it for all?"""
        return not of_parameters_alone(self.keep)

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        require_parameters(self, problem, shapes)
        return {}

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        live = self.keep.mask(problem)
        return {name: live[name] * g for name, g in gradient.items()}

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return Moments(self(mean, problem, {}), self(variance, problem, {}))


def shuffled(live: Tensor, seed: int, name: str) -> Tensor:
    """The mask of the tensor of that name, with its entries at random places."""
    keys = Stream(seed, f"mask of {name}", 0).uniform((live.numel(),), torch.float64, torch.device("cpu"))
    return live.flatten()[keys.argsort().to(live.device, non_blocking=True)].reshape(live.shape)


@dataclass(frozen=True)
class Magnitude:
    """Magnitude pruning keeps |w| at least the ``share``-quantile of the nonzero |w| of its tensor.

    Of tensors with two axes or more; others, such as biases, are kept whole. A weight of 0 has been pruned before,
    and stays so. Quantiles lie between two order statistics, linearly.

    Args:
        share: of the nonzero weights of each tensor that become dead, from 0 to 1.
        shuffled: seed of a control: as many weights of each tensor, at random places; None takes the largest.

    Raises:
        ValueError: a share outside of [0, 1], a negative seed.

    Source: Kausik 2024 (arXiv 2405.20194), whose script's rule this is.

    Example:
        >>> net = torch.nn.Linear(4, 1)
        >>> with torch.no_grad():
        ...     _ = net.weight.copy_(torch.tensor([[0.0, 1.0, -2.0, 3.0]]))
        >>> problem = Problem(net, "mse", (torch.ones(1, 4), torch.ones(1, 1)))
        >>> Magnitude(0.5).mask(problem)["weight"]
        tensor([[0., 0., 1., 1.]])
    """

    share: float
    shuffled: int | None = None

    of_parameters: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_type("share", self.share, Real, "a number from 0 to 1")
        if not 0 <= self.share <= 1:
            raise ValueError(f"share is {self.share!r}, expected a number from 0 to 1")
        if self.shuffled is not None:
            require_integer("shuffled", self.shuffled, 0)

    def mask(self, problem: Problem) -> dict[str, Tensor]:
        return {name: self._live(name, w) if w.ndim > 1 else torch.ones_like(w) for name, w in problem.params.items()}

    def _live(self, name: str, weight: Tensor) -> Tensor:
        sizes = weight.abs().flatten()
        if not len(sizes):
            return torch.ones_like(weight)
        live = ((sizes >= self._quantile(sizes)) & (sizes > 0)).to(weight.dtype).reshape(weight.shape)
        return live if self.shuffled is None else shuffled(live, self.shuffled, name)

    def _quantile(self, sizes: Tensor) -> Tensor:
        # Of the sorted sizes zeros come first; how many is a number in the graph, so that this runs under vmap.
        ordered, zeros = sizes.sort().values, (sizes == 0).sum()
        place = (zeros + self.share * (len(sizes) - 1 - zeros).double()).clamp_max(len(sizes) - 1)
        low, high = (ordered.gather(0, at.long()[None])[0] for at in (place.floor(), place.ceil()))
        return torch.lerp(low, high, place.frac().to(sizes.dtype))


@dataclass(frozen=True)
class Saliency:
    """Parameters that matter to the problem's batch more than to another one: F/F′ ≥ ``threshold``.

    F are mean squared gradients of minibatches, entry by entry, F of the problem itself and F′ of ``retain`` at the
    same parameters, 1e-15 added to both. The problem's batch and the other's are cut into minibatches in their order.

    Args:
        retain: the problem of what is to be kept: the same network, with a batch of its own.
        threshold: γ; 0 keeps all.
        size: examples of a minibatch, whose mean gradient is squared; None takes each batch as one.
        shuffled: seed of a control: as many parameters of each tensor, at random places; None takes the salient.

    Raises:
        TypeError: a ``retain`` that is no problem.
        ValueError: a size below 1; on use, a ``retain`` of other parameters.

    Source: Huang et al. 2024 (arXiv 2409.19732), whose code adds 1e-15.

    Example:
        >>> net = torch.nn.Linear(2, 1, bias=False)
        >>> forget = Problem(net, "mse", (torch.tensor([[1.0, 0.0]]), torch.ones(1, 1)))
        >>> retain = Problem(net, "mse", (torch.tensor([[0.0, 1.0]]), torch.ones(1, 1)))
        >>> Saliency(retain, 1.0).mask(forget)["weight"]
        tensor([[1., 0.]])
    """

    retain: Problem
    threshold: float
    size: int | None = 1
    shuffled: int | None = None

    def __post_init__(self) -> None:
        require_problem(self.retain)
        require_type("threshold", self.threshold, Real, "a number")
        if self.size is not None:
            require_integer("size", self.size, 1)
        if self.shuffled is not None:
            require_integer("shuffled", self.shuffled, 0)

    def mask(self, problem: Problem) -> dict[str, Tensor]:
        here, there = self._fisher(problem), self._fisher(self.retain.to(problem.dtype).at(problem.params))
        # In float64: 1e-15 is none of the numbers of smaller floats that are near their squares.
        found = {
            name: ((f + 1e-15) / (there[name] + 1e-15) >= self.threshold).to(problem.dtype)
            for name, f in here.items()
        }
        return found if self.shuffled is None else {k: shuffled(live, self.shuffled, k) for k, live in found.items()}

    def _fisher(self, problem: Problem) -> dict[str, Tensor]:
        each = problem.per_example(lambda example: example.backprop())
        size = self.size or problem.batch_size
        return {
            name: torch.stack([part.mean(0) for part in g.double().split(size)]).square().mean(0)
            for name, g in each.items()
        }
