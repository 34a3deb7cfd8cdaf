"""Rows in four forms: columns for the eye, Markdown for documents; tab-separated and JSON for other programs.

In all of them characters that a terminal would obey, as those that a foreign file brings along, are shown, not sent.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

TableRow = dict[str, Any]  # column → text, number or None; all rows of a table have the same columns


def visible(text: str) -> str:
    r"""The text with all that is not printable as escapes.

    Example:
        >>> visible("loss \x1b[2J\n")
        'loss \\x1b[2J\\n'
    """
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def format_table(rows: Sequence[TableRow]) -> str:
    """Columns for the eye: numbers rounded and to the right, text to the left.

    Example:
        >>> print(format_table([{"scheme": "BP", "cost": 2.9}, {"scheme": "FG-W", "cost": 31.8012}]))
        scheme  cost
        BP       2.9
        FG-W    31.8
    """
    columns = []
    for name in rows[0] if rows else ():
        cells = [visible(name), *(cell(row[name]) for row in rows)]
        width = max(map(len, cells))
        numbers = any(isinstance(row[name], int | float) for row in rows)
        columns.append([text.rjust(width) if numbers else text.ljust(width) for text in cells])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def cell(value: Any) -> str:
    """A value as a person reads it, to four digits."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return "–" if value is None else visible(str(value))


def to_markdown(rows: Sequence[TableRow]) -> str:
    r"""A table in Markdown: numbers rounded and to the right, text to the left.

    Example:
        >>> print(to_markdown([{"scheme": "BP", "cost": 2.9}, {"scheme": "a|b", "cost": 31.8012}]))
        | scheme | cost |
        |---|---:|
        | BP | 2.9 |
        | a\|b | 31.8 |
    """
    names = list(rows[0]) if rows else []
    rule = ["---:" if any(isinstance(row[name], int | float) for row in rows) else "---" for name in names]
    lines = [names, *([cell(value) for value in row.values()] for row in rows)]
    head, *rest = ("| " + " | ".join(text.replace("|", r"\|") for text in line) + " |" for line in lines)
    return "\n".join([head, f"|{'|'.join(rule)}|", *rest])


def to_tsv(rows: Sequence[TableRow]) -> str:
    r"""A header line and a line for each row, tab-separated, with all digits; what is missing is "nan".

    Example:
        >>> to_tsv([{"scheme": "BP", "cost": 1 / 3}, {"scheme": "FG-W", "cost": None}])
        'scheme\tcost\nBP\t0.3333333333333333\nFG-W\tnan'
    """
    lines = [list(rows[0]) if rows else [], *([*row.values()] for row in rows)]
    return "\n".join(
        "\t".join("nan" if v is None else visible(" ".join(str(v).split())) for v in line) for line in lines
    )


def to_json(rows: Sequence[TableRow]) -> str:
    """A JSON list of objects, one a line; numbers that JSON lacks (NaN, infinity) are null.

    Example:
        >>> print(to_json([{"scheme": "BP", "bias_z": float("nan")}]))
        [{"scheme": "BP", "bias_z": null}]
    """
    finite = [{name: None if _is_non_finite(value) else value for name, value in row.items()} for row in rows]
    lines = [re.sub(r"[^ -~]", _escaped, json.dumps(row, ensure_ascii=False, default=str)) for row in finite]
    return "[" + ",\n ".join(lines) + "]"


def _escaped(sign: re.Match[str]) -> str:
    """JSON's own escape of a character that is not printable; `json.dumps` escapes some of them."""
    return sign[0] if sign[0].isprintable() else json.dumps(sign[0])[1:-1]


def _is_non_finite(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


class CommandResult(NamedTuple):
    """What a command found.

    Attributes:
        text: for a person.
        rows: for other programs, all with the same columns.
        status: to exit with.
        failure: what went wrong after the work, to be told below the answer.
    """

    text: str
    rows: list[TableRow]
    status: int = 0
    failure: str = ""
