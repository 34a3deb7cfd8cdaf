"""The sheet that a figure is drawn on: panels of a venue's width, below one legend."""

import io
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fgvar.plot import looks
from fgvar.plot.venues import Place

LETTER = 0.46  # width of a letter, in font sizes


class Picture(Figure):
    """A figure that notebooks show without pyplot."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=150)
        return file.getvalue()


def given(axes: Sequence[Axes] | NDArray[Any] | Axes, count: int) -> list[Axes]:
    """The axes that somebody gives to draw on.

    Raises:
        ValueError: another number of them.
    """
    found = list(np.ravel(np.asarray(axes, dtype=object)))
    if len(found) != count:
        raise ValueError(f"got {len(found)} axes, expected {count}: make them by plt.subplots(1, {count})[1]")
    return found


def folded(text: str, inches: float, size: float, *, least: int = 8) -> str:
    """A text in lines no longer than these inches, in letters of this size, or of ``least`` letters."""
    letters = max(least, int(inches * 72 / (size * LETTER)))
    return "\n".join(textwrap.wrap(text, letters) or [text])


class Sheet:
    """One figure while it is drawn.

    Args:
        place: as wide as it.

    Attributes:
        width: in inches.
        wide: two columns rather than one.
        figure: made by `empty`, `grid`, `row` or `columns`.

    Example:
        >>> from fgvar.plot import venues
        >>> with venues.venue("icml", columns=1) as place:
        ...     len(Sheet(place).row(2, head=0.3, height=1.5))
        2
    """

    figure: Figure

    def __init__(self, place: Place) -> None:
        self.width, self.wide = place.width, place.wide

    def empty(self, height: float) -> Figure:
        """The figure, so many inches high and without panels."""
        self.figure = Picture((self.width, height), layout="constrained")
        return self.figure

    def grid(self, down: int, across: int, *, head: float, height: float, **how: Any) -> NDArray[Any]:
        """Panels [down, across], each so many inches high, below the ``head`` of the legend."""
        return self.empty(head + height * down).subplots(down, across, squeeze=False, **how)

    def row(self, count: int, *, head: float, height: float, **how: Any) -> list[Axes]:
        """Panels side by side; in one column, one below the other."""
        shape = (1, count) if self.wide else (count, 1)
        return list(self.grid(*shape, head=head, height=height, **how).flat)

    def columns(self, count: int, panels: int, *, head: float, height: float) -> NDArray[Any]:
        """So many columns of panels, [column, panel]; in one column, each is a row."""
        if not self.wide:
            return self.grid(count, panels, head=head, height=height)
        return self.grid(panels, count, head=head, height=height).T

    def legend(self, handles: Sequence[Artist]) -> None:
        """One legend above all panels, of as many columns as fit, with rows as even as can be; none of nothing."""
        if handles:
            self.figure.legend(handles=list(handles), loc="outside upper center", ncols=self._columns(handles))

    def schemes(self, schemes: Iterable[str], helpers: Sequence[Line2D], *, points: bool = False) -> None:
        """A legend of schemes in their order, then helpers."""
        how = looks.point_style if points else looks.line_style
        self.legend([*(Line2D([], [], label=one, **how(one)) for one in looks.in_order(schemes)), *helpers])

    def head(self, handles: Sequence[Artist]) -> float:
        """Height in inches of a legend of these."""
        lines = [str(one.get_label()).count("\n") + 1 for one in handles]
        rows = -(-len(lines) // self._columns(handles))
        tallest = sum(max(lines[row::rows], default=1) for row in range(rows))
        return 0.12 + tallest * 1.5 * mpl.rcParams["legend.fontsize"] / 72 if handles else 0.02

    def _columns(self, handles: Sequence[Artist]) -> int:
        """How many columns of these entries, each as wide as its widest, are no wider than the sheet."""
        letters = [max(map(len, str(one.get_label()).split("\n"))) for one in handles]
        handle = mpl.rcParams["legend.handlelength"] + mpl.rcParams["legend.columnspacing"] + 1.2

        def fits(columns: int) -> bool:
            widest = [part.max() for part in np.array_split(letters, columns)]
            return sum(widest) * LETTER + columns * handle <= self.width * 72 / mpl.rcParams["legend.fontsize"]

        most = next((count for count in range(len(letters), 1, -1) if fits(count)), 1)
        rows = max(1, -(-len(letters) // most))
        return max(1, -(-len(letters) // rows))  # no more than the rows fill, so that they are even

    def share(self, entries: int) -> float:
        """The share of the width that an entry may have: half of it where the legend would be tall."""
        return 0.5 if entries > 4 else 1.0

    def wrapped(self, name: str, share: float = 1.0) -> str:
        """A name over as many lines as a share of the sheet's width asks for."""
        return folded(name, share * self.width - 0.5, mpl.rcParams["legend.fontsize"])

    def settle(self) -> Figure:
        """Lay the figure out once, under the current settings; saving then only paints."""
        self.figure.draw_without_rendering()
        with mpl.rc_context({"figure.constrained_layout.use": False}):
            self.figure.set_layout_engine(None)  # with "none" a place holder stays, and every saving lays out again
        return self.figure
