"""The study of Table 3: its runs as cells, what it refuses, and all runs together."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.measurement import tabular
from fgvar.sweeps import cells
from fgvar.training.loop import TrainingLoop
from figures import table3 as figure
from figures import table3_probes
from studies import common, table3, training
from studies import runs as tables
from studies.common import Options

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "figures/data/table3.nc"
DIGITS = table3.Config(data="digits", epochs=1, probes=0)


def at(config: table3.Config, out: Path, *seeds: int, **options: object) -> table3.Config:
    return replace(config, run=Options(out, seed=seeds or (0,), **options))


def run_of(folder: Path, network: str, algorithm: str, seed: int) -> xr.Dataset:
    """The dataset of one finished run."""
    wanted = {"network": network, "algorithm": algorithm, "seed": seed}
    (found,) = (
        one for one in cells.finished(folder) if wanted.items() <= json.loads(one.attrs["cell_arguments"]).items()
    )
    return found


def trained(printed: str) -> list[list[str]]:
    """The rows of runs that were trained."""
    return [line.split("\t") for line in printed.splitlines() if line.count("\t") > 5]


def test_one_run_says_what_it_was_and_is_not_repeated(tmp_path: Path, capsys) -> None:
    config = at(table3.Config(network=("M/1/16",), draws=2, probe_batch=4), tmp_path / "run.nc", smoke=True)
    table3.main(config)
    (row,) = trained(capsys.readouterr().out)
    assert row[:5] == ["M/1/16", "LG-FG-A", "seed 0", "lr 0.025", "epochs 1"]
    found = run_of(tmp_path / "run_smoke", "M/1/16", "LG-FG-A", 0)
    assert {"loss", "train_error", "test_error"} <= set(found.data_vars)
    assert list(found["estimator"].values) == list(table3.PROBED)
    assert str(tmp_path) not in str(found.attrs), "no path of this machine"
    assert np.isfinite(found["cosine"].sel(layer="perturbed", reference="backprop")).all()
    exact = found.sel(layer="perturbed", estimator="FG-W", reference="target").isel(step=0)
    assert float(exact["variance_se"]) == 0, "from its closed form"
    for name in ("variance_low", "variance_high", "sq_bias_high"):
        assert float(exact[name]) == float(exact[name.rpartition("_")[0]]), "which has no interval"
    assert (tmp_path / "run_smoke.txt").read_text().startswith("A smoke run")
    assert (tmp_path / "run_probes_smoke.txt").read_text().startswith("A smoke run")
    table3.main(config)
    assert not trained(capsys.readouterr().out)


def test_a_run_that_was_killed_goes_on_from_its_checkpoint(tmp_path: Path, capsys, monkeypatch) -> None:
    """What it ends with is what it ends with undisturbed."""
    config = at(replace(DIGITS, network=("S/1/1",), algorithm=("LG-FG-A",)), tmp_path / "a.nc")
    end, left = training.tell, []

    def killed(dataset: xr.Dataset) -> None:
        left.append(dataset)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "tell", killed)
    with pytest.raises(KeyboardInterrupt):
        table3.main(config)
    (checkpoint,) = (tmp_path / "a" / "scratch").glob("*/run.checkpoint")
    monkeypatch.setattr(training, "tell", end)
    monkeypatch.setattr(TrainingLoop, "update", lambda *_: pytest.fail("trained anew"))
    table3.main(config)
    assert not checkpoint.parent.exists()
    assert len(trained(capsys.readouterr().out)) == 1
    np.testing.assert_array_equal(run_of(tmp_path / "a", "S/1/1", "LG-FG-A", 0)["loss"], left[0]["loss"])


def test_runs_that_are_there_are_skipped(tmp_path: Path, capsys) -> None:
    config = replace(DIGITS, network=("S/1/1",), algorithm=("BP", "frozen", "LG-FG-W-published"))
    table3.main(at(config, tmp_path / "a.nc", 1, shard="0/2"))
    first = {row[1] for row in trained(capsys.readouterr().out)}
    assert first < set(config.algorithm)
    table3.main(at(config, tmp_path / "a.nc", 1))
    assert {row[1] for row in trained(capsys.readouterr().out)} == set(config.algorithm) - first


def test_the_tables_have_every_row_of_the_paper(monkeypatch) -> None:
    def runs(data: str) -> list[tuple[object, ...]]:
        monkeypatch.setattr(training, "images", lambda _: (replace(digits, name=data),))
        grids = table3.table(table3.Config(data=data))
        assert all(settings["data"] == data for _, settings in grids)
        return [
            (network, name, seed, settings["epochs"], settings["lr"])
            for axes, settings in grids
            for seed in axes["seed"]
            for network in axes["network"]
            for name in axes["algorithm"]
        ]

    digits = fgvar.data.load("digits")
    mnist = runs("mnist")
    assert len(mnist) == len({run[:3] for run in mnist}) == 13 * 2 * 3
    assert [run[3] for run in mnist] == [20] * 8 * 2 * 3 + [100] * 5 * 2 * 3, "the cheap ones first"
    algorithms = {run[1] for run in mnist}
    assert algorithms <= {found.name for found in fgvar.schemes()} | {"LG-FG-W-published"}
    assert set(table3.FAMILY) == algorithms
    assert all(run[4] == table3.RATES[table3.FAMILY[run[1]]] for run in mnist)
    assert {run[0] for run in runs("cifar10")} == {"M/8/16"}
    assert all(set(rows) == algorithms - {"frozen", "LG-FG-W-published"} for rows in table3.PAPER.values())


def test_heads_beside_backprop_do_not_change_it() -> None:
    """The row BP lets the local heads learn: its trunk and read-out get the same gradient as without."""
    model = fgvar.networks.LocalMixer.preset("M/1/16", image_shape=(1, 8, 8), classes=10, seed=0)
    problem = fgvar.Problem(model, "cross_entropy", fgvar.data.load("digits").sample(8, seed=0))
    plain, ours = (e.estimate(problem, {}).gradient for e in (fgvar.scheme("BP"), table3.estimator_of("BP")))
    heads = [name for name in plain if ".head." in name]
    assert all(float(ours[name].abs().max()) > 0 for name in heads if name.endswith("weight"))
    assert all(bool((plain[name] == ours[name]).all()) for name in plain if name not in heads)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"algorithm": ("LG-FG-B",)}, {}, r"1 runs failed, see above \(.*unknown scheme 'LG-FG-B'; did you mean"),
        ({"network": ("S/1",)}, {}, r"1 runs failed, see above \(.*unknown preset 'S/1'"),
        ({}, {"shard": "2/2"}, r"expected i/n with 0 ≤ i < n"),
        ({}, {"collect": True}, "no finished run of this study in"),
    ],
)
def test_errors(tmp_path: Path, change, options, message: str) -> None:
    config = replace(DIGITS, **{"network": ("S/1/1",), "algorithm": ("BP",)} | change)
    with pytest.raises(ValueError, match=message):
        table3.main(at(config, tmp_path / "a.nc", **options))
    assert not list(tmp_path.glob("*.nc"))


def test_a_failed_run_stops_no_other_and_settings_are_compared(tmp_path: Path, capsys) -> None:
    config = replace(DIGITS, network=("S/1", "S/1/1"), algorithm=("BP",))
    with pytest.raises(ValueError, match="1 runs failed, see above"):
        table3.main(at(config, tmp_path / "a.nc"))
    found = capsys.readouterr()
    assert "network=S/1, algorithm=BP" in found.err
    assert "failed: ValueError: unknown preset 'S/1'" in found.err
    assert [row[0] for row in trained(found.out)] == ["S/1/1"]
    config = replace(config, network=("S/1/1",), lr=0.2)
    with pytest.raises(
        ValueError, match=r"S/1/1 BP 0 in .* is finished with lr=0.1, this command says 0.2; give anot"
    ):
        table3.main(at(config, tmp_path / "a.nc"))


def test_the_runs_that_chose_the_rates(tmp_path: Path, monkeypatch) -> None:
    """12 runs, on examples that are neither trained on nor of the test split; the choice is the least error's."""
    asked: list[training.Grid] = []

    def never(_cell, grids, _run, folder) -> bool:
        asked.extend(grids)
        assert folder == tmp_path / "a" / "rates"
        return True

    monkeypatch.setattr(training, "train_all", never)
    table3.main(at(table3.Config(rates=True), tmp_path / "a.nc"))
    ((axes, settings),) = asked
    assert axes["algorithm"] == tuple(table3.STANDS_FOR)
    assert axes["lr"] == table3.TRIED
    assert [settings[name] for name in ("epochs", "validation", "probes")] == [10, 10_000, 0]
    train, held = training.images("digits", 400)
    whole = fgvar.data.load("digits")
    assert (len(train), len(held)) == (len(whole) - 400, 400)
    assert bool((held.pixels == whole.pixels[-400:]).all())


