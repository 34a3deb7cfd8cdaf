"""The page of a study's figures: what it needs of the study's dataset, how it is drawn, and its caption.

A figure file says what it needs (`Page`), draws panels on a `fgvar.plot.Sheet`, and says in a caption what they are:

    PAGE = Page("studies/depth.py", {"cosine": ("depth", "seed")})

    @PAGE.figure
    def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
        (axes,) = sheet.row(1, head=0.5, height=1.8)
        axes.plot(dataset["depth"], dataset["cosine"].mean("seed"))

    @PAGE.caption
    def caption(dataset: xr.Dataset) -> Iterable[str]:
        yield f"Cosine over depth, {dataset.attrs['draws']} draws."
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import pandas as pd
import xarray as xr
from matplotlib.figure import Figure

from fgvar.plot import Sheet, datasets, venues

Caption = Callable[[xr.Dataset], str]
Table = Callable[[xr.Dataset], pd.DataFrame]


class Draw(Protocol):
    """A dataset in, a figure out: as wide as one column or two of a venue's page.

    Raises:
        ValueError: not a dataset of the study, an unknown venue or number of columns, a name without a look.
    """

    def __call__(
        self, dataset: xr.Dataset, *, venue: venues.Venue = "iclr", columns: venues.Columns = 2
    ) -> Figure: ...


Figures = Mapping[str, tuple[Draw, Caption]]  # what is added to the stem → how it is drawn, and its caption


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
        datasets.require(dataset, self.needed, self.source)
        return self._prepare(dataset)

    def figure(self, panels: Callable[[Sheet, xr.Dataset], None]) -> Draw:
        """Decorate a function that draws on a sheet."""

        def draw(dataset: xr.Dataset, *, venue: venues.Venue = "iclr", columns: venues.Columns = 2) -> Figure:
            data = self.prepared(dataset)
            with venues.venue(venue, columns=columns) as place:
                sheet = Sheet(place)
                panels(sheet, data)
                return sheet.settle()

        draw.__doc__ = panels.__doc__
        return draw

    def drawn(self, plotted: Callable[[xr.Dataset], Figure]) -> Draw:
        """What a function of `fgvar.plot` makes of the study's dataset."""

        def draw(dataset: xr.Dataset, *, venue: venues.Venue = "iclr", columns: venues.Columns = 2) -> Figure:
            with venues.venue(venue, columns=columns):
                return plotted(self.prepared(dataset))

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
