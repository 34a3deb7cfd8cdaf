"""A check report as a picture: what came of each check, and the smallest error that it would have caught."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from fgvar.plot import drawing, looks
from fgvar.plot.by_layer import stripes
from fgvar.plot.looks import Look
from fgvar.plot.sheet import Sheet, given
from fgvar.plot.venues import here

ROW = 0.165  # inches
# Outcome → how its mark looks.
OUTCOMES: dict[str, dict[str, Any]] = {
    "passed": {"marker": "o", "color": "#009E73", "markersize": 4},
    "failed": {"marker": "X", "color": "#D55E00", "markersize": 5},
    "undecided": {"marker": "$?$", "color": "#000000", "markersize": 4.5},
    "not applicable": {"marker": "_", "color": "0.6", "markersize": 4},
}


class Row(Protocol):
    """What a picture needs of a check on a problem, as `fgvar.testing.check_estimator` reports it."""

    check: str
    problem: str
    outcome: str
    caught: tuple[float, float] | None
    exact: bool


class Report(Protocol):
    """What `fgvar.testing.check_estimator` returns."""

    estimator: str
    rows: tuple[Any, ...]


def check(report: Report, *, axes: Sequence[Axes] | None = None) -> Figure:
    """Draw what came of each check on each problem, and beside it the smallest errors that were caught.

    Right, the farther left a point the sharper its check: errors from there on are caught in all layers, with
    probability 0.95 where estimates were drawn (white edge), for certain where means were enumerated or calls
    compared (black edge). Bars reach to the layer where the smallest error is caught. What compares bits has no size.

    Args:
        report: of `fgvar.testing.check_estimator`.
        axes: two to draw on in place of a figure of its own.

    Raises:
        TypeError: no report.
        ValueError: another number of axes.

    Example:
        >>> import fgvar
        >>> report = fgvar.testing.check_estimator(fgvar.scheme("FG-W"), checks=["unbiased", "scale"])
        >>> [label.get_text() for label in check(report).axes[0].get_yticklabels()]
        ['unbiased', 'scale']
    """
    require_report(report)
    styled = _problems(report)
    if axes is not None:
        left, right = given(axes, 2)
        _outcomes(left, report, list(styled))
        _sizes(right, report, styled)
        left.legend(handles=_handles(report, styled))
        return cast(Figure, left.get_figure(root=True))
    with here() as place:
        sheet = Sheet(place)
        handles = _handles(report, styled)
        height = 0.75 + ROW * len(_checks(report))
        how: dict[str, Any] = {"sharey": True, "width_ratios": (max(1, 0.3 * len(styled)), 2.6)}
        left, right = sheet.grid(1, 2, head=sheet.head(handles), height=height, **how)[0]
        _outcomes(left, report, list(styled))
        _sizes(right, report, styled)
        sheet.legend(handles)
        return sheet.settle()


def require_report(report: object) -> None:
    """Raise a TypeError where this is no report."""
    rows = getattr(report, "rows", None)
    if not isinstance(rows, tuple) or not rows or not all(hasattr(row, "caught") for row in rows):
        raise TypeError(
            f"got a {type(report).__name__}, expected a report with rows: of fgvar.testing.check_estimator(…)"
        )


def _checks(report: Report) -> list[str]:
    return list(dict.fromkeys(row.check for row in report.rows))


def _problems(report: Report) -> dict[str, Look]:
    """Problems are no estimators: looks from the cycle."""
    return looks.assign(dict.fromkeys(row.problem for row in report.rows))


def _outcomes(axes: Axes, report: Report, problems: Sequence[str]) -> None:
    checks = _checks(report)
    for outcome, how in OUTCOMES.items():
        its = [row for row in report.rows if row.outcome == outcome]
        x, y = ([names.index(name) for name in of] for names, of in (
            (list(problems), [row.problem for row in its]), (checks, [row.check for row in its])
        ))  # fmt: skip
        axes.plot(x, y, linestyle="none", markeredgewidth=0.8 if outcome == "not applicable" else 0.3, **how)
    stripes(axes, len(checks))
    axes.grid(visible=False)
    axes.set_xticks(range(len(problems)), problems, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_xlim(-0.6, len(problems) - 0.4)
    axes.set_yticks(range(len(checks)), checks)
    axes.set_title("outcome")


def _sizes(axes: Axes, report: Report, styled: Mapping[str, Look]) -> None:
    """Points at the errors that are caught in every layer."""
    checks = _checks(report)
    sizes = [size for row in report.rows if row.caught for size in row.caught if np.isfinite(size) and size > 0]
    low, high = min([*sizes, 1e-3]) / 5, max([*sizes, 1.0]) * 3
    drawing.log(axes, "x", (low, high))
    axes.axvline(1, **looks.NULL)
    for index, (name, look) in enumerate(styled.items()):
        shift = 0.75 * ((index + 0.5) / len(styled) - 0.5)
        for row in report.rows:
            if row.problem == name and row.caught:
                y = checks.index(row.check) + shift
                least, most = (min(size, high) for size in row.caught)
                edge = {"markeredgecolor": "black", "markeredgewidth": 0.5} if row.exact else {}
                axes.plot([least, most], [y, y], color=look.color, linewidth=0.7, zorder=2)
                axes.plot(most, y, zorder=3, **looks.point_style(look) | edge)
    stripes(axes, len(checks))
    axes.tick_params(axis="y", labelleft=False)
    axes.set_xlabel("smallest error caught, relative")
    axes.set_title("power")


def _handles(report: Report, styled: Mapping[str, Look]) -> list[Line2D]:
    there = {row.outcome for row in report.rows}
    handles = [
        Line2D([], [], linestyle="none", label=outcome, **how)
        for outcome, how in OUTCOMES.items()
        if outcome in there
    ]
    sized = [row.problem for row in report.rows if row.caught]
    handles += [
        Line2D([], [], label=name, **looks.point_style(look)) for name, look in styled.items() if name in sized
    ]
    edge = looks.point_style(Look("0.7", "o")) | {"markeredgecolor": "black", "markeredgewidth": 0.7}
    return [*handles, Line2D([], [], label="exact", **edge)] if any(row.exact for row in report.rows) else handles
