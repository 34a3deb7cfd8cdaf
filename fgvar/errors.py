"""Errors that say what was got, what was expected and what to do about it."""

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral

__all__ = ["needs_extra"]  # what figures need, too; the rest is for fgvar's own files


class NonFiniteError(ArithmeticError):
    """A loss, gradient or noise held NaN or infinity; the message names layer, step and draw.

    Example:
        >>> import fgvar, torch
        >>> fgvar.Problem(torch.nn.Linear(1, 1), "mse", (torch.full((2, 1), torch.inf), torch.ones(2, 1)))
        Traceback (most recent call last):
        fgvar.errors.NonFiniteError: the batch: inputs holds NaN or infinity
    """


def require_type(what: str, got: object, kind: type, words: str) -> None:
    """Raise a TypeError where ``got`` is not of this kind of number."""
    if not isinstance(got, kind) or isinstance(got, bool):
        raise TypeError(f"{what} is {got!r}, expected {words}")


def require_integer(what: str, got: object, least: int) -> None:
    """Raise where ``got`` is no integer of at least ``least``."""
    words = f"an integer of at least {least}" if least else "a non-negative integer"
    require_type(what, got, Integral, words)
    if got < least:  # type: ignore[operator]
        raise ValueError(f"{what} is {got}, expected {words}")


def require_seed(seed: object) -> None:
    """Raise where this is no seed that a result can be stored with: an integer of 64 bits, and not negative."""
    require_integer("seed", seed, 0)
    if seed >= 2**64:  # type: ignore[operator]
        raise ValueError(f"seed is {seed}, expected less than 2**64, as every result is stored with its seed")


def require_word(what: str, got: object, parts: Iterable[str], like: str) -> None:
    """Raise a TypeError where ``got`` lacks one of these attributes: it is a class, or another word in its place."""
    if isinstance(got, type):
        raise TypeError(f"{what} is the class {got.__name__}, expected an instance: {got.__name__}(…)")
    if missing := [part for part in parts if not hasattr(got, part)]:
        raise TypeError(f"{what} is {got!r} without {', '.join(missing)}, expected one like {like}")


def unknown(kind: str, got: object, valid: Iterable[str]) -> str:
    """The message for a name that does not exist: the nearest valid one, then all of them."""
    names = sorted(valid)
    return f"unknown {kind} {got!r}{did_you_mean(got, names)} (valid: {', '.join(names) or 'none'})"


def did_you_mean(got: object, names: Iterable[str]) -> str:
    """The end of such a message that suggests the nearest name, whatever its case; empty where none is near."""
    by_lower = {name.lower(): name for name in names}
    near = difflib.get_close_matches(str(got).lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[near[0]]!r}?" if near else ""


@contextmanager
def needs_extra(what: str, extra: str) -> Iterator[None]:
    """Within, a package that cannot be imported is an ImportError that names the extra to install.

    Args:
        what: needs the package; the sentence begins with it.
        extra: of fgvar, which brings it.

    Raises:
        ImportError: a package is not there, or does not import.

    Example:
        >>> with needs_extra("drawing", "studies"):  # doctest: +ELLIPSIS
        ...     import a_package_that_is_not_there
        Traceback (most recent call last):
        ...
        ImportError: drawing needs a_package_that_is_not_there: pip install 'fgvar[studies]' (No ...
    """
    try:
        yield
    except ImportError as error:
        needed = error.name or "another package"
        raise ImportError(
            f"{what} needs {needed}: pip install 'fgvar[{extra}]' ({error})", name=error.name
        ) from error
