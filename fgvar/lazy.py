"""Public names that load on first use: a package costs nothing before one of them is needed."""

import importlib
import sys
from collections.abc import Callable, Mapping
from typing import Any


def lazy(
    package: str, names: Mapping[str, str], elsewhere: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package with these public names.

    Args:
        package: its name.
        names: public name → module that defines it; "" for a module of the package itself.
        elsewhere: name that may be looked for here → where it is.

    Raises:
        AttributeError: on use, a name that is not public.

    Example:
        >>> get, names = lazy("fgvar", {"NonFiniteError": "fgvar.errors"})
        >>> get("NonFiniteError")
        <class 'fgvar.errors.NonFiniteError'>
    """

    def get(name: str) -> Any:
        if name not in names:
            from fgvar.errors import unknown

            if elsewhere and name in elsewhere:
                raise AttributeError(f"module {package!r} has no {name!r}; it is {elsewhere[name]}")
            raise AttributeError(f"module {package!r}: {unknown('name', name, names)}")
        where = names[name]
        module = importlib.import_module(where or f"{package}.{name}")
        found = getattr(module, name) if where else module
        setattr(sys.modules[package], name, found)
        return found

    return get, lambda: sorted({*vars(sys.modules[package]), *names})
