"""Black boxes: make an estimator of a function that draws its own noise from a generator."""

import contextlib
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.overrides import TorchFunctionMode

from fgvar.estimators.protocol import Estimate, GradientEstimator, require_directions
from fgvar.estimators.random_streams import Stream
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.measurement import draws
from fgvar.measurement.protocol_checks import gradient_in
from fgvar.problem import Problem

Gradient = Callable[[Problem], Mapping[str, Tensor]]
Function = Callable[[Problem, torch.Generator], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Seed:
    """A seed below 2⁶³: as many different generators as draws, up to 2³² of one seed on the CPU."""

    dtype: ClassVar[torch.dtype] = torch.int64

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.full(tuple(shape), stream.integer(), dtype=dtype, device=device)


@dataclass(frozen=True)
class BlackBox:
    """A `GradientEstimator` of a function that draws from a generator (see `from_function`)."""

    function: Function
    objective: Gradient
    directions: int | None = None
    antithetic: bool = False
    step: float | None = None
    variance: Gradient | None = None
    opaque: ClassVar[bool] = True

    def __repr__(self) -> str:
        claims = {"directions": self.directions, "antithetic": self.antithetic or None, "step": self.step}
        shown = [f"{name}={value!r}" for name, value in claims.items() if value is not None]
        return f"from_function({', '.join([_name(self.function), *shown])})"

    def randomness(self, problem: Problem) -> Randomness:  # noqa: ARG002
        return Randomness({"seed": Leaf((), Seed())})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        generator = torch.Generator(problem.device).manual_seed(int(noise["seed"]))
        found: Any = self.function(problem, generator)  # of any type: the checks say what is wrong with it
        return Estimate(found)

    def estimates(self, problem: Problem, seeds: Tensor) -> dict[str, Tensor]:
        """The estimates of several seeds, stacked: by one vmap where that gives what plain calls give."""
        if len(seeds) == 1:
            return self._plain(problem, seeds)
        ends = seeds[[0, -1]]
        plain = self._plain(problem, ends)
        with contextlib.suppress(Exception):  # of vmap; what the function itself raises, a plain call raises, too
            # Numbers that do not come from the generator would be the same for all that are stacked.
            if _agree(self._stacked(problem, ends), plain):
                return self._stacked(problem, seeds)
        return self._plain(problem, seeds)

    def _plain(self, problem: Problem, seeds: Tensor) -> dict[str, Tensor]:
        found = [
            {name: g.clone() for name, g in gradient_in(self.estimate(problem, {"seed": seed})).items()}
            for seed in seeds  # copies, as functions may return one buffer at every call
        ]
        return {name: torch.stack([one[name] for one in found]) for name in found[0]}

    def _stacked(self, problem: Problem, seeds: Tensor) -> dict[str, Tensor]:
        generators = [torch.Generator(problem.device).manual_seed(int(seed)) for seed in seeds]
        shared = torch.Generator(problem.device)
        before = shared.get_state()

        def one(index: Tensor) -> dict[str, Tensor]:
            with _EachItsOwn(shared, generators, index):
                found: Any = self.function(problem, shared)
            return gradient_in(Estimate(found))

        stacked: dict[str, Tensor] = vmap(one, randomness="same")(torch.arange(len(seeds), device=problem.device))
        if not torch.equal(shared.get_state(), before):
            raise RuntimeError("numbers were drawn from the generator that stands for those of all draws")
        return stacked

    def idle(self, problem: Problem) -> bool:
        """Does it draw nothing from its generator, so that it has one estimate alone?"""
        generator = torch.Generator(problem.device).manual_seed(0)
        before = generator.get_state()
        self.function(problem.clone(), generator)
        return torch.equal(before, generator.get_state())

    def target(self, problem: Problem) -> dict[str, Tensor]:
        found: Any = self.objective(problem)
        return found


def _name(function: Any) -> str:
    """A function's name; of a partial its function's, and of what can be called its class's."""
    if isinstance(function, functools.partial):
        return _name(function.func)
    return str(getattr(function, "__name__", type(function).__name__))


def _require_callable(what: str, given: object, count: int, words: str) -> None:
    """Raise a TypeError where this cannot be called with so many arguments."""
    if not callable(given):
        raise TypeError(f"{what} is {type(given).__name__}, expected {words}")
    try:
        takes = inspect.signature(given)
    except ValueError:  # a builtin does not tell
        return
    try:
        takes.bind(*[None] * count)
    except TypeError as error:
        name = _name(given)
        raise TypeError(f"{what} {name}{takes} cannot be called so ({error}), expected {words}") from None


class _EachItsOwn(TorchFunctionMode):
    """Within a vmap over draws, what is asked of the shared generator is answered by each draw's own."""

    def __init__(self, shared: torch.Generator, generators: Sequence[torch.Generator], index: Tensor) -> None:
        super().__init__()
        self.shared, self.generators, self.index = shared, generators, index

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("generator") is not self.shared:
            return func(*args, **kwargs)
        return torch.stack([func(*args, **kwargs | {"generator": own}) for own in self.generators])[self.index]


def _agree(found: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> bool:
    """Are draws that were stacked the plain ones, as far as rounding over a small step lets them be?"""
    share = {name: 100 * torch.finfo(value.dtype).eps ** 0.5 for name, value in plain.items()}
    return found.keys() == plain.keys() and all(
        float((found[name] - value).abs().max()) <= share[name] * float(value.abs().max())
        for name, value in plain.items()
    )


def estimates(estimator: GradientEstimator, problem: Problem, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """As `fgvar.measurement.draws.estimates`, black boxes stacked, too."""
    if isinstance(estimator, BlackBox):
        return estimator.estimates(problem, noise["seed"])
    return draws.estimates(estimator, problem, noise)


def from_function(
    function: Function,
    *,
    target: Gradient | None = None,
    directions: int | None = None,
    antithetic: bool = False,
    step: float | None = None,
    variance: Gradient | None = None,
) -> BlackBox:
    """An estimator of a function that draws its own noise, so that it can be checked and measured.

    The function becomes deterministic given a seed, which is all the randomness it declares: checks that need
    declared noise are not applicable, bias and scale are drawn, and it is measured by plain calls (``chunk=1``).
    Checks draw many at once, by one vmap in which every draw is answered by a generator of its own, where the first
    and the last of them are what plain calls give. What else it declares is tested by drawing.

    Args:
        function: ``(problem, generator) -> dict`` like ``problem.params``; draws from the generator only.
        target: problem → what it should be unbiased for; default ``problem.backprop()``.
        directions: K, where it is the mean over K independent directions of all weights, by noise of independent
            numbers (signs, normal, or between): (d − 1)/K ≤ tr Cov(ĝ)/‖target‖² ≤ (d + 1)/K for d weights.
        antithetic: every direction u comes with −u, so that a loss that is even about the weights has the estimate 0.
        step: of its finite differences, by which rounding is divided: what is allowed for it grows as much.
        variance: problem → the variance of every weight given the batch, a dict like ``problem.params``.

    Raises:
        TypeError: a function, target or variance that cannot be called, or takes other arguments.
        ValueError: fewer than 1 direction, or a step that is not positive.

    Example:
        >>> def spsa(problem, generator):
        ...     v = {k: torch.randn(p.shape, generator=generator, dtype=p.dtype) for k, p in problem.params.items()}
        ...     along = torch.func.jvp(problem.loss, (problem.params,), (v,))[1]
        ...     return {k: along * u for k, u in v.items()}
        >>> from_function(spsa, directions=1)
        from_function(spsa, directions=1)
    """
    _require_callable("function", function, 2, "(problem, generator) -> dict of tensors")
    for what, given in (("target", target), ("variance", variance)):
        if given is not None:
            _require_callable(what, given, 1, "a function problem -> dict like problem.params")
    if directions is not None:
        require_directions(directions)
    if step is not None and not (isinstance(step, Real) and 0 < step < math.inf):
        raise ValueError(f"step is {step!r}, expected a positive number")
    return BlackBox(function, Problem.backprop if target is None else target, directions, antithetic, step, variance)
