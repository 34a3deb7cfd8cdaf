"""Atomic files: write one whole or not at all, the one way in which results and checkpoints get onto a disk."""

import contextlib
import os
import stat
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

from fgvar.errors import unknown
from fgvar.storage import locks

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
}


def place(path: str | os.PathLike[str]) -> Path:
    """The file that writing at a path would make or replace: links are followed.

    Raises:
        OSError: what stands there is no regular file.

    Example:
        >>> place("/dev/null")
        Traceback (most recent call last):
        ...
        OSError: /dev/null is a device, expected a regular file or nothing; give another path
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):  # the latter is for whoever makes its folder
        return target
    if not stat.S_ISREG(mode):
        kind = KINDS.get(stat.S_IFMT(mode), "something else")
        remedy = f"a file in it, as {Path(path) / 'result.nc'}" if stat.S_ISDIR(mode) else "another path"
        raise OSError(f"{path} is {kind}, expected a regular file or nothing; give {remedy}")
    return target


def require_place(path: str | os.PathLike[str]) -> None:
    """Raise where a file could not be written at a path, before there is anything to write.

    Raises:
        OSError: what stands there is no regular file; its folder cannot be made or written.

    Example:
        >>> import tempfile
        >>> require_place(f"{tempfile.mkdtemp()}/new/results.nc")
    """
    require_folder(place(path).parent)


def require_ending(path: str | os.PathLike[str], endings: Iterable[str]) -> None:
    """Raise where the name of a file ends in letters behind a point that stand for another format.

    Args:
        path: of a file that is not written yet.
        endings: of the formats that can be written, without their points.

    Raises:
        ValueError: another one.

    Example:
        >>> require_ending("figure", ["pdf", "png"])
        >>> require_ending("figure.jpg", ["pdf", "png"])
        Traceback (most recent call last):
        ...
        ValueError: unknown format 'jpg'; did you mean 'png'? (valid: pdf, png); path is figure.jpg
    """
    ending, known = Path(path).suffix[1:], list(endings)
    if ending.isalpha() and ending not in known:
        raise ValueError(f"{unknown('format', ending, known)}; path is {path}")


def require_folder(folder: Path, room: int = 0) -> None:
    """Raise where a folder cannot be made or written, or has no room for so many bytes.

    Raises:
        OSError: so it is.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(room))
    except OSError as error:
        raise OSError(error.errno, f"cannot write in {folder} ({error.strerror}); nothing was computed") from error


def replace(path: str | os.PathLike[str], parts: Iterable[bytes | memoryview], *, sync: bool = True) -> None:
    """Put a file at a path: readers see the old one or the whole new one, which has its permissions.

    Args:
        path: links are followed.
        parts: of its content, each written before the next is asked for.
        sync: wait until it would outlive a power cut.

    Raises:
        OSError: no regular file stands there, or the disk is full or cannot be written; what stood there stays, and
            nothing is left beside it.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     replace(f"{folder}/a", [b"one", b" whole"])
        ...     Path(folder, "a").read_bytes()
        b'one whole'
    """
    target = place(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Always of this name, so that what a kill leaves of it is written over; a second writer waits for the first.
    temporary = target.with_name(f".{target.name}.partial")
    while (number := locks.try_lock(temporary)) is None:
        time.sleep(locks.POLL_SECONDS)
    with open(number, "wb") as file:
        try:
            file.truncate(0)
            for part in parts:
                file.write(part)
            file.flush()
            if target.exists():
                os.chmod(temporary, stat.S_IMODE(target.stat().st_mode))
            if sync:
                os.fsync(number)
            if os.name != "posix":  # open files cannot be renamed there, and there is no lock to keep
                file.close()
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(PermissionError):  # nor removed
                temporary.unlink(missing_ok=True)
            raise
    if sync and os.name == "posix":  # the renaming, too, outlives a power cut
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
