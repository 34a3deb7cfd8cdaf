"""Marks: points in rows and lines in bands, with errors, edges of log axes, and words for what is missing.

Drawn numbers have a white edge and a solid bar or band, replayed ones a dotted bar or a band with a dotted rim, exact
ones a black edge and neither. What a log axis cannot show, 0 and less, stands on its edge.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fgvar.plot import looks
from fgvar.plot.looks import Look
from fgvar.plot.series import DRAWN, EXACT, REPLAYED, Series

WORDS = {
    DRAWN: "drawn",
    REPLAYED: "replayed",
    EXACT: "exact",
}
WORD: dict[str, Any] = {"color": looks.GREY, "fontsize": "x-small", "clip_on": True}
# Where lines or points may lie below: a white rim, and above them.
OVER: dict[str, Any] = {"path_effects": [patheffects.withStroke(linewidth=1.5, foreground="white")], "zorder": 4}
BESIDE: dict[str, Any] = {
    "color": "0.35", "marker": "d", "markersize": 3.5, "markerfacecolor": "white", "markeredgewidth": 0.5,
    "linestyle": "none", "zorder": 2,
}  # fmt: skip


def style(look: Look, made: str, *, hollow: bool = False) -> dict[str, Any]:
    """Keywords for the markers of numbers that were made like this."""
    found = looks.point_style(look, hollow=hollow)
    exact = made == EXACT and not hollow  # whose edge is all that has its colour
    return found | ({"markeredgecolor": "black", "markeredgewidth": 0.6} if exact else {})


def rows(axes: Axes, its: Series, at: NDArray[np.float64], look: Look, *, label: str, hollow: Any = False) -> None:
    """Points with horizontal bars at these heights; "?" beside those without an interval.

    Args:
        axes: whose x axis has its scale and limits already.
        hollow: markers, all or each.
    """
    where = np.broadcast_to(np.asarray(hollow, bool), its.value.shape)
    log, low = axes.get_xscale() == "log", axes.get_xlim()[0]
    on_edge = np.isfinite(its.value) & log & (its.value <= 0)
    for empty in (False, True):
        shown = np.isfinite(its.value) & ~on_edge & (where == empty)
        if shown.any():
            how = style(look, its.made, hollow=empty) | {"label": label, "elinewidth": 0.7, "zorder": 3}
            drawn = axes.errorbar(its.value[shown], at[shown], xerr=its.bars[:, shown], **how)
            _dotted(drawn, its.made)
        edge = on_edge & (where == empty)
        if edge.any():
            how = style(look, its.made, hollow=empty) | {"zorder": 3.5, "clip_on": False}
            axes.plot(np.full(edge.sum(), low), at[edge], **how)
            axes.tick_params(axis="y", pad=5)  # or half a marker would lie on the labels
            reaches = edge & (its.high > low)
            axes.hlines(at[reaches], low, its.high[reaches], color=look.color, linewidth=0.7, zorder=3)
    _question(axes, its.value, at, its.unsure & ~on_edge)


def _question(axes: Axes, x: NDArray[Any], y: NDArray[np.float64], where: NDArray[np.bool_]) -> None:
    """Marks beside points without an interval."""
    for point in zip(x[where], y[where], strict=True):
        axes.annotate("?", point, (3, 0), textcoords="offset points", va="center", **WORD | OVER | {"clip_on": False})


def _dotted(drawn: Any, made: str) -> None:
    if made == REPLAYED:
        for bar in drawn[2]:
            bar.set_linestyle((0, (1, 1)))


def beside(axes: Axes, values: NDArray[np.float64], at: NDArray[np.float64]) -> None:
    """Somebody else's numbers, as published ones, at the heights of ours: diamonds below the points."""
    axes.plot(values, at, **BESIDE)


