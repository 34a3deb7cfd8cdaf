"""The checks by name, the report of them all, and their pytest face."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fgvar.errors import unknown
from fgvar.estimators.estimator import GradientEstimator, require_estimator
from fgvar.problem import Problem
from fgvar.testing import claims, contract
from fgvar.testing.problems import default_problems
from fgvar.testing.subject import MISFIT, Failure, NotApplicable, Subject

Problems = Problem | Mapping[str, Problem] | Sequence[Problem]

LEVEL = 1e-6  # nominal false alarms of one report, over all of its statistical verdicts
STATISTICAL = 4  # checks that may draw: noise, zero_gradient, unbiased with scale, variance
UNSOUND = "nothing more is tried of an estimator without the right structure"
PASSED, FAILED, NOT_APPLICABLE = "passed", "failed", "not applicable"


@dataclass(frozen=True)
class Row:
    """What one check found on one problem: the outcome, and the sentence that says how or why."""

    check: str
    problem: str
    outcome: str
    note: str


@dataclass(frozen=True)
class Check:
    """One named property of a gradient estimator.

    Call it with an estimator: it returns its rows, or raises an AssertionError with the sentences of the
    problems where it failed.
    """

    name: str
    function: Callable[[Subject], str]

    @property
    def claim(self) -> str:
        """The property, in a line."""
        return (self.function.__doc__ or "").strip().splitlines()[0]

    def __call__(
        self, estimator: GradientEstimator, problems: Problems | None = None, *, level: float = LEVEL
    ) -> tuple[Row, ...]:
        report = check_estimator(estimator, problems, checks=(self.name,), level=level)
        if failed := [row for row in report.rows if row.outcome == FAILED]:
            raise AssertionError("\n".join(f"{self.name}, {row.problem}: {row.note}" for row in failed))
        return report.rows

    def __repr__(self) -> str:
        return self.name


CHECKS = {
    check.name: check
    for check in (
        Check("structure", contract.structure),
        Check("deterministic", contract.deterministic),
        Check("pure", contract.pure),
        Check("chunking", contract.chunking),
        Check("noise", contract.noise),
        Check("non_finite", contract.non_finite),
        Check("linear_in_loss", contract.linear_in_loss),
        Check("batch_order", contract.batch_order),
        Check("zero_gradient", contract.zero_gradient),
        Check("unbiased", contract.unbiased),
        Check("scale", contract.scale),
        Check("variance", claims.variance),
        Check("directions", claims.directions),
        Check("antithetic", claims.antithetic),
        Check("shared_noise", claims.shared_noise),
        Check("repr", claims.repr_round_trips),
        Check("bias_order", claims.bias_order),
    )
}


@dataclass(frozen=True)
class Report:
    """What all checks found of one estimator; prints as a table.

    Attributes:
        estimator: its repr.
        rows: one for each check and problem.
    """

    estimator: str
    rows: tuple[Row, ...]

    @property
    def passed(self) -> bool:
        """Did no check fail?"""
        return not self.failures

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that failed on any problem."""
        return tuple(dict.fromkeys(row.check for row in self.rows if row.outcome == FAILED))

    def __str__(self) -> str:
        misfits = {
            row.problem: row.note for row in self.rows if row.note.startswith(MISFIT) and row.outcome != FAILED
        }
        rows = [row for row in self.rows if row.problem not in misfits]
        problems = list(dict.fromkeys(row.problem for row in rows))
        signs = {PASSED: "yes", FAILED: "NO", NOT_APPLICABLE: "–"}
        width = max(len(row.check) for row in rows) + 2
        columns = {name: max(len(name), 3) + 2 for name in problems}
        lines = [self.estimator, " " * width + "".join(name.ljust(column) for name, column in columns.items())]
        for name in dict.fromkeys(row.check for row in rows):
            found = {row.problem: row for row in rows if row.check == name}
            marks = "".join(signs[found[problem].outcome].ljust(column) for problem, column in columns.items())
            # A failure has a line of its own below; a pass on the last, largest problem speaks for all.
            notes = [r.note for r in found.values() if r.outcome == PASSED] or [r.note for r in found.values()]
            failed = any(row.outcome == FAILED for row in found.values())
            lines.append(f"{name:<{width}}{marks}{'' if failed else notes[-1]}".rstrip())
        lines += [f"{row.check}, {row.problem}: {row.note}" for row in rows if row.outcome == FAILED]
        lines += [f"{name}: {note}" for name, note in misfits.items()]
        lines.append(", ".join(f"{sum(row.outcome == sign for row in rows)} {sign}" for sign in signs))
        return "\n".join(lines)


