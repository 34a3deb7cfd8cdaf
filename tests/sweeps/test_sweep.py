"""Sweeps: what is computed and what is not, how cells become a dataset, and what goes wrong."""

import errno
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from sweeping import AXES, assert_same, drive, ragged, run, trivial, trouble

import fgvar
from fgvar import sweeps
from fgvar.sweeps import cells


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> xr.Dataset:
    return drive(str(tmp_path_factory.mktemp("expected")), 0.0)


def calls(log: Path) -> list[str]:
    return sorted(log.read_text().splitlines()) if log.exists() else []


# ---- the dataset ----------------------------------------------------------------------------------------------


def test_cells_stand_at_their_place_and_are_padded(expected) -> None:
    assert dict(expected.sizes) == {"scheme": 3, "width": 4, "seed": 2, "layer": 5, "reference": 2, "step": 5}
    assert expected["layer"].values.tolist() == ["block0", "block1", "block2", "block3", "total"]
    for scheme in AXES["scheme"]:
        for width in AXES["width"]:
            its = expected.sel(scheme=scheme, width=width, seed=1)
            one = ragged(scheme, width, 1)
            np.testing.assert_array_equal(its["cosine"].sel(layer=one["layer"]), one["cosine"])
            assert bool(its["cosine"].sel(layer=[f"block{i}" for i in range(width, 4)]).isnull().all())
            np.testing.assert_array_equal(its["curve"][: width + 1], one["curve"])
            assert bool(its["curve"][width + 1 :].isnull().all())
            assert bool(its["exact"]) == (width % 2 == 0)
            assert its["kind"].item() == scheme[:2]
    assert expected["curve"].dtype == np.float32
    assert expected["exact"].dtype == bool
    assert expected["unit"].dims == ()
    assert expected["cosine"].attrs == {"units": "1"}
    assert (expected["status"] == "done").all()
    assert (expected["cell_seconds"] >= 0).all()
    attrs = expected.attrs
    assert attrs["sweep"] == "ragged"
    assert attrs["config_seconds"] == "0.0"
    assert attrs["route"] == "drawn"
    assert "width" not in attrs, "cells differ"
    assert attrs["fgvar_version"]


def test_the_file_is_the_dataset(tmp_path, expected) -> None:
    found = drive(str(tmp_path), 0.0)
    assert_same(found, expected)
    assert_same(fgvar.open_dataset(tmp_path / "sweep.nc"), expected)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cells", "sweep.nc"]
    assert all(path.suffix == ".cell" for path in (tmp_path / "cells").iterdir())


@pytest.mark.parametrize("how", [{"timeout": 60.0}, {"workers": 2}], ids=["process", "workers"])
def test_processes_and_workers_give_the_same_bits(tmp_path, expected, how) -> None:
    assert_same(drive(str(tmp_path), 0.0, **how), expected)


def test_names_of_layers_stay_in_order() -> None:
    from fgvar.storage.packing import Values
    from fgvar.sweeps.grid import _labels

    def cell(*names):
        return {"layer": Values(("layer",), np.array(names, object), {}, True)}

    found = _labels("layer", {0: cell("b0", "total"), 1: cell("b0", "b1", "b2", "total"), 2: cell("b2", "read-out")})
    assert found == ["b0", "b1", "b2", "total", "read-out"] or found == ["b0", "b1", "b2", "read-out", "total"]
    with pytest.raises(ValueError, match="labels of 'layer' repeat in a cell: a, a; each has to stand once"):
        _labels("layer", {0: cell("a", "a")})


@pytest.mark.parametrize("labels", [[3, 2, 1], ["three", "two", "one"]], ids=["numbers", "text"])
def test_what_all_cells_share_stands_at_its_label(tmp_path, labels) -> None:
    """Whatever the order of the labels in a cell is."""
    columns = {"depth": [3.0, 2.0, 1.0], "name": ["III", "II", "I"]}

    def cell(reverse, columns, labels):
        order = [2, 1, 0] if reverse else [0, 1, 2]
        its = {name: ("depth", [values[i] for i in order]) for name, values in columns.items()}
        return xr.Dataset({"v": its["depth"]}, {"depth": [labels[i] for i in order], "name": its["name"]})

    config = {"columns": columns, "labels": labels}
    found = fgvar.sweep(cell, {"reverse": (0, 1)}, config=config, folder=tmp_path)
    assert found["name"].dims == ("depth",)
    for label, value, name in zip(labels, *columns.values(), strict=True):
        assert found["v"].sel(depth=label).values.tolist() == [value, value]
        assert found["name"].sel(depth=label).item() == name


# ---- what is computed -----------------------------------------------------------------------------------------


