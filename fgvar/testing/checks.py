"""Checks: run them by name, all on one estimator, and as tests of pytest."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from fgvar import identity
from fgvar.errors import needs_extra, unknown
from fgvar.estimators.protocol import GradientEstimator, require_estimator
from fgvar.measurement.references import require_layer_names
from fgvar.problem import Problem
from fgvar.testing import (
    bias_order_check,
    declared_checks,
    noise_check,
    required_checks,
    sensitivity_check,
    stream_check,
    unbiasedness,
    weights_check,
)
from fgvar.testing.forecast import announce
from fgvar.testing.problems import default_problems
from fgvar.testing.report import FAILED, NOT_APPLICABLE, PASSED, UNDECIDED, Report, Row, sentence
from fgvar.testing.resources import one_thread
from fgvar.testing.statistical import Draws, check_draws, check_level
from fgvar.testing.under_test import MISFIT, EstimatorUnderTest, Failure, Finding, NotApplicable, Undecided

Problems = Problem | Mapping[str, Problem] | Sequence[Problem]

LEVEL = 1e-6  # nominal false alarms of one report, over all of its statistical verdicts
# Verdicts that may be drawn: noise, precision, 2 of linear_in_loss, batch_order, zero_gradient, unbiased with scale,
# variance (of streams: stream), directions, weights.
STATISTICAL = 10
UNSOUND = "nothing more is tried of an estimator without the right structure"


@dataclass(frozen=True)
class Check:
    """One named property of a gradient estimator.

    Call it with an estimator: it returns its rows, or raises an AssertionError with the sentences of the
    problems where it failed, or where one that is required could not decide.

    Attributes:
        name: in `CHECKS`.
        function: what is tried.
        required: of every estimator, and not of those alone that declare something.

    Example:
        >>> import fgvar
        >>> CHECKS["scale"](fgvar.scheme("FG-W"), fgvar.testing.default_problems()["linear"])[0].outcome
        'passed'
    """

    name: str
    function: Callable[[EstimatorUnderTest], str]
    required: bool = True

    @property
    def claim(self) -> str:
        """The property, in a line."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def __call__(
        self,
        estimator: GradientEstimator,
        problems: Problems | None = None,
        *,
        level: float = LEVEL,
        draws: Draws | None = None,
    ) -> tuple[Row, ...]:
        report = check_estimator(estimator, problems, checks=(self.name,), level=level, draws=draws)
        if blocking := [row for row in report.rows if row.blocks]:
            raise AssertionError("\n".join(f"{self.name}, {row.problem}: {sentence(row)}" for row in blocking))
        return report.rows

    def __repr__(self) -> str:
        return self.name


CHECKS = {
    check.name: check
    for check in (
        Check("structure", required_checks.structure),
        Check("deterministic", required_checks.deterministic),
        Check("pure", required_checks.pure),
        Check("parameters", required_checks.parameters),
        Check("chunking", required_checks.chunking),
        Check("precision", required_checks.precision),
        Check("noise", noise_check.noise),
        Check("non_finite", required_checks.non_finite),
        Check("linear_in_loss", unbiasedness.linear_in_loss),
        Check("batch_order", unbiasedness.batch_order),
        Check("zero_gradient", unbiasedness.zero_gradient),
        Check("unbiased", unbiasedness.unbiased),
        Check("scale", unbiasedness.scale),
        Check("variance", declared_checks.variance, required=False),
        Check("directions", declared_checks.directions, required=False),
        Check("antithetic", declared_checks.antithetic, required=False),
        Check("shared_noise", declared_checks.shared_noise, required=False),
        Check("repr", declared_checks.repr_round_trips, required=False),
        Check("bias_order", bias_order_check.bias_order, required=False),
        Check("stream", stream_check.stream, required=False),
        Check("weights", weights_check.weights, required=False),
        Check("sensitivity", sensitivity_check.sensitivity, required=False),
    )
}


def check_estimator(
    estimator: GradientEstimator,
    problems: Problems | None = None,
    *,
    checks: Collection[str] | None = None,
    level: float = LEVEL,
    draws: Draws | None = None,
) -> Report:
    """Prove or refute an estimator: every check on every problem.

    What can be enumerated is exact and cannot be a false alarm. The rest is drawn, with fixed seeds and a
    fixed number of draws, at one nominal false-alarm rate in total; its notes say the smallest bias and scale
    error that it would have caught. A check that would not have caught a turned sign is undecided: it has not passed,
    and its sentence names the tensors and the draws that would do.

    Memory is bounded: noise, estimates and enumerations are made in blocks that fit the budget of `fgvar.measure`,
    and made again where all of them do not. A report that takes minutes, or more memory, warns before it starts.

    Args:
        estimator: of the protocol `fgvar.GradientEstimator`, or made by `from_function`.
        problems: one problem, several, or name → problem; best small and in float64. Default:
            `fgvar.testing.default_problems`, of which those that the estimator refuses (a ValueError of its
            ``randomness``) are not applicable.
        checks: names of `CHECKS` to run; default all.
        level: nominal false-alarm rate of all statistical verdicts of the report together.
        draws: of each verdict; default that of `fgvar.testing.unbiased`. "enough" takes as many as none needs more
            than, by pilots with noise of their own.

    Raises:
        TypeError: not an estimator, problem or list of checks. Whatever else the estimator does wrong is a failed
            check with a sentence.
        ValueError: an unknown check, no problem, a parameter named "perturbed" or "total", a level outside of (0, 1),
            or too few draws.

    Example:
        >>> import fgvar
        >>> report = check_estimator(fgvar.scheme("FG-W"), checks=["unbiased", "scale"])
        >>> report.passed, report.failures, report.undecided
        (True, (), ())
    """
    require_estimator("estimator", estimator)
    if isinstance(checks, str) or not (checks is None or (isinstance(checks, Collection) and checks)):
        raise TypeError(f"checks is {checks!r}, expected one or more names of CHECKS, as ['unbiased', 'scale']")
    chosen = tuple(CHECKS if checks is None else checks)
    for name in chosen:
        if name not in CHECKS:
            raise ValueError(unknown("check", name, CHECKS))
    check_level(level)
    if draws is not None:
        check_draws(draws)
    named = _named(problems)
    each = level / (STATISTICAL * len(named))
    rows = []
    with one_thread():
        for problem_name, problem in named.items():
            tested, sound = EstimatorUnderTest(estimator, problem, each, draws), True
            announce(problem_name, tested.fresh(), chosen)
            for name in chosen:
                outcome, note = _outcome(CHECKS[name], tested.fresh()) if sound else (NOT_APPLICABLE, UNSOUND)
                caught, exact = (note.caught, note.exact) if isinstance(note, Finding) else (None, False)
                rows.append(Row(name, problem_name, outcome, str(note), CHECKS[name].required, caught, exact))
                sound = sound and not (name == "structure" and outcome == FAILED)
    if all(row.outcome == NOT_APPLICABLE and row.note.startswith(MISFIT) for row in rows):
        rows = [replace(row, outcome=FAILED) for row in rows]
    return Report(identity.described(estimator), tuple(sorted(rows, key=lambda row: chosen.index(row.check))))


