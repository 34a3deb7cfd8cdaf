"""Storage: files that are written whole or not at all, held by locks, and read without trust."""

from fgvar.lazy import lazy

_NAMES = {"replace": "fgvar.storage.atomic", "require_place": "fgvar.storage.atomic"}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy(__name__, _NAMES)
