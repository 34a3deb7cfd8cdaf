"""Tables made in pieces: a stored dataset, and the runs that are put onto it."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from studies import common, table3, training
from studies import runs as tables

DIMS = ("network", "algorithm", "seed")


def table(value: float, seeds: tuple[int, ...] = (0,), **more: object) -> xr.Dataset:
    """Runs of one network by one algorithm, with one value of everything."""
    values = {"error": value, "epochs": 3, **more}
    return xr.Dataset(
        {name: (DIMS, np.full((1, 1, len(seeds)), each)) for name, each in values.items()},
        {"network": ["S"], "algorithm": ["BP"], "seed": list(seeds)},
    )


def put(tmp_path: Path, stored: xr.Dataset, made: xr.Dataset) -> xr.Dataset:
    return common.onto(fgvar.save(stored, tmp_path / "stored.nc"), made, made["epochs"] > 0)


def run(algorithm: str, data: str = "digits", **attrs: object) -> xr.Dataset:
    """What a run of one epoch and its probes tell."""
    curves = {name: ("epoch", [0.5, 0.1]) for name in tables.CURVES}
    probes = {"cosine": (("step", "layer"), [[0.5]])}
    return xr.Dataset(
        curves | probes,
        {"epoch": [0, 1], "step": [0], "layer": ["total"]},
        {"network": "S/1/1", "algorithm": algorithm, "train_seed": 0, "train_epochs": 1, "train_lr": 0.1,
         "data": data, "batch_size": 8, "validation": 0} | attrs,
    )  # fmt: skip


def test_a_run_that_is_made_again_has_nothing_of_the_old_one(tmp_path: Path) -> None:
    """Its interval, and what it was made by: values of the new run alone have none."""
    stored = table(0.1, (0, 1), error_low=0.05, made_by="a")
    found = put(tmp_path, stored, table(0.5))
    np.testing.assert_array_equal(found["error"].values.ravel(), [0.5, 0.1])
    np.testing.assert_array_equal(found["error_low"].values.ravel(), [np.nan, 0.05])
    assert found["made_by"].values.ravel().tolist() == ["", "a"]
    fgvar.save(found, tmp_path / "again.nc")


def test_an_axis_that_the_stored_dataset_lacks_is_left_out(tmp_path: Path) -> None:
    made = table(0.5).assign(validation_error=("rate", [0.2]), side=("rate", ["left"]))
    found = put(tmp_path, table(0.1), made.assign_coords(rate=[0.1]).set_coords("side"))
    assert found.equals(table(0.5))


def test_runs_on_several_data_sets_are_refused(tmp_path: Path) -> None:
    one, other = run("BP"), run("FA", "mnist")
    refused = "runs of S/1/1 are on digits and mnist, expected one data set; give each an --out of its own"
    with pytest.raises(ValueError, match=refused):
        tables.errors([one, other], (), {})
    with pytest.raises(ValueError, match=refused):
        tables.probes([one, other], ())
    with pytest.raises(ValueError, match=r"^--onto \S+ has the data digits where these runs have mnist; leave"):
        put(tmp_path, *(tables.errors([each], (), {}) for each in (one, other)))
    found = put(tmp_path, *(tables.errors([each], (), {}) for each in (one, run("FA", network="M/1/16"))))
    assert found["data"].values.tolist() == ["digits", "digits"]


def test_a_curve_that_no_run_has_is_told() -> None:
    with pytest.raises(ValueError, match="no run has batch_loss, expected one at least"):
        tables.errors([run("BP")], (), {}, curves=("loss", "batch_loss"))


def test_attributes_list_what_is_called_with_arguments_as_one() -> None:
    one, other = (f"Views(flip=0.5, crop=({least}, 1.0), colour=0.4)" for least in (0.2, 0.5))
    assert common._both(one, other) == f"{one}, {other}"
    assert common._both(f"{one}, {other}", other) == f"{one}, {other}"
    assert common._both("a, b", "b, c") == "a, b, c"


def test_probes_are_put_onto_none_where_none_are_stored(tmp_path: Path, monkeypatch) -> None:
    """They would be lost after hours of training."""
    monkeypatch.setattr(training, "finished", lambda folder: [run("FA")] if folder.name == "new" else [])
    published = {}
    monkeypatch.setattr(
        common, "publish", lambda dataset, config, _: published.update({config.run.out.stem: dataset})
    )
    stored = fgvar.save(tables.errors([run("BP")], (), {}), tmp_path / "stored.nc")
    config = table3.Config(onto=stored, run=common.Options(tmp_path / "new.nc"))
    table3.gather(config, replace(config, run=common.Options(tmp_path / "new_probes.nc")), tmp_path / "new")
    assert published["new"]["algorithm"].values.tolist() == ["BP", "FA"]
    assert published["new_probes"]["algorithm"].values.tolist() == ["FA"]
