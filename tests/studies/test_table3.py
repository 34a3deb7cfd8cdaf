"""The study of Table 3: its runs, one after another, what it refuses, and all runs together."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from figures import table3 as figure
from figures import table3_probes, tabular
from studies import runs as tables
from studies import table3

ROOT = Path(__file__).resolve().parents[2]
SMOKE = table3.Config(smoke=True)
DIGITS = table3.Config(data="digits", epochs=1, probes=0)


def test_one_run_is_resumed_and_says_what_it_was(tmp_path: Path, capsys) -> None:
    config = replace(SMOKE, out=tmp_path / "run.nc", network=("M/1/16",), draws=2, probe_batch=4)
    table3.main(config)
    row = capsys.readouterr().out
    assert row.split("\t")[:5] == ["M/1/16", "LG-FG-A", "seed 0", "lr 0.025", "epochs 1"]
    found = fgvar.open_dataset(config.out)
    assert {"loss", "train_error", "test_error"} <= set(found.data_vars)
    assert list(found["estimator"].values) == list(table3.PROBED)
    assert found.attrs["algorithm"] == "LG-FG-A"
    assert str(tmp_path) not in str(found.attrs), "no path of this machine"
    assert np.isfinite(found["cosine"].sel(layer="perturbed", reference="backprop")).all()
    exact = found.sel(layer="perturbed", estimator="FG-W", reference="target").isel(step=0)
    assert float(exact["variance_se"]) == 0, "from its closed form"
    for name in ("variance_low", "variance_high", "sq_bias_high"):
        assert float(exact[name]) == float(exact[name.rpartition("_")[0]]), "which has no interval"
    table3.main(config)
    assert capsys.readouterr().out == row.rstrip("\n") + "\tfinished before\n"
    config.out.unlink()
    table3.main(config)
    assert capsys.readouterr().out == row, "the same row, from the checkpoint"


def test_runs_that_are_there_are_skipped(tmp_path: Path, capsys) -> None:
    config = replace(DIGITS, algorithm=("BP", "frozen", "LG-FG-W-published"), seed=(1,), folder=tmp_path)
    table3.main(replace(config, shard="0/2"))
    names = ["digits_S-1-1_BP_1.nc", "digits_S-1-1_LG-FG-W-published_1.nc"]
    assert sorted(path.name for path in tmp_path.glob("*.nc")) == names
    first = capsys.readouterr().out
    assert len(first.splitlines()) == 2
    table3.main(config)
    rows = [row.split("\t") for row in capsys.readouterr().out.splitlines()]
    assert [(row[1], row[-1] == "finished before") for row in rows] == [
        ("BP", True), ("frozen", False), ("LG-FG-W-published", True),
    ]  # fmt: skip


def test_the_tables_have_every_row_of_the_paper() -> None:
    runs = table3.table(table3.Config(), "mnist")
    assert len(runs) == len(set(runs)) == 13 * 2 * 3
    known = {found.name for found in fgvar.schemes()} | {"LG-FG-W-published"}
    assert {cell.algorithm for cell in runs} <= known
    assert set(table3.FAMILY) == {cell.algorithm for cell in runs}
    assert {cell.network for cell in table3.table(table3.Config(), "cifar10")} == {"M/8/16"}
    assert all(
        set(rows) == {c.algorithm for c in runs} - {"frozen", "LG-FG-W-published"} for rows in table3.PAPER.values()
    )


def test_heads_beside_backprop_do_not_change_it() -> None:
    """The row BP lets the local heads learn: its trunk and read-out get the same gradient as without."""
    model = fgvar.networks.LocalMixer.preset("M/1/16", image_shape=(1, 8, 8), classes=10, seed=0)
    problem = fgvar.Problem(model, "cross_entropy", fgvar.data.load("digits").sample(8, seed=0))
    plain, ours = (e.estimate(problem, {}).gradient for e in (fgvar.scheme("BP"), table3.estimator_of("BP")))
    heads = [name for name in plain if ".head." in name]
    assert all(float(ours[name].abs().max()) > 0 for name in heads if name.endswith("weight"))
    assert all(bool((plain[name] == ours[name]).all()) for name in plain if name not in heads)


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown scheme 'LG-FG-B'; did you mean"):
        table3.main(replace(SMOKE, algorithm=("LG-FG-B",), out=tmp_path / "run.nc"))
    with pytest.raises(ValueError, match="unknown preset 'S/1'"):
        table3.main(replace(SMOKE, network=("S/1",), out=tmp_path / "run.nc"))
    with pytest.raises(ValueError, match=r"--out is the file of one run, and this command makes 3; give --network"):
        table3.main(replace(DIGITS, algorithm=("BP",), out=tmp_path / "run.nc"))
    with pytest.raises(ValueError, match="no finished run of this study in"):
        table3.main(table3.Config(collect=True, folder=tmp_path))
    assert not list(tmp_path.glob("*.nc"))


@pytest.mark.parametrize("shard", ["1", "2/2", "a/b", "-1/2", "0/0"])
def test_shards_out_of_range(tmp_path: Path, shard: str) -> None:
    with pytest.raises(ValueError, match=r"expected i/n with 0 ≤ i < n"):
        table3.main(replace(DIGITS, folder=tmp_path, shard=shard))


def test_a_failed_run_stops_no_other_and_settings_are_compared(tmp_path: Path, capsys) -> None:
    config = replace(DIGITS, network=("S/1", "S/1/1"), algorithm=("BP",), seed=(0,), folder=tmp_path)
    with pytest.raises(ValueError, match="1 runs failed, see above"):
        table3.main(config)
    found = capsys.readouterr()
    assert "failed: unknown preset 'S/1'" in found.out
    assert "Traceback" in found.err
    assert (tmp_path / "digits_S-1-1_BP_0.nc").exists()
    with pytest.raises(ValueError, match=r"is finished with lr=0.1, this command says 0.2; give another --out"):
        table3.main(replace(config, network=("S/1/1",), lr=0.2))


def test_the_runs_that_chose_the_rates(tmp_path: Path, monkeypatch) -> None:
    """12 runs, on examples that are neither trained on nor of the test split; the choice is the least error's."""
    asked: list[tuple[str, table3.Config, int, int]] = []
    monkeypatch.setattr(
        table3, "run", lambda c, cell, _, images, test: asked.append((cell.algorithm, c, len(images), len(test)))
    )
    images = fgvar.data.load("digits")
    many = images.subset(np.arange(12_000) % len(images))
    monkeypatch.setattr(fgvar.data, "load", lambda *_: many)
    table3.main(table3.Config(rates=True, folder=tmp_path))
    assert len({(name, config.lr) for name, config, *_ in asked}) == len(asked) == 12
    assert all(config.epochs == 10 and (train, held) == (2000, 10_000) for _, config, train, held in asked)