def band(axes: Axes, x: NDArray[Any], its: Series, look: Look, *, label: str, joined: bool = True) -> None:
    """A line with markers in the band of its intervals; points with bars where x has one value, or are not joined.

    Beside a value without an interval is "?".

    Args:
        axes: whose y axis has its scale and limits already.
    """
    log, low = axes.get_yscale() == "log", axes.get_ylim()[0]
    on_edge = np.isfinite(its.value) & log & (its.value <= 0)
    value = np.where(on_edge, np.nan, its.value)
    how = style(look, its.made) | {"linestyle": look.line if joined else "none", "zorder": 3}
    how["markeredgewidth"] = min(how.get("markeredgewidth", 0.3), 0.35)  # many stand close together
    if np.isfinite(value).any():
        if len(x) == 1 or not joined:
            bars = axes.errorbar(x, value, yerr=its.bars, fmt="none", ecolor=look.color, elinewidth=0.7)
            _dotted(bars, its.made)
        elif its.bars.any():  # exact numbers of one seed have none
            rim = {"linestyle": (0, (1, 1)), "linewidth": 0.4} if its.made == REPLAYED else {"linewidth": 0}
            ends = [np.where(np.isfinite(value), end, np.nan) for end in (its.low, its.high)]
            ends[0] = np.fmax(ends[0], low) if log else ends[0]  # a band to 0 would fall down like a cliff
            axes.fill_between(x, ends[0], ends[1], color=look.color, alpha=0.25, zorder=2, **rim)
        axes.plot(x, value, label=label, **how)
    _question(axes, x, its.value, its.unsure & ~on_edge)
    if on_edge.any():
        at = dict(how) | {"linestyle": "none", "clip_on": False, "zorder": 3.5}
        axes.plot(x[on_edge], np.full(on_edge.sum(), low), label=f"{label}, 0" if on_edge.all() else None, **at)
        reaches = on_edge & (its.high > low)
        if reaches.any():
            axes.vlines(x[reaches], low, its.high[reaches], color=look.color, linewidth=0.7, zorder=3)


def missing(axes: Axes, gaps: Mapping[float, Mapping[str, str]], count: int) -> None:
    """Words in the rows where numbers are missing, and below the panel for an estimator that has none in any row.

    Args:
        gaps: height of a row → name → why its number is missing.
        count: estimators that share a row.
    """
    rows = round(abs(float(np.diff(axes.get_ylim())[0])))
    always = set.intersection(*map(set, gaps.values())) if len(gaps) == rows > 1 else set()
    if 0 < len(always) < count:
        reasons = {name: "; ".join(dict.fromkeys(of[name] for of in gaps.values())) for name in sorted(always)}
        axes.set_xlabel(_told(reasons, count), color=looks.GREY, fontsize="x-small")
        gaps = {
            at: {name: why for name, why in of.items() if name not in always or len(of) == count}
            for at, of in gaps.items()
        }
    for height, found in gaps.items():
        if found:
            whole = len(found) == count
            where: dict[str, Any] = {"ha": "center"} if whole else {"ha": "left", **OVER}
            told = _told(found, count)
            axes.text(
                0.5 if whole else 0.02,
                height,
                told,
                transform=axes.get_yaxis_transform(),
                va="center",
                **where,
                **WORD,
            )


def _told(found: Mapping[str, str], count: int) -> str:
    """Why numbers are missing, with names where some of a row's are there."""
    whys: dict[str, list[str]] = {}
    for name, why in found.items():
        whys.setdefault(why, []).append(name)
    if len(found) == count:
        return "; ".join(whys)
    return "; ".join(
        f"{looks.plain(names[0]) if len(names) == 1 else f'{len(names)} of {count}'}: {why}"
        for why, names in whys.items()
    )


def legend(
    entries: Mapping[str, Look], made: Mapping[str, str] | None = None, *, lines: bool = False
) -> list[Line2D]:
    """Handles of estimators, in the look of how their numbers were made."""
    return [
        Line2D(
            [],
            [],
            label=looks.plain(name),
            **style(look, (made or {}).get(name, DRAWN)) | ({"linestyle": look.line} if lines else {}),
        )
        for name, look in entries.items()
    ]


def legend_made(kinds: set[str], *, hollow: bool = False, lines: bool = False) -> list[Line2D]:
    """Handles that say how drawn, replayed and exact numbers look, where a figure has several, and hollow ones."""
    grey = Look("0.35", "o")
    found = []
    if kinds != {DRAWN}:
        for made in (DRAWN, REPLAYED, EXACT):
            if made in kinds:
                line = {"linestyle": (0, (1, 1)) if made == REPLAYED else "-" if made == DRAWN or lines else "none"}
                found.append(Line2D([], [], label=WORDS[made], **style(grey, made) | line))
    if hollow:
        found.append(Line2D([], [], label="biased", **looks.point_style(grey, hollow=True)))
    return found
