"""Keys of cells: what defines a cell's result, and its hash; functions that no key would know are refused.

A key knows the function by its module's and its own name: whatever else makes one function another, what it captured
from around it or which of several lambdas it is, has to come in as an argument or as ``version``.
"""

import hashlib
import inspect
import json
import sys
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import xarray as xr

from fgvar.bytecode import globals_used, instructions
from fgvar.errors import unknown

SCRATCH = "scratch"  # a cell's parameter, which is no part of its key

Function = Callable[..., xr.Dataset]


def key_of(function: Function, arguments: Mapping[str, Any], version: str, threads: int) -> str:
    """Numbers that are equal are the same, whatever their type; whether an argument is an axis does not count.

    Nor does it count whether one is given or left to its default.

    Raises:
        TypeError: an argument, or a default, that JSON cannot hold.
    """
    everything = {name: canonical(value, f"default {name}=") for name, value in _defaults(function).items()}
    everything |= {name: canonical(value) for name, value in arguments.items()}
    identity = {
        "cell": f"{_module_name(function)}.{function_name(function)}",
        "arguments": everything,
        "version": version,
        "threads": threads,
    }
    return digest(json.dumps(identity, sort_keys=True).encode()).decode()


def function_name(function: Function) -> str:
    """Its name without the module's."""
    return str(getattr(function, "__qualname__", function))


def _module_name(function: Function) -> str:
    """The last part of its module's name: a script's functions are ``__main__``'s, and its file's for all others."""
    name = str(function.__module__)
    file = getattr(sys.modules.get(name), "__file__", None) if name == "__main__" else None
    return Path(file).stem if file else name.rpartition(".")[2]


def _defaults(function: Function) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty and p.name != SCRATCH}


def check_call(
    function: Function, axes: Collection[str], others: Collection[str], *, version: str = "", scratch: bool = False
) -> None:
    """Raise where the function does not take these arguments, or has more to it than a key knows.

    Raises:
        TypeError: no plain function, but an object with a state.
        ValueError: an axis or setting that it has no parameter for, or a parameter that nothing is given for;
            the same of ``scratch``; variables that it captures, or a lambda without a ``version``.
    """
    if not inspect.isfunction(function):
        raise TypeError(f"the cell is {function!r}, expected a function; what it is set up with belongs into config=")
    parameters = inspect.signature(function).parameters.values()
    takes = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = [p.name for p in parameters if p.name in takes and p.default is p.empty]
    name = function_name(function)
    if scratch and SCRATCH not in takes:
        raise ValueError(
            f"{name} has no parameter {SCRATCH!r} for its folder; add it (a Path), or leave scratch= out"
        )
    if not scratch and SCRATCH in needed and SCRATCH not in {*axes, *others}:
        raise ValueError(f"{name} needs {SCRATCH!r}; give scratch=, a folder in which every cell gets its own")
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for kind, names in (("axis", axes), ("argument", others)):
            for given in names:
                if given not in takes:
                    raise ValueError(f"{unknown(kind, given, takes)}: these are what {name} takes")
    if lacking := [each for each in needed if each not in {*axes, *others, SCRATCH}]:
        raise ValueError(
            f"{name} needs {', '.join(lacking)}; give each as an axis (axes are: {', '.join(axes)}) or in config="
        )
    _refuse_unknown_to_keys(function, version)


def _refuse_unknown_to_keys(function: Function, version: str) -> None:
    """Raise where another function of this name would get the cells that this one has computed."""
    name = function_name(function)
    if captured := _captured(function):
        raise ValueError(
            f"{name} uses {', '.join(captured)} of the function that it is defined in, which no cell's identity "
            "knows, so that other values would get the cells of these; give them in config=, as parameters"
        )
    if function.__name__ == "<lambda>" and not version:
        raise ValueError(
            f"the cell is a lambda, {name}, and another one in its place would get its cells; define a function, or "
            "give a version="
        )


def _captured(function: Any) -> list[str]:
    """Names of the variables around a function that it uses, but for modules and the functions that it is made of."""
    found = []
    own = {id(function), id(wrapped := getattr(function, "__wrapped__", None))}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            value = cell.cell_contents
        except ValueError:  # it is still to be set
            value = None
        # What functools.wraps decorates is looked at itself.
        if not isinstance(value, ModuleType) and id(value) not in own:
            found.append(name)
    return found + (_captured(wrapped) if inspect.isfunction(wrapped) else [])


def code_of(function: Function) -> str:
    """Python's version, and a hash of the function's bytecode and of what that uses of its module.

    It is no part of a key, as a mended message need not cost hours: it tells whether what is kept is of other code.
    """
    parts: dict[str, str] = {}
    _gather(inspect.unwrap(function), parts)
    found = digest(repr(sorted(parts.items())).encode()).decode()
    return f"{sys.version_info.major}.{sys.version_info.minor} {found}"


def _gather(function: Any, parts: dict[str, str]) -> None:
    """Its instructions, those of its module's functions and the constants that it uses, by name."""
    parts[function.__name__] = instructions(function)
    for name, value in globals_used(function, (str, int, float)).items():
        if name in parts:
            continue
        if isinstance(value, FunctionType):
            _gather(inspect.unwrap(value), parts)
        else:
            parts[name] = repr(value)


def canonical(value: object, what: str = "") -> Any:
    """As JSON, with 1.0 as 1; ``what`` the value is begins the sentence of what it cannot be."""
    if isinstance(value, Mapping):
        return {str(name): canonical(each, what) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(each, what) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"{what}{value!r} is a {type(value).__name__}, and what defines a cell has to be text, numbers, None or "
        "lists and mappings of them; give a name, and make the object in the cell"
    )


def digest(content: bytes) -> bytes:
    """A hash of 32 hexadecimal digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()
