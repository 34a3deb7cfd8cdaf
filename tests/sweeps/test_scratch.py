"""Sweeps of cells that go on where they were stopped, and what is finished in a folder, whatever its grid."""

import json
from pathlib import Path

import pytest
import xarray as xr

import fgvar
from fgvar.sweeps import cells


def calls(log: Path) -> list[str]:
    return sorted(log.read_text().splitlines()) if log.exists() else []


def counting(number, ends, log, scratch: Path):
    """Counts to three, a step a file; stops after the first ``ends`` steps that it makes itself."""
    made = 0
    for step in range(3):
        if not (scratch / str(step)).exists():
            if made == ends:
                raise RuntimeError(f"stopped after {made} steps")
            (scratch / str(step)).touch()
            with open(log, "a") as file:
                file.write(f"{number} {step} {scratch.name}\n")
            made += 1
    return xr.Dataset({"steps": made})


def test_a_cell_goes_on_from_its_scratch_folder(tmp_path) -> None:
    """Named by its key, of its own, no part of what is stored, and gone when the cell is done."""
    log, scratch = tmp_path / "log", tmp_path / "scratch"
    give = {"folder": tmp_path / "a", "config": {"ends": 1, "log": str(log)}, "scratch": scratch}
    for left, status in ((2, "failed"), (2, "failed"), (0, "done")):
        found = fgvar.sweep(counting, {"number": (0, 1)}, **give)
        assert found["status"].values.tolist() == [status] * 2
        assert len(list(scratch.iterdir())) == left
    assert [line.split()[:2] for line in calls(log)] == [[n, step] for n in "01" for step in "012"], "each step once"
    names = {line.split()[2] for line in calls(log)}
    assert names == {path.stem for path in (tmp_path / "a" / "cells").iterdir()}
    assert "scratch" not in str(found.attrs)
    (scratch / names.pop()).mkdir()  # by a driver that was killed before it could tidy up
    fgvar.sweep(counting, {"number": (0, 1)}, **give)
    assert not list(scratch.iterdir())


@pytest.mark.parametrize("how", [{"timeout": 60.0}, {"workers": 2}], ids=["process", "workers"])
def test_processes_and_workers_get_the_scratch_folder(tmp_path, how) -> None:
    config = {"ends": 3, "log": str(tmp_path / "log")}
    found = fgvar.sweep(counting, {"number": (0, 1)}, config=config, folder=tmp_path, scratch=tmp_path / "s", **how)
    assert found["steps"].values.tolist() == [3, 3]
    assert not list((tmp_path / "s").iterdir())


def test_a_scratch_folder_does_not_count(tmp_path) -> None:
    config = {"ends": 3, "log": str(tmp_path / "log")}
    for name in ("a", "b"):
        fgvar.sweep(counting, {"number": (0,)}, config=config, folder=tmp_path, scratch=tmp_path / name)
    assert len(calls(tmp_path / "log")) == 3, "computed once"


@pytest.mark.parametrize(
    ("cell", "axes", "given", "what"),
    [
        (lambda number: number, {"number": (1,)}, {"scratch": "s"}, "has no parameter 'scratch' for its folder; add"),
        (lambda **found: found, {"number": (1,)}, {"scratch": "s"}, "has no parameter 'scratch' for its folder; add"),
        (
            lambda scratch: scratch,
            {},
            {},
            "needs 'scratch'; give scratch=, a folder in which every cell gets its own",
        ),
        (lambda scratch: scratch, {"scratch": ("a",)}, {"scratch": "s"}, "scratch given twice, as an axis"),
    ],
)
def test_what_is_refused(tmp_path, cell, axes, given, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        fgvar.sweep(cell, axes, folder=tmp_path / "a", **{name: tmp_path / path for name, path in given.items()})
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_that_cannot_be_written(tmp_path) -> None:
    (tmp_path / "file").touch()
    config = {"ends": 3, "log": str(tmp_path / "log")}
    with pytest.raises(OSError, match=r"cannot write in .*file.* nothing was computed"):
        fgvar.sweep(counting, {"number": (0,)}, config=config, folder=tmp_path, scratch=tmp_path / "file")


def test_finished_cells_are_found_whatever_their_grid(tmp_path) -> None:
    def cell(number, seed):
        return xr.Dataset({"value": number / (number != 3)}, attrs={"seed": seed})

    fgvar.sweep(cell, {"number": (1, 2)}, seed=0, folder=tmp_path)
    fgvar.sweep(cell, {"number": (3,)}, seed=(0, 1), folder=tmp_path, out=tmp_path / "b.nc")
    fgvar.sweep(cell, {"seed": (5,)}, config={"number": 4}, folder=tmp_path, out=tmp_path / "c.nc")
    found = cells.finished(tmp_path)
    told = sorted((one["value"].item(), json.loads(one.attrs["cell_arguments"])) for one in found)
    assert told == [(1, {"number": 1, "seed": 0}), (2, {"number": 2, "seed": 0}), (4, {"number": 4, "seed": 5})]
    path = next((tmp_path / "cells").glob("*.cell"))
    path.write_bytes(path.read_bytes()[:-1])
    assert len(cells.finished(tmp_path)) == 2, "a damaged one is left out"
    assert cells.finished(tmp_path / "none") == []
