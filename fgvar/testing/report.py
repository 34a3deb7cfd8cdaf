"""Report: shows what all checks found of one estimator, as a table with a sentence for each failure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from fgvar.measurement.html_tables import Table
from fgvar.testing.under_test import MISFIT

PASSED, FAILED, UNDECIDED, NOT_APPLICABLE = "passed", "failed", "undecided", "not applicable"
MARKS = {PASSED: "yes", FAILED: "NO", UNDECIDED: "?", NOT_APPLICABLE: "–"}  # in the table's cells
NOTHING_CHECKED = "failed: it fits none of the problems, so nothing was checked"


@dataclass(frozen=True)
class Row:
    """What one check found on one problem: the outcome, and the sentence that says how or why.

    ``required``: is the check one that every estimator has to pass, not one of what it declares? ``caught``: the
    smallest and largest error that it would have caught, `fgvar.testing.under_test.Finding`; ``exact``: for certain.

    Attributes:
        check, problem: their names.
        outcome: "passed", "failed", "undecided" or "not applicable".
        note: the sentence.

    Example:
        >>> Row("scale", "linear", "undecided", "few draws").blocks
        True
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
    """What all checks found of one estimator; prints as a table, in a notebook too.

    Attributes:
        estimator: its repr.
        rows: one for each check and problem.

    Example:
        >>> import fgvar
        >>> report = fgvar.testing.check_estimator(fgvar.scheme("FG-W"), checks=["unbiased"])
        >>> report.rows[0].outcome, report.table.rows[0][:3]
        ('passed', ('unbiased', 'yes', 'yes'))
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
        rows, misfits = self._parted()
        if not rows:
            return "\n".join([self.estimator, *misfits, NOTHING_CHECKED])
        return "\n".join([self.estimator, *_lines(rows), *self.sentences, *misfits, self.counts])

    def _repr_html_(self) -> str:
        return self.table.to_html()

    @property
    def table(self) -> Table:
        """A column for each problem, a line for each check, and below it what failed and why."""
        rows, misfits = self._parted()
        problems = tuple(dict.fromkeys(row.problem for row in rows))
        lines = tuple((check, *marks, note) for check, marks, note in _checks(rows))
        last = self.counts if rows else NOTHING_CHECKED
        heading = ("check", *problems, "how")
        return Table(
            self.estimator, heading, lines, (*self.sentences, *misfits, last), (MARKS[FAILED], MARKS[UNDECIDED])
        )

    @property
    def sentences(self) -> tuple[str, ...]:
        """What failed, then what could not decide: check, problem, and why."""
        rows = self._parted()[0]
        return tuple(
            f"{row.check}, {row.problem}: {sentence(row)}"
            for outcome in (FAILED, UNDECIDED)
            for row in rows
            if row.outcome == outcome
        )

    @property
    def counts(self) -> str:
        """How many of each outcome."""
        rows = self._parted()[0]
        counts = {outcome: sum(row.outcome == outcome for row in rows) for outcome in MARKS}
        return ", ".join(f"{count} {outcome}" for outcome, count in counts.items())

    def _parted(self) -> tuple[list[Row], list[str]]:
        """Rows, and a line in place of the column of each problem that it refuses, whatever the outcome."""
        misfits = {row.problem: row.note for row in self.rows if row.note.startswith(MISFIT)}
        rows = [row for row in self.rows if row.problem not in misfits]
        return rows, [f"{problem}: {note}" for problem, note in misfits.items()]


def _checks(rows: Sequence[Row]) -> Iterator[tuple[str, list[str], str]]:
    """Each check: its name, a mark for every problem, and a note where none failed."""
    for check in dict.fromkeys(row.check for row in rows):
        found = {row.problem: row for row in rows if row.check == check}
        marks = [MARKS[found[problem].outcome] for problem in dict.fromkeys(row.problem for row in rows)]
        yield check, marks, _note(list(found.values()))


def _lines(rows: Sequence[Row]) -> list[str]:
    """A heading of problems, and a line for each check."""
    width = max(len(row.check) for row in rows) + 2
    columns = {row.problem: max(len(row.problem), 3) + 2 for row in rows}
    lines = [" " * width + "".join(problem.ljust(column) for problem, column in columns.items())]
    for check, marks, note in _checks(rows):
        placed = "".join(mark.ljust(column) for mark, column in zip(marks, columns.values(), strict=True))
        lines.append(f"{check:<{width}}{placed}{note}".rstrip())
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
