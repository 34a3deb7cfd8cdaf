"""Venues: widths and fonts of a journal's or conference's page.

Nothing here changes matplotlib's settings for good, and a venue's figures are the same whatever a reader's own are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import matplotlib as mpl
import seaborn
from tueplots import figsizes, fontsizes

from fgvar.errors import unknown

Venue = Literal["iclr", "neurips", "icml", "jmlr"]
Columns = Literal[1, 2]

# Fonts are embedded as TrueType (42), which publishers ask for; text stays text. A salt makes names in SVG repeat.
EMBEDDED: dict[Any, Any] = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.hashsalt": "fgvar"}
FONTS: dict[Any, Any] = {"text.usetex": False, "font.family": "STIXGeneral", "mathtext.fontset": "stix"}
LINES: dict[Any, Any] = {
    "axes.linewidth": 0.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.titlepad": 4.0,
    "axes.labelpad": 2.5,
    "grid.color": "0.9",
    "grid.linewidth": 0.4,
    "lines.linewidth": 0.9,
    "lines.markersize": 3.0,
    "lines.markeredgewidth": 0.3,
    "legend.frameon": False,
    "legend.handlelength": 2.4,
    "legend.columnspacing": 1.4,
    "legend.borderaxespad": 0.0,
    "legend.labelspacing": 0.3,
} | {
    f"{axis}tick.{kind}.{what}": value
    for axis in "xy"
    for kind, length in (("major", 2.5), ("minor", 1.3))
    for what, value in (("size", length), ("width", 0.5 if kind == "major" else 0.3), ("pad", 1.8))
}

# venue → its text width as one column and as two (where the page has one column: as half of it and all of it),
# and its font sizes
VENUES: dict[str, tuple[Any, Any, Any]] = {
    "iclr": (partial(figsizes.iclr2024, rel_width=0.5), figsizes.iclr2024, fontsizes.iclr2024),
    "neurips": (partial(figsizes.neurips2024, rel_width=0.5), figsizes.neurips2024, fontsizes.neurips2024),
    "icml": (figsizes.icml2024_half, figsizes.icml2024_full, fontsizes.icml2024),
    "jmlr": (partial(figsizes.jmlr2001, rel_width=0.5), figsizes.jmlr2001, fontsizes.jmlr2001),
}


@dataclass(frozen=True)
class Place:
    """Where a figure goes: over one column or two of a venue's page."""

    venue: str = "iclr"
    columns: int = 2

    @property
    def width(self) -> float:
        """Inches."""
        return float(VENUES[self.venue][self.columns - 1]()["figure.figsize"][0])

    @property
    def wide(self) -> bool:
        return self.columns == 2


_PLACE: ContextVar[Place | None] = ContextVar("place", default=None)


@contextmanager
def venue(name: Venue = "iclr", *, columns: Columns = 2) -> Iterator[Place]:
    """Within, figures have a venue's width and fonts; afterwards all settings are what they were.

    Args:
        name: "iclr", "neurips", "icml" or "jmlr".
        columns: 2 is the whole text width, 1 one column, or half of the width where a page has one column.

    Raises:
        ValueError: an unknown venue, or another number of columns.

    Example:
        >>> with venue("icml", columns=1) as place:
        ...     round(place.width, 2)
        3.25
    """
    if name not in VENUES:
        raise ValueError(unknown("venue", name, VENUES))
    if columns not in (1, 2):
        raise ValueError(f"columns={columns!r}: 1 or 2 expected")
    place = Place(name, columns)
    token = _PLACE.set(place)
    try:
        with mpl.rc_context():
            mpl.rcdefaults()  # or a reader's matplotlibrc would change the figure
            sizes = VENUES[name][2]()
            small = {"axes.titlesize": sizes["font.size"] - 1, "axes.labelsize": sizes["font.size"] - 1}
            mpl.rcParams.update(seaborn.axes_style("ticks") | sizes | small | LINES | FONTS | EMBEDDED)
            yield place
    finally:
        _PLACE.reset(token)


@contextmanager
def here() -> Iterator[Place]:
    """The place that `venue` has set; elsewhere, and for the time being, two columns of an ICLR page."""
    place = _PLACE.get()
    if place is not None:
        yield place
        return
    with venue() as place:
        yield place


def width(venue: str, columns: int) -> float:
    """Width in inches of a figure over one column or two."""
    return Place(venue, columns).width
