"""A study's table: a pandas frame of what is written in its cells, as Markdown and as LaTeX.

Columns with two levels (the second may repeat) have the first level as a heading over several columns.
"""

import pandas as pd

TEX = {"±": r"$\pm$", "→": r"$\rightarrow$", "–": "--", "−": "$-$", "×": r"$\times$"}


def markdown(frame: pd.DataFrame) -> str:
    """A table of GitHub's Markdown; rows' names are code, and the first of several columns bears their heading."""
    heads, group = [], None
    for column in frame.columns:
        first, *others = column if isinstance(column, tuple) else (column,)
        heads.append(" ".join(others if first == group and others else (first, *others)))
        group = first
    lines = ["| | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    lines += [f"| `{name}` | {' | '.join(row)} |" for name, row in zip(frame.index, frame.values, strict=True)]
    return "\n".join(lines)


def latex(frame: pd.DataFrame) -> str:
    """A ``tabular`` with the rules of the package booktabs, which is all it needs."""
    text = frame.to_latex(
        escape=True,
        column_format="l" * frame.index.nlevels + "r" * frame.shape[1],
        multicolumn_format="c",
        index_names=False,
    )
    for sign, written in TEX.items():
        text = text.replace(sign, written)
    return str(text)


def number(value: float, error: float = float("nan"), digits: int = 3) -> str:
    """``value ± error`` to so many significant digits, without an error that is NaN; a dash for NaN."""
    if value != value:
        return "–"
    return f"{value:.{digits}g}".replace("-", "−") + (f" ± {error:.2g}" if error == error else "")
