"""Three outcomes: what could have failed passes, what could not is undecided."""

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

import fgvar
from fgvar.testing import (
    CHECKS,
    DRAWS,
    check_estimator,
    default_problems,
    from_function,
    parametrize_with_checks,
    unbiased,
)
from fgvar.testing.mutants.published_gradients import normal

pytest_plugins = ("pytester",)

PROBLEMS = default_problems()
LINEAR = PROBLEMS["linear"]


class Divided(fgvar.Estimator):
    """Weight perturbation divided by a normal number: no mean exists, whichever its sign."""

    sign = 1.0

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        found, u = super().estimate(problem, noise).gradient, next(iter(noise.values())).flatten()
        return fgvar.Estimate({k: self.sign * g / (u[0] + u[1] * u[2] / 3) for k, g in found.items()})


class Turned(Divided):
    sign = -1.0


@pytest.mark.parametrize("estimator", [Divided(), Turned()])
def test_what_could_not_have_failed_has_not_passed(estimator: fgvar.Estimator) -> None:
    report = check_estimator(estimator, LINEAR, checks=["structure", "unbiased", "scale"])
    assert not report.passed
    assert report.failures == ()
    assert report.undecided == ("unbiased", "scale")
    lines = str(report).splitlines()
    assert [line.split() for line in lines[3:5]] == [["unbiased", "?"], ["scale", "?"]]
    assert re.search(r"^scale, problem: undecided: would not have caught a turned sign in 'weight'", lines[6])
    assert lines[-1] == "1 passed, 0 failed, 2 undecided, 0 not applicable"
    with pytest.raises(AssertionError, match="scale, problem: undecided: would not have caught a turned sign"):
        CHECKS["scale"](estimator, LINEAR)


def test_a_refused_problem_is_said_once_with_its_reason() -> None:
    """Whether another problem is taken or none is: no column, and no sentence for every check."""
    plain = fgvar.Problem(
        torch.nn.Linear(3, 2).double(), "mse", (torch.ones(2, 3).double(), torch.ones(2, 2).double())
    )
    reason = "it does not fit this problem: the network has no site to perturb"
    report = check_estimator(fgvar.scheme("FG-A"), plain)
    assert not report.passed
    assert report.failures == tuple(CHECKS)
    _, line, verdict = str(report).splitlines()
    assert line.startswith(f"problem: {reason}")
    assert verdict == "failed: it fits none of the problems, so nothing was checked"
    beside = check_estimator(fgvar.scheme("FG-A"), {"plain": plain, "linear": LINEAR}, checks=["structure", "pure"])
    assert beside.passed
    assert str(beside).count(reason) == 1


def test_an_undecided_declaration_does_not_keep_a_report_from_passing() -> None:
    """Its mean is known exactly; its variance, a sum of fourth powers, would take more than 64 draws."""
    big = fgvar.scheme("FG-A")
    report = check_estimator(big, PROBLEMS["mixer"], checks=["unbiased", "variance"], draws=64)
    assert report.passed
    assert report.undecided == ("variance",)
    assert "would not have caught twice the declared variance of" in str(report)
    assert CHECKS["variance"](big, PROBLEMS["mixer"], draws=64)[0].outcome == "undecided"


