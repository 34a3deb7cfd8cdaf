"""Tables in HTML, for notebooks and pages: headings that a screen reader finds, and every text escaped."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from fgvar.measurement.text_tables import TableRow, cell, visible


@dataclass(frozen=True)
class Table:
    """Cells of text below a heading, with a caption above and notes below.

    Attributes:
        caption: what is shown; of the table alone, as a reader may land on it.
        heading: names of the columns.
        rows: the cells of each line; the first one names it.
        notes: sentences below.
        strong: texts of cells that are to be seen first.
    """

    caption: str
    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    strong: tuple[str, ...] = ()

    @classmethod
    def of(cls, caption: str, rows: Sequence[TableRow]) -> "Table":
        """Rows as `fgvar.measurement.report` makes them: numbers rounded, what is missing a dash."""
        heading = tuple(map(visible, rows[0])) if rows else ()
        return cls(caption, heading, tuple(tuple(map(cell, row.values())) for row in rows))

    def to_html(self) -> str:
        """The element, of which first cells are headings of their rows.

        Example:
            >>> print(Table("costs", ("scheme", "cost"), (("BP", "2.9"),)).to_html())
            <table><caption>costs</caption>
            <thead><tr><th scope="col">scheme</th><th scope="col">cost</th></tr></thead>
            <tbody>
            <tr><th scope="row">BP</th><td>2.9</td></tr>
            </tbody></table>
        """
        names = "".join(f'<th scope="col">{_safe(name)}</th>' for name in self.heading)
        lines = [
            f'<tr><th scope="row">{_safe(first)}</th>{"".join(map(self._cell, rest))}</tr>'
            for first, *rest in self.rows
        ]
        table = [
            f"<table><caption>{_safe(self.caption)}</caption>",
            f"<thead><tr>{names}</tr></thead>",
            "<tbody>",
            *lines,
            "</tbody></table>",
        ]
        return "\n".join([*table, *(f"<p>{_safe(note)}</p>" for note in self.notes)])

    def _cell(self, text: str) -> str:
        return f"<td><strong>{_safe(text)}</strong></td>" if text in self.strong else f"<td>{_safe(text)}</td>"


def _safe(text: str) -> str:
    """Shown as it is, whatever a foreign file has in it."""
    return escape(visible(text))
