"""Figures of measurements, training runs, sweeps and check reports; needs the extra "plot".

A function takes a dataset and returns a matplotlib figure, or draws on axes that are given. Errors are always shown,
what is missing says why, and what was drawn, is exact or was replayed looks different; `caption` says it in words.
"""

from typing import Any

from fgvar.errors import needs_extra
from fgvar.lazy import lazy

_NAMES = {
    # figures
    "layers": "fgvar.plot.by_layer",
    "training": "fgvar.plot.over_training",
    "ranking": "fgvar.plot.ranked",
    "sweep": "fgvar.plot.along_axes",
    "tradeoff": "fgvar.plot.bias_variance",
    "draws": "fgvar.plot.draw_laws",
    "check": "fgvar.plot.check_chart",
    # what fits, and what it shows in words
    "kinds": "fgvar.plot.kinds_of",
    "figures": "fgvar.plot.kinds_of",
    "caption": "fgvar.plot.captions",
    "alternative": "fgvar.plot.captions",
    # looks, pages and files
    "Look": "fgvar.plot.looks",
    "assign": "fgvar.plot.looks",
    "venue": "fgvar.plot.venues",
    "save": "fgvar.plot.files",
    "svg": "fgvar.plot.files",
    # parts, for figures of one's own
    "Sheet": "fgvar.plot.sheet",
    **dict.fromkeys(
        ("datasets", "drawing", "intervals", "limits", "looks", "marks", "series", "swept", "venues"), ""
    ),
}

__all__ = list(_NAMES)

_load, __dir__ = lazy(__name__, _NAMES)


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module {__name__!r} has no {name!r}")
    with needs_extra("fgvar.plot", "plot"):
        return _load(name)
