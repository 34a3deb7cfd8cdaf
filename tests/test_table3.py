"""The study of Table 3: its runs, one after another, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fgvar
from studies import table3

SMOKE = table3.Config(smoke=True)


def test_one_run_is_resumed_and_says_what_it_was(tmp_path: Path, capsys) -> None:
    config = replace(SMOKE, out=tmp_path / "run.nc", network="M/1/16", probes=1, draws=2, probe_batch=4)
    table3.main(config)
    row = capsys.readouterr().out
    assert row.split("\t")[:5] == ["M/1/16", "LG-FG-A", "seed 0", "lr 0.025", "epochs 1"]
    found = fgvar.open_dataset(config.out)
    assert {"loss", "train_error", "test_error"} <= set(found.data_vars)
    assert list(found["estimator"].values) == list(table3.PROBED)
    assert found.attrs["algorithm"] == "LG-FG-A"
    assert np.isfinite(found["cosine"].sel(layer="perturbed", reference="backprop")).all()
    exact = found.sel(layer="perturbed", estimator="FG-W", reference="target").isel(step=0)
    assert float(exact["variance_se"]) == 0, "from its closed form"
    table3.main(config)
    assert capsys.readouterr().out == row, "the same row, from the checkpoint"


def test_the_default_table_skips_what_is_there(tmp_path: Path, capsys, monkeypatch) -> None:
    runs = [("S/1/1", "BP", 0), ("S/1/1", "LG-FG-W-published", 0), ("S/1/1", "frozen", 1)]
    monkeypatch.setattr(table3, "table", lambda _: runs)
    config = table3.Config(data="digits", epochs=1, folder=tmp_path, shard="0/2")
    table3.main(config)
    assert sorted(path.name for path in tmp_path.glob("*.nc")) == ["S-1-1_BP_0.nc", "S-1-1_frozen_1.nc"]
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 2
    table3.main(replace(config, shard="0/1"))
    assert capsys.readouterr().out.split("\t")[1] == "LG-FG-W-published"


def test_the_table_has_every_row_of_the_paper() -> None:
    runs = table3.table(table3.Config())
    assert len(runs) == len(set(runs)) == 13 * 2 * 3
    known = {found.name for found in fgvar.schemes()} | {"LG-FG-W-published"}
    assert {algorithm for _, algorithm, _ in runs} <= known
    assert set(table3.FAMILY) == {algorithm for _, algorithm, _ in runs}


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown scheme 'LG-FG-B'; did you mean"):
        table3.main(replace(SMOKE, algorithm="LG-FG-B", out=tmp_path / "run.nc"))
    with pytest.raises(ValueError, match="unknown preset 'S/1'"):
        table3.main(replace(SMOKE, network="S/1", out=tmp_path / "run.nc"))
    assert not list(tmp_path.glob("*.nc"))


@pytest.mark.parametrize("shard", ["1", "2/2", "a/b", "-1/2", "0/0"])
def test_shards_out_of_range(tmp_path: Path, shard: str) -> None:
    with pytest.raises(ValueError, match=r"expected i/n with 0 ≤ i < n"):
        table3.main(table3.Config(data="digits", folder=tmp_path, shard=shard))


def test_a_failed_run_stops_no_other_and_settings_are_compared(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setattr(table3, "table", lambda _: [("S/1", "BP", 0), ("S/1/1", "BP", 0)])
    config = table3.Config(data="digits", epochs=1, folder=tmp_path)
    with pytest.raises(ValueError, match="1 runs failed, see above"):
        table3.main(config)
    found = capsys.readouterr()
    assert "failed: unknown preset 'S/1'" in found.out
    assert "Traceback" in found.err
    assert (tmp_path / "S-1-1_BP_0.nc").exists()
    monkeypatch.setattr(table3, "table", lambda _: [("S/1/1", "BP", 0)])
    table3.main(config)
    assert not capsys.readouterr().out, "finished"
    with pytest.raises(ValueError, match=r"is finished with lr=0.1, this command says 0.2; give another --folder"):
        table3.main(replace(config, lr=0.2))
