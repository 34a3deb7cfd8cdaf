"""Cells of a sweep: write and read the file of what came of one.

A file is a line that names the format, a line with a hash of the rest, a line of JSON and the packed dataset. One
that a power cut has damaged has another hash, so that its cell is computed again.
"""

import contextlib
import json
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from fgvar.storage import locks
from fgvar.storage.atomic import replace, require_folder
from fgvar.storage.packing import unpack
from fgvar.sweeps.keys import SCRATCH, canonical, digest

MAGIC = b"fgvar cell 3\n"  # another number is another format, or another identity of cells
RESERVE = 1 << 20  # bytes kept for the cell that is finished when the disk is full
LOCKS = 1 << 16  # bytes beside it, more than files of locks take
SYNCED = 0.1  # a cell that took less seconds is computed again, after a power cut, as soon as it is synced
STALE = 3600.0  # seconds after which a file that nobody has locked is no living driver's

Scalar = str | int | float | bool


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
        code: of the function that it is of, see `keys.code_of`; empty where that was not kept.
    """

    status: str
    seconds: float
    traceback: str = ""
    content: bytes = b""
    code: str = ""


# ---- the folder -----------------------------------------------------------------------------------------------


class Folder:
    """The files of a sweep's cells: written whole or not at all, by any number of drivers.

    Args:
        path: is made where it is missing.
        code: of the function that cells are computed by.

    Raises:
        OSError: it cannot be written, before anything is computed.
    """

    def __init__(self, path: Path, code: str) -> None:
        self.path, self.code = path, code
        self.reserve = contextlib.ExitStack()

    def __enter__(self) -> "Folder":
        require_folder(self.path, RESERVE + LOCKS)
        for left in self.path.glob(".*.partial"):
            with contextlib.suppress(FileNotFoundError, locks.LockHeld):  # another driver tidies up, or has it
                if time.time() - left.stat().st_mtime > STALE:
                    with locks.exclusive(left):
                        pass
        reserve = self.path / f".{uuid.uuid4().hex}.reserve.partial"
        self.reserve.enter_context(locks.exclusive(reserve))
        reserve.write_bytes(bytes(RESERVE))
        return self

    def __exit__(self, *_: object) -> None:
        self.reserve.close()

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
        told = {name: getattr(outcome, name) for name in ("status", "seconds", "traceback")} | {"code": self.code}
        arguments = {name: canonical(value) for name, value in cell.settings.items()}
        header = json.dumps({"arguments": arguments, "outcome": told}).encode()
        body = header + b"\n" + outcome.content
        content = [MAGIC, digest(body), b"\n", body]
        path = self._file(cell, outcome.status)
        sync = outcome.seconds >= SYNCED
        try:
            replace(path, content, sync=sync)
        except OSError as error:
            self.reserve.close()
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
    stated, _, body = stored.removeprefix(MAGIC).partition(b"\n")
    if not stored.startswith(MAGIC) or stated != digest(body):
        raise ValueError(f"{path} is damaged")
    header, _, content = body.partition(b"\n")
    return json.loads(header), content
