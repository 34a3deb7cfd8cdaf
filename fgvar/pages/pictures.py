"""Pictures: figures as inline SVG that says in words what it shows."""

import re
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import xarray as xr

    from fgvar.testing.report import Report


@dataclass(frozen=True)
class Picture:
    """A figure with its words.

    Attributes:
        title: what is drawn, in a few words; of one page no two are alike.
        finding: what it shows, in a sentence: the alternative text.
        caption: below it, a paragraph a line.
        svg: the element, whose names of parts need be unique within it alone.
    """

    title: str
    finding: str
    caption: str
    svg: str

    @property
    def element(self) -> str:
        """The element as an image with title and description, and with names that no other picture has.

        Example:
            >>> drawn = '<svg width="9pt"><g id="a"/><use href="#a"/></svg>'
            >>> print(Picture("Ranking", "A leads.", "", drawn).element)
            <svg role="img" aria-labelledby="ranking-title ranking-finding"><title id="ranking-title">Ranking</title>
            <desc id="ranking-finding">A leads.</desc><g id="ranking-a"/><use href="#ranking-a"/></svg>
        """
        own = re.sub(r"\W+", "-", self.title.lower())
        opening, body = re.match(r"<svg([^>]*)>(.*)", self.svg, flags=re.DOTALL).groups()  # type: ignore[union-attr]
        opening = re.sub(r' (?:width|height)="[^"]*"', "", opening)  # the page gives it its size
        body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
        body = re.sub(r'\bid="', f'id="{own}-', body)
        body = re.sub(r'href="#', f'href="#{own}-', body)
        body = body.replace("url(#", f"url(#{own}-")
        named = f'<title id="{own}-title">{escape(self.title)}</title>'
        found = f'<desc id="{own}-finding">{escape(self.finding)}</desc>'
        return f'<svg{opening} role="img" aria-labelledby="{own}-title {own}-finding">{named}\n{found}{body}'


TITLES = {
    "training": "Over training",
    "sweep": "Over the sweep",
    "layers": "Layer by layer",
    "ranking": "Ranking of estimators",
    "tradeoff": "Bias against variance",
    "draws": "Laws of single draws",
    "check": "What each check found",
}


def pictures(shown: "xr.Dataset | Report") -> tuple[tuple[Picture, ...], tuple[str, ...]]:
    """Every fitting figure of a dataset or a check report, best first; and sentences on why others are not there.

    An estimator looks alike in all of them.

    Raises:
        ImportError: the extra "plot" is not installed.
    """
    from fgvar import plot
    from fgvar.plot.kinds_of import why_no_sweep

    kinds, found, whys = plot.kinds(shown), list[Picture](), list[str]()
    if not kinds and (why := why_no_sweep(shown)):
        whys.append(f"No figure fits; as a sweep: {why}.")
    for kind in kinds:
        try:
            found.append(_picture(shown, kind))
        except (ValueError, TypeError, LookupError, ArithmeticError) as error:  # a page is worth more than a figure
            whys.append(f"{TITLES[kind]}: no figure, as {error}.")
    return tuple(found), tuple(whys)


def _picture(shown: "xr.Dataset | Report", kind: str) -> Picture:
    from fgvar import plot
    from fgvar.plot.kinds_of import draw

    figure = draw(shown, kind)
    return Picture(TITLES[kind], plot.alternative(shown, kind), plot.caption(shown, kind), plot.svg(figure))
