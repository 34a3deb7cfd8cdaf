"""The study of Table 4: its runs, what it refuses, and all runs together in a figure."""

import contextlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fgvar
from figures import style
from figures import table4 as figure
from studies import table4

SMOKE = table4.Config(smoke=True, draws=2, probe_batch=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A run with the stop, one without, and a frozen trunk."""
    folder = tmp_path_factory.mktemp("table4")
    for name, stop in (("LG-FG-A", True), ("LG-FG-A", False), ("frozen", True)):
        cell = replace(SMOKE, algorithm=(name,), stop=stop, probes=stop and name != "frozen", readout_epochs=1)
        table4.main(replace(cell, out=folder / f"{name}{'' if stop else table4.NO_STOP}.nc"))
    return folder


@pytest.fixture(scope="module")
def collected(folder: Path) -> tuple[Path, str]:
    out, printed = folder / "all" / "table4.nc", io.StringIO()
    with contextlib.redirect_stdout(printed):
        table4.main(table4.Config(collect=True, folder=folder, out=out))
    return out, printed.getvalue()


def test_a_run_says_what_it_was_and_is_not_repeated(folder: Path, capsys) -> None:
    found = fgvar.open_dataset(folder / "LG-FG-A.nc")
    assert found["loss"].dims == ("epoch",)
    assert found["test_error"].dims == ("readout_epoch",)
    assert found.attrs["readout_epochs"] == found.sizes["readout_epoch"] - 1 == 2
    assert found.attrs["algorithm"] == "LG-FG-A"
    assert str(folder) not in str(found.attrs), "no path of this machine"
    assert np.isfinite(found["cosine"].sel(layer="perturbed", reference="backprop")).all()
    other = fgvar.open_dataset(folder / "LG-FG-A-no-stop.nc")
    assert other.attrs["algorithm"] == "LG-FG-A-no-stop"
    assert "stop_gradient=False" in other.attrs["train_loss"]
    for name, value in {"temperature": 0.2, "crop": 0.3, "lr": 0.2}.items():
        with pytest.raises(ValueError, match=rf"LG-FG-A\.nc is finished with .*{value}"):
            table4.main(replace(SMOKE, out=folder / "LG-FG-A.nc", **{name: value}))
    table4.main(replace(SMOKE, out=folder / "LG-FG-A.nc"))
    row = capsys.readouterr().out.rstrip("\n").split("\t")
    assert row[:3] == ["M/8/16", "LG-FG-A", "seed 0"]
    assert row[-1] == "finished before"


def test_all_runs_together(folder: Path, collected: tuple[Path, str]) -> None:
    out, printed = collected
    assert "\nLG-FG-A  " in printed
    assert " 32.88 " in printed
    found = fgvar.open_dataset(out)
    assert list(found["algorithm"].values) == ["frozen", "LG-FG-A", "LG-FG-A-no-stop"]
    one = fgvar.open_dataset(folder / "LG-FG-A.nc")
    for name in table4.CURVES:
        stored = found[name].sel(network="M/8/16", algorithm="LG-FG-A", seed=0)
        np.testing.assert_array_equal(stored, one[name], err_msg=name)
    assert found["batch_loss"].sel(algorithm="frozen").isnull().all(), "nothing that tells it"
    assert found["paper_test_error"].sel(algorithm="LG-FG-A").item() == pytest.approx(0.3288)
    text = out.with_suffix(".txt").read_text()
    for words in ("Shortened runs", "drawn", "n = 1", "No-stop", "read-out", "2 epochs of 256 images, adam"):
        assert words in text, words


def test_the_figure(collected: tuple[Path, str]) -> None:
    dataset = style.read(collected[0])
    for columns in (1, 2):
        left, right = figure.draw(dataset, columns=columns).axes
        lines = {line.get_label(): line for line in left.lines}
        assert set(lines) == {"LG-FG-A", "LG-FG-A-no-stop"}
        losses = dataset["batch_loss"].sel(network="M/8/16", algorithm="LG-FG-A", seed=0)
        np.testing.assert_allclose(lines["LG-FG-A"].get_ydata(), losses)
        assert [label.get_text() for label in right.get_yticklabels()] == ["frozen", "LG-FG-A", "LG-FG-A-no-stop"]
    with pytest.raises(ValueError, match=r"not a dataset of studies/table4.py: it lacks variable 'batch_loss'"):
        figure.draw(dataset.drop_vars("batch_loss"))


def test_windows() -> None:
    at, mean = figure.windows(np.array([*np.arange(83.0), np.nan]))
    assert len(at) == len(mean) == 41
    np.testing.assert_array_equal(at, mean)
    np.testing.assert_array_equal(figure.windows(np.array([3.0, 4.0]))[1], [3, 4])


def test_the_default_table() -> None:
    assert [cell.algorithm for cell in table4.table(table4.Config())] == list(table4.ROWS)
    names = {name.removesuffix(table4.NO_STOP) for name in table4.ROWS}
    assert names <= {scheme.name for scheme in fgvar.schemes()}
    assert set(table4.ROWS) <= set(style.SCHEMES)
    without = table4.Config(stop=False)
    assert [cell.algorithm for cell in table4.table(without)] == ["LG-FG-A-no-stop"]


def test_a_part_is_evenly_spaced() -> None:
    digits = fgvar.data.load("digits")
    assert table4.part(digits, 0) is digits
    found = table4.part(digits, 100)
    assert len(found) == 100
    assert bool((found.pixels == digits.pixels[: 100 * 14 : 14]).all())


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--out is the file of one run, and this command makes 5"):
        table4.main(table4.Config(data="digits", out=tmp_path / "run.nc"))
    with pytest.raises(ValueError, match="no finished run of this study in"):
        table4.main(table4.Config(collect=True, folder=tmp_path))
    with pytest.raises(ValueError, match="unknown scheme 'LG-FG-B'; did you mean"):
        table4.main(replace(SMOKE, algorithm=("LG-FG-B",), out=tmp_path / "run.nc"))
