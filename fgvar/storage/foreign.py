"""Foreign files: read netCDF without a hash in another process, since a damaged one may hang or crash HDF5."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import xarray as xr

CLASSIC = (b"CDF\1", b"CDF\2", b"CDF\5")  # how files of netCDF-3 begin, which xarray writes where it has SciPy alone
SECONDS, RATE = 30.0, 5e6  # a file may take so long, and another second for so many bytes


def read(path: Path) -> xr.Dataset:
    """The dataset in a netCDF file of whatever origin, wholly in memory, in bounded time.

    Raises:
        ValueError: a file that is damaged, or not a netCDF file, or one of netCDF-3.
    """
    with open(path, "rb") as file:
        if file.read(4) in CLASSIC:
            raise ValueError(
                f"{path} is netCDF-3, and fgvar reads netCDF-4; write it again by dataset.to_netcdf(path, "
                "engine='h5netcdf'), or by fgvar.save"
            )
    limit = SECONDS + path.stat().st_size / RATE
    # What can be imported here can be imported there.
    env = os.environ | {"PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
    command = [sys.executable, "-c", f"from {__name__} import serve; serve()", str(path)]
    nothing = subprocess.DEVNULL  # nor is it for anybody what libraries say while they fail
    try:
        done = subprocess.run(
            command, stdin=nothing, stdout=subprocess.PIPE, stderr=nothing, env=env, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        raise broken(path, f"reading it did not end within {limit:.0f} s") from None
    if done.returncode:
        raise broken(path, f"reading it ended the process with status {done.returncode}")
    found = pickle.loads(done.stdout)  # our own process's
    if isinstance(found, str):
        raise broken(path, found)
    return found


def broken(path: Path, why: str) -> ValueError:
    return ValueError(f"{path} is not a whole netCDF file ({why}); make it again")


def serve() -> None:
    """Write the dataset in the file of the command line, or why there is none, to standard output."""
    try:
        with xr.open_dataset(sys.argv[1], engine="h5netcdf") as stored:
            found: xr.Dataset | str = stored.load()
    except Exception as error:  # of damaged files h5py, h5netcdf, NumPy and xarray raise whatever comes
        found = f"{type(error).__name__}: {error}"
    sys.stdout.buffer.write(pickle.dumps(found))
