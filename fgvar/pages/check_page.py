"""The page of a check report: its table, what failed and why, what each check claims and would have caught."""

from dataclasses import replace

from fgvar.measurement.html_tables import Table
from fgvar.pages.page import Section, html
from fgvar.pages.pictures import pictures
from fgvar.testing.checks import CHECKS
from fgvar.testing.report import MARKS, Report

OUTCOMES = (
    ("yes", "It would have caught the fault, and there was none."),
    ("NO", "It failed; the sentence below the table says what is wrong."),
    ("?", "It would not have caught the fault; its sentence says which draws would."),
    ("–", "Nothing of the kind is declared, or the problem does not fit."),
)


def of_report(report: Report, title: str = "") -> str:
    """A self-contained HTML page of what `fgvar.testing.check_estimator` found.

    Args:
        title: default: the estimator's repr.

    Raises:
        ImportError: the extra "plot" is not installed.

    Example:
        >>> import fgvar
        >>> report = fgvar.testing.check_estimator(fgvar.scheme("FG-W"), checks=["unbiased"])
        >>> "FG-W passed every check" in of_report(report, "FG-W")
        True
    """
    name = title or report.estimator
    claims = tuple(
        (check.name, check.claim) for check in CHECKS.values() if check.name in {r.check for r in report.rows}
    )
    notes = tuple((row.check, row.problem, row.outcome, row.note) for row in report.rows)
    drawn, undrawn = pictures(report)
    sections = (
        Section("Verdict", (_verdict(report, name),), (replace(report.table, caption="outcomes"),)),
        Section("Figures", undrawn, pictures=drawn),
        Section(
            "How to read each mark",
            tables=(Table("marks", ("mark", "what it means"), OUTCOMES, strong=(MARKS["failed"],)),),
        ),
        Section("What each check claims", tables=(Table("", ("check", "what has to hold"), claims),)),
        Section(
            "Every note",
            tables=(
                Table("how or why, of every check on every problem", ("check", "problem", "outcome", "note"), notes),
            ),
            folded=True,
        ),
    )
    return html(name, report.estimator if title else "", sections)


def _verdict(report: Report, name: str) -> str:
    """One sentence, that of the exit status."""
    if report.passed:
        open_ = f"; undecided, and not required: {', '.join(report.undecided)}" if report.undecided else ""
        return f"{name} passed every check that applies: {report.counts}{open_}."
    if not report.failures:
        return f"{name} is not proved: undecided are {', '.join(report.undecided)}."
    return f"{name} failed {', '.join(report.failures)}."
