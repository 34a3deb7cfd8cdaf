"""Files of datasets: save and open them by their hash, with the versions of what made them; without torch."""

import functools
import hashlib
import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import BinaryIO

import xarray as xr

import fgvar
from fgvar.storage import foreign
from fgvar.storage.atomic import replace, require_place

LINE = re.compile(rb"\nsha256 ([0-9a-f]{64})\n")  # the last line of a file, of all bytes before it
BEGIN = b"\nsha256 "
LENGTH = len(BEGIN) + 64 + 1
HDF5 = b"\x89HDF\r\n\x1a\n"


def save(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a netCDF file atomically: a reader sees the old file or the whole new one.

    A last line, which HDF5 ignores, is a hash of all bytes before it, by which `open_dataset` knows damage. Links are
    followed, and a file that is replaced keeps its permissions.

    Raises:
        TypeError: no dataset.
        OSError: the folder cannot be written, the disk is full, or what stands at the path is no regular file; what
            stood there stays.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     open_dataset(save(xr.Dataset({"loss": 1.5}), f"{folder}/a.nc"))["loss"].item()
        1.5
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"got {type(dataset).__name__} to save, expected an xarray.Dataset, as fgvar.measure returns")
    require_place(path)
    content = dataset.to_netcdf(engine="h5netcdf")  # in memory: on a disk that is full, HDF5 crashes
    try:
        replace(path, [content, f"\nsha256 {hashlib.sha256(content).hexdigest()}\n".encode()])
    except OSError as error:
        why = error.strerror or error
        raise OSError(error.errno, f"{path} could not be written ({why}); what stood there stays") from error
    return Path(path)


def open_dataset(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a dataset wholly into memory.

    Files that `save` has written are held against their hash; others are read in a process of their own, so that a
    damaged one can neither hang nor crash this one.

    Args:
        path: of the netCDF file.

    Raises:
        FileNotFoundError: no such file, or a folder.
        ValueError: a file that has changed since `save` wrote it, or that is not a whole netCDF file.

    Example:
        >>> import tempfile
        >>> place = save(xr.Dataset({"cosine": ("step", [0.1, 0.2])}), f"{tempfile.mkdtemp()}/one.nc")
        >>> open_dataset(place)["cosine"].values.tolist()
        [0.1, 0.2]
    """
    path = Path(path)
    if not path.is_file():
        folder = ", which is a folder; give a file in it, as sweep.nc of a sweep, or" if path.is_dir() else ";"
        raise FileNotFoundError(f"no dataset at {path}{folder} write one with fgvar.save(dataset, path)")
    if not _proved(path):
        return foreign.read(path)
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        return stored.load()


def _proved(path: Path) -> bool:
    """Has the file the hash that it states? False where it states none.

    Raises:
        ValueError: it has another one, or is cut short.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        end = _end(file.read(48))
        if end is not None and (length := _length(file, size, end)) > size:
            raise foreign.broken(path, f"it has {size:,} of its {length:,} bytes")
        file.seek(max(size - LENGTH, 0))
        line = LINE.fullmatch(file.read())
        # One with that many bytes behind the end that HDF5 knows has had a line, and it is damaged.
        if line is None and (end is None or size != end + LENGTH):
            return False
        file.seek(0)
        digest, left = hashlib.sha256(), size - LENGTH
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    if line is None or digest.hexdigest().encode() != line[1]:
        raise ValueError(
            f"{path} has changed since it was written: its last line states another hash than its content has; make "
            f"it again, or read it as it is by xarray.open_dataset({str(path)!r}, engine='h5netcdf')"
        )
    return True


def _length(file: BinaryIO, size: int, end: int) -> int:
    """The length that a file should have, of which HDF5 knows the end: with the last line, where that has begun."""
    if size <= end:
        return end
    file.seek(end)
    rest = file.read(LENGTH)
    return end + LENGTH if BEGIN.startswith(rest) or rest.startswith(BEGIN) else end


def _end(head: bytes) -> int | None:
    """The length of a file of HDF5, by its superblock of version 0; None of any other file."""
    if not head.startswith(HDF5 + b"\0") or len(head) < 48 or head[13] != 8:
        return None
    return int.from_bytes(head[40:48], "little")


@functools.cache
def versions() -> dict[str, str]:
    """The software that makes results here."""
    return {
        "fgvar_version": metadata.version("fgvar"),
        "torch_version": metadata.version("torch"),
        "python_version": platform.python_version(),
        "commit": _commit(),
    }


def _commit() -> str:
    """Commit of the checkout that fgvar runs from, "+" after it where files differ; empty outside of one."""
    root = Path(fgvar.__file__).parent
    try:
        command = ["git", "-C", str(root), "describe", "--always", "--dirty=+", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
