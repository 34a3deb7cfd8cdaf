"""Rows in three forms: columns for the eye; tab-separated and JSON for other programs."""

import json
import math
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]  # column → text, number or None; all rows of a table have the same columns


def aligned(rows: Sequence[Row]) -> str:
    """Columns for the eye: numbers rounded and to the right, text to the left.

    Example:
        >>> print(aligned([{"scheme": "BP", "cost": 2.9}, {"scheme": "FG-W", "cost": 31.8012}]))
        scheme  cost
        BP       2.9
        FG-W    31.8
    """
    columns = []
    for name in rows[0] if rows else ():
        cells = [cell(row[name]) for row in rows]
        width = max(len(name), *map(len, cells))
        numbers = any(isinstance(row[name], int | float) for row in rows)
        columns.append([text.rjust(width) if numbers else text.ljust(width) for text in (name, *cells)])
    return "\n".join("  ".join(line).rstrip() for line in zip(*columns, strict=True))


def cell(value: Any) -> str:
    """A value as a person reads it, to four digits."""
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return "–" if value is None else str(value)


def tabbed(rows: Sequence[Row]) -> str:
    r"""A header line and a line for each row, tab-separated, with all digits; what is missing is "nan".

    Example:
        >>> tabbed([{"scheme": "BP", "cost": 1 / 3}, {"scheme": "FG-W", "cost": None}])
        'scheme\tcost\nBP\t0.3333333333333333\nFG-W\tnan'
    """
    lines = [list(rows[0]) if rows else [], *([*row.values()] for row in rows)]
    return "\n".join("\t".join("nan" if v is None else " ".join(str(v).split()) for v in line) for line in lines)


def records(rows: Sequence[Row]) -> str:
    """A JSON list of objects, one a line; numbers that JSON lacks (NaN, infinity) are null.

    Example:
        >>> print(records([{"scheme": "BP", "bias_z": float("nan")}]))
        [{"scheme": "BP", "bias_z": null}]
    """
    finite = [{name: None if _lacking(value) else value for name, value in row.items()} for row in rows]
    return "[" + ",\n ".join(json.dumps(row, ensure_ascii=False) for row in finite) + "]"


def _lacking(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
