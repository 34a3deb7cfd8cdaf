"""Looks: one colour, marker and line for each estimator's name, the same in all figures of a dataset.

The field's names keep the looks of `SCHEMES` everywhere. Other names get the next ones of a cycle that stays apart
for colour-blind readers, or those that are asked for. Markers differ, too, so that nothing rests on colour alone.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import xarray as xr
from matplotlib.colors import is_color_like

GREY = "#7f7f7f"
SOLID, DASHED, DOTTED, MIXED = "-", (0, (3.5, 1.2)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2))


@dataclass(frozen=True)
class Look:
    """How one estimator is drawn: everywhere the same.

    Attributes:
        color: a colour of matplotlib's.
        marker: a name of matplotlib's, or (points, 1, angle) of a star.
        line: a name of matplotlib's, or (offset, lengths of dashes and gaps in line widths).

    Example:
        >>> Look("#D55E00", "o").line
        '-'
    """

    color: str
    marker: Any
    line: Any = SOLID


Wanted = Look | str | tuple[str, Any]  # what may be asked for: a look, a scheme's or a colour, a colour and a marker

# Okabe & Ito's colours for what is drawn together most often (they stay apart for colour-blind readers), Tol's
# muted ones for feedback alignment. Every marker occurs once, so that nothing rests on colour alone. Lines:
# activities are perturbed: solid; weights: dashed; nothing: dash-dotted, dotted.
SCHEMES = {
    "BP": Look("#000000", "X", MIXED),
    "L-BP": Look("#666666", "P", MIXED),
    "LG-BP": Look("#009E73", "*", MIXED),
    "FA": Look("#CC79A7", "v", DOTTED),
    "L-FA": Look("#999933", "<", DOTTED),
    "LG-FA": Look("#882255", ">", DOTTED),
    "DFA": Look("#332288", "p", DOTTED),
    "FG-W": Look("#56B4E9", "s", DASHED),
    "FG-A": Look("#E69F00", "o", SOLID),
    "LG-FG-W": Look("#0072B2", "D", DASHED),
    "LG-FG-A": Look("#D55E00", "^", SOLID),
    "LG-FG-A-no-stop": Look("#DDAA33", "d", SOLID),
    "MeZO": Look("#44AA99", (4, 1, 0), DASHED),
    "EGGROLL": Look("#AA4499", "H", DASHED),
    "frozen": Look("#A9A9A9", "h", DOTTED),
}
COLORS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#332288", "#882255", "#44AA99", "#999933",
    "#AA4499", "#666666",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "*", "X", "p", "<", ">", "h", "d")
_LARGER = {  # to look equally large
    "*": 1.6, "X": 1.25, "P": 1.25, "^": 1.15, "v": 1.15, "D": 0.85, "s": 0.9, (4, 1, 0): 1.6,
}  # fmt: skip
NOT_DRAWN_APART = ("layer", "reference", "status", "traceback")  # text along them is no estimator's name

# Lines that are no estimator's: of a random direction, of theory.
NULL: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 0.7, "zorder": 1}
THEORY: dict[str, Any] = {"color": "black", "linestyle": "-", "linewidth": 0.5, "zorder": 1.5}


def assign(names: Iterable[str], wanted: Mapping[str, Wanted] | None = None) -> dict[str, Look]:
    """A look for each name, in the order of legends: the field's names first, then the others as they come.

    Args:
        names: each once or more.
        wanted: name → a `Look`, a colour, a colour and a marker, or a scheme's name whose look it gets. Names that
            are not among ``names`` play no part, so that figures of several datasets may share it.

    Raises:
        ValueError: what is wanted is none of these.

    Example:
        >>> found = assign(["mine", "FG-A"], {"mine": "#009E73"})
        >>> list(found), found["FG-A"] == SCHEMES["FG-A"], found["mine"].color
        (['FG-A', 'mine'], True, '#009E73')
    """
    names, found = in_order(names), dict[str, Look | None]()
    for name in names:
        found[name] = _wanted(name, wanted[name]) if wanted and name in wanted else SCHEMES.get(name)
    colors = Counter(its.color for its in found.values() if its is not None)
    markers = Counter(its.marker for its in found.values() if its is not None)
    looks = {}
    for name in names:
        its = found[name] or Look("", None)
        if its.color and its.marker is not None:
            looks[name] = its
            continue
        color = its.color or min(COLORS, key=lambda one: colors[one])
        marker = min(MARKERS, key=lambda one: markers[one])
        lines = (SOLID, DASHED, DOTTED, MIXED)
        line = lines[colors[color] % len(lines)] if not its.color else SOLID
        looks[name] = Look(color, marker, line)
        colors[color] += not its.color
        markers[marker] += 1
    return looks


def _wanted(name: str, wanted: Wanted) -> Look:
    """The look that is asked for; without a marker where only a colour is."""
    if isinstance(wanted, Look):
        found = wanted
    elif isinstance(wanted, str):
        found = SCHEMES[wanted] if wanted in SCHEMES else Look(wanted, None)
    elif isinstance(wanted, tuple) and len(wanted) == 2:
        found = Look(*wanted)
    else:
        found = Look("", None)
    if not is_color_like(found.color):
        raise ValueError(
            f"looks[{name!r}] is {wanted!r}; expected a colour, as '#D55E00', a colour and a marker, as ('#D55E00', "
            "'o'), a fgvar.plot.Look, or the name of a scheme, as 'FG-A'"
        )
    return found


def of(dataset: xr.Dataset, wanted: Mapping[str, Wanted] | None = None) -> dict[str, Look]:
    """Looks for all names in a dataset, along whatever dim, so that all its figures have the same ones."""
    dims = [dim for dim in dataset.dims if dim in dataset.coords and dim not in NOT_DRAWN_APART]
    text = [dim for dim in dims if dataset[dim].dtype.kind in "OUST"]
    first = sorted(text, key=lambda dim: dim != "estimator")
    return assign(itertools.chain.from_iterable(map(str, dataset[dim].values) for dim in first), wanted)


def look(scheme: str) -> Look:
    """The look of one of the field's names.

    Raises:
        ValueError: another name, which `assign` gives a look beside others.
    """
    if scheme not in SCHEMES:
        raise ValueError(
            f"no look for scheme {scheme!r}, as SCHEMES has {', '.join(SCHEMES)}; fgvar.plot.assign(names) gives one "
            "to any other name"
        )
    return SCHEMES[scheme]


def line_style(its: str | Look) -> dict[str, Any]:
    """Keywords of ``Axes.plot`` for the line of a scheme, or of a look, with its markers."""
    its = look(its) if isinstance(its, str) else its
    return point_style(its) | {"linestyle": its.line}


def point_style(its: str | Look, *, hollow: bool = False) -> dict[str, Any]:
    """Keywords of ``Axes.plot`` for the markers of a scheme, or of a look, alone."""
    its = look(its) if isinstance(its, str) else its
    size = mpl.rcParams["lines.markersize"] * _LARGER.get(its.marker, 1.0)
    its_edge = {"markerfacecolor": "white", "markeredgecolor": its.color, "markeredgewidth": 0.7}
    return {
        "color": its.color,
        "marker": its.marker,
        "markersize": size,
        "linestyle": "none",
        **(its_edge if hollow else {"markeredgecolor": "white"}),
    }


def plain(name: str) -> str:
    r"""A name as figures write it, in which a dollar is a dollar and begins no mathematics.

    Example:
        >>> print(plain("$a$"))
        \$a\$
    """
    return name.replace("$", r"\$")


def in_order(names: Iterable[str]) -> list[str]:
    """The names, each once: those of `SCHEMES` in its order, then the others as they come; the order of legends."""
    names = list(dict.fromkeys(map(str, names)))
    return [name for name in SCHEMES if name in names] + [name for name in names if name not in SCHEMES]
