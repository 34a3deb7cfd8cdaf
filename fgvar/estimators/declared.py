"""Declared: what a word says of itself, believed of what it does itself and not of what a subclass does instead."""

from typing import Any


def declared(word: object, what: str, *does: str) -> Any:
    """The attribute ``what`` of a word, which says something of its methods ``does``; None where nothing is said.

    It counts for a class and those made from it, down to one that writes such a method anew: a subclass of `Gaussian`
    that samples otherwise has inherited what was said of another law, and has to say it itself. What an instance has
    of its own, as a field of a dataclass, counts, too.

    Example:
        >>> class Certain:
        ...     kurtosis = 1.0
        ...     def sample(self): ...
        >>> class Heavy(Certain):
        ...     def sample(self): ...
        >>> declared(Certain(), "kurtosis", "sample"), declared(Heavy(), "kurtosis", "sample")
        (1.0, None)
    """
    if what in getattr(word, "__dict__", {}):
        return getattr(word, what)
    for kind in type(word).__mro__:
        if what in vars(kind):
            return getattr(word, what)
        if any(method in vars(kind) for method in does):
            return None
    return None
