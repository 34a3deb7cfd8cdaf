"""Errors that say what was got, what was expected and what to do about it."""

import difflib
from collections.abc import Iterable


class NonFiniteError(ArithmeticError):
    """A loss, gradient or noise held NaN or infinity; the message names layer, step and draw."""


def unknown(kind: str, got: object, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest valid one, then all of them."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(got), names, n=1, cutoff=0.6)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {got!r}{hint} (valid: {', '.join(names) or 'none'})"