STORED = ROOT / "figures/data/table3.nc"


@pytest.mark.skipif(not STORED.exists(), reason="the table has not been stored yet")
def test_rates_are_those_of_the_least_validation_error() -> None:
    errors = xr.open_dataset(STORED, engine="h5netcdf")["validation_error"]
    for algorithm, family in table3.STANDS_FOR.items():
        its = errors.sel(tried=algorithm)
        assert float(its["rate"][int(its.argmin("rate"))]) == table3.RATES[family]
    assert errors["rate"].values.tolist() == list(table3.TRIED)


# ---- all runs together ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Two networks, two algorithms, two seeds; one run is missing and one longer."""
    found = tmp_path_factory.mktemp("runs")
    config = replace(DIGITS, algorithm=("BP",), seed=(0,), probes=1, draws=2, probe_batch=2, folder=found)
    table3.main(replace(config, network=("S/1/1",)))
    table3.main(replace(config, network=("M/1/16",), seed=(0, 1), probes=0))
    table3.main(replace(config, network=("M/1/16",), algorithm=("LG-FG-A",), epochs=2, seed=(1,), probes=2))
    return found


def test_gathered_errors_and_probes(folder: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "table3.nc"
    table3.main(table3.Config(collect=True, folder=folder, out=out))
    found = fgvar.open_dataset(out)
    assert dict(found.sizes) == {"network": 2, "algorithm": 2, "seed": 2, "epoch": 3}
    one = fgvar.open_dataset(folder / "digits_M-1-16_BP_1.nc")
    np.testing.assert_array_equal(
        found["test_error"].sel(network="M/1/16", algorithm="BP", seed=1), [*one["test_error"].values, np.nan]
    )
    assert found["epochs"].sel(algorithm="LG-FG-A").values.tolist() == [[0, 0], [0, 2]]
    assert str(folder) not in str(found.attrs)
    final = figure.final(found).sel(network="M/1/16")
    errors = found["test_error"].sel(network="M/1/16", algorithm="BP").isel(epoch=1).values * 100
    assert float(final["test"].sel(algorithm="BP")) == pytest.approx(errors.mean())
    assert float(final["test_se"].sel(algorithm="BP")) == pytest.approx(abs(np.diff(errors)[0]) / 2)
    assert float(final["paper_test"].sel(algorithm="BP")) == pytest.approx(2.41)
    assert np.isnan(final["test_se"].sel(algorithm="LG-FG-A")), "one run has no standard error"
    probes = fgvar.open_dataset(out.with_stem("table3_probes"))
    whole = fgvar.open_dataset(folder / "digits_M-1-16_LG-FG-A_1.nc")
    its = probes.sel(network="M/1/16", algorithm="LG-FG-A")
    np.testing.assert_array_equal(its["step"], whole["step"])
    for name in ("cosine", "relative_variance", "data_variance"):
        stored = its[name].transpose(..., "layer")
        np.testing.assert_allclose(stored, whole[name].sel(layer=its["layer"]).values.squeeze(), rtol=1e-6)
    assert bool(probes["step"].sel(network="S/1/1", algorithm="LG-FG-A").isnull().all())
    for suffix in ("", "_probes", "_probes_layers"):
        assert out.with_name(f"table3{suffix}.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    assert re.search(r"^BP .* \d+\.\d\d ± \d\.\d\d \(2\) +2\.41 ", table, flags=re.MULTILINE)
    assert re.search(r"^LG-FG-A +– +3\.24 +– ", table, flags=re.MULTILINE)


def test_captions_tell_what_is_shown(folder: Path) -> None:
    runs = [fgvar.open_dataset(path) for path in sorted(folder.glob("*.nc"))]
    errors = tables.errors(runs, table3.EXACT + table3.PERTURBED, table3.PAPER)
    text = figure.caption(errors)
    assert "M/1/16 on digits: 1 to 2 runs a cell (1 epochs: BP; 2 epochs: LG-FG-A)." in text
    assert "Cells more than 0.5 points above the paper's: " in text
    probes = tables.probes(runs, table3.EXACT + table3.PERTURBED)
    assert table3_probes.runs(probes) == [("S/1/1", "BP"), ("M/1/16", "LG-FG-A")]
    text = table3_probes.caption(probes)
    assert "M/1/16 by LG-FG-A, step 1 to step 22: relative noise variance FG-W" in text
    assert "drawn, 2 draws" in text
    for columns in (1, 2):
        assert len(figure.draw(errors, columns=columns).axes) == 2
        assert len(table3_probes.draw(probes, columns=columns).axes) == 6
    with pytest.raises(ValueError, match="lacks variable 'epochs'"):
        figure.draw(errors.drop_vars("epochs"))


@pytest.mark.skipif(not STORED.exists(), reason="the table has not been stored yet")
def test_the_readme_shows_the_stored_table() -> None:
    table = tabular.markdown(figure.table(xr.open_dataset(STORED, engine="h5netcdf")))
    assert table in (ROOT / "studies" / "README.md").read_text()
