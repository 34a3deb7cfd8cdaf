"""The look of every figure: sizes, fonts, one colour, marker and line for each scheme, and how files are written.

A figure file draws inside ``with context(venue):``, on a figure of `width`, and writes by `save`. Nothing here
changes matplotlib's global settings, and nothing imports torch.
"""

import io
import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import matplotlib as mpl
import numpy as np
import seaborn
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike
from tueplots import figsizes, fontsizes

from fgvar.measurement.dataset_checks import LABELS, missing_from
from fgvar.measurement.files import open_dataset
from fgvar.storage.atomic import replace

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
    marker: str
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
    "frozen": Look("#A9A9A9", "h", DOTTED),
}
_LARGER = {"*": 1.6, "X": 1.25, "P": 1.25, "^": 1.15, "v": 1.15, "D": 0.85, "s": 0.9}  # to look equally large


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


# ---- drawing -------------------------------------------------------------------------------------------------


def curve(axes: Axes, x: ArrayLike, mean: ArrayLike, ends: Sequence[ArrayLike], scheme: str) -> bool:
    """Draw means as the scheme's line, in a band from one to the other of their ``ends``; undefined points are gaps.

    On a log axis, values that are not positive cannot be drawn and are gaps, too.

    Returns:
        Whether there was anything to draw.
    """
    mean, (low, high) = np.asarray(mean, float), (np.asarray(end, float) for end in ends)
    drawable = np.isfinite(mean) & ((mean > 0) | (axes.get_yscale() != "log"))
    if not drawable.any():
        return False
    mean, low, high = (np.where(drawable, one, np.nan) for one in (mean, low, high))
    axes.fill_between(np.asarray(x), low, high, color=look(scheme).color, alpha=0.25, linewidth=0, zorder=2)
    axes.plot(np.asarray(x), mean, label=scheme, zorder=3, **line_style(scheme))
    return True


def repeated(
    axes: Axes, x: xr.DataArray, values: xr.DataArray, *, estimator: str, errorbar: tuple[str, float], **how: Any
) -> None:
    """Draw repeats of a measurement: seaborn's line through their ``estimator``, in its band, over the other dims.

    ``x`` has some of the dims of ``values``; see `seaborn.lineplot` for ``estimator`` and ``errorbar``. `curve`
    draws what comes with an interval of its own, from which seaborn could not make a band.
    """
    at = x.broadcast_like(values).transpose(*values.dims)
    seaborn.lineplot(
        x=at.values.ravel(), y=values.values.ravel(), ax=axes, legend=False, estimator=estimator, errorbar=errorbar,
        err_kws={"linewidth": 0, "alpha": 0.25}, **how,
    )  # fmt: skip


def symlog(
    axes: Axes, which: Literal["x", "y"], linear: float, limits: tuple[float, float], *, sparse: bool = False
) -> None:
    """Make an axis logarithmic, but linear within ±``linear`` (a power of ten), so that 0 is on it.

    ``sparse`` writes numbers at 0 and the outermost powers of ten alone.
    """
    (axes.set_xscale if which == "x" else axes.set_yscale)("symlog", linthresh=linear, linscale=0.6)
    axes.set(**{f"{which}lim": limits})
    reach = max(limits[1], -limits[0]) / linear
    decades = linear * 10.0 ** np.arange(0, np.ceil(np.log10(reach)) + 1)
    axis = axes.xaxis if which == "x" else axes.yaxis
    labelled = np.array([*-decades[::-1], 0.0, *decades])
    labelled = labelled[(labelled >= limits[0]) & (labelled <= limits[1])]
    ticks(axis, labelled, {0, labelled.min(), labelled.max()} if sparse else None)


def log(axes: Axes, which: Literal["x", "y"], limits: tuple[float, float]) -> None:
    """Make an axis logarithmic; limits without two powers of ten between them widen to the next ones."""
    low, high = np.log10(limits)
    if np.floor(high) - np.ceil(low) < 1:
        low, high = np.floor(low), np.ceil(high)
    axes.set(**{f"{which}scale": "log", f"{which}lim": (10**low, 10**high)})
    powers = np.arange(np.ceil(low), np.floor(high) + 1)
    most = 5 if which == "y" else 3  # labels stand side by side on an x axis
    powers = powers[:: -(-len(powers) // most)]
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator((10.0**powers).tolist()))
    axis.set_minor_locator(NullLocator())  # minor ticks would take most of the time of drawing


def log_steps(axes: Axes, steps: ArrayLike) -> None:
    """Make the x axis a log axis of training steps, with plain numbers at it."""
    steps = np.asarray(steps, float)
    low, high = steps.min() / 1.4, steps.max() * 1.4
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    decades = 10.0 ** np.arange(np.ceil(np.log10(low)), np.floor(np.log10(high)) + 1)
    ticks(axes.xaxis, decades if len(decades) > 1 else np.unique([steps.min(), steps.max()]))


def ticks(axis: Axis, places: ArrayLike, written: Collection[float] | None = None) -> None:
    """Ticks at these places, with plain numbers at those that are ``written`` (default: all)."""

    def number(value: float, _position: int) -> str:
        return f"{value:g}".replace("-", "−") if written is None or value in written else ""

    axis.set_major_locator(FixedLocator(np.asarray(places, float).tolist()))
    axis.set_major_formatter(FuncFormatter(number))
    axis.set_minor_locator(NullLocator())


def legend(
    figure: Figure, schemes: Iterable[str], helpers: list[Line2D], entry: float, *, points: bool = False
) -> None:
    """One legend above all panels, an entry of which is so many inches wide: schemes first, in their order."""
    how = point_style if points else line_style
    handles = [Line2D([], [], label=scheme, **how(scheme)) for scheme in in_order(schemes)]
    figure.legend(handles=[*handles, *helpers], loc="outside upper center", ncols=int(figure.get_figwidth() / entry))


def settle(figure: Figure) -> None:
    """Lay the figure out once, under the current settings; saving then only paints."""
    figure.draw_without_rendering()
    with mpl.rc_context({"figure.constrained_layout.use": False}):
        figure.set_layout_engine(None)  # with "none" a place holder stays, for which every saving lays out again


def mean_cosine(d: int) -> float:
    """E|cos| of one random direction to a gradient in d dimensions, Γ(d/2)/(√π Γ((d + 1)/2)) ≈ √(2/πd)."""
    return math.exp(math.lgamma(d / 2) - math.lgamma((d + 1) / 2)) / math.sqrt(math.pi)


# ---- datasets ------------------------------------------------------------------------------------------------


def read(path: Path) -> xr.Dataset:
    """The dataset in a file, wholly in memory.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a netCDF file, or a damaged one.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no dataset at {path}; write it by the study of the same name")
    return open_dataset(path)


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


def text(dataset: xr.Dataset, parts: Iterable[str]) -> str:
    """A caption of its parts; that of a smoke run says so first."""
    smoke = "smoke=True" in str(dataset.attrs.get("configuration", ""))
    return "\n".join(part for part in ("A smoke run: the numbers mean nothing." if smoke else "", *parts) if part)


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
