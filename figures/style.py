"""The look of every figure: sizes, fonts, one colour, marker and line for each scheme, and how files are written.

`figures.page` draws inside ``with context(venue):``, on a figure of `width`, and `figures.command` writes by `save`.
Nothing here changes matplotlib's global settings, and nothing imports torch.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import seaborn
import xarray as xr
from matplotlib.figure import Figure
from tueplots import figsizes, fontsizes

import fgvar
from fgvar.measurement import LABELS, missing_from
from fgvar.storage import replace

Venue = Literal["iclr", "neurips", "icml", "jmlr"]
Columns = Literal[1, 2]

TEXT = ("family", "biased", "status", "data", "group", "law_route")  # variables of datasets that hold text
NUMBERED = ("run", "cell", "example")  # dims without labels
Z = 1.96  # half-width of a 95 % normal interval, in standard errors
GREY = "#7f7f7f"

# Fonts are embedded as TrueType (42), which publishers ask for; text stays text.
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


@dataclass(frozen=True)
class Look:
    """How one scheme is drawn: everywhere the same."""

    color: str
    marker: Any  # a name of matplotlib's or (points, 1, angle) of a star
    line: Any  # a name of matplotlib's or (offset, on-off lengths in line widths)


SOLID, DASHED, DOTTED, MIXED = "-", (0, (3.5, 1.2)), (0, (1, 1.2)), (0, (4, 1.2, 1, 1.2))

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
_LARGER = {  # to look equally large
    "*": 1.6, "X": 1.25, "P": 1.25, "^": 1.15, "v": 1.15, "D": 0.85, "s": 0.9, (4, 1, 0): 1.6,
}  # fmt: skip


def look(scheme: str) -> Look:
    """The scheme's colour, marker and line.

    Raises:
        ValueError: a scheme without a look; a made-up one could be another scheme's in another figure.
    """
    if scheme not in SCHEMES:
        raise ValueError(
            f"no colour for scheme {scheme!r}; add it to SCHEMES in figures/style.py, which has {', '.join(SCHEMES)}"
        )
    return SCHEMES[scheme]


def line_style(scheme: str) -> dict[str, Any]:
    """Keywords of ``Axes.plot`` for the scheme's line with its markers."""
    return point_style(scheme) | {"linestyle": look(scheme).line}


def point_style(scheme: str) -> dict[str, Any]:
    """Keywords of ``Axes.plot`` for the scheme's markers alone."""
    its = look(scheme)
    size = mpl.rcParams["lines.markersize"] * _LARGER.get(its.marker, 1.0)
    return {
        "color": its.color,
        "marker": its.marker,
        "markersize": size,
        "markeredgecolor": "white",
        "linestyle": "none",
    }


def in_order(schemes: Iterable[str]) -> list[str]:
    """The schemes, each once, in the order of `SCHEMES`: the order of every legend."""
    schemes = {scheme: look(scheme) for scheme in schemes}
    return [scheme for scheme in SCHEMES if scheme in schemes]


# Lines that are no scheme's: of a random direction, of theory.
NULL: dict[str, Any] = {"color": GREY, "linestyle": (0, (1, 1.5)), "linewidth": 0.7, "zorder": 1}
THEORY: dict[str, Any] = {"color": "black", "linestyle": "-", "linewidth": 0.5, "zorder": 1.5}

# ---- sizes and settings --------------------------------------------------------------------------------------

# venue → its text width as one column and as two (where the page has one column: as half of it and all of it),
# and its font sizes
VENUES: dict[str, tuple[Any, Any, Any]] = {
    "iclr": (partial(figsizes.iclr2024, rel_width=0.5), figsizes.iclr2024, fontsizes.iclr2024),
    "neurips": (partial(figsizes.neurips2024, rel_width=0.5), figsizes.neurips2024, fontsizes.neurips2024),
    "icml": (figsizes.icml2024_half, figsizes.icml2024_full, fontsizes.icml2024),
    "jmlr": (partial(figsizes.jmlr2001, rel_width=0.5), figsizes.jmlr2001, fontsizes.jmlr2001),
}


def width(venue: str, columns: int) -> float:
    """Width in inches of a figure over one column or two.

    Raises:
        ValueError: an unknown venue, or another number of columns.
    """
    if columns not in (1, 2):
        raise ValueError(f"columns={columns!r}: 1 or 2 expected")
    return float(_venue(venue)[columns - 1]()["figure.figsize"][0])


@contextmanager
def context(venue: str) -> Iterator[None]:
    """Settings for a venue, over matplotlib's own defaults; what was set before is back afterwards.

    Raises:
        ValueError: an unknown venue.
    """
    sizes = _venue(venue)[2]()
    with mpl.rc_context():
        mpl.rcdefaults()  # or a reader's matplotlibrc would change the figure
        small = {"axes.titlesize": sizes["font.size"] - 1, "axes.labelsize": sizes["font.size"] - 1}
        mpl.rcParams.update(seaborn.axes_style("ticks") | sizes | small | LINES | FONTS | EMBEDDED)
        yield


def _venue(venue: str) -> tuple[Any, Any, Any]:
    if venue not in VENUES:
        raise ValueError(f"venue={venue!r}: one of {', '.join(VENUES)} expected")
    return VENUES[venue]


# ---- datasets ------------------------------------------------------------------------------------------------


def read(path: Path) -> xr.Dataset:
    """The dataset in a file, wholly in memory.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a netCDF file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no dataset at {path}; write it by the study of the same name")
    dataset: xr.Dataset = fgvar.open_dataset(path)
    return dataset


def require(dataset: xr.Dataset, needed: Mapping[str, tuple[str, ...]], source: str) -> None:
    """Raise ValueError where the dataset lacks a variable, a dimension of it, numbers or labels, naming them."""
    dims = dict.fromkeys(
        dim for name, its in needed.items() for dim in its if name in dataset and dim in dataset.dims
    )
    labels = [f"labels along {dim!r}" for dim in dims if dim not in (*dataset.coords, *LABELS, *NUMBERED)]
    if missing := [*missing_from(dataset, needed, TEXT), *labels]:
        raise ValueError(f"not a dataset of {source}: it lacks {', '.join(missing)}")


def names(dataset: xr.Dataset, dim: str) -> list[str]:
    return [str(name) for name in dataset[dim].values]


# ---- files ---------------------------------------------------------------------------------------------------


def written(stem: str | Path) -> list[Path]:
    """The files of a figure."""
    return [Path(f"{stem}.{kind}") for kind in ("pdf", "png", "txt")]


def save(figure: Figure, stem: str | Path, caption: str) -> list[Path]:
    """Write ``stem``.pdf, .png (200 dpi) and .txt (the caption); equal figures give equal bytes.

    Returns:
        The paths.
    """
    paths, files = written(stem), (io.BytesIO(), io.BytesIO())
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(FONTS | EMBEDDED)
        # The date is all that changes between runs.
        figure.savefig(files[0], format="pdf", metadata={"CreationDate": None})
        figure.savefig(files[1], format="png", dpi=200)
    contents = (*(file.getvalue() for file in files), caption.rstrip().encode() + b"\n")
    for path, content in zip(paths, contents, strict=True):
        replace(path, [content], sync=False)
    return paths
