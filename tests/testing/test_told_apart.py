"""What is told apart from a fault: a loss of its own, rounding at random, added noise, the order of a batch."""

import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import fgvar
from fgvar.testing import CHECKS, check_estimator, default_problems, from_function
from fgvar.testing.mutants.published_gradients import Forward, normal, times

PROBLEMS = default_problems()
LINEAR = PROBLEMS["linear"]


class Simulator(Forward):
    """Ignores the problem's loss, for one of its own that is equal to it."""

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        def loss(params: Any) -> Tensor:
            return torch.nn.functional.cross_entropy(problem.run(params)[0], problem.targets)

        return fgvar.Estimate(times(torch.func.jvp(loss, (problem.params,), (dict(noise),))[1], noise))


def test_a_loss_of_its_own_is_told_apart() -> None:
    report = check_estimator(Simulator(fgvar.Gaussian()), LINEAR)
    assert report.passed, report
    own = {row.check for row in report.rows if "it has a loss of its own, not problem.losses" in row.note}
    assert own == {"non_finite", "linear_in_loss", "zero_gradient"}


def test_the_sign_of_a_gradient_is_no_loss_of_its_own() -> None:
    """Equal under 1000·L, but not under −L."""

    def sign(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        return {k: g.sign() + torch.rand((), generator=generator) - 0.5 for k, g in problem.backprop().items()}

    report = check_estimator(from_function(sign), LINEAR, draws=2048)
    assert {"linear_in_loss", "unbiased"} <= set(report.failures), report


def test_what_is_not_linear_in_a_draw_is_judged_by_its_mean() -> None:
    """Rounding at random fails draw by draw, but not in the mean."""

    def rounded(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        found = problem.backprop()
        return {k: (4 * g + torch.rand(g.shape, generator=generator)).floor() / 4 for k, g in found.items()}

    row = CHECKS["linear_in_loss"](from_function(rounded), LINEAR, draws=2048)[0]
    assert row.outcome == "passed"
    assert re.match(r"ĝ of 1000·L is off by .* of its size in '\w+', but not in the mean \(drawn", row.note)


def test_what_is_added_whatever_the_loss_is_no_part_of_it() -> None:
    def private(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        u = normal(problem, generator)
        return {k: g + 0.1 * u[k] for k, g in problem.backprop().items()}

    for check, note in (("linear_in_loss", "1000·L and L + L² to 1e-09"), ("non_finite", "NaN loss shows")):
        assert CHECKS[check](from_function(private), LINEAR, draws=2048)[0].note == note


def test_a_small_undeclared_step_is_named_as_what_it_may_be() -> None:
    def spsa(problem: fgvar.Problem, generator: torch.Generator, step: float = 1e-8) -> dict[str, Tensor]:
        u = normal(problem, generator)
        ahead, behind = (problem.loss({k: p + s * u[k] for k, p in problem.params.items()}) for s in (step, -step))
        return times((ahead - behind) / (2 * step), u)

    note = CHECKS["linear_in_loss"](from_function(spsa), LINEAR, draws=2048)[0].note
    assert re.search(r"as rounding over a step of \de-0\d is: declare step=", note), note
    assert "to 1e-09" not in CHECKS["linear_in_loss"](from_function(spsa, step=1e-8), LINEAR)[0].note


def test_an_order_that_changes_a_draw_but_not_the_mean_is_right() -> None:
    @dataclass(frozen=True)
    class OneExample:
        """The example that an index names, whichever stands there."""

        index: Any = None

        def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
            return fgvar.Randomness({"u": fgvar.Leaf((1,), fgvar.Rademacher())})

        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            at = (noise["u"] > 0).long() if self.index is None else torch.zeros(1, dtype=torch.int64)
            return fgvar.Estimate(problem.rows(at).backprop())

        def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
            return problem.backprop()

    right = CHECKS["batch_order"](OneExample(), LINEAR)[0]
    assert re.search(
        r"changes by .* with the order of the batch, but not in the mean \(exact: all 2 values", right.note
    )
    with pytest.raises(AssertionError, match="with the order of the batch, and its mean is wrong: E ĝ of"):
        CHECKS["batch_order"](OneExample(index=0), LINEAR)


def test_a_target_that_changes_with_the_order_is_no_target() -> None:
    class First(fgvar.Estimator):
        def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
            return problem.example(0).backprop()

    with pytest.raises(
        AssertionError, match=r"the target of '\w+' changes by .* of its size with the order of the batch"
    ):
        CHECKS["batch_order"](First(), LINEAR)


@pytest.mark.parametrize("error", [RuntimeError, IndexError, AssertionError, KeyError])
def test_nan_is_refused_by_any_exception(error: type[Exception]) -> None:
    def refusing(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        if not bool(problem.loss().isfinite()):
            raise error("no")
        u = normal(problem, generator)
        return times(torch.func.jvp(problem.loss, (problem.params,), (u,))[1], u)

    assert CHECKS["non_finite"](from_function(refusing), LINEAR)[0].note == "NaN loss is refused"


def test_precision_is_not_applicable_where_float32_cannot_resolve_the_step() -> None:
    tiny = fgvar.scheme("MeZO", oracle=fgvar.oracles.CentralDifference(1e-6))
    assert "float32 cannot resolve its step" in CHECKS["precision"](tiny, LINEAR)[0].note
    single = CHECKS["precision"](fgvar.scheme("FG-W"), LINEAR.to(torch.float32))[0]
    assert (single.outcome, single.note) == ("not applicable", "needs a problem in float64")


def test_a_function_that_is_wrong_in_float32_alone_is_caught_by_drawing() -> None:
    def wrong(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:
        u = normal(problem, generator)
        c = torch.func.jvp(problem.loss, (problem.params,), (u,))[1]
        return times(c * (3 if problem.dtype == torch.float32 else 1), u)

    with pytest.raises(AssertionError, match="precision, problem: its slope in float32: the slope of"):
        CHECKS["precision"](from_function(wrong), LINEAR, draws=2048)


@pytest.mark.parametrize("step", [3e-5, 1e-4])
def test_chunking_knows_the_step(step: float) -> None:
    for problem in (LINEAR, LINEAR.to(torch.float32)):
        CHECKS["chunking"](fgvar.scheme("MeZO", oracle=fgvar.oracles.CentralDifference(step)), problem)


def test_leaves_of_one_direction_may_have_an_axis_for_it() -> None:
    @dataclass(frozen=True)
    class Several:
        directions: int = 4
        again: bool = False

        def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
            shapes = {k: (self.directions, *p.shape) for k, p in problem.params.items()}
            return fgvar.Randomness({k: fgvar.Leaf(shape, fgvar.Gaussian()) for k, shape in shapes.items()})

        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            parts = []
            for i in range(self.directions):
                v = {k: u[0 if self.again else i] for k, u in noise.items()}
                parts.append(times(torch.func.jvp(problem.loss, (problem.params,), (v,))[1], v))
            return fgvar.Estimate({k: sum(part[k] for part in parts) / len(parts) for k in problem.params})

        def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
            return problem.backprop()

    assert "the mean of 4 directions" in CHECKS["directions"](Several(), PROBLEMS["mixer"])[0].note
    with pytest.raises(AssertionError, match="2 directions is not the mean of those of each direction alone"):
        CHECKS["directions"](Several(again=True), PROBLEMS["mixer"])
