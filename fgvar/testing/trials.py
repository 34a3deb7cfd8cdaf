"""What the checks try an estimator on, and how they compare: changed problems, tolerances, differences."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from fgvar.problem import Problem
from fgvar.testing.problems import fresh
from fgvar.testing.subject import Failure, Subject, claim


def single(problem: Problem) -> Problem:
    """The problem in float32."""
    return fresh(problem).to(torch.float32)


def with_loss(problem: Problem, change: Callable[[Tensor], Tensor]) -> Problem:
    """The problem with another function of its per-example loss."""
    other, original = fresh(problem), problem.loss_function
    other.loss_function = lambda outputs, targets: change(original(outputs, targets))
    return other


def tolerance(subject: Subject) -> float:
    """What rounding allows, relative to the largest entry; a finite difference divides it by its step."""
    eps = torch.finfo(subject.problem.dtype).eps
    step = claim(subject.estimator, "step")
    return max(1e-9, 100 * eps**0.75) + (100 * eps / step if step else 0.0)


def difference(subject: Subject, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference, relative to the largest entry of the expected one, and where it is."""
    size = max(subject.size, *(float(value.abs().max()) for value in expected.values()))
    gaps = {name: gap(value, found[name]) / size for name, value in expected.items()}
    worst = max(gaps, key=lambda name: float("inf") if np.isnan(gaps[name]) else gaps[name])
    return (float("inf") if np.isnan(gaps[worst]) else gaps[worst]), worst


def batch_axes(subject: Subject) -> dict[str, int | None]:
    """The axis of each leaf that follows the batch, found by leaving out an example."""
    fewer = subject.on(subject.problem.at(batch=(subject.problem.inputs[:-1], subject.problem.targets[:-1])))
    axes: dict[str, int | None] = {}
    for name, leaf in subject.randomness.leaves.items():
        other = fewer.randomness.leaves[name].shape if name in fewer.randomness.leaves else ()
        if len(other) != len(leaf.shape):
            raise Failure(f"leaf {name!r} has shape {leaf.shape} for this batch and {other} for one example less")
        axes[name] = next((axis for axis, size in enumerate(leaf.shape) if other[axis] != size), None)
    return axes


def gap(one: Tensor, two: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((one.double() - two.double()).abs().max()) if one.numel() else 0.0