@pytest.mark.skipif(not STORED.exists(), reason="the table has not been stored yet")
def test_rates_are_those_of_the_least_validation_error() -> None:
    errors = xr.open_dataset(STORED, engine="h5netcdf")["validation_error"]
    for algorithm, family in table3.STANDS_FOR.items():
        its = errors.sel(tried=algorithm)
        assert float(its["rate"][int(its.argmin("rate"))]) == table3.RATES[family]
    assert errors["rate"].values.tolist() == list(table3.TRIED)


# ---- all runs together ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """Two networks, two algorithms, two seeds, one run missing and one longer; and two by which rates were chosen."""
    found = tmp_path_factory.mktemp("runs") / "a.nc"
    config = replace(DIGITS, algorithm=("BP",), draws=2, probe_batch=2)
    small = replace(config, network=("S/1/1",))
    grids = table3.table(at(replace(small, probes=1), found))
    grids += table3.table(at(replace(config, network=("M/1/16",)), found, 0, 1))
    longer = replace(config, network=("M/1/16",), algorithm=("LG-FG-A",), epochs=3, probes=2, evaluate_every=2)
    grids += table3.table(at(longer, found, 1))
    training.train_all(table3.cell, grids, Options(found), found.with_suffix(""))
    ((axes, settings),) = table3.table(at(replace(small, validation=100), found))
    axes, settings = {**axes, "lr": (0.05, 0.1)}, {name: value for name, value in settings.items() if name != "lr"}
    training.train_all(table3.cell, [(axes, settings)], Options(found), found.with_suffix("") / "rates")
    return found