def parametrize_with_checks(
    estimators: Sequence[GradientEstimator] | Mapping[str, GradientEstimator],
    expected_failures: Mapping[str, str] | None = None,
    *,
    problems: Problems | None = None,
    draws: Draws | None = None,
) -> Any:
    """A pytest decorator: ``test(estimator, check)`` runs once for every estimator and check.

    Args:
        estimators: name → estimator, or a list (named by their classes, or by their position where two are
            of one class).
        expected_failures: check name, or "<estimator name>-<check>" → why it fails. Strict: a check that
            passes although it is expected to fail fails the test.
        problems, draws: as in `check_estimator`.

    A check that has nothing to test skips, with its reason; one that is required and undecided fails.

    Raises:
        ValueError: an expected failure that names no check.
        ImportError: pytest is not installed.

    Example:
        >>> import fgvar
        >>> @parametrize_with_checks([fgvar.scheme("FG-A")], {"repr": "fields with a hand-written repr"})
        ... def test_contract(estimator, check):
        ...     check(estimator)
    """
    with needs_extra("fgvar.testing.parametrize_with_checks", "testing"):
        import pytest

    expected = dict(expected_failures or {})
    named = dict(estimators) if isinstance(estimators, Mapping) else _by_class(estimators)
    ids = {f"{name}-{check}" for name in named for check in CHECKS}
    for key in expected:
        if key not in ids and key not in CHECKS:
            raise ValueError(unknown("check", key, {*CHECKS, *ids} if len(named) == 1 else CHECKS))
    cases = []
    for name, estimator in named.items():
        for check in CHECKS.values():
            reason = expected.get(f"{name}-{check.name}", expected.get(check.name))
            marks = () if reason is None else (pytest.mark.xfail(reason=reason, strict=True, raises=AssertionError),)
            cases.append(
                pytest.param(estimator, _Skipping(check, problems, draws), id=f"{name}-{check.name}", marks=marks)
            )
    return pytest.mark.parametrize(("estimator", "check"), cases)


@dataclass(frozen=True)
class _Skipping:
    """A check that skips where it is not applicable to any problem."""

    check: Check
    problems: Problems | None
    draws: Draws | None

    def __call__(self, estimator: GradientEstimator) -> None:
        rows = self.check(estimator, self.problems, draws=self.draws)
        if all(row.outcome == NOT_APPLICABLE for row in rows):
            import pytest

            pytest.skip(rows[0].note)


def _outcome(check: Check, tested: EstimatorUnderTest) -> tuple[str, str]:
    try:
        _ = tested.randomness
        return PASSED, check.function(tested)
    except NotApplicable as reason:
        return NOT_APPLICABLE, str(reason)
    except Undecided as reason:
        return UNDECIDED, str(reason)
    except Failure as failure:
        return FAILED, str(failure)


def _named(problems: Problems | None) -> dict[str, Problem]:
    if problems is None:
        return default_problems()
    if isinstance(problems, Problem):
        problems = {"problem": problems}
    if isinstance(problems, str) or not isinstance(problems, Mapping | Sequence):
        raise TypeError(f"problems is {type(problems).__name__}, expected fgvar.Problem, several, or name → problem")
    named = dict(problems) if isinstance(problems, Mapping) else {f"problem{i}": p for i, p in enumerate(problems)}
    if not named:
        raise ValueError("no problem to check on; give at least one, or leave problems out for the default ones")
    for name, problem in named.items():
        if not isinstance(name, str):
            raise TypeError(f"a problem is named {name!r}, expected a text, as 'linear'")
        if not isinstance(problem, Problem):
            raise TypeError(f"problem {name!r} is {type(problem).__name__}, expected fgvar.Problem")
        require_layer_names(problem.params)
    return named


def _by_class(estimators: Sequence[GradientEstimator]) -> dict[str, GradientEstimator]:
    kinds = [type(estimator).__name__ for estimator in estimators]
    names = [kind if kinds.count(kind) == 1 else f"{kind}{index}" for index, kind in enumerate(kinds)]
    return dict(zip(names, estimators, strict=True))
