"""Cells of a sweep: hash what defines one, and write and read the file of what came of it.

A file is a line that names the format, a line with a hash of the rest, a line of JSON and the packed dataset. One
that a power cut has damaged has another hash, so that its cell is computed again.
"""

import contextlib
import hashlib
import inspect
import json
import os
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from fgvar.errors import unknown
from fgvar.storage.atomic import replace, require_folder
from fgvar.storage.packing import unpack

MAGIC = b"fgvar cell 2\n"  # another number is another format
RESERVE = 1 << 20  # bytes kept for the cell that is finished when the disk is full
LOCKS = 1 << 16  # bytes beside it, more than files of locks take
SYNCED = 0.1  # a cell that took less seconds is computed again, after a power cut, as soon as it is synced
STALE = 3600.0  # seconds after which a half-written file is no living driver's
SCRATCH = "scratch"  # a cell's parameter, which is no part of its key

Scalar = str | int | float | bool
Function = Callable[..., xr.Dataset]


@dataclass(frozen=True, eq=False)
class Cell:
    """One point of the grid.

    Attributes:
        place: its index along each axis.
        settings: what defines its result.
        key: a hash of that.
        scratch: a folder of its own, for what it needs to go on where it was stopped.
    """

    place: tuple[int, ...]
    settings: Mapping[str, Any]
    key: str
    scratch: Path | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """All that the function is called with."""
        return {**self.settings} if self.scratch is None else {**self.settings, SCRATCH: self.scratch}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.settings.items())


@dataclass(frozen=True)
class Outcome:
    """What came of a cell.

    Attributes:
        status: "done", "failed" (it raised), "timed out" or "died" (its process did).
        seconds: wall time.
        traceback: where it went wrong.
        content: its dataset, packed; empty unless done.
    """

    status: str
    seconds: float
    traceback: str = ""
    content: bytes = b""


def key_of(function: Function, arguments: Mapping[str, Any], version: str, threads: int) -> str:
    """Numbers that are equal are the same, whatever their type; whether an argument is an axis does not count.

    Raises:
        TypeError: an argument that JSON cannot hold.
    """
    identity = {
        "cell": function_name(function),
        "arguments": {name: _canonical(value) for name, value in arguments.items()},
        "version": version,
        "threads": threads,
    }
    return _hash(json.dumps(identity, sort_keys=True).encode()).decode()


def function_name(function: Function) -> str:
    """Its name without the module's: a script's functions are ``__main__``'s."""
    return str(getattr(function, "__qualname__", function))


def check_call(function: Function, axes: Collection[str], others: Collection[str], *, scratch: bool = False) -> None:
    """Raise where the function does not take these arguments.

    Raises:
        TypeError: no plain function, but an object with a state that no key would know.
        ValueError: an axis or setting that it has no parameter for, or a parameter that nothing is given for;
            the same of ``scratch``.
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


def _canonical(value: object) -> Any:
    """As JSON, with 1.0 as 1."""
    if isinstance(value, Mapping):
        return {str(name): _canonical(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_canonical(each) for each in value]
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if value is None or isinstance(value, str | int | float):
        return value
    raise TypeError(
        f"{value!r} is a {type(value).__name__}, and what defines a cell has to be text, numbers, None or lists and "
        "mappings of them; give a name, and make the object in the cell"
    )


# ---- the folder -----------------------------------------------------------------------------------------------


class Folder:
    """The files of a sweep's cells: written whole or not at all, by any number of drivers.

    Raises:
        OSError: it cannot be written, before anything is computed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reserve = path / f".{uuid.uuid4().hex}.reserve.partial"

    def __enter__(self) -> "Folder":
        require_folder(self.path, RESERVE + LOCKS)
        for left in self.path.glob(".*.partial"):
            with contextlib.suppress(FileNotFoundError):  # another driver tidies up, too
                if time.time() - left.stat().st_mtime > STALE:
                    left.unlink()
        self.reserve.write_bytes(bytes(RESERVE))
        return self

    def __exit__(self, *_: object) -> None:
        self.reserve.unlink(missing_ok=True)

    def has(self, cell: Cell) -> bool:
        """Has it been computed, by whomever?"""
        return self._file(cell, "done").exists()

    def read(self, cell: Cell) -> Outcome | None:
        """What came of a cell; None where that is not known, or its file is damaged."""
        for path in (self._file(cell, "done"), self._file(cell, "failed")):
            try:
                header, content = _read(path)
            except FileNotFoundError:
                continue
            except ValueError:
                path.unlink(missing_ok=True)
                continue
            return Outcome(**header["outcome"], content=content)
        return None

    def write(self, cell: Cell, outcome: Outcome) -> None:
        """Keep what came of a cell.

        Raises:
            OSError: it could not be written, or only in place of the reserve, which there is once.
        """
        told = {"status": outcome.status, "seconds": outcome.seconds, "traceback": outcome.traceback}
        arguments = {name: _canonical(value) for name, value in cell.settings.items()}
        header = json.dumps({"arguments": arguments, "outcome": told}).encode()
        body = header + b"\n" + outcome.content
        content = [MAGIC, _hash(body), b"\n", body]
        path = self._file(cell, outcome.status)
        sync = outcome.seconds >= SYNCED
        try:
            replace(path, content, sync=sync)
        except OSError as error:
            self.reserve.unlink(missing_ok=True)
            kept = "it was kept in the space reserved for it"
            try:
                replace(path, content, sync=sync)
            except OSError:
                kept = "it is lost"
            raise OSError(
                error.errno,
                f"no further cell can be written in {self.path} ({error.strerror}): after {cell} was computed "
                f"{kept}; all cells before it are there. Make room and sweep again: only missing ones are computed",
            ) from error
        if outcome.status == "done":
            self._file(cell, "failed").unlink(missing_ok=True)

    def _file(self, cell: Cell, status: str) -> Path:
        return self.path / f"{cell.key}.{'cell' if status == 'done' else 'failed'}"


def finished(folder: str | os.PathLike[str]) -> list[xr.Dataset]:
    """The datasets of all cells that are done in a sweep's folder, of whatever grids; what is damaged is left out.

    Each has what the cell was called with as its attribute ``cell_arguments``, in JSON.

    Example:
        >>> import tempfile
        >>> from fgvar.sweeps.sweep import sweep
        >>> def cell(width):
        ...     return xr.Dataset({"square": float(width**2)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for widths in ((1, 2), (2, 3)):
        ...         _ = sweep(cell, {"width": widths}, folder=folder)
        ...     sorted(one["square"].item() for one in finished(folder))
        [1.0, 4.0, 9.0]
    """
    found = []
    for path in sorted(Path(folder, "cells").glob("*.cell")):
        with contextlib.suppress(ValueError):
            header, content = _read(path)
            found.append(unpack(content).assign_attrs(cell_arguments=json.dumps(header["arguments"])))
    return found


def _read(path: Path) -> tuple[dict[str, Any], bytes]:
    """Header and content of a cell's file.

    Raises:
        ValueError: it is damaged.
    """
    stored = path.read_bytes()
    digest, _, body = stored.removeprefix(MAGIC).partition(b"\n")
    if not stored.startswith(MAGIC) or digest != _hash(body):
        raise ValueError(f"{path} is damaged")
    header, _, content = body.partition(b"\n")
    return json.loads(header), content


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()
