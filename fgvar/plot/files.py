"""Files of figures: PDF, SVG and PNG, of which equal figures give equal bytes."""

import io
import os
import re
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from fgvar.plot.venues import EMBEDDED, FONTS
from fgvar.storage.atomic import replace, require_ending, require_place

# What changes between runs, and is left out: dates.
METADATA: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
DPI = 200


def save(figure: Figure, path: str | os.PathLike[str], caption: str = "") -> list[Path]:
    """Write a figure by the suffix of its file: .pdf with embedded fonts, .svg, or .png (200 dpi).

    Equal figures give equal bytes. Without a suffix of these, .pdf and .png are written; a caption goes beside them,
    in a .txt of the same name. Files are replaced atomically.

    Returns:
        The paths.

    Raises:
        ValueError: another suffix.
        OSError: the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from matplotlib.figure import Figure
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     [path.name for path in save(Figure((1, 1)), f"{folder}/a.svg", "A figure.")]
        ['a.svg', 'a.txt']
    """
    paths = written(path)
    contents = [content(figure, one.suffix[1:]) for one in paths]
    if caption:
        paths.append(paths[0].with_name(f"{paths[0].name.removesuffix(paths[0].suffix)}.txt"))
        contents.append(caption.rstrip().encode() + b"\n")
    for one, its in zip(paths, contents, strict=True):
        replace(one, [its], sync=False)
    return paths


def written(path: str | os.PathLike[str]) -> list[Path]:
    """The pictures that `save` writes.

    Raises:
        ValueError: a suffix of no format that it writes.
        OSError: the folder cannot be written.
    """
    path = Path(path)
    require_ending(path, METADATA)
    paths = [path] if path.suffix[1:] in METADATA else [Path(f"{path}.{kind}") for kind in ("pdf", "png")]
    for one in paths:
        require_place(one)
    return paths


def content(figure: Figure, kind: str) -> bytes:
    """The bytes of a figure as "pdf", "svg" or "png"."""
    file = io.BytesIO()
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(FONTS | EMBEDDED)
        figure.savefig(file, format=kind, metadata=METADATA[kind], dpi=DPI if kind == "png" else "figure")
    return file.getvalue()


def svg(figure: Figure) -> str:
    """The figure as one ``<svg …>`` element, for pages of HTML; its letters are paths, so that it needs no font.

    Example:
        >>> from matplotlib.figure import Figure
        >>> svg(Figure((1, 1)))[:4]
        '<svg'
    """
    text = content(figure, "svg").decode()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
