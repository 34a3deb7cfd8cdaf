"""Comparisons: change problems, find the axes of the batch, and measure differences, for the checks."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from fgvar.loss_functions import changed
from fgvar.measurement.mutation_guard import same_values
from fgvar.problem import Problem
from fgvar.testing.polynomials import largest
from fgvar.testing.under_test import EstimatorUnderTest, Failure, NotApplicable, Undecided

OWN_LOSS = "its estimates are equal to the bit under 1000·L and −L: it has a loss of its own, not problem.losses"
LOOKED_AT = 64  # draws: of samples that are empty four times in five, all are in one case of a million


def require_declared_noise(tested: EstimatorUnderTest, *, empty: bool = False) -> None:
    """Not applicable to a function that draws its own noise, nor (unless ``empty``) to what needs none."""
    if tested.opaque:
        raise NotApplicable("needs declared noise; this function draws its own from a seed")
    if not empty and tested.randomness.size == 0:
        raise NotApplicable("needs no noise")


def single(problem: Problem) -> Problem:
    """The problem in float32."""
    return problem.clone().to(torch.float32)


def with_loss(problem: Problem, change: Callable[[Tensor], Tensor]) -> Problem:
    """The problem with another function of its per-example loss."""
    other = problem.clone()
    other.loss_function = changed(problem.loss_function, change)
    return other


def without_loss(tested: EstimatorUnderTest) -> EstimatorUnderTest:
    """Of a loss that is 0 everywhere: what it leaves is there whatever the loss, such as noise that is added."""
    return tested.on(with_loss(tested.problem, lambda loss: 0 * loss))


def own_loss(tested: EstimatorUnderTest) -> bool:
    """Does it not use the problem's loss, but one of its own: a bound, a simulator?"""
    if "own_loss" not in tested.memo:
        large = tested.on(with_loss(tested.problem, lambda loss: 1000 * loss))
        turned = tested.on(with_loss(tested.problem, lambda loss: -loss))
        any_seen = False
        for draw in range(LOOKED_AT if tested.randomness.size else 1):
            noise = tested.one(tested.noise([draw]))
            plain = tested.estimate(noise)
            # A loss that is negative may be refused, as where it is a score of what is drawn.
            others = [one.estimate(noise, finite=False, may_refuse=True) or {} for one in (large, turned)]
            any_seen = any_seen or any(bool(value.any()) for value in plain.values())
            if any(
                not other or not torch.equal(value, other[name]) for other in others for name, value in plain.items()
            ):
                any_seen = False
                break
        tested.memo["own_loss"] = any_seen
    return bool(tested.memo["own_loss"])


def telling(tested: EstimatorUnderTest, count: int = 1, *, needed: bool = True) -> dict[str, Tensor]:
    """Noise of so many draws, stacked, whose estimates the loss moves; if not ``needed``, of the first, else."""
    if not tested.randomness.size:
        return {}
    try:
        chosen = telling_draws(tested, count)
    except Undecided:
        if needed:
            raise
        chosen = [*range(count)]
    return tested.noise(chosen)


def telling_draws(tested: EstimatorUnderTest, count: int) -> list[int]:
    """Draws whose estimates the loss moves: of others, as where a sample is empty, no comparison tells anything.

    The first that move every tensor of the target, or else the best of `LOOKED_AT`; fewer where fewer move any.

    Raises:
        Undecided: none does.
    """

    def look() -> list[int]:
        flat = None if own_loss(tested) else without_loss(tested)
        needed, moved = sum(bool(value.any()) for value in tested.target.values()), list[int]()
        while len(moved) < LOOKED_AT and sum(tensors >= needed for tensors in moved) < count:
            noise = tested.one(tested.noise([len(moved)]))
            still = flat.estimate(noise, finite=False, may_refuse=True) if flat else {}
            found = tested.estimate(noise)
            moved.append(sum(not same_values(value, still.get(n, 0 * value)) for n, value in found.items()))
        best = sorted(range(len(moved)), key=lambda draw: -moved[draw])[:count]
        if not moved[best[0]]:
            cure = "take a larger sample" if needed else "its target is 0 here: move the parameters"
            raise Undecided(f"the loss moves none of {LOOKED_AT} estimates; {cure}")
        return sorted(draw for draw in best if moved[draw])

    return tested.once(f"{count} telling draws", look)


def difference(
    tested: EstimatorUnderTest, expected: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> tuple[float, str]:
    """The largest difference, relative to the largest entry of the expected one, and where it is."""
    size = max(tested.size, largest(expected))
    gaps = {name: gap(value, found[name]) / size for name, value in expected.items()}
    worst = max(gaps, key=lambda name: float("inf") if np.isnan(gaps[name]) else gaps[name])
    return (float("inf") if np.isnan(gaps[worst]) else gaps[worst]), worst


def batch_axes(tested: EstimatorUnderTest) -> dict[str, int | None]:
    """The axis of each leaf that follows the batch, found by one example more."""
    more = tested.on(one_more(tested.problem))
    axes: dict[str, int | None] = {}
    for name, leaf in tested.randomness.leaves.items():
        other = more.randomness.leaves[name].shape if name in more.randomness.leaves else ()
        if len(other) != len(leaf.shape):
            raise Failure(f"leaf {name!r} has shape {leaf.shape} for this batch and {other} for one example more")
        axes[name] = next((axis for axis, size in enumerate(leaf.shape) if other[axis] != size), None)
    return axes


def one_more(problem: Problem) -> Problem:
    """The problem whose first example comes a second time, last."""
    n = problem.batch_size
    return problem.rows(torch.arange(n + 1) % n)


def reordered(tested: EstimatorUnderTest, noise: Mapping[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    """The noise of one draw for the examples in another order: each keeps its own.

    Numbers along an axis that follows the batch move with it. Integers of a law whose ``population`` grows with the
    batch number examples: each becomes the place where its example is now.
    """
    axes, places = batch_axes(tested), order.argsort()
    grown = tested.on(one_more(tested.problem)).randomness.leaves
    found = {}
    for name, u in noise.items():
        axis, law = axes[name], tested.randomness.leaves[name].noise
        moved = u if axis is None else u.index_select(axis, order.to(u.device))
        population = getattr(law, "population", None)
        numbers_examples = population is not None and getattr(grown[name].noise, "population", None) != population
        found[name] = places.to(u.device)[moved] if numbers_examples else moved
    return found


def gap(one: Tensor, two: Tensor) -> float:
    """The largest difference of two tensors."""
    return float((one.double() - two.double()).abs().max()) if one.numel() else 0.0