def test_only_new_cells_are_computed(tmp_path) -> None:
    log = tmp_path / "log"
    give = {"folder": tmp_path, "config": {"log": str(log)}}
    fgvar.sweep(ragged, {"scheme": ("FG-W",), "width": (1, 2)}, seed=0, **give)
    assert calls(log) == ["FG-W 1 0", "FG-W 2 0"]
    fgvar.sweep(ragged, {"width": (2, 1.0, 3), "scheme": ("FG-W",)}, seed=0, **give)
    assert calls(log) == ["FG-W 1 0", "FG-W 2 0", "FG-W 3 0"], "another value, and another order"
    found = fgvar.sweep(ragged, {"width": (1, 2, 3), "scheme": ("FG-W",)}, seed=(0, 1), **give)
    assert len(calls(log)) == 6, "another seed"
    assert found["cosine"].dims == ("width", "scheme", "seed", "layer", "reference")
    fgvar.sweep(ragged, {"scheme": ("FG-W",), "width": (1,)}, seed=0, version="2", **give)
    assert len(calls(log)) == 7, "another version of the code"
    fgvar.sweep(ragged, {"scheme": ("FG-W",), "width": (1,)}, seed=0, threads=2, **give)
    assert len(calls(log)) == 8, "another number of threads"
    fgvar.sweep(ragged, {"scheme": ("FG-W",), "width": (1, 9)}, seed=0, compute=False, **give)
    assert len(calls(log)) == 8
    found = fgvar.sweep(ragged, {"seconds": (0.0, 1e-3), "scheme": ("FG-W",), "width": (1,)}, seed=0, **give)
    assert len(calls(log)) == 9, "a default that is given is no other one"
    assert found["cosine"].sel(seconds=0.0).notnull().any()


def test_a_setting_becomes_an_axis(tmp_path) -> None:
    log = str(tmp_path / "log")
    rest = {"scheme": ("FG-W",), "log": (log,)}
    fgvar.sweep(ragged, rest, seed=0, config={"width": 2}, folder=tmp_path)
    found = fgvar.sweep(ragged, rest | {"width": (2, 3)}, seed=0, folder=tmp_path)
    assert calls(tmp_path / "log") == ["FG-W 2 0", "FG-W 3 0"]
    assert (found["status"] == "done").all()


def test_shards_share_the_cells_and_the_last_one_has_all(tmp_path, expected) -> None:
    parts = [drive(str(tmp_path), 0.0, shard=f"{i}/3") for i in range(3)]
    done = [int((part["status"] == "done").sum()) for part in parts]
    assert done == [8, 16, 24]
    assert set(parts[0]["status"].values.ravel()) == {"done", "missing"}
    missing = parts[0].where(parts[0]["status"] == "missing")
    assert bool(missing["cosine"].isnull().all())
    assert_same(parts[2], expected)


def test_cells_that_another_driver_finishes_meanwhile(tmp_path, expected, monkeypatch) -> None:
    """They are not computed again, and are in the file of whoever ends last."""
    write = cells.Folder.write

    def slow(self, cell, outcome):
        write(self, cell, outcome)
        monkeypatch.setattr(cells.Folder, "write", write)
        for shard in ("0/2", "1/2"):
            drive(str(tmp_path), 0.0, shard=shard)
        monkeypatch.setattr(cells.Folder, "write", lambda *_: pytest.fail("all others were there"))

    monkeypatch.setattr(cells.Folder, "write", slow)
    assert_same(drive(str(tmp_path), 0.0), expected)


