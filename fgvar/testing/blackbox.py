"""Black boxes: estimators that draw their own noise, given as a function of a generator."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fgvar.estimators.estimator import Estimate
from fgvar.estimators.noise import Leaf, Randomness, Stream
from fgvar.problem import Problem

Function = Callable[[Problem, torch.Generator], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Seed:
    """A uniformly drawn seed below 2^53, held exactly in float64."""

    def fill(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:  # noqa: ARG002
        signs = stream.signs((*shape, 53), torch.float64, torch.device("cpu"))
        return ((signs > 0) * 2.0 ** torch.arange(53, dtype=torch.float64)).sum(-1)


@dataclass(frozen=True)
class BlackBox:
    """A `GradientEstimator` of a function that draws from a generator (see `from_function`)."""

    function: Function
    objective: Callable[[Problem], Mapping[str, Tensor]]
    opaque: ClassVar[bool] = True

    def __repr__(self) -> str:
        return f"from_function({getattr(self.function, '__name__', 'function')})"

    def randomness(self, problem: Problem) -> Randomness:  # noqa: ARG002
        return Randomness({"seed": Leaf((), Seed())})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        generator = torch.Generator(problem.device).manual_seed(int(noise["seed"]))
        found: Any = self.function(problem, generator)  # of any type: the checks say what is wrong with it
        return Estimate(found)

    def target(self, problem: Problem) -> dict[str, Tensor]:
        found: Any = self.objective(problem)
        return found


def from_function(function: Function, *, target: Callable[[Problem], Mapping[str, Tensor]] | None = None) -> BlackBox:
    """An estimator of a function that draws its own noise, so that it can be checked and measured.

    The function becomes deterministic given a seed, which is all the randomness it declares: checks that need
    declared noise are not applicable, bias and scale are drawn, and it runs by plain calls (``chunk=1``).

    Args:
        function: ``(problem, generator) -> dict`` like ``problem.params``; draws from the generator only.
        target: problem → what it should be unbiased for; default ``problem.backprop()``.

    Example:
        >>> def spsa(problem, generator):
        ...     v = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in problem.params.items()}
        ...     along = torch.func.jvp(problem.loss, (problem.params,), (v,))[1]
        ...     return {k: along * u for k, u in v.items()}
        >>> from_function(spsa).opaque
        True
    """
    if not callable(function):
        raise TypeError(f"function is {type(function).__name__}, expected (problem, generator) -> dict of tensors")
    return BlackBox(function, Problem.backprop if target is None else target)
