"""Locks between processes: hold one, exclusive or shared, while work is done; however that ends, the lock is gone.

The locks are the kernel's (``flock``), so that a killed process holds none. Where a platform or a file system has no
such locks, everybody gets one.
"""

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

fcntl: ModuleType | None
try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

POLL_SECONDS = 0.02  # seconds between two looks at a lock that will soon be free


class LockHeld(Exception):
    """Somebody else has the lock; the message is what they have written into its file."""


def lock_path(path: Path) -> Path:
    """The lock file of a file: however many links lead to that, there is one."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.lock")


def this_process() -> str:
    """This process, for whoever finds a lock held."""
    return f"process {os.getpid()} on {socket.gethostname()}"


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the lock of this file, and be named in it.

    Raises:
        Held: by another process, or another thread of this one.
        OSError: the lock's file cannot be made.
    """
    number = try_lock(path)
    if number is None:
        raise LockHeld(_note(path))
    with _released(number, path):
        _write(number, this_process())
        yield


@contextlib.contextmanager
def shared(path: Path, work: str) -> Iterator[None]:
    """Hold the lock of this file with all others who do the same work.

    Raises:
        Held: by a process that does other work.
        OSError: the lock's file cannot be made.
    """
    while (number := _joined(path, work)) is None:
        time.sleep(POLL_SECONDS)  # somebody is writing down what they do
    with _released(number, path):
        theirs, _, process = os.pread(number, 1000, 0).decode(errors="replace").partition("\n")
        if theirs != work:
            raise LockHeld(process)
        yield


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """The descriptor of a file with the lock on it; None where somebody else has that.

    Raises:
        OSError: the file cannot be opened, or made where there is none.
    """
    # What a stranger may have put there is not followed.
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
    while True:
        number = os.open(path, flags, 0o666)
        if not _locked(number, shared):
            os.close(number)
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(number), os.stat(path)):
                return number
        os.close(number)  # whoever had it took the file away


def _joined(path: Path, work: str) -> int | None:
    """A shared lock on a file that says what is done; None where another process is just writing that."""
    number = try_lock(path)
    if number is None:
        return try_lock(path, shared=True)
    _write(number, f"{work}\n{this_process()}")
    _locked(number, shared=True)
    return number


def _locked(number: int, shared: bool) -> bool:
    """Lock an open file (again), unless somebody else has; where there are no locks, everybody has one."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(number, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without them
        return True
    return True


def _write(number: int, text: str) -> None:
    os.ftruncate(number, 0)
    os.pwrite(number, text.encode(), 0)


def _note(path: Path) -> str:
    """What stands in a lock's file; a process that has just taken it has not written yet."""
    with contextlib.suppress(OSError):
        if text := path.read_text(errors="replace").strip():
            return text
    return "another process"


@contextlib.contextmanager
def _released(number: int, path: Path) -> Iterator[None]:
    """Release the lock in the end, and take the file away where nobody shares it."""
    try:
        yield
    finally:
        if _locked(number, shared=False):
            path.unlink(missing_ok=True)
        os.close(number)