def test_what_is_damaged_is_computed_again(tmp_path, expected) -> None:
    drive(str(tmp_path), 0.0)
    some = sorted((tmp_path / "cells").iterdir())[:3]
    content = some[0].read_bytes()
    some[0].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    some[1].write_bytes(content[: len(content) // 2])
    some[2].write_bytes(b"")
    found = drive(str(tmp_path), 0.0, compute=False)
    assert int((found["status"] == "missing").sum()) == 3
    assert_same(drive(str(tmp_path), 0.0), expected)


def test_threads_of_cells_are_limited_and_given_back(tmp_path, monkeypatch) -> None:
    import torch

    def threads(number):  # noqa: ARG001
        return xr.Dataset({"torch": torch.get_num_threads(), "blas": int(os.environ["OPENBLAS_NUM_THREADS"])})

    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    found = fgvar.sweep(threads, {"number": (0,)}, folder=tmp_path, threads=before + 1)
    assert found["torch"].values.tolist() == found["blas"].values.tolist() == [before + 1]
    assert torch.get_num_threads() == before
    assert "OPENBLAS_NUM_THREADS" not in os.environ


# ---- cells that go wrong --------------------------------------------------------------------------------------


def test_cells_that_raise_stop_no_other_and_are_tried_again(tmp_path, capsys) -> None:
    kinds = ("raises", "fine", "exits", "no dataset", "objects", "attribute", "axis")
    found = fgvar.sweep(trouble, {"kind": kinds}, folder=tmp_path)
    assert found["status"].values.tolist() == ["failed", "done", *["failed"] * 5]
    told = dict(zip(kinds, found["traceback"].values.tolist(), strict=True))
    assert "in trouble\n" in told["raises"]
    assert told["raises"].endswith("RuntimeError: not this one\n")
    assert told["fine"] == ""
    assert "SystemExit: 3" in told["exits"]
    assert "the cell returned a float, expected an xarray.Dataset" in told["no dataset"]
    assert "variable 'a' has dtype object, expected floats, integers, bools or text" in told["objects"]
    assert "attribute 'exact' of the dataset is True, expected text, numbers or lists" in told["attribute"]
    assert told["axis"] == "ValueError: the cell's dataset has 'kind', as the sweep; rename that"
    assert found["value"].sel(kind="fine") == 1
    assert found["value"].isnull().sum() == 6
    assert "kind=raises: failed: RuntimeError: not this one" in capsys.readouterr().err
    assert_same(fgvar.open_dataset(tmp_path / "sweep.nc"), found)
    mended = fgvar.sweep(lambda kind: xr.Dataset({"value": 2.0}), {"kind": kinds}, version="2", folder=tmp_path)  # noqa: ARG005
    assert (mended["status"] == "done").all()


def test_a_failure_gives_way_to_success(tmp_path) -> None:

    def cell(number, good):
        return xr.Dataset({"value": number / Path(good).exists()})

    good = tmp_path / "good"
    give = {"config": {"good": str(good)}, "folder": tmp_path}
    assert fgvar.sweep(cell, {"number": (1,)}, **give)["status"] == "failed"
    good.touch()
    assert fgvar.sweep(cell, {"number": (1,)}, **give)["status"] == "done"
    assert [path.suffix for path in (tmp_path / "cells").iterdir()] == [".cell"]


def test_a_sweep_needs_no_torch(tmp_path) -> None:
    assert run(f"import sweeping, sys; sweeping.drive({str(tmp_path)!r}, 0.0); print('torch' in sys.modules)") == (
        "False\n"
    )


# ---- disks ----------------------------------------------------------------------------------------------------


def test_the_last_cell_is_kept_when_the_disk_is_full(tmp_path, expected, monkeypatch) -> None:
    """A disk with room for five cells beside the reserve."""
    replace, left = cells.replace, [5]

    def full(path, content, *, sync):
        if not left[0] and list(path.parent.glob(".*.reserve.partial")):
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= left[0] > 0
        replace(path, content, sync=sync)

    monkeypatch.setattr(cells, "replace", full)
    with pytest.raises(
        OSError, match=r"No space left.*width=3, seed=1, seconds=0.0 was computed it was kept in the s"
    ):
        drive(str(tmp_path), 0.0)
    assert len(list((tmp_path / "cells").glob("*.cell"))) == 6
    assert len(list((tmp_path / "cells").iterdir())) == 6
    monkeypatch.undo()
    assert_same(drive(str(tmp_path), 0.0), expected)


def test_folders_that_cannot_be_written_are_told_before_anything_is_computed(tmp_path) -> None:
    log, file = tmp_path / "log", tmp_path / "file"
    file.touch()
    give = {"seed": 0, "config": {"log": str(log)}}
    with pytest.raises(OSError, match=r"cannot write in .*file.* nothing was computed"):
        fgvar.sweep(ragged, AXES, folder=file, **give)
    with pytest.raises(OSError, match=r"cannot write in .*file \(.*nothing was computed"):
        fgvar.sweep(ragged, AXES, folder=tmp_path, out=file / "sweep.nc", **give)
    assert calls(log) == []


# ---- errors before any computing ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "what"),
    [
        ({"axes": {"widht": (1,)}}, ValueError, r"unknown axis 'widht'; did you mean 'width'\? \(valid: .*scheme"),
        ({"axes": {"scheme": ("FG-W",)}}, ValueError, r"ragged needs width, seed; give each .*\(axes are: scheme\)"),
        ({"config": {"draws": 1}}, ValueError, "unknown argument 'draws'"),
        ({"config": {"width": 1}}, ValueError, "width given twice"),
        ({"axes": AXES | {"seed": (0,)}, "seed": 1}, ValueError, "seed given twice"),
        ({"axes": AXES | {"width": ()}}, ValueError, "axis 'width' has no values"),
        ({"axes": AXES | {"width": (1, 1.0)}}, ValueError, "axis 'width' repeats"),
        ({"axes": AXES | {"width": (1, "a")}}, ValueError, "axis 'width' mixes numbers and text"),
        ({"axes": AXES | {"width": (float("nan"),)}}, ValueError, "axis 'width' holds nan"),
        ({"seed": (1, 2**63, 2**64)}, ValueError, "axis 'seed' holds .*, which one array of labels cannot hold as"),
        ({"axes": AXES | {"width": (2**53 + 1, 0.5)}}, ValueError, "axis 'width' holds .*, which one array of"),
        ({"axes": AXES | {"scheme": ("nul\0",)}}, ValueError, "axis 'scheme' holds .*, which one array of labels"),
        ({"axes": AXES | {"width": (None,)}}, TypeError, "axis 'width' holds None, a NoneType; expected text"),
        ({"axes": AXES | {"scheme": "FG-W"}}, TypeError, r"expected a sequence of values; of one value: \('FG-W',\)"),
        ({"axes": AXES | {"status": (1,)}}, ValueError, "'status' has the name of a variable that every sweep has"),
        ({"config": {"log": object()}}, TypeError, "is a object, and what defines a cell has to be text, numbers"),
        ({"cell": print}, TypeError, "the cell is <built-in function print>, expected a function"),
        ({"shard": "2/2"}, ValueError, "shard is '2/2', expected i/n with 0 ≤ i < n"),
        ({"workers": -1}, ValueError, "workers is -1"),
        ({"workers": 1, "scheduler": "tcp://a:1"}, ValueError, "at least 0, or a scheduler alone"),
        ({"timeout": 0.0}, ValueError, "threads is 1 and timeout 0.0, expected"),
        ({"workers": "2"}, TypeError, "workers is '2', expected an integer"),
        ({"threads": 1.5}, TypeError, r"threads is 1\.5, expected an integer"),
        ({"threads": 0}, ValueError, "threads is 0 and timeout None, expected"),
    ],
    ids=lambda found: next(iter(found)) if isinstance(found, dict) else "",
)  # fmt: skip
def test_errors(tmp_path, change, error, what: str) -> None:
    log = tmp_path / "log"
    given = {"cell": ragged, "axes": AXES, "config": {"log": str(log)}, "folder": tmp_path / "new"} | change
    if "seed" not in given and change.get("axes") != {"scheme": ("FG-W",)}:
        given["seed"] = 0
    with pytest.raises(error, match=what):
        fgvar.sweep(given.pop("cell"), given.pop("axes"), **given)
    assert calls(log) == []
    assert not (tmp_path / "new").exists()


def test_cells_that_disagree_about_a_variable(tmp_path) -> None:
    def cell(number):
        return xr.Dataset({"a": ("x", [1.0]) if number else 1.0})

    with pytest.raises(
        ValueError, match=r"'a' is float64 over \('x',\) in the cell number=1, and float64 over \(\) in"
    ):
        fgvar.sweep(cell, {"number": (0, 1)}, folder=tmp_path)


def test_a_missing_extra_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.delattr(sweeps, "cluster", raising=False)
    monkeypatch.delitem(sys.modules, "fgvar.sweeps.cluster", raising=False)
    monkeypatch.setitem(sys.modules, "distributed", None)  # import then fails
    with pytest.raises(ImportError, match=r"a scheduler needs distributed: pip install 'fgvar\[cluster\]'"):
        fgvar.sweep(trivial, {"a": (1,), "b": (2,)}, folder=tmp_path, scheduler="tcp://127.0.0.1:1")


def test_an_address_without_a_scheduler(tmp_path) -> None:
    import dask
    import distributed  # noqa: F401  its settings: those that come within the context would go with it

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}),
        pytest.raises(OSError, match=r"127\.0\.0\.1:1"),
    ):
        fgvar.sweep(trivial, {"a": (1,), "b": (2,)}, folder=tmp_path, scheduler="tcp://127.0.0.1:1")


@pytest.mark.parametrize("workers", [0, 1])
def test_an_axis_named_as_a_variable_is_told_at_the_first_cell(tmp_path, workers: int) -> None:
    def cell(cost, log):
        with open(log, "a") as file:
            file.write(f"{cost}\n")
        return xr.Dataset({"cost": 2.0 * cost})

    log = tmp_path / "log"
    give = {"config": {"log": str(log)}, "folder": tmp_path / "a", "workers": workers}
    with pytest.raises(ValueError, match=r"^cost=1, .*: the cell's dataset has 'cost', .*; rename that, or the ax"):
        fgvar.sweep(cell, {"cost": (1, 2, 3)}, **give)
    assert "3" not in calls(log)
    assert not list((tmp_path / "a" / "cells").glob("*.cell"))
