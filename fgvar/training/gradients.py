"""Gradients of a run: `gradient_of` makes an estimate a function of tensors, to be compiled or run under autocast.

`NonFiniteMonitor` watches it for NaN and infinity without waiting for the device.
"""

import types
import warnings
from collections.abc import Callable, Mapping
from typing import cast

import torch
from torch import Tensor

from fgvar.data.split import Batch
from fgvar.errors import NonFiniteError
from fgvar.estimators.estimator import Estimator
from fgvar.estimators.factors import LazyTensors
from fgvar.estimators.protocol import GradientEstimator, is_builtin
from fgvar.estimators.randomness import Randomness
from fgvar.measurement.arguments import BUDGET
from fgvar.measurement.budget import draws_anew
from fgvar.problem import Problem
from fgvar.training.distributed import world

GradientAndLoss = tuple[Mapping[str, Tensor], Tensor | None]  # the batch's loss, where the estimator tells it
Gradient = Callable[[dict[str, Tensor], Batch, Mapping[str, Tensor]], GradientAndLoss]


def gradient_of(problem: Problem, estimator: GradientEstimator, autocast: bool, compile: bool) -> Gradient:
    """The estimate as a function of tensors alone: parameters, batch and noise. Of lazy noise it is lazy."""
    copies = not is_builtin(estimator)

    def gradient(params: dict[str, Tensor], batch: Batch, noise: Mapping[str, Tensor]) -> GradientAndLoss:
        batch_problem = problem.at(params, batch)
        if isinstance(noise, LazyTensors):
            factors = cast(Estimator, estimator).factors(batch_problem, noise)
            return LazyTensors(params, lambda name: factors.gradient(name, noise)), factors.loss
        # What moves tensors in place, and back up to rounding, would train by its rounding; buffers would stay moved.
        estimate = estimator.estimate(batch_problem.clone() if copies else batch_problem, noise)
        return estimate.gradient, estimate.loss

    function: Gradient = compiled(gradient, repr(estimator)) if compile else gradient
    return torch.autocast(problem.device.type, dtype=torch.bfloat16)(function) if autocast else function


def by_tensor(estimator: GradientEstimator, randomness: Randomness, dtype: torch.dtype, compile: bool) -> bool:
    """Does a step make its estimate tensor by tensor, of noise that it draws again? Only where noise is large.

    A compiled function is of all tensors at once, and so is the one message of several processes. Estimates of u and
    −u are added up before they meet their noise in factors, and would round in another way.
    """
    factored = isinstance(estimator, Estimator) and estimator.factored and not estimator.antithetic
    return factored and not compile and world()[1] == 1 and draws_anew(randomness, dtype, BUDGET)


def compiled(function: Gradient, what: str) -> Gradient:
    """Compiled for shapes that stay, with a code object of its own; what cannot be runs as it is, with a warning.

    Dynamo keeps its results by code object: of many runs in one process, later ones would be compiled for any shape
    at all, and those after the eighth not at all. All that a run is compiled for stays as it is, but for its tensors:
    the guards of everything else, which take a sixth of a small step, are left out.
    """
    # Of what is no single graph Dynamo would compile functions that all runs share: without guards the next estimator
    # would be given the numbers of this one. So it is one graph, or none.
    filtered = getattr(torch.compiler, "keep_tensor_guards_unsafe", None)  # since torch 2.8
    options = {"guard_filter_fn": filtered} if filtered else None
    plain = cast(types.FunctionType, function)
    own = types.FunctionType(plain.__code__.replace(), plain.__globals__, closure=plain.__closure__)
    chosen: Gradient = torch.compile(own, dynamic=False, fullgraph=True, options=options)
    tried = False

    def gradient(params: dict[str, Tensor], batch: Batch, noise: Mapping[str, Tensor]) -> GradientAndLoss:
        nonlocal chosen, tried
        if tried:
            return chosen(params, batch, noise)
        tried = True
        try:
            return chosen(params, batch, noise)
        except torch._dynamo.exc.TorchDynamoException as error:
            chosen = function
            reason = " ".join(str(error).splitlines()[:2])  # the first may say no more than which backend raised
            warnings.warn(f"{what} cannot be compiled ({reason}), and runs as it is: slower", stacklevel=2)
            return chosen(params, batch, noise)

    return gradient


class NonFiniteMonitor:
    """Remembers on the device which parameter's gradient was first non-finite, and when."""

    def __init__(self, params: Mapping[str, Tensor], device: torch.device) -> None:
        self.names = tuple(params)
        self.first = torch.full((len(params),), -1, dtype=torch.int64, device=device)
        # Made once: a small tensor that lived on in the place of a large one would keep the next from it.
        self.extremes = {name: (value.new_zeros(()), value.new_zeros(())) for name, value in params.items()}

    def see(self, name: str, gradient: Tensor) -> None:
        # The extremes are NaN where anything is: one pass, where isfinite().all() makes three.
        torch.aminmax(gradient, out=self.extremes[name])

    def update(self, step: int) -> None:
        """After all gradients of a step have been seen."""
        if not self.names:
            return
        lows, highs = zip(*self.extremes.values(), strict=True)
        finite = torch.stack(lows).isfinite() & torch.stack(highs).isfinite()
        self.first = torch.where(finite | (self.first >= 0), self.first, step)

    def check(self) -> None:
        """Raise where it has seen something: the only moment that waits for the device."""
        if self.first.is_meta:
            return
        bad = {step: name for name, step in zip(self.names, self.first.tolist(), strict=True) if step >= 0}
        if bad:
            step = min(bad)
            raise NonFiniteError(
                f"the gradient of {bad[step]!r} held NaN or infinity at step {step}; lower the learning rate"
            )


def require_finite(params: Mapping[str, Tensor], step: int) -> None:
    """Raise where an update has overflowed: no gradient has seen that yet."""
    finite = torch.stack([value.isfinite().all() for value in params.values()])
    if not bool(finite.all()):
        name = next(name for name, fine in zip(params, finite.tolist(), strict=True) if not fine)
        raise NonFiniteError(f"{name!r} holds NaN or infinity after {step} updates; lower the learning rate")
