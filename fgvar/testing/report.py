"""Report: what all checks found of one estimator, as a table with sentences."""

from dataclasses import dataclass

from fgvar.testing.subject import MISFIT

PASSED, FAILED, UNDECIDED, NOT_APPLICABLE = "passed", "failed", "undecided", "not applicable"


@dataclass(frozen=True)
class Row:
    """What one check found on one problem: the outcome, and the sentence that says how or why.

    ``required``: is the check one that every estimator has to pass, not one of what it declares?
    """

    check: str
    problem: str
    outcome: str
    note: str
    required: bool = True

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
        misfits = {
            row.problem: row.note for row in self.rows if row.note.startswith(MISFIT) and row.outcome != FAILED
        }
        rows = [row for row in self.rows if row.problem not in misfits]
        problems = list(dict.fromkeys(row.problem for row in rows))
        signs = {PASSED: "yes", FAILED: "NO", UNDECIDED: "?", NOT_APPLICABLE: "–"}
        width = max(len(row.check) for row in rows) + 2
        columns = {name: max(len(name), 3) + 2 for name in problems}
        lines = [self.estimator, " " * width + "".join(name.ljust(column) for name, column in columns.items())]
        for name in dict.fromkeys(row.check for row in rows):
            found = {row.problem: row for row in rows if row.check == name}
            marks = "".join(signs[found[problem].outcome].ljust(column) for problem, column in columns.items())
            # A failure, or no verdict, has a line below; a pass on the last, largest problem speaks for all.
            notes = [r.note for r in found.values() if r.outcome == PASSED] or [r.note for r in found.values()]
            below = any(row.outcome in (FAILED, UNDECIDED) for row in found.values())
            lines.append(f"{name:<{width}}{marks}{'' if below else notes[-1]}".rstrip())
        for outcome in (FAILED, UNDECIDED):
            lines += [f"{row.check}, {row.problem}: {said(row)}" for row in rows if row.outcome == outcome]
        lines += [f"{name}: {note}" for name, note in misfits.items()]
        lines.append(", ".join(f"{sum(row.outcome == sign for row in rows)} {sign}" for sign in signs))
        return "\n".join(lines)


def said(row: Row) -> str:
    """The sentence of a row, with the outcome where the table has a mere question mark for it."""
    return f"undecided: {row.note}" if row.outcome == UNDECIDED else row.note
