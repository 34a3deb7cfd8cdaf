"""The file of a dataset, and the versions of what made it: all that needs no torch."""

import functools
import os
import platform
import subprocess
import tempfile
from importlib import metadata
from pathlib import Path

import xarray as xr

import fgvar


def save(dataset: xr.Dataset, path: str | os.PathLike[str]) -> Path:
    """Write a netCDF file atomically: a reader sees the old file or the whole new one.

    Raises:
        OSError: the folder cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     open_dataset(save(xr.Dataset({"loss": 1.5}), f"{folder}/a.nc"))["loss"].item()
        1.5
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        dataset.to_netcdf(temporary, engine="h5netcdf")
        os.chmod(temporary, 0o644)
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def open_dataset(path: str | os.PathLike[str]) -> xr.Dataset:
    """Read a dataset wholly into memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that is not a whole netCDF file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no dataset at {path}; write one with fgvar.save(dataset, path)")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            return stored.load()
    except (OSError, KeyError, RuntimeError) as error:  # what h5py and h5netcdf raise for damaged files
        raise ValueError(f"{path} is not a whole netCDF file ({error}); make it again") from error


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
