"""Report: prints what all checks found of one estimator, as a table with a sentence for each failure."""

from collections.abc import Sequence
from dataclasses import dataclass

from fgvar.testing.under_test import MISFIT

PASSED, FAILED, UNDECIDED, NOT_APPLICABLE = "passed", "failed", "undecided", "not applicable"
MARKS = {PASSED: "yes", FAILED: "NO", UNDECIDED: "?", NOT_APPLICABLE: "–"}  # in the table's cells


@dataclass(frozen=True)
class Row:
    """What one check found on one problem: the outcome, and the sentence that says how or why.

    ``required``: is the check one that every estimator has to pass, not one of what it declares? ``caught``: the
    smallest and largest error that it would have caught, `fgvar.testing.under_test.Finding`; ``exact``: for certain.
    """

    check: str
    problem: str
    outcome: str
    note: str
    required: bool = True
    caught: tuple[float, float] | None = None
    exact: bool = False

    @property
    def blocks(self) -> bool:
        """Does it keep the report from being passed?"""
        return self.outcome == FAILED or (self.outcome == UNDECIDED and self.required)


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
        """Did no check fail, and was none undecided that is required of every estimator?"""
        return not any(row.blocks for row in self.rows)

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the checks that failed on any problem."""
        return tuple(dict.fromkeys(row.check for row in self.rows if row.outcome == FAILED))

    @property
    def undecided(self) -> tuple[str, ...]:
        """Names of the checks that could not have failed on some problem: no verdict, neither yes nor no."""
        return tuple(dict.fromkeys(row.check for row in self.rows if row.outcome == UNDECIDED))

    def __str__(self) -> str:
        # A problem that the estimator refuses has a line of its own in place of a column, whatever the outcome.
        misfits = {row.problem: row.note for row in self.rows if row.note.startswith(MISFIT)}
        rows = [row for row in self.rows if row.problem not in misfits]
        if not rows:
            refused = (f"{problem}: {note}" for problem, note in misfits.items())
            return "\n".join(
                [self.estimator, *refused, "failed: it fits none of the problems, so nothing was checked"]
            )
        lines = [self.estimator, *_table(rows)]
        for outcome in (FAILED, UNDECIDED):
            lines += [f"{row.check}, {row.problem}: {sentence(row)}" for row in rows if row.outcome == outcome]
        lines += [f"{problem}: {note}" for problem, note in misfits.items()]
        counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in MARKS}
        return "\n".join([*lines, ", ".join(f"{count} {outcome}" for outcome, count in counts.items())])


def _table(rows: Sequence[Row]) -> list[str]:
    """A heading of problems, and a line for each check: its marks, and a note where none failed."""
    width = max(len(row.check) for row in rows) + 2
    columns = {row.problem: max(len(row.problem), 3) + 2 for row in rows}
    lines = [" " * width + "".join(problem.ljust(column) for problem, column in columns.items())]
    for check in dict.fromkeys(row.check for row in rows):
        found = {row.problem: row for row in rows if row.check == check}
        marks = "".join(MARKS[found[problem].outcome].ljust(column) for problem, column in columns.items())
        lines.append(f"{check:<{width}}{marks}{_note(list(found.values()))}".rstrip())
    return lines


def _note(rows: Sequence[Row]) -> str:
    """What stands behind the marks of one check."""
    if any(row.outcome in (FAILED, UNDECIDED) for row in rows):
        return ""  # each has a sentence below the table
    notes = [row.note for row in rows if row.outcome == PASSED] or [row.note for row in rows]
    return notes[-1]  # a pass on the last, largest problem speaks for all


def sentence(row: Row) -> str:
    """The sentence of a row, with the outcome where the table has a mere question mark for it."""
    return f"undecided: {row.note}" if row.outcome == UNDECIDED else row.note
