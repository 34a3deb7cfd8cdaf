"""Datasets in files: missing, truncated, foreign, and a save that fails."""

from pathlib import Path

import pytest
import xarray as xr
from refusals import problem, says

import fgvar


def measured():
    return fgvar.measure({"BP": fgvar.scheme("BP")}, problem(), draws=2)


def test_a_missing_dataset(tmp_path: Path) -> None:
    for path in (tmp_path / "none.nc", tmp_path):
        with pytest.raises(FileNotFoundError, match=says(f"no dataset at {path}", r"fgvar\.save\(dataset, path\)")):
            fgvar.open_dataset(path)


def test_a_folder_is_called_one(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*, which is a folder; give a file in it, as sweep"):
        fgvar.open_dataset(tmp_path)


@pytest.mark.parametrize("version", [1, 2, 5])
def test_a_file_of_netcdf_3_is_whole_and_called_so(tmp_path: Path, version: int) -> None:
    """As xarray writes it where it has SciPy alone; all of them begin by CDF and their version."""
    path = tmp_path / "a.nc"
    if version == 1:
        xr.Dataset({"a": 1.0}).to_netcdf(path, engine="scipy", format="NETCDF3_CLASSIC")
    else:
        path.write_bytes(b"CDF" + bytes([version]) + bytes(60))
    with pytest.raises(ValueError, match=r"a\.nc is netCDF-3, and fgvar reads netCDF-4; .*engine='h5netcdf'\)"):
        fgvar.open_dataset(path)


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.9999])
def test_a_truncated_dataset(tmp_path: Path, share: float) -> None:
    whole = fgvar.save(measured(), tmp_path / "whole.nc").read_bytes()
    broken = tmp_path / "broken.nc"
    broken.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=says(f"{broken} is not a whole netCDF file", "make it again")):
        fgvar.open_dataset(broken)


def test_another_kind_of_file(tmp_path: Path) -> None:
    (tmp_path / "text.nc").write_text("a,b\n1,2\n" * 1000)
    with pytest.raises(ValueError, match=says("text.nc is not a whole netCDF file", "make it again")):
        fgvar.open_dataset(tmp_path / "text.nc")


def test_a_failed_save_keeps_the_old_file(tmp_path: Path) -> None:
    path = fgvar.save(measured(), tmp_path / "a.nc")
    before = path.read_bytes()
    unwritable = measured()
    unwritable["loss"].attrs["object"] = {"a": object()}
    with pytest.raises(TypeError, match="attr"):
        fgvar.save(unwritable, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(OSError, match=r"a\.nc"):
        fgvar.save(measured(), path / "b.nc")
