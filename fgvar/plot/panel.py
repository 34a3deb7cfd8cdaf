"""One panel: on axes that are given, or as a figure of its own below its legend."""

from collections.abc import Callable, Sequence
from typing import cast

import matplotlib as mpl
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fgvar.plot.looks import plain
from fgvar.plot.sheet import Sheet, folded
from fgvar.plot.venues import Place, here

LABEL = 0.4  # of a panel's width
WIDEST = 4.5  # inches: one panel over two columns would be mostly empty


def width(place: Place) -> float:
    """Inches of one panel."""
    return min(place.width, WIDEST) if place.wide else place.width


def wrapped(names: Sequence[str]) -> list[str]:
    """Labels of rows, in lines of at most `LABEL` of the panel's width."""
    with here() as place:
        size = mpl.rcParams["ytick.labelsize"]
        size = size if isinstance(size, float | int) else 8
        return [plain(folded(name, LABEL * width(place), size, least=12)) for name in names]


def drawn(ax: Axes | None, draw: Callable[[Axes], None], handles: Sequence[Artist], *, height: float) -> Figure:
    """The figure of one panel, so many inches high; on axes that are given the legend stands inside."""
    if ax is not None:
        draw(ax)
        if handles:
            ax.legend(handles=list(handles))
        return cast(Figure, ax.get_figure(root=True))
    with here() as place:
        sheet = Sheet(place)
        sheet.width = width(place)
        for handle in handles:
            handle.set_label(sheet.wrapped(str(handle.get_label()), sheet.share(len(handles))))
        axes = sheet.grid(1, 1, head=sheet.head(handles), height=height)[0, 0]
        draw(axes)
        sheet.legend(handles)
        return sheet.settle()