def test_gathered_errors_and_probes(out: Path, capsys) -> None:
    folder = out.with_suffix("")
    table3.main(at(table3.Config(), out, collect=True))
    found = fgvar.open_dataset(out)
    assert {name: found.sizes[name] for name in ("network", "algorithm", "seed", "epoch")} == {
        "network": 2, "algorithm": 2, "seed": 2, "epoch": 4,
    }  # fmt: skip
    one = run_of(folder, "M/1/16", "BP", 1)
    np.testing.assert_array_equal(
        found["test_error"].sel(network="M/1/16", algorithm="BP", seed=1), [*one["test_error"].values, np.nan, np.nan]
    )
    rarely = run_of(folder, "M/1/16", "LG-FG-A", 1)["test_error"]
    assert rarely["epoch"].values.tolist() == [0, 2, 3], "as often as it was evaluated"
    stored = found["test_error"].sel(network="M/1/16", algorithm="LG-FG-A", seed=1)
    np.testing.assert_array_equal(stored, rarely.reindex(epoch=range(4)))
    assert found["epochs"].sel(algorithm="LG-FG-A").values.tolist() == [[0, 0], [0, 3]]
    assert found["validation_error"].sel(tried="BP")["rate"].values.tolist() == [0.05, 0.1]
    assert "digits" not in str(folder)
    assert str(folder) not in str(found.attrs)
    final = figure.final(found).sel(network="M/1/16")
    errors = found["test_error"].sel(network="M/1/16", algorithm="BP").isel(epoch=1).values * 100
    assert float(final["test"].sel(algorithm="BP")) == pytest.approx(errors.mean())
    assert float(final["test_se"].sel(algorithm="BP")) == pytest.approx(abs(np.diff(errors)[0]) / 2)
    assert float(final["paper"].sel(algorithm="BP")) == pytest.approx(2.41)
    assert np.isnan(final["test_se"].sel(algorithm="LG-FG-A")), "one run has no standard error"
    probes = fgvar.open_dataset(out.with_stem("a_probes"))
    whole = run_of(folder, "M/1/16", "LG-FG-A", 1)
    its = probes.sel(network="M/1/16", algorithm="LG-FG-A")
    np.testing.assert_array_equal(its["step"], whole["step"])
    for name in ("cosine", "relative_variance", "data_variance"):
        stored = its[name].transpose(..., "layer")
        np.testing.assert_allclose(stored, whole[name].sel(layer=its["layer"]).values.squeeze(), rtol=1e-6)
    assert bool(probes["step"].sel(network="S/1/1", algorithm="LG-FG-A").isnull().all())
    for suffix in ("", "_probes", "_probes_layers"):
        assert out.with_name(f"a{suffix}.png").stat().st_size > 10_000
    table = capsys.readouterr().out
    assert re.search(r"^BP .* \d+\.\d\d ± \d\.\d\d \(2\) +2\.41 ", table, flags=re.MULTILINE)
    assert re.search(r"^LG-FG-A +– +3\.24 +– ", table, flags=re.MULTILINE)
    assert "chosen on held-out training examples (S/1/1, 1 epochs, seed 0, 100 examples)" in figure.caption(found)


