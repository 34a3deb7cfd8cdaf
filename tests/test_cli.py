"""The command line: what it prints in three forms, what it exits with, and that help needs no torch."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.cli import main
from fgvar.testing.load import load_problem

STORED = Path(__file__).resolve().parents[1] / "figures" / "data"
SMALL = ("measure", "--network", "M/1/16", "--channels", "32", "--groups", "4", "--batch", "4", "--draws", "16")
MINE = """
import torch

import fgvar

scaled = fgvar.Estimator(combine=fgvar.combine.Normalised())

def doubled(problem, generator):
    return {name: 2 * g for name, g in problem.backprop().items()}

def make():
    return fgvar.scheme("BP")

def needy(width):
    return None

def problem(width=3):
    torch.manual_seed(0)
    net = fgvar.with_sites(torch.nn.Linear(width, 2).double())
    return fgvar.Problem(net, "cross_entropy", (torch.randn(4, width).double(), torch.tensor([0, 1, 1, 0])))

ready = problem()
layer = torch.nn.Linear(3, 2)
sampled = fgvar.Stochastic(sample=fgvar.sampling.Draw(2, by=fgvar.sampling.GradientNorms()))

def stuck():
    return 1 / 0
"""


@pytest.fixture
def run(capsys):
    """Status, stdout and stderr of a command."""

    def ran(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(arguments)
        return status, *capsys.readouterr()

    return ran


@pytest.fixture
def mine(tmp_path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def table(text: str) -> list[dict[str, str]]:
    header, *lines = [line.split("\t") for line in text.splitlines()]
    return [dict(zip(header, line, strict=True)) for line in lines]


# ---- the four commands -----------------------------------------------------------------------------------------


def test_schemes_are_listed_in_three_forms(run) -> None:
    listed = fgvar.schemes()
    status, text, _ = run("schemes")
    assert (status, len(text.splitlines())) == (0, 1 + len(listed))
    rows = table(run("schemes", "--plain")[1])
    records = json.loads(run("schemes", "--json")[1])
    for found, row, record in zip(listed, rows, records, strict=True):
        expected = {"name": found.name, "line": found.line, "source": found.source, "cost": found.cost}
        assert record == {**expected, "biased": found.bias_reason or "no"}
        assert row == {key: str(value) for key, value in record.items()}


def test_measure_is_the_measurement_of_the_same_words(run, tmp_path) -> None:
    """Sizes of image and classes come from the data; all digits are printed."""
    out = tmp_path / "new" / "measured.nc"
    command = (*SMALL, "--scheme", "LG-FG-A", "FG-A", "--seed", "3", "--out", str(out), "--json")
    status, text, progress = run(*command)
    assert status == 0
    assert str(out) in progress, "stdout is for the answer"
    images = fgvar.data.load("digits")
    model = fgvar.networks.LocalMixer.preset(
        "M/1/16", image_shape=(1, 8, 8), classes=10, channels=32, groups=4, seed=3
    )
    problem = fgvar.Problem(model, "cross_entropy", images.sample(4, seed=3))
    expected = fgvar.measure({name: fgvar.scheme(name) for name in ("LG-FG-A", "FG-A")}, problem, draws=16, seed=3)
    stored = fgvar.open_dataset(out)
    xr.testing.assert_allclose(stored.drop_vars("seconds"), expected.drop_vars("seconds"))
    assert stored.attrs["network"] == "M/1/16"
    for row in json.loads(text):
        its = expected.sel(estimator=row["estimator"], layer="perturbed", reference=row["reference"])
        assert row["variance"] == pytest.approx(its["variance"].item(), rel=1e-12)
        assert row["cosine"] == pytest.approx(its["cosine"].item(), rel=1e-12)
    again = table(run("open", str(out), "--plain")[1])
    assert [float(row["variance"]) for row in again] == [row["variance"] for row in json.loads(text)]


def test_a_layer_that_there_is_not_costs_no_measurement(run, monkeypatch) -> None:
    monkeypatch.setattr("fgvar.measure", lambda *_, **__: pytest.fail("it has begun"))
    status, _, error = run(*SMALL, "--layer", "block9")
    assert status == 2
    assert "unknown layer 'block9' (valid: all, " in error


def test_an_answer_is_worth_more_than_its_file(run, mine, tmp_path, monkeypatch) -> None:
    """A file is written before its answer is formed, and the answer is there where none could be written."""
    measured = ("measure", "--problem", f"{mine}:ready", "--scheme", "BP", "--draws", "2")
    given = (*measured, "--out", str(tmp_path / "a.nc"))
    checked = ("check", "FG-W", "--checks", "scale", "--report", str(tmp_path / "a.html"))
    with monkeypatch.context() as broken:
        broken.setattr("fgvar.measurement.report.to_text", lambda *_: 1 / 0)
        run(*given)
    assert (tmp_path / "a.nc").exists()

    def full(*_) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fgvar.save", full)
    monkeypatch.setattr("fgvar.pages.write", full)
    for command, told in ((given, "BP"), (checked, "scale")):
        status, text, error = run(*command)
        assert status == 1
        assert error.splitlines()[-1] == f"fgvar: {command[-2]}: No space left on device"
        assert told in text


def test_check_exits_with_its_verdict(run, mine) -> None:
    """A scheme, and of a file: what makes an estimator, a function of (problem, generator), and an estimator."""
    few = ("--checks", "unbiased", "scale")
    assert run("check", "FG-W", *few)[0] == 0
    assert run("check", f"{mine}:make", *few)[0] == 0
    status, text, _ = run("check", f"{mine}:doubled", "--checks", "pure", "linear_in_loss", "zero_gradient")
    assert (status, text.count("yes")) == (0, 12)
    status, text, _ = run("check", f"{mine}:scaled", "--checks", "scale")
    assert status == 1
    assert "scale  NO" in text
    rows = json.loads(run("check", f"{mine}:scaled", *few, "--json")[1])
    assert {row["check"] for row in rows if row["outcome"] == "failed"} <= {"unbiased", "scale"}


@pytest.mark.parametrize("name", ["problem", "ready"])
def test_a_problem_of_ones_own_is_measured_and_checked_on(run, mine, tmp_path, name: str) -> None:
    """A function that returns a problem, or the problem; no path of this machine is stored."""
    out = tmp_path / "own.nc"
    given = ("--scheme", "FG-W", "FG-A", "--draws", "16", "--seed", "3")
    status, text, _ = run("measure", "--problem", f"{mine}:{name}", *given, "--out", str(out), "--json")
    expected = fgvar.measure(
        {scheme: fgvar.scheme(scheme) for scheme in ("FG-W", "FG-A")},
        load_problem(f"{mine}:{name}"),
        draws=16,
        seed=3,
    )
    assert status == 0
    for row in json.loads(text):
        its = expected.sel(estimator=row["estimator"], layer="perturbed", reference=row["reference"])
        assert row["variance"] == pytest.approx(its["variance"].item(), rel=1e-12)
    attrs = fgvar.open_dataset(out).attrs
    assert attrs["problem"] == f"mine.py:{name}"
    assert not {"network", "data"} & {*attrs}
    assert str(tmp_path) not in attrs["configuration"]
    status, text, _ = run("check", "FG-A", "--problem", f"{mine}:{name}", "--checks", "unbiased", "scale", "--json")
    assert status == 0
    assert {(row["problem"], row["outcome"]) for row in json.loads(text)} == {(name, "passed")}


def test_a_row_of_ones_own_is_measured_and_checked(run, mine) -> None:
    """A sentence in a file, by its name there, beside a scheme; a name that is not there is answered with those."""
    given = ("--problem", f"{mine}:problem", "--route", "exact", "--json")
    status, text, _ = run("measure", "--scheme", f"{mine}:sampled", "minibatch", *given)
    row = fgvar.Stochastic(sample=fgvar.sampling.Draw(2, by=fgvar.sampling.GradientNorms()))
    expected = fgvar.theory.variance(row, load_problem(f"{mine}:problem"))
    assert status == 0
    assert json.loads(text)[0]["variance"] == pytest.approx(sum(float(v.sum()) for v in expected.values()), rel=1e-6)
    status, text, _ = run("check", f"{mine}:sampled", "--checks", "weights", "unbiased")
    assert (status, text.count("yes")) == (0, 8)
    assert "did you mean 'sampled'? (valid: " in run("check", f"{mine}:sample")[2]


@pytest.mark.parametrize("path", sorted(STORED.glob("*.nc")), ids=lambda path: path.stem)
def test_open_sums_up_every_stored_dataset(run, path: Path) -> None:
    status, text, _ = run("open", str(path))
    assert status == 0
    assert len(text.splitlines()) > 3


def test_open_says_the_same_in_every_form(run) -> None:
    path = str(STORED / "quickstart.nc")
    text = run("open", path)[1]
    plain, records = table(run("open", path, "--plain")[1]), json.loads(run("open", path, "--json")[1])
    assert len(plain) == len(records) > 0
    assert [*plain[0]] == [*records[0]]
    assert all(row["estimator"] in text for row in records)


def test_open_takes_the_last_known_epoch_of_each_run(run, tmp_path) -> None:
    errors = [[0.9, 0.5, 0.1], [0.9, 0.4, np.nan]]
    path = fgvar.save(
        xr.Dataset(
            {"test_error": (("algorithm", "epoch"), errors)}, {"algorithm": ["slow", "fast"], "epoch": [0, 1, 2]}
        ),
        tmp_path / "runs.nc",
    )
    rows = {
        row["algorithm"]: (row["epoch"], row["test_error"]) for row in json.loads(run("open", str(path), "--json")[1])
    }
    assert rows == {"slow": (2, 0.1), "fast": (1, 0.4)}


def test_plot_draws_what_fits_a_dataset(run, tmp_path) -> None:
    """The best figure, one by name, all of them; choices of a run, and the place of the files."""
    path = str(STORED / "quickstart.nc")
    status, text, _ = run("plot", path, "--out", str(tmp_path / "run.pdf"), "--venue", "icml", "--columns", "1")
    assert (status, text.split()) == (0, [str(tmp_path / "run.pdf"), str(tmp_path / "run.txt")])
    assert "over training of BP, LG-FG-A" in (tmp_path / "run.txt").read_text()
    at = ("--at", "algorithm=BP", "step=4", "--out", str(tmp_path / "one"))
    rows = json.loads(run("plot", path, *at, "--by", "efficiency", "--json")[1])
    assert rows == [{"file": str(tmp_path / f"one.{kind}")} for kind in ("pdf", "png", "txt")]
    assert "ranked by efficiency to backprop" in (tmp_path / "one.txt").read_text()
    text = run("plot", path, *at[:-1], str(tmp_path / "all.svg"), "--kind", "all")[1]
    kinds = ("training", "layers", "ranking", "tradeoff")
    assert text.split() == [str(tmp_path / f"all_{kind}.{end}") for kind in kinds for end in ("svg", "txt")]


# ---- wrong input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no command; give one of schemes, measure, check, open, plot, report"),
        (["mesure"], "unknown command 'mesure'; did you mean 'measure'"),
        (["plot", str(STORED / "quickstart.nc"), "--kind", "layrs"], "unknown kind 'layrs' (valid: all, training"),
        (["plot", str(STORED / "quickstart.nc"), "--kind", "layers"], "several measurements, over 'algorithm'"),
        (["plot", str(STORED / "quickstart.nc"), "--at", "step=5"], "unknown step '5'; did you mean '58'"),
        (["plot", str(STORED / "quickstart.nc"), "--at", "stp=4"], "unknown dim 'stp'; did you mean 'step'"),
        (["plot", str(STORED / "quickstart.nc"), "--at", "step"], "names 'step' without a label, expected axis="),
        (["open", str(STORED)], "which is a folder; give a file in it, as sweep.nc of a sweep"),
        (["measure", "--out", "rows.py"], "unknown format 'py' (valid: nc); path is rows.py"),
        (["plot", str(STORED / "quickstart.nc"), "--by", "cosine"], "--by is of ranking, and the figure is of"),
        (["plot", str(STORED / "quickstart.nc"), "--venue", "iclm"], "unknown venue 'iclm'; did you mean 'icml'"),
        (["plot", "nothing.nc", "--out", "a.jpg"], "format 'jpg'; did you mean 'png'? (valid: pdf, png, svg)"),
        (["report", "nothing.nc", "-o", "a.pdf"], "unknown format 'pdf' (valid: htm, html); path is a.pdf"),
        (["check", "no.module:name", "--report", "a.pdf"], "unknown format 'pdf' (valid: htm, html)"),
        (["plot", str(STORED / "cost.nc")], "no figure fits: expected a dataset of fgvar.measure"),
        (["measure", "--scheme", "FGA"], "unknown scheme 'FGA'; did you mean 'FG-A'"),
        (["measure", "--scheme", "BP", "BP"], "names BP twice"),
        (["measure", "--network", "M/1/17"], "unknown preset 'M/1/17'; did you mean 'M/1/16'"),
        (["measure", "--groups", "7"], "256 channels do not divide into 7 groups"),
        (["measure", "--draws", "few"], "--draws: invalid literal"),
        (["measure", "--dras", "3"], "Perhaps you meant: --draws"),
        (["measure", "--draws", "0"], "draws is 0, expected at least 2"),
        (["measure", "--device", "gpu"], "device is 'gpu', expected a device of this machine"),
        (["measure", "--layer", "block9"], "unknown layer 'block9'"),
        (["measure", "--plain", "--json"], "forms of one output"),
        (["check", "FG-W", "--checks", "unbiasd"], "did you mean 'unbiased'"),
        (["check", "no.such.module:estimator"], "no module no.such.module"),
        (["check", "nowhere.py:estimator"], "no file nowhere.py"),
        (["check", "MINE:dobled"], "did you mean 'doubled'"),
        (["check", "MINE:needy"], "needs width"),
        (["measure", "--problem", "MINE"], "names no function; give path/to/file.py:name or module:name"),
        (["measure", "--problem", "MINE:probelm"], "did you mean 'problem'"),
        (["measure", "--problem", "nowhere.py:problem"], "no file nowhere.py"),
        (["measure", "--problem", "MINE:needy"], "needs width; give it defaults, or name a function without"),
        (["measure", "--problem", "MINE:make"], "returned ExactGradient, expected fgvar.Problem"),
        (["measure", "--problem", "MINE:layer"], "is Linear, expected an fgvar.Problem, or a function that"),
        (["measure", "--problem", "fgvar:Problem"], "is the class Problem, expected an fgvar.Problem, or a function"),
        (["measure", "--problem", "MINE:stuck"], "returns no problem: ZeroDivisionError: division by zero"),
        (["measure", "--problem", "MINE:ready", "--batch", "3"], "brings its own network, batch and device"),
        (["check", "FG-A", "--problem", "MINE:stuck"], "mine.py, line"),
        (["check", "BROKEN:x"], "does not import: ZeroDivisionError: division by zero"),
        (["check", "--gallery", "--report", "page.html"], "--report is of one estimator; leave it or --gallery out"),
        (["report", "nothing.nc"], "no dataset at nothing.nc"),
        (["open", "nothing.nc"], "no dataset at nothing.nc"),
        (["open", "MINE"], "is not a whole netCDF file"),
    ],
)  # fmt: skip
def test_wrong_input_is_one_line(run, mine, arguments: list[str], message: str) -> None:
    (mine.parent / "broken.py").write_text("1 / 0\n")
    places = {"MINE": str(mine), "BROKEN": str(mine.parent / "broken.py")}
    given = [a if a.partition(":")[0] not in places else a.replace(a.partition(":")[0], places[a.partition(":")[0]])
             for a in arguments]  # fmt: skip
    status, text, error = run(*given, *(["--draws", "4"] if "--layer" in given else []))
    assert (status, text) == (2, "")
    assert message in error
    assert error.startswith("fgvar: ")
    assert len(error.splitlines()) == 1 + error.count("%|")  # besides a progress bar


# ---- as a program ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["measure", "--help"], ["nonsense"]])
def test_what_needs_no_torch_loads_none(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom fgvar.cli import main\n"
        "try:\n    status = main(sys.argv[1:])\nexcept SystemExit as stopped:\n    status = stopped.code\n"
        "slow = {'torch', 'xarray', 'scipy', 'numpy'} & {*sys.modules}\nassert not slow, slow\nsys.exit(status)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if arguments == ["nonsense"] else 0), done.stderr


def test_as_a_module_it_exits_with_the_status_and_opens_without_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "fgvar", "open", "nothing.nc"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    *imported, said = done.stderr.splitlines()
    assert "nothing.nc" in said
    names = {line.split("|")[-1].strip() for line in imported}
    assert "xarray" in names
    assert "torch" not in names
