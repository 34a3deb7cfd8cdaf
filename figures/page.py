"""The page that all figures share: what it needs of a dataset, its width and panels, the legend above, the caption.

A figure file says what it needs (`Page`), draws panels on a `Sheet`, and tells in a caption what they show:

    PAGE = Page("studies/depth.py", {"cosine": ("depth", "seed")})

    @PAGE.figure
    def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
        (axes,) = sheet.row(1, head=0.5, height=1.8)
        axes.plot(dataset["depth"], dataset["cosine"].mean("seed"))

    @PAGE.caption
    def caption(dataset: xr.Dataset) -> Iterable[str]:
        yield f"Cosine over depth, {dataset.attrs['draws']} draws."
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import matplotlib as mpl
import pandas as pd
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from figures import style

Caption = Callable[[xr.Dataset], str]
Table = Callable[[xr.Dataset], pd.DataFrame]


class Draw(Protocol):
    """A dataset in, a figure out: as wide as one column or two of a venue's page.

    Raises:
        ValueError: not a dataset of the study, an unknown venue or number of columns, a name without a look.
    """

    def __call__(self, dataset: xr.Dataset, *, venue: style.Venue = "iclr", columns: style.Columns = 2) -> Figure: ...


Figures = Mapping[str, tuple[Draw, Caption]]  # what is added to the stem → how it is drawn, and its caption


class Sheet:
    """One figure while it is drawn.

    Attributes:
        wide: two columns rather than one.
        figure: made by `grid`.
    """

    figure: Figure

    def __init__(self, venue: style.Venue, columns: style.Columns) -> None:
        self.width, self.wide = style.width(venue, columns), columns == 2

    def empty(self, height: float) -> Figure:
        """The figure, so many inches high and without panels."""
        self.figure = Figure((self.width, height), layout="constrained")
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

    def legend(self, handles: Sequence[Artist], *, wide: int = 4, narrow: int = 2) -> None:
        """One legend above all panels, with so many columns on a wide page and on a narrow one."""
        columns = wide if self.wide else narrow
        self.figure.legend(handles=list(handles), loc="outside upper center", ncols=columns)

    def schemes(
        self, schemes: Iterable[str], helpers: Sequence[Line2D], *, entry: float, points: bool = False
    ) -> None:
        """A legend of schemes in their order, then helpers; an entry is so many inches wide."""
        how, columns = style.point_style if points else style.line_style, int(self.width / entry)
        handles = [Line2D([], [], label=scheme, **how(scheme)) for scheme in style.in_order(schemes)]
        self.legend([*handles, *helpers], wide=columns, narrow=columns)


class Page:
    """What the figures, captions and tables of one study's dataset share.

    Args:
        source: who writes such datasets.
        needed: variable → its dimensions.
        prepare: what is drawn and told of, made from the dataset.
    """

    def __init__(
        self,
        source: str,
        needed: Mapping[str, tuple[str, ...]],
        prepare: Callable[[xr.Dataset], xr.Dataset] = lambda dataset: dataset,
    ) -> None:
        self.source, self.needed, self._prepare = source, needed, prepare

    def prepared(self, dataset: xr.Dataset) -> xr.Dataset:
        """The dataset as it is drawn.

        Raises:
            ValueError: it lacks something that is needed.
        """
        style.require(dataset, self.needed, self.source)
        return self._prepare(dataset)

    def figure(self, panels: Callable[[Sheet, xr.Dataset], None]) -> Draw:
        """Decorate a function that draws on a sheet."""

        def draw(dataset: xr.Dataset, *, venue: style.Venue = "iclr", columns: style.Columns = 2) -> Figure:
            data = self.prepared(dataset)
            with style.context(venue):
                sheet = Sheet(venue, columns)
                panels(sheet, data)
                _settle(sheet.figure)
            return sheet.figure

        draw.__doc__ = panels.__doc__
        return draw

    def caption(self, parts: Callable[[xr.Dataset], Iterable[str]]) -> Caption:
        """Decorate a function that gives a caption's paragraphs; that of a smoke run says so first."""

        def caption(dataset: xr.Dataset) -> str:
            smoke = "smoke=True" in str(dataset.attrs.get("configuration", ""))
            first = "A smoke run: the numbers mean nothing." if smoke else ""
            return "\n".join(part for part in (first, *parts(self.prepared(dataset))) if part)

        caption.__doc__ = parts.__doc__
        return caption

    def table(self, frame: Table) -> Table:
        """Decorate a function that gives a table."""

        def table(dataset: xr.Dataset) -> pd.DataFrame:
            return frame(self.prepared(dataset))

        table.__doc__ = frame.__doc__
        return table


def _settle(figure: Figure) -> None:
    """Lay the figure out once, under the current settings; saving then only paints."""
    figure.draw_without_rendering()
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # with "none" a place holder stays, for which every saving lays out again
