"""Scratch folders: each belongs to one driver while that computes its cell, whatever other sweeps have that cell."""

import contextlib
import shutil
import time

from fgvar.storage import locks
from fgvar.sweeps.cells import Cell

WAIT = 0.2  # seconds between two looks at whether another driver has ended


class ScratchFolders:
    """The folders that a driver holds, and the cells that it left to others.

    Attributes:
        busy: cells whose folders others hold.
    """

    def __init__(self) -> None:
        self.busy: list[Cell] = []
        self._held: dict[Cell, contextlib.ExitStack] = {}

    def __enter__(self) -> "ScratchFolders":
        return self

    def __exit__(self, *_: object) -> None:
        for cell in list(self._held):
            self.release(cell)

    def take(self, cell: Cell) -> bool:
        """Make a cell's folder, if it has one, and hold it until it is released; not where another driver does."""
        if cell.scratch is None:
            return True
        lock = contextlib.ExitStack()
        try:
            lock.enter_context(locks.exclusive(locks.lock_path(cell.scratch)))
        except locks.LockHeld:
            self.busy.append(cell)
            return False
        self._held[cell] = lock
        cell.scratch.mkdir(exist_ok=True)
        return True

    def release(self, cell: Cell) -> None:
        """Let others have a cell's folder."""
        if cell in self._held:
            self._held.pop(cell).close()

    def left(self) -> list[Cell]:
        """Those that others held, when one of them at least does so no more."""
        found, self.busy = self.busy, []
        while found and all(map(_is_held, found)):
            time.sleep(WAIT)
        return found


def tidy(cell: Cell) -> None:
    """Remove what the cell needed to go on."""
    if cell.scratch is not None:
        shutil.rmtree(cell.scratch, ignore_errors=True)


def _is_held(cell: Cell) -> bool:
    assert cell.scratch is not None
    try:
        with locks.exclusive(locks.lock_path(cell.scratch)):
            return False
    except locks.LockHeld:
        return True