def test_a_table_is_made_in_pieces(out: Path, tmp_path: Path) -> None:
    """Whichever half is stored, and where a run is made again, the table is that of all runs."""
    order, key = table3.EXACT + table3.PERTURBED, {"network": tables.size_of}
    runs = training.finished(out.with_suffix(""))
    whole, probed = tables.errors(runs, order, table3.PAPER), tables.probes(runs, order)
    halves = [[one for one in runs if (one.attrs["network"] == "S/1/1") is small] for small in (True, False)]
    runs.sort(key=lambda one: "step" not in one.dims)
    old = runs[0].assign(loss=runs[0]["loss"] + 1, cosine=runs[0]["cosine"] + 1)
    for number, (stored, made) in enumerate([halves, halves[::-1], ([old, *runs[1:]], runs[:1])]):
        path = fgvar.save(tables.errors(stored, order, table3.PAPER), tmp_path / f"{number}.nc")
        piece = tables.errors(made, order, table3.PAPER)
        found = common.onto(path, piece, piece["epochs"] > 0, **key)
        found = found.assign(tables.published(found["network"].values, found["algorithm"].values, table3.PAPER))
        xr.testing.assert_identical(found.drop_attrs(), whole.drop_attrs().sel(algorithm=found["algorithm"]))
        assert found["made_by"].where(found["epochs"] > 0, "").equals(found["made_by"])
        path, piece = fgvar.save(tables.probes(stored, order), tmp_path / f"{number}p.nc"), tables.probes(made, order)
        found = common.onto(path, piece, piece["step"].notnull().any("probe"), **key)
        labels = {dim: found[dim] for dim in ("algorithm", "layer")}
        xr.testing.assert_allclose(found.drop_attrs(), probed.drop_attrs().sel(labels), rtol=1e-6)


def test_captions_tell_what_is_shown(out: Path) -> None:
    runs = training.finished(out.with_suffix(""))
    errors = tables.errors(runs, table3.EXACT + table3.PERTURBED, table3.PAPER)
    text = figure.caption(errors)
    assert "M/1/16 on digits: 1 to 2 runs a cell (1 epochs: BP; 3 epochs: LG-FG-A)." in text
    assert "Cells more than 0.5 points above the paper's: " in text
    assert "bfloat16" not in text
    assert "products in bfloat16" in figure.caption(errors.assign_attrs(train_autocast="True"))
    text = figure.caption_curves(errors)
    ends = [f"{100 * float(errors['test_error'].sel(network='M/1/16', seed=1)[1, e]):.2f}" for e in (2, 3)]
    assert (
        f"runs of 3 epochs, test errors from the least: epoch 2: LG-FG-A {ends[0]}; epoch 3: LG-FG-A {ends[1]}."
        in text
    )
    probes = tables.probes(runs, table3.EXACT + table3.PERTURBED)
    assert table3_probes.runs(probes) == [("S/1/1", "BP"), ("M/1/16", "LG-FG-A")]
    text = table3_probes.caption(probes)
    assert "M/1/16 by LG-FG-A, step 1 to step 33: relative noise variance FG-W" in text
    assert "drawn, 2 draws" in text
    for columns in (1, 2):
        assert len(figure.draw(errors, columns=columns).axes) == 2
        assert len(figure.draw_curves(errors, columns=columns).axes) == 4
        assert len(table3_probes.draw(probes, columns=columns).axes) == 6
    with pytest.raises(ValueError, match="lacks variable 'epochs'"):
        figure.draw(errors.drop_vars("epochs"))
    with pytest.raises(ValueError, match="there are two runs of S/1/1 BP 0"):
        tables.errors([*runs, *(one for one in runs if one.attrs["network"] == "S/1/1")], (), {})


@pytest.mark.skipif(not STORED.exists(), reason="the table has not been stored yet")
def test_the_readme_shows_the_stored_table() -> None:
    table = tabular.markdown(figure.table(xr.open_dataset(STORED, engine="h5netcdf")))
    assert table in (ROOT / "studies" / "README.md").read_text()


