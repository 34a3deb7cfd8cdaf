"""Sampled checks: hold what is declared, and cannot be enumerated, against drawn estimates."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fgvar.measurement.arguments import BUDGET
from fgvar.testing.comparisons import telling
from fgvar.testing.exact_moments import resolving
from fgvar.testing.mean_tests import MeanTest, mean_test
from fgvar.testing.polynomials import Gradients, largest
from fgvar.testing.statistical import PILOT, PILOT_SEED, enough
from fgvar.testing.under_test import EstimatorUnderTest, Failure, NotApplicable, Undecided
from fgvar.testing.verdict import MAX_DETECTABLE, advice

VARIANCE_DRAWS = 4096


def drawn_directions(tested: EstimatorUnderTest, count: int) -> str:
    """Its variance lies between those of the mean over K directions of signs, and of normal numbers."""
    d = sum(p.numel() for p in tested.problem.params.values())
    square = sum(float(value.double().square().sum()) for value in tested.target.values())
    if square == 0:
        raise NotApplicable("the target is 0, and so is the variance of any number of directions")
    total = traces(tested, list(tested.target)).sum(1, keepdim=True)
    relative, expected = float(total.mean()) / square, f"{(d - 1) / count:.4g} to {(d + 1) / count:.4g}"
    bounds = [bound / count * square for bound in (d - 1, d + 1)]
    verdicts = [of_traces(total, torch.tensor([bound]), tested) for bound in bounds]
    for verdict, side in zip(verdicts, (-1, 1), strict=True):  # a mean that is off is so, whatever the power
        if not verdict.passed and float(verdict.z[0]) * side > 0:
            raise Failure(
                f"its relative variance is {relative:.4g}, that of {count} independent directions of {d} weights is "
                f"{expected}: {verdict}"
            )
    for verdict, bound in zip(verdicts, bounds, strict=True):
        if float(verdict.detectable[0]) >= MAX_DETECTABLE * bound > 0:
            enough = advice(float(verdict.enough(bound)[0]))
            raise Undecided(f"would not have caught a wrong number of directions; {enough}")
    return f"relative variance {relative:.4g}, of {count} directions {expected}; drawn"


def drawn_pair(tested: EstimatorUnderTest) -> str:
    """Of a loss that is even about the weights, where outputs are linear in them, every pair's estimate is 0."""
    problem = tested.problem
    still = problem.run(problem.params)[0]
    ahead, behind = ({k: p + s * p.cos() for k, p in problem.params.items()} for s in (1, -1))
    linear = isinstance(still, Tensor)
    if linear:
        bent = problem.run(ahead)[0] + problem.run(behind)[0] - 2 * still
        linear = float(bent.abs().max()) <= 1e-9 * float(still.abs().max())
    if not linear:
        raise NotApplicable("needs a network that is linear in its weights, as the problem 'linear' has")
    other = problem.clone()
    other.loss_function = lambda outputs, _: (outputs - still).square().flatten(1).sum(1)
    found = tested.on(other).estimate(tested.one(telling(tested)), may_refuse=True)
    if not found:
        raise NotApplicable("it takes other examples than the batch's, for which there is no even loss to try")
    worst = largest(found)
    if not worst <= resolving(tested):
        raise Failure(
            f"a loss that is even about the weights has an estimate of {worst:.2g}: no direction meets its −u"
        )
    return "a loss that is even about the weights has the estimate 0"


def traces(tested: EstimatorUnderTest, names: list[str]) -> Tensor:
    """‖ĝ − mean‖² of every tensor, unbiased: [draws, tensors] on the CPU, drawn once for all checks."""
    if "traces" not in tested.memo:
        draws = VARIANCE_DRAWS if tested.draws is None else tested.draws
        if draws == "enough":
            pilot = torch.stack(list(_squares(tested, PILOT, PILOT_SEED).values()), dim=1)
            verdict = of_traces(pilot, pilot.mean(0), tested)
            draws = enough(float(verdict.enough(MAX_DETECTABLE * pilot.mean(0).clamp_min(1e-300)).max()))
        tested.memo["traces"] = _squares(tested, draws, 2)
    found: dict[str, Tensor] = tested.memo["traces"]
    return torch.stack([found[name] for name in names], dim=1)


def _squares(tested: EstimatorUnderTest, draws: int, seed: int) -> dict[str, Tensor]:
    def drawn() -> Iterable[Gradients]:
        return tested.drawn(range(draws), seed)

    # About the mean of all draws, which is known after the last: what is too much to be held is made twice.
    fits = 2 * draws * sum(8 * p.numel() for p in tested.problem.params.values()) <= BUDGET
    blocks = list(drawn()) if fits else None
    mean: Gradients = {}
    for one in blocks or drawn():
        for name, g in one.items():
            mean[name] = mean.get(name, 0) + g.double().sum(0) / draws
    found: dict[str, list[Tensor]] = {name: [] for name in mean}
    for one in blocks or drawn():
        for name, g in one.items():
            found[name].append((g.double() - mean[name]).square()[:, None].flatten(1).sum(1).cpu())
    return {name: torch.cat(squares) * draws / (draws - 1) for name, squares in found.items()}


def of_traces(squares: Tensor, expected: Tensor, tested: EstimatorUnderTest) -> MeanTest:
    """Tests that variances are the expected ones."""
    rounding = 1e3 * torch.finfo(tested.problem.dtype).eps * tested.size**2
    return mean_test(squares, expected.cpu(), level=tested.level, rounding=rounding)
