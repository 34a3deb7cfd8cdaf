"""Loading: finds an estimator or a problem by name, a scheme's or anybody's own in a module or a file."""

import importlib
import importlib.util
import inspect
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from torch import nn

import fgvar
from fgvar.errors import did_you_mean, unknown
from fgvar.estimators.protocol import GradientEstimator, require_estimator
from fgvar.estimators.schemes import SCHEMES, scheme
from fgvar.problem import Problem
from fgvar.testing.black_box import from_function

T = TypeVar("T")


def load_estimator(name: str) -> GradientEstimator:
    """The estimator of a scheme's name, of ``module:name`` or of ``path/to/file.py:name``.

    The name in a module is that of an estimator; of a class or a function that makes one without arguments; or of
    a function of (problem, generator), as `from_function` takes it. Modules are looked for in the working
    directory, too.

    Raises:
        ValueError: an unknown scheme or name, or what makes no estimator.
        FileNotFoundError: no such file.
        ImportError: no such module, or one that does not import, with the line where it stops.

    Example:
        >>> load_estimator("fgvar.testing.mutants:LOOKALIKES")
        Traceback (most recent call last):
        ...
        ValueError: 'fgvar.testing.mutants:LOOKALIKES' is dict, expected randomness, estimate and target methods
    """
    if name in SCHEMES:
        return scheme(name)
    if not all(name.rpartition(":")):
        raise ValueError(
            f"unknown scheme {name!r}{did_you_mean(name, SCHEMES)} (see `fgvar schemes`); your own is module:name "
            "or path/to/file.py:name"
        )
    found = _made(name, _named(name))
    try:
        require_estimator(name, found)
    except TypeError as error:
        raise ValueError(str(error)) from None
    return found


def load_problem(name: str) -> Problem:
    """The problem of ``module:name`` or of ``path/to/file.py:name``: a `Problem`, or a function that returns one.

    Modules are looked for in the working directory, too.

    Raises:
        ValueError: an unknown name, a function that needs arguments, or what is or returns no problem.
        FileNotFoundError: no such file.
        ImportError: no such module, or one that does not import, with the line where it stops.

    Example:
        >>> load_problem("fgvar.testing:default_problems")
        Traceback (most recent call last):
        ...
        ValueError: fgvar.testing:default_problems is a function that returned dict, expected fgvar.Problem
    """
    if not all(name.rpartition(":")):
        raise ValueError(
            f"problem {name!r} names no function; give path/to/file.py:name or module:name, of a function that "
            "returns an fgvar.Problem"
        )
    found = _named(name)
    if isinstance(found, Problem):
        return found
    if isinstance(found, type | nn.Module) or not callable(found):
        kind = f"the class {found.__name__}" if isinstance(found, type) else type(found).__name__
        raise ValueError(f"{name} is {kind}, expected an fgvar.Problem, or a function that returns one")
    if needed := _needed(found):
        raise ValueError(
            f"{name} is a function that needs {', '.join(needed)}; give it defaults, or name a function without "
            "arguments that calls it and returns an fgvar.Problem"
        )
    made = _ran(f"{name} returns no problem", found, ValueError)
    if not isinstance(made, Problem):
        raise ValueError(f"{name} is a function that returned {type(made).__name__}, expected fgvar.Problem")
    return made


def where(error: BaseException) -> str:
    """Type, message and innermost line of an error, the library's own lines left out."""
    lines = str(error).strip().splitlines() or ["no message"]
    libraries = (str(Path(fgvar.__file__).parent), *(sysconfig.get_path(p) for p in ("stdlib", "purelib", "platlib")))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*libraries, "<frozen"))
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {lines[0]}{place if not isinstance(error, SyntaxError) else ''}"


def _named(name: str) -> Any:
    """What a module or a file calls so."""
    place, _, attribute = name.rpartition(":")
    module = _from_file(Path(place)) if place.endswith(".py") else _module(place)
    if not hasattr(module, attribute):
        raise ValueError(unknown(f"name in {place}", attribute, _own(module)))
    return getattr(module, attribute)


def _needed(function: Callable[..., Any]) -> list[str]:
    """Its arguments without a default."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def _own(module: ModuleType) -> list[str]:
    """What a module defines that could be meant: its classes and functions, and estimators and problems it made."""
    return [name for name, found in vars(module).items() if _is_made(found) or _is_of(module, found)]


def _is_of(module: ModuleType, found: object) -> bool:
    return getattr(found, "__module__", None) == module.__name__


def _is_made(found: object) -> bool:
    return isinstance(found, Problem | GradientEstimator) and not isinstance(found, type)


def _made(name: str, found: Any) -> Any:
    """An estimator as it is, or what a class or a function makes."""
    if _is_made(found) or not callable(found):
        return found
    kind = "class" if isinstance(found, type) else "function"
    needed = _needed(found)
    if not needed:
        return _ran(f"{name} makes no estimator", found, ValueError)
    if kind == "function" and len(needed) == 2:
        return from_function(found)
    more = "" if kind == "class" else ", or a function of (problem, generator)"
    raise ValueError(
        f"{name} is a {kind} that needs {', '.join(needed)}; name an estimator, or what makes one without any{more}"
    )


def _from_file(path: Path) -> ModuleType:
    """The module of a file, whatever else has its name; its neighbours can be imported from it."""
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give module:name or path/to/file.py:name")
    key = str(path.resolve())
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    _look_in(path.parent)
    sys.modules[key] = module  # dataclasses look for it
    try:
        _ran(f"{path} does not import", lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    except ImportError:
        del sys.modules[key]
        raise
    return module


def _module(place: str) -> ModuleType:
    """An installed module, or one of the working directory."""
    _look_in(Path())
    try:
        known = importlib.util.find_spec(place.partition(".")[0]) is not None
    except ValueError:  # no name at all, or a module that does not know where it is from
        known = place in sys.modules
    if not known:
        raise ImportError(
            f"no module {place}, installed or in the working directory; of a file: path/to/file.py:name"
        )
    return _ran(f"{place} does not import", lambda: importlib.import_module(place))


def _look_in(folder: Path) -> None:
    if (name := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, name)


def _ran(what: str, function: Callable[[], T], kind: type[Exception] = ImportError) -> T:
    """What somebody's code returns; whatever it raises, or that it exits, is one error with the line."""
    try:
        return function()
    except (Exception, SystemExit) as error:
        raise kind(f"{what}: {where(error)}") from error
