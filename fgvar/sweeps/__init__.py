"""Sweeps: grids of cells, each computed once and kept in a file of its own."""

from fgvar.lazy import lazy

_NAMES = {"finished": "fgvar.sweeps.cells"}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy(__name__, _NAMES)