def test_the_pytest_face_fails_what_is_undecided(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import torch

        import fgvar
        from fgvar.testing import default_problems, from_function, parametrize_with_checks

        def constant(problem, generator):
            torch.rand((), generator=generator)
            return {k: 0 * g for k, g in problem.backprop().items()}

        @parametrize_with_checks({"mine": from_function(constant)}, problems=default_problems()["linear"], draws=64)
        def test_contract(estimator, check):
            check(estimator)
        """
    )
    result = pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider")
    undecided = "precision, unbiased, scale, linear_in_loss, zero_gradient, non_finite"
    assert result.parseoutcomes()["failed"] == 6, undecided
    result.stdout.fnmatch_lines(["*scale, problem: undecided: never moved in 'weight', 'bias'*"])


def test_what_draws_nothing_is_wrong_for_certain() -> None:
    """A function that leaves its generator alone has one estimate, and no rare event to wait for."""

    def seeded(problem: fgvar.Problem, generator: torch.Generator) -> dict[str, Tensor]:  # noqa: ARG001
        return normal(problem, torch.Generator().manual_seed(0))

    assert from_function(seeded).idle(LINEAR)
    assert not from_function(normal).idle(LINEAR)
    verdict = unbiased(from_function(seeded), LINEAR, draws=64)
    assert verdict.failed("scale")
    assert verdict.failed("bias")


def test_draws_are_numbers_or_enough() -> None:
    with pytest.raises(ValueError, match="draws is 63, expected at least 64"):
        check_estimator(fgvar.scheme("BP"), LINEAR, draws=63)
    with pytest.raises(TypeError, match="draws is True, expected an integer of at least 64, or 'enough'"):
        check_estimator(fgvar.scheme("BP"), LINEAR, draws=True)


def test_enough_draws_decide_what_the_default_does_not() -> None:
    """An estimate is 0 but in one draw of 400: the pilot says how many draws see enough such.

    Of eight seeds five pilots do; one of the others sees hardly any, and its verdict stays undecided.
    """

    @dataclass(frozen=True)
    class Rare:
        q: float = 1 / 400

        def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
            return fgvar.Randomness({"u": fgvar.Leaf((), fgvar.Gaussian())})

        def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
            hit = (torch.special.ndtr(noise["u"]) < self.q).to(problem.dtype) / self.q
            return fgvar.Estimate({k: g * hit for k, g in problem.backprop().items()})

        def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
            return problem.backprop()

    few, enough = (unbiased(Rare(), LINEAR, draws=draws, seed=1) for draws in (4096, "enough"))
    assert few.undecided("scale")
    assert not few.failed("scale"), "10 of 4096 draws hold all of it, which are no evidence"
    assert enough.passed
    assert enough.draws > DRAWS


# ---- power where it is cheap ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROBLEMS)
def test_tensors_of_the_default_problems_have_gradients_of_one_size(name: str) -> None:
    norms = torch.stack([g.norm() for g in PROBLEMS[name].backprop().values()])
    shares = norms / norms.square().sum().sqrt()
    assert float(shares[shares > 1e-6].min()) > 0.19


def test_the_default_problems_cover_what_estimators_are_blind_to() -> None:
    losses = [float(problem.loss()) for problem in PROBLEMS.values()]
    assert max(losses) / min(losses) > 1e6
    assert min(losses) < 0.1 < 1e4 < max(losses)
    assert {problem.batch_size for problem in PROBLEMS.values()} == {1, 2, 5}
    shapes = [p.shape for problem in PROBLEMS.values() for p in problem.params.values()]
    assert {len(shape) for shape in shapes} == {1, 2, 3, 4}
    assert max(shape.numel() for shape in shapes) > 64


@dataclass(frozen=True)
class Changed(fgvar.Estimator):
    """Weight perturbation with one tensor changed."""

    tensor: str = ""
    factor: float = 1.0

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        found = super().estimate(problem, noise).gradient
        return fgvar.Estimate({k: g * self.factor if k == self.tensor else g for k, g in found.items()})


@dataclass(frozen=True)
class Everything(Changed):
    """The same of all parameters, heads included, as a black box perturbs them."""

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness({k: fgvar.Leaf(tuple(p.shape), fgvar.Gaussian()) for k, p in problem.params.items()})

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        c = torch.func.jvp(problem.loss, (problem.params,), (dict(noise),))[1]
        return fgvar.Estimate({k: c * u * (self.factor if k == self.tensor else 1) for k, u in noise.items()})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_tensor_that_is_doubled_or_turned_is_caught_by_drawing_at_the_default_draws(name: str) -> None:
    """At the level that a report gives a verdict on four problems; the smallest tensor stands for all."""
    problem, level = PROBLEMS[name], 1e-6 / 36
    verdict = unbiased(Everything(), problem, level=level)
    assert verdict.passed, verdict.sentence("scale")
    assert max(test.detectable for test in verdict.tests) < 1
    gradient = problem.backprop()
    smallest = min(
        (k for k, g in gradient.items() if float(g.norm()) > 1e-9), key=lambda k: float(gradient[k].norm())
    )
    for factor in (2.0, -1.0):
        failed = unbiased(Everything(tensor=smallest, factor=factor), problem, level=level).failed("scale")
        assert smallest in {test.layer for test in failed}, factor


@pytest.mark.parametrize("name", ["MeZO", "SPSA", "NP"])
def test_finite_differences_are_evaluated_along_the_axes_of_their_noise(name: str) -> None:
    report = check_estimator(fgvar.scheme(name), checks=["unbiased", "scale"])
    assert report.passed, report
    exact = [row for row in report.rows if "points along the axes of its noise" in row.note]
    assert len(exact) >= 6, report
    doubled = replace(Changed(oracle=fgvar.oracles.CentralDifference()), tensor="weight", factor=1.01)
    with pytest.raises(AssertionError, match=r"the slope of 'weight' is 1\.01, expected 1 \(\d+ points along"):
        CHECKS["scale"](doubled, LINEAR)


def test_fgvar_s_own_structured_noise_needs_no_drawing() -> None:
    laws = (
        fgvar.noise.Sphere(),
        fgvar.noise.Coordinate(),
        fgvar.noise.Orthogonal(),
        fgvar.noise.Sparse(0.3),
        fgvar.noise.LowRank(1),
    )
    for law in laws:
        report = check_estimator(fgvar.scheme("FG-W", noise=law), checks=["unbiased", "scale"])
        assert report.passed, report
        assert all("exact" in row.note for row in report.rows), report


def test_parametrize_takes_draws() -> None:
    mark = parametrize_with_checks([fgvar.scheme("BP")], draws="enough")
    assert mark.name == "parametrize"
