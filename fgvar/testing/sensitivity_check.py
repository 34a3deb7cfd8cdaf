"""Sensitivity check: replaces an example by far ones, and holds what that moves to the most that is declared."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from fgvar.measurement.arguments import BUDGET
from fgvar.problem import Problem
from fgvar.testing.exact_moments import resolving
from fgvar.testing.polynomials import Gradients
from fgvar.testing.under_test import EstimatorUnderTest, Failure, NotApplicable

FACTORS = (1.0, 30.0, 1e3)  # by which an example's inputs are multiplied: far ones, and in several directions:
PATTERNS = 4  # of signs
DRAWS = 64  # of the other noise: also of rare ones, as of a sample of one example


def sensitivity(tested: EstimatorUnderTest) -> str:
    """One example in place of another moves the estimate, but for what noise adds to it, by no more than declared."""
    declared = getattr(tested.estimator, "sensitivity", None)
    allowed = None if declared is None else tested.ask("sensitivity", lambda: declared(tested.problem))
    if allowed is None:
        raise NotApplicable("declares no sensitivity")
    noise, worst, where = _noise(tested), 0.0, 0
    factors = tested.problem.importance
    heaviest = 0 if factors is None else int(factors.abs().argmax())
    for n in dict.fromkeys((0, tested.problem.batch_size - 1, heaviest)):
        found = [_flat(tested.on(problem), noise) for problem in (tested.problem, *_replaced(tested.problem, n))]
        several = torch.stack([one for one in found if bool(one.isfinite().all())], dim=1)
        moved = float(torch.cdist(several, several).max())  # any two of them differ in one example alone
        worst, where = max((worst, where), (moved, n))
    if not worst <= allowed * (1 + resolving(tested)):
        raise Failure(f"another example {where} moves the estimate by {worst:.3g}, declared is at most {allowed:.3g}")
    return f"another example moves it by {worst:.3g} at most, of an allowed {allowed:.3g}"


def _noise(tested: EstimatorUnderTest) -> Gradients:
    """Draws of all noise, of which what transforms add is 0."""
    numbers = sum(p.numel() for p in tested.problem.params.values())
    drawn = tested.noise(range(max(1, min(DRAWS, BUDGET // (32 * 2 * PATTERNS * len(FACTORS) * numbers)))))
    added = {name for name in drawn if name.partition(".")[0] in ("each", "then")}
    return {n: torch.zeros_like(u) if n in added and u.is_floating_point() else u for n, u in drawn.items()}


def _flat(tested: EstimatorUnderTest, noise: Gradients) -> Tensor:
    """Estimates of all parameters together: [draws, numbers]."""
    found = tested.estimates(noise) if noise else {name: g[None] for name, g in tested.estimate({}).items()}
    return torch.cat([g.double()[:, None].flatten(1) for g in found.values()], dim=1)


def _replaced(problem: Problem, n: int) -> Iterator[Problem]:
    """Problems with other inputs of example n, with its own target and with the next one's."""
    other = (n + 1) % problem.batch_size
    for factor, pattern in itertools.product(FACTORS, range(PATTERNS)):
        generator = torch.Generator().manual_seed(pattern)

        def far(leaf: Tensor, factor: float = factor, generator: torch.Generator = generator) -> Tensor:
            if not leaf.is_floating_point():  # a token, of which none is far
                return leaf[other]
            signs = torch.randint(0, 2, leaf.shape[1:], generator=generator).to(leaf) * 2 - 1
            return leaf[other] * (factor * signs)

        inputs = tree_map(lambda leaf, far=far: _with_row(leaf, n, far(leaf)), problem.inputs)
        for target in dict.fromkeys((n, other)):
            targets = tree_map(lambda leaf, at=target: _with_row(leaf, n, leaf[at]), problem.targets)
            # Factors and taps stay those of the places.
            changed = problem.at(batch=(inputs, targets))
            yield changed._with(importance=problem.importance, taps=problem.taps)


def _with_row(leaf: Tensor, n: int, row: Tensor) -> Tensor:
    changed = leaf.clone()
    changed[n] = row
    return changed
