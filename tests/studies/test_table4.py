"""The study of Table 4: its runs as cells, what it refuses, and all runs together in a figure."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import datasets, looks
from figures import table4 as figure
from studies import runs as tables
from studies import table4, training
from studies.common import Options

CONFIG = table4.Config(draws=2, probe_batch=4, readout_epochs=1)


def at(config: table4.Config, out: Path, **options: object) -> table4.Config:
    return replace(config, run=Options(out, **{"smoke": True} | options))


@pytest.fixture(scope="module")
def out(tmp_path_factory) -> Path:
    """A run with the stop, one without, and a frozen trunk; and all together."""
    found = tmp_path_factory.mktemp("table4") / "a.nc"
    for name, stop in (("LG-FG-A", True), ("LG-FG-A", False), ("frozen", True)):
        probes = int(stop and name != "frozen")
        table4.main(at(replace(CONFIG, algorithm=(name,), stop=stop, probes=probes), found))
    return found.with_stem("a_smoke")


@pytest.fixture(scope="module")
def runs(out: Path) -> dict[str, xr.Dataset]:
    return {one.attrs["algorithm"]: one for one in training.finished(out.with_suffix(""))}


def test_a_run_says_what_it_was_and_is_not_repeated(out: Path, runs: dict[str, xr.Dataset], capsys) -> None:
    found = runs["LG-FG-A"]
    assert found["loss"].dims == ("epoch",)
    assert found["test_error"].dims == ("readout_epoch",)
    assert found.attrs["readout_epochs"] == found.sizes["readout_epoch"] - 1 == 2
    assert found.attrs["examples"] == json.loads(found.attrs["cell_arguments"])["examples"] == 256
    assert str(out.parent) not in str(found.attrs), "no path of this machine"
    assert np.isfinite(found["cosine"].sel(layer="perturbed", reference="backprop")).all()
    assert "stop_gradient=False" in runs["LG-FG-A-no-stop"].attrs["train_loss"]
    config = at(replace(CONFIG, algorithm=("LG-FG-A",)), out.with_stem("a"))
    for name, value in {"temperature": 0.2, "crop": 0.3, "lr": 0.2}.items():
        with pytest.raises(ValueError, match=rf"LG-FG-A 0 in .* finished with {name}=.*, this command says {value}"):
            table4.main(replace(config, probes=1, **{name: value}))
    table4.main(replace(config, probes=1))
    assert "M/8/16\tLG-FG-A\tseed 0" not in capsys.readouterr().out, "nothing is trained again"


def test_all_runs_together(out: Path, runs: dict[str, xr.Dataset], capsys) -> None:
    table4.main(at(CONFIG, out.with_stem("a"), collect=True))
    printed = capsys.readouterr().out
    assert "\nLG-FG-A  " in printed
    assert " 32.88 " in printed
    found = fgvar.open_dataset(out)
    assert list(found["algorithm"].values) == ["frozen", "LG-FG-A", "LG-FG-A-no-stop"]
    for name in table4.CURVES:
        stored = found[name].sel(network="M/8/16", algorithm="LG-FG-A", seed=0)
        np.testing.assert_array_equal(stored, runs["LG-FG-A"][name], err_msg=name)
    assert found["batch_loss"].sel(algorithm="frozen").isnull().all(), "nothing that tells it"
    assert found["paper_test_error"].sel(algorithm="LG-FG-A").item() == pytest.approx(0.3288)
    text = out.with_suffix(".txt").read_text()
    for words in ("Shortened runs", "drawn", "n = 1", "No-stop", "read-out", "2 epochs of 256 images, adam"):
        assert words in text, words


def test_a_table_is_made_in_pieces(out: Path, runs: dict[str, xr.Dataset], tmp_path: Path, monkeypatch) -> None:
    """A run that is made again takes the place of the stored one, and of no other."""
    old = runs["LG-FG-A"].assign(loss=runs["LG-FG-A"]["loss"] + 1).assign_attrs(commit="older")
    stored = [*(one for name, one in runs.items() if name != "LG-FG-A"), old]
    path = fgvar.save(tables.errors(stored, table4.ROWS, table4.PAPER, **table4.GATHERED), tmp_path / "stored.nc")
    monkeypatch.setattr(training, "finished", lambda _: [runs["LG-FG-A"]])
    table4.main(at(replace(CONFIG, onto=path), tmp_path / "a.nc", collect=True))
    xr.testing.assert_identical(
        fgvar.open_dataset(tmp_path / "a_smoke.nc").drop_attrs(), fgvar.open_dataset(out).drop_attrs()
    )


def test_the_figure(out: Path) -> None:
    dataset = datasets.read(out)
    for columns in (1, 2):
        left, right = figure.draw(dataset, columns=columns).axes
        lines = {line.get_marker(): line for line in left.lines}
        assert set(lines) == {looks.look(name).marker for name in ("LG-FG-A", "LG-FG-A-no-stop")}
        losses = dataset["batch_loss"].sel(network="M/8/16", algorithm="LG-FG-A", seed=0)
        np.testing.assert_allclose(lines[looks.look("LG-FG-A").marker].get_ydata(), losses)
        assert [label.get_text() for label in right.get_yticklabels()] == ["frozen", "LG-FG-A", "LG-FG-A-no-stop"]
    with pytest.raises(ValueError, match=r"not a dataset of studies/table4.py: it lacks variable 'batch_loss'"):
        figure.draw(dataset.drop_vars("batch_loss"))


@pytest.mark.parametrize(("updates", "size", "first"), [(84, 2, 0.5), (2, 1, 0.0)])
def test_windows(updates: int, size: int, first: float) -> None:
    """Each at the middle of its updates; a trunk that learned nothing has none."""
    loss = np.stack([np.arange(float(updates)), np.full(updates, np.nan)])
    dims = {"algorithm": ["BP", "frozen"]}
    found = figure.windows(xr.Dataset({"batch_loss": (("algorithm", "update"), loss)}, dims))["loss"]
    assert found.sizes == {"algorithm": 1, "epoch": updates // size}
    assert found[0, 0].item() == first
    np.testing.assert_array_equal(found[0], found["epoch"])


def test_the_default_table() -> None:
    axes, _ = table4.table(table4.Config())
    assert axes["algorithm"] == table4.ROWS
    names = {name.removesuffix(table4.NO_STOP) for name in table4.ROWS}
    assert names <= {scheme.name for scheme in fgvar.schemes()}
    assert set(table4.ROWS) <= set(looks.SCHEMES)
    assert table4.table(table4.Config(stop=False))[0]["algorithm"] == ("LG-FG-A-no-stop",)


def test_a_part_is_evenly_spaced() -> None:
    digits = fgvar.data.load("digits")
    assert table4.part(digits, 0) is digits
    found = table4.part(digits, 100)
    assert len(found) == 100
    assert bool((found.pixels == digits.pixels[: 100 * 14 : 14]).all())


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no finished run of this study in"):
        table4.main(at(CONFIG, tmp_path / "a.nc", collect=True))
    with pytest.raises(ValueError, match="unknown scheme 'LG-FG-B'; did you mean"):
        table4.main(at(replace(CONFIG, algorithm=("LG-FG-B",)), tmp_path / "a.nc"))
