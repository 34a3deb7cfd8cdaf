"""Captions: what a figure shows, in words and in numbers of its dataset, in print and for those who cannot see."""

from collections.abc import Callable
from typing import Any

import xarray as xr

from fgvar.errors import unknown
from fgvar.measurement.text_tables import visible
from fgvar.plot import captions_of_measurements as one
from fgvar.plot import captions_over_axes as along
from fgvar.plot import kinds_of

LOOKS = ("ax", "axes", "legend", "looks", "order")  # keywords of figures that change no word


def caption(shown: Any, kind: str | None = None, **how: Any) -> str:
    """What a figure of `fgvar.plot` shows: how numbers came, what bars are, what is missing, and what was found.

    Args:
        shown: the dataset, or check report, of the figure.
        kind: the name of the function; default: the first of `fgvar.plot.kinds`.
        how: what the function was given, as ``by="efficiency"``.

    Returns:
        Sentences, a paragraph each line.

    Raises:
        ValueError: no such kind, or none that fits.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> rows = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A")}
        >>> caption(fgvar.measure(rows, problem, route="exact"), "ranking", by="relative_variance").splitlines()[-1]
        'Best: FG-A 4.91; last: FG-W 7.'
    """
    kind = _kind(shown, kind)
    return "\n".join(visible(part) for part in PARTS[kind](shown, **_choices(shown, kind, how)) if part)


def alternative(shown: Any, kind: str | None = None, **how: Any) -> str:
    """What a figure found, in one sentence, for those who cannot see it.

    Args:
        shown, kind, how: as of `caption`.

    Example:
        >>> import xarray as xr
        >>> alternative(xr.Dataset({"test_error": ("epoch", [0.9, 0.1])}, {"epoch": [0, 1]}))
        'Curves of training: test error from 0.9 to 0.1.'
    """
    kind = _kind(shown, kind)
    return visible(FINDINGS[kind](shown, **_choices(shown, kind, how)))


def _choices(shown: Any, kind: str, how: dict[str, Any]) -> dict[str, Any]:
    """What the figure shows, whatever it looks like."""
    asked = {name: value for name, value in how.items() if name not in LOOKS}
    return kinds_of.choices(shown, kind, asked) if isinstance(shown, xr.Dataset) else asked


def _kind(shown: Any, kind: str | None) -> str:
    """Any of a dataset's that is asked for: by some choices it may fit, and where it does not it says why."""
    if isinstance(shown, xr.Dataset) and kind in kinds_of.DRAW:
        return str(kind)
    fitting = kinds_of.kinds(shown)
    if kind is None and fitting:
        return fitting[0]
    if kind not in fitting:
        raise ValueError(unknown("kind", kind, fitting) + "; these are the figures that fit")
    return str(kind)


PARTS: dict[str, Callable[..., list[str]]] = {
    "layers": one.layers,
    "ranking": one.ranking,
    "tradeoff": one.tradeoff,
    "draws": one.draws,
    "training": along.training,
    "sweep": along.sweep,
    "check": along.check,
}
FINDINGS: dict[str, Callable[..., str]] = {
    "layers": one.layers_found,
    "ranking": one.ranking_found,
    "tradeoff": one.tradeoff_found,
    "draws": one.draws_found,
    "training": along.training_found,
    "sweep": along.sweep_found,
    "check": along.check_found,
}