def check_estimator(
    estimator: GradientEstimator,
    problems: Problems | None = None,
    *,
    checks: Collection[str] | None = None,
    level: float = LEVEL,
    draws: int | None = None,
) -> Report:
    """Prove or refute an estimator: every check on every problem.

    What can be enumerated is exact and cannot be a false alarm. The rest is drawn, with fixed seeds and a
    fixed number of draws, at one nominal false-alarm rate in total; its notes say the smallest bias and scale
    error that it would have caught.

    Args:
        estimator: of the protocol `fgvar.GradientEstimator`, or made by `from_function`.
        problems: one problem, several, or name → problem; best small and in float64. Default:
            `fgvar.testing.default_problems`, of which those that the estimator refuses (a ValueError of its
            ``randomness``) are not applicable.
        checks: names of `CHECKS` to run; default all.
        level: nominal false-alarm rate of all statistical verdicts of the report together.
        draws: of each verdict; default that of `fgvar.testing.unbiased`.

    Raises:
        TypeError: not an estimator. Whatever else it does wrong is a failed check with a sentence.
        ValueError: an unknown check, no problem, or a level outside of (0, 1).

    Example:
        >>> import fgvar
        >>> report = check_estimator(fgvar.scheme("FG-W"), checks=["unbiased", "scale"])
        >>> report.passed, report.failures
        (True, ())
    """
    require_estimator("estimator", estimator)
    chosen = tuple(CHECKS if checks is None else checks)
    for name in chosen:
        if name not in CHECKS:
            raise ValueError(unknown("check", name, CHECKS))
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a false-alarm rate between 0 and 1")
    named = _named(problems)
    each = level / (STATISTICAL * len(named))
    rows = []
    for problem_name, problem in named.items():
        whole, sound = Subject(estimator, problem, each, draws), True
        for name in chosen:
            outcome, note = _outcome(CHECKS[name], whole.fresh()) if sound else (NOT_APPLICABLE, UNSOUND)
            rows.append(Row(name, problem_name, outcome, note))
            sound = sound and not (name == "structure" and outcome == FAILED)
    if all(row.outcome == NOT_APPLICABLE and row.note.startswith(MISFIT) for row in rows):
        rows = [Row(row.check, row.problem, FAILED, row.note) for row in rows]
    return Report(repr(estimator), tuple(sorted(rows, key=lambda row: chosen.index(row.check))))


def parametrize_with_checks(
    estimators: Sequence[GradientEstimator] | Mapping[str, GradientEstimator],
    expected_failures: Mapping[str, str] | None = None,
    *,
    problems: Problems | None = None,
) -> Any:
    """A pytest decorator: ``test(estimator, check)`` runs once for every estimator and check.

    Args:
        estimators: name → estimator, or a list (named by their classes, or by their position where two are
            of one class).
        expected_failures: check name, or "<estimator name>-<check>" → why it fails. Strict: a check that
            passes although it is expected to fail fails the test.
        problems: as in `check_estimator`.

    A check that has nothing to test skips, with its reason.

    Raises:
        ValueError: an expected failure that names no check.

    Example:
        >>> import fgvar
        >>> @parametrize_with_checks([fgvar.scheme("FG-A")], {"repr": "fields with a hand-written repr"})
        ... def test_contract(estimator, check):
        ...     check(estimator)
    """
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
            cases.append(pytest.param(estimator, _Skipping(check, problems), id=f"{name}-{check.name}", marks=marks))
    return pytest.mark.parametrize(("estimator", "check"), cases)


@dataclass(frozen=True)
class _Skipping:
    """A check that skips where it is not applicable to any problem."""

    check: Check
    problems: Problems | None

    def __call__(self, estimator: GradientEstimator) -> None:
        rows = self.check(estimator, self.problems)
        if all(row.outcome == NOT_APPLICABLE for row in rows):
            import pytest

            pytest.skip(rows[0].note)


def _outcome(check: Check, subject: Subject) -> tuple[str, str]:
    try:
        _ = subject.randomness
        return PASSED, check.function(subject)
    except NotApplicable as reason:
        return NOT_APPLICABLE, str(reason)
    except Failure as failure:
        return FAILED, str(failure)


def _named(problems: Problems | None) -> dict[str, Problem]:
    if problems is None:
        return default_problems()
    if isinstance(problems, Problem):
        return {"problem": problems}
    named = dict(problems) if isinstance(problems, Mapping) else {f"problem{i}": p for i, p in enumerate(problems)}
    if not named:
        raise ValueError("no problem to check on; give at least one, or leave problems out for the default ones")
    for name, problem in named.items():
        if not isinstance(problem, Problem):
            raise TypeError(f"problem {name!r} is {type(problem).__name__}, expected fgvar.Problem")
    return named


def _by_class(estimators: Sequence[GradientEstimator]) -> dict[str, GradientEstimator]:
    kinds = [type(estimator).__name__ for estimator in estimators]
    names = [kind if kinds.count(kind) == 1 else f"{kind}{index}" for index, kind in enumerate(kinds)]
    return dict(zip(names, estimators, strict=True))
