"""Cells of a sweep: what defines one, what came of it, and its file.

A file is a line that names the format, a line with a hash of the rest, a line of JSON and the packed dataset. One
that a power cut has damaged has another hash, so that its cell is computed again.
"""

import contextlib
import hashlib
import inspect
import json
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

MAGIC = b"fgvar cell 2\n"  # another number is another format
RESERVE = 1 << 20  # bytes kept for the cell that is finished when the disk is full
LOCKS = 1 << 16  # bytes beside it, more than files of locks take
SYNCED = 0.1  # a cell that took less seconds is computed again, after a power cut, as soon as it is synced
STALE = 3600.0  # seconds after which a half-written file is no living driver's

Scalar = str | int | float | bool
Function = Callable[..., xr.Dataset]


@dataclass(frozen=True, eq=False)
class Cell:
    """One point of the grid.

    Attributes:
        place: its index along each axis.
        arguments: all that the function is called with.
        key: a hash of everything that defines its result.
    """

    place: tuple[int, ...]
    arguments: Mapping[str, Any]
    key: str

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.arguments.items())


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


def check_call(function: Function, axes: Collection[str], others: Collection[str]) -> None:
    """Raise where the function does not take these arguments.

    Raises:
        TypeError: no plain function, but an object with a state that no key would know.
        ValueError: an axis or setting that it has no parameter for, or a parameter that nothing is given for.
    """
    if not inspect.isfunction(function):
        raise TypeError(f"the cell is {function!r}, expected a function; what it is set up with belongs into config=")
    parameters = inspect.signature(function).parameters.values()
    takes = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        for kind, names in (("axis", axes), ("argument", others)):
            for name in names:
                if name not in takes:
                    raise ValueError(f"{unknown(kind, name, takes)}: these are what {function_name(function)} takes")
    needed = [p.name for p in parameters if p.name in takes and p.default is p.empty]
    if lacking := [name for name in needed if name not in {*axes, *others}]:
        raise ValueError(
            f"{function_name(function)} needs {', '.join(lacking)}; give each as an axis (axes are: "
            f"{', '.join(axes)}) or in config="
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
                stored = path.read_bytes()
            except FileNotFoundError:
                continue
            digest, _, body = stored.removeprefix(MAGIC).partition(b"\n")
            if stored.startswith(MAGIC) and digest == _hash(body):
                header, _, content = body.partition(b"\n")
                return Outcome(**json.loads(header)["outcome"], content=content)
            path.unlink(missing_ok=True)
        return None

    def write(self, cell: Cell, outcome: Outcome) -> None:
        """Keep what came of a cell.

        Raises:
            OSError: it could not be written, or only in place of the reserve, which there is once.
        """
        told = {"status": outcome.status, "seconds": outcome.seconds, "traceback": outcome.traceback}
        arguments = {name: _canonical(value) for name, value in cell.arguments.items()}
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


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()
