"""Drivers of other sweeps in one folder: none computes a cell in another's scratch folder, or takes its reserve."""

import contextlib
import os
import threading
import time
from pathlib import Path

import xarray as xr

import fgvar
from fgvar.storage import locks
from fgvar.sweeps import scratch


def adding(n: int, seconds: float, scratch: Path) -> xr.Dataset:
    """Goes on from the rows that are there, to ten."""
    rows = scratch / "rows"
    while not rows.exists() or rows.stat().st_size < 10:
        time.sleep(seconds)
        with open(rows, "ab") as file:
            file.write(b"1")
    (scratch.parent.parent / f"{n} {time.monotonic_ns()}").touch()
    return xr.Dataset({"rows": rows.stat().st_size})


def test_a_cell_of_two_sweeps_is_computed_once(tmp_path: Path) -> None:
    """The second one leaves it to the first, computes its own, and takes what the first has made of it."""
    found = {}

    def sweep(ns: tuple[int, ...]) -> None:
        out, give = tmp_path / f"sweep {ns}.nc", {"config": {"seconds": 0.02}, "scratch": tmp_path / "scratch"}
        found[ns] = fgvar.sweep(adding, {"n": ns}, folder=tmp_path, out=out, workers=1, **give)

    both = [threading.Thread(target=sweep, args=(ns,)) for ns in ((2, 1), (2, 3))]
    for each in both:
        each.start()
    for each in both:
        each.join()
    assert [one["rows"].values.tolist() for one in found.values()] == [[10, 10]] * 2
    assert sorted(path.name.split()[0] for path in tmp_path.glob("[0-9]*")) == ["1", "2", "3"]
    assert not list((tmp_path / "scratch").iterdir())


def test_a_cell_that_another_driver_gives_up_is_computed(tmp_path: Path, monkeypatch) -> None:
    def sweep() -> xr.Dataset:
        give = {"config": {"seconds": 0.0}, "scratch": tmp_path / "scratch"}
        return fgvar.sweep(adding, {"n": (1,)}, folder=tmp_path, **give)

    sweep()
    (done,) = (tmp_path / "cells").glob("*.cell")
    done.unlink()
    other = contextlib.ExitStack()
    other.enter_context(locks.exclusive(locks.lock_path(tmp_path / "scratch" / done.stem)))
    monkeypatch.setattr(scratch.time, "sleep", lambda _: other.close())
    assert sweep()["status"].values.tolist() == ["done"]
    assert len(list(tmp_path.glob("[0-9]*"))) == 2


def aged(n: int, folder: str) -> xr.Dataset:
    """Makes all reserves old, and lets another driver look at the folder."""
    cells = Path(folder, "cells")
    (cells / ".left.reserve.partial").touch()
    reserves = list(cells.glob(".*.reserve.partial"))
    for path in reserves:
        os.utime(path, (0, 0))
    fgvar.sweep(number, {"n": (7,)}, folder=folder, out=f"{folder}/other.nc", compute=False)
    return xr.Dataset({"before": n * len(reserves), "after": len(list(cells.glob(".*.reserve.partial")))})


def number(n: int) -> xr.Dataset:
    return xr.Dataset({"n": n})


def test_the_reserve_of_a_driver_stays_as_long_as_that_lives(tmp_path: Path) -> None:
    """However long that is; what a killed one has left is removed."""
    found = fgvar.sweep(aged, {"n": (1,)}, config={"folder": str(tmp_path)}, folder=tmp_path)
    assert (found["before"].item(), found["after"].item()) == (2, 1)
    assert not list((tmp_path / "cells").glob(".*"))
