"""Page: sections of sentences, tables, pictures and terms, as one self-contained HTML file."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from fgvar.errors import needs_extra
from fgvar.measurement.html_tables import Table
from fgvar.pages.pictures import Picture
from fgvar.storage.atomic import replace, require_ending, require_place

ENDINGS = ("html", "htm")


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order.

    Attributes:
        title: the heading.
        sentences: paragraphs.
        tables: those that can be sorted.
        pictures: figures with captions.
        folded: behind its title, until a reader asks for it (paper has all).
    """

    title: str
    sentences: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    folded: bool = False

    @property
    def anchor(self) -> str:
        return self.title.lower().replace(" ", "-").replace(",", "")

    def __bool__(self) -> bool:
        return bool(self.sentences or self.tables or self.pictures)


def html(title: str, lead: str, sections: Iterable[Section]) -> str:
    """The file's text: sections that hold something, in order, with a list of them on top.

    Args:
        title: of the page, and of the browser's window.
        lead: a sentence below it.

    Raises:
        ImportError: jinja2, of the extra "plot", is not installed.

    Example:
        >>> "<h1>Two schemes</h1>" in html("Two schemes", "drawn", [Section("Notes", ("none",))])
        True
    """
    return str(_template().render(title=title, lead=lead, sections=[one for one in sections if one]))


def write(text: str, path: Path) -> Path:
    """Write a page, whole or not at all, and return its path.

    Args:
        text: the file's.
        path: where; its folder is made.

    Raises:
        ValueError: a name that ends otherwise than in .html or .htm.
        OSError: no such folder and none can be made, or no space.

    Example:
        >>> import tempfile
        >>> write("<p>", Path(tempfile.mkdtemp()) / "page.html").read_text()
        '<p>'
    """
    require_page(path)
    replace(path, [text.encode()], sync=False)
    return path


def require_page(path: Path) -> None:
    """Raise where no page could be written at a path, before there is one.

    Raises:
        ValueError, OSError: as `write`.
    """
    require_ending(path, ENDINGS)
    require_place(path)


@functools.cache
def _template() -> Any:
    with needs_extra("a page", "plot"):
        import jinja2

    own = files("fgvar.pages")
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals |= {"css": (own / "page.css").read_text(), "script": (own / "sort.js").read_text()}
    return environment.from_string((own / "page.html.jinja").read_text())