def test_the_readme_says_what_thirty_epochs_have() -> None:
    text = " ".join((ROOT / "studies" / "README.md").read_text().split())
    ends = figure.final(fgvar.open_dataset(STORED.with_name("table3_long.nc"))).sel(network="M/8/16")
    test, paper = (ends[name].sel(algorithm=["BP", "LG-BP", "LG-FG-A"]).values for name in ("test", "paper"))
    told = [f"{ours:.1f}{unit} ({theirs:.1f}" for ours, theirs, unit in zip(test, paper, (" %", "", ""), strict=True)]
    assert f"BP ends at {told[0]} in the paper), LG-BP at {told[1]}) and LG-FG-A at {told[2]})" in text
    short = figure.final(fgvar.open_dataset(STORED)).sel(network="M/8/16")["test"]
    apart = float(short.sel(algorithm="LG-FG-A") - short.sel(algorithm="BP"))
    assert f"which is {test[2] - test[0]:.1f} points above BP for {apart:.1f} after three epochs" in text
    errors = 100 * fgvar.open_dataset(STORED.with_name("table3_long.nc"))[["test_error", "train_error"]].squeeze()
    bp, local_bp, ours = (errors.sel(algorithm=name).dropna("epoch") for name in ("BP", "LG-BP", "LG-FG-A"))
    last = [f"{-its['test_error'].sel(epoch=[20, 30]).diff('epoch').item():.1f}" for its in (bp, local_bp, ours)]
    assert f"BP gains {last[0]} points in its last ten epochs, LG-BP {last[1]} and LG-FG-A, at a train" in text
    assert f"error of {float(ours['train_error'][-1]):.1f} %, {last[2]}." in text
    first = [int(its["epoch"][its["train_error"] == 0][0]) for its in (bp, local_bp)]
    assert f"(train errors 0 from epoch {first[0]} and {first[1]} on)" in text
    probes = fgvar.open_dataset(STORED.with_name("table3_long_probes.nc")).sel(network="M/8/16", layer="perturbed")
    cosine = probes["cosine"].sel(estimator="LG-BP", reference="backprop").squeeze()
    by_bp, by_local, local = (cosine.sel(algorithm=name).values for name in ("BP", "LG-BP", "LG-FG-A"))
    assert f"by that very target, it stays away ({by_local[0]:.2f} to {by_local[-1]:.2f})" in text
    noise = probes["relative_variance"].sel(estimator="LG-FG-A").squeeze().isel(probe=[0, -1])
    for name, words in (
        ("LG-FG-A", "from {} to {} times its target's square"),
        ("LG-BP", "from {} to {} where LG-BP"),
    ):
        assert words.format(*(f"{each:.0f}" for each in noise.sel(algorithm=name).values)) in text
    assert f"({local[0]:.2f} to {local[-1]:.2f})" in text
    assert f"({by_bp[0]:.2f}, {by_bp.max():.2f} and {by_bp[-1]:.2f})" in text


def test_the_readme_says_what_three_epochs_have() -> None:
    """Errors of one run each, beside the frozen trunk's, and how far all are above the paper's."""
    text = " ".join((ROOT / "studies" / "README.md").read_text().split())
    ends = figure.final(fgvar.open_dataset(STORED)).sel(network="M/8/16")
    above = (ends["test"] - ends["paper"]).dropna("algorithm")
    assert f"every cell is {float(above.min()):.1f} to {float(above.max()):.1f} points above the paper's" in text
    test = ends["test"].dropna("algorithm").sortby(ends["test"].dropna("algorithm"))
    told = {name: f"{name} ({float(test.sel(algorithm=name)):.1f})" for name in test["algorithm"].values.tolist()}
    ours, weak = ("L-BP", "BP", "LG-BP", "LG-FG-A", "LG-FA"), ("FG-W", "LG-FG-W", "FG-A")
    assert f"order is {', '.join(told[name] for name in ours[:4])} and {told['LG-FA']}" in text
    assert f"{told['FG-W']}, {told['LG-FG-W']} and {told['FG-A']}, which one run does not tell apart" in text
    assert f"where the frozen trunk is ({float(test.sel(algorithm='frozen')):.1f}), and {told['FA']} is above" in text
    assert [name for name in test["algorithm"].values if name in (*ours, *weak)] == [*ours, *weak]
    made = set(
        fgvar.open_dataset(STORED)["epochs"].sel(network="M/8/16").max("seed").to_series().loc[lambda n: n > 0].index
    )
    assert {*table3.EXACT, *table3.PERTURBED} - made == {"L-FA", "DFA", "LG-FG-W-published"}
