"""What holds of every study: its smoke run, what it refuses, and what its figure and caption say.

What is particular to one, such as the evidence in its stored dataset, is held in a file of its own.
"""

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tyro
import xarray as xr

import fgvar
from figures import scaling, weight_sharing
from studies import check_calibration, common, table3

DATA = Path(__file__).parents[2] / "figures/data"


@dataclass(frozen=True)
class Case:
    """A study.

    Attributes:
        sizes: of its smoke run's dataset, among others.
        printed: by its smoke run.
        caption: words that the caption of the stored dataset has.
        holds: of the smoke run's dataset.
        figure: module and stored dataset.
        extra: a package beside those of the studies that its run needs.
    """

    sizes: dict[str, int]
    printed: tuple[str, ...]
    caption: tuple[str, ...]
    holds: Callable[[xr.Dataset], Any] = lambda _: True
    figure: str = ""
    extra: str = ""


def all_table_routes_agree(found: xr.Dataset) -> None:
    table = found["variance"].sel(route="table")
    assert float(abs(found["variance"] / table - 1).max()) < 1e-9, "closed form and enumerated"


def weight_perturbation_loses_d(found: xr.Dataset) -> None:
    for place in found["place"].values:
        one = scaling.of_place(found, place).sel(estimator="FG-W")
        np.testing.assert_allclose(one["relative_variance"], one["weights"] + 1, rtol=1e-9)


def distances_have_errors(found: xr.Dataset) -> None:
    """On some CPUs the smallest step moves nothing in float32: every estimate is 0, and lacks all of its length."""
    assert np.isfinite(found["distance"]).all()
    assert ((found["distance_se"] > 0) | (found["distance"] == 1)).all()
    assert (found["distance_se"] > 0).sel(step=1e-4, method="nearest").all()


def a_guess_of_the_target_is_the_target(found: xr.Dataset) -> None:
    mine = {"space": "activity", "target": "local", "guess": "local", "reference": "target"}
    assert found["cosine"].sel(mine).item() == pytest.approx(1, abs=1e-5)


def probes_are_whole(found: xr.Dataset) -> None:
    assert list(found["algorithm"].values) == ["LG-FG-A"]
    assert found["step"][0] == 1
    noisy = found.sel(layer="perturbed", estimator=["FG-W", "FG-A", "LG-FG-W", "LG-FG-A"])
    for name in ("relative_variance", "cosine", "sq_bias", "slope"):
        assert np.isfinite(noisy[name]).all(), name
    assert (noisy["cosine_se"].sel(estimator="FG-W") > 0).all()


def weighted_points_have_no_bias(found: xr.Dataset) -> None:
    assert float(found["relative_bias_exact"].sel(law="weighted").max()) < 1e-25
    assert float(found["relative_bias_exact"].sel(law="published", share=0.5).min()) > 1e-3


def live_weights_have_their_law(found: xr.Dataset) -> None:
    named = ["FG-W, live", "FG-W, masked", "FG-W, dense"]
    exact, law = (found[name].sel(estimator=named) for name in ("relative_variance", "law"))
    np.testing.assert_allclose(exact, law, rtol=1e-5)
    assert (found["relative_variance_drawn"] > 0).all()


def steps_begin_at_the_gradient(found: xr.Dataset) -> None:
    assert float(abs(found["cosine"].sel(steps=0, toward="gradient") - 1).max()) < 1e-12
    assert float(found["off"].sel(steps=0).max()) < 1e-12


def weight_perturbation_has_no_start(found: xr.Dataset) -> None:
    whole = found["relative_variance"].sel(estimator="FG-W", layer="all")
    np.testing.assert_allclose(whole, found.attrs["d"] + 1, rtol=1e-9)


def costs_are_measured(found: xr.Dataset) -> None:
    assert (found["time"] > 0).all()
    assert (found["peak"] > 0).all()


PROXY = ("small proxy", "exact", "256 draws, replayed", "means of 3 seeds", "frozen")
CASES = {
    "audit": Case(
        {"trainable": 2, "stage": 1, "seed": 1, "part": 7}, ("verdict", "does not hold"),
        ("exact given the gradient", "derivatives replayed", "hold only in some cells", "Drawn from exact"),
        extra="transformers",
    ),
    "all_schemes": Case(
        {}, tuple(scheme.name for scheme in fgvar.schemes()[::9]),
        ("Values are drawn (512 draws", "44 steps of backprop", "95 % intervals", "Hollow: biased"),
    ),
    "check_calibration": Case(
        {"run": 3, "seed": 1},
        ("alarms over expected ones", "verdicts at the default level 1e-06", "coverage of 95 % intervals", "p-v",
         "coordinate noise in 10⁴ numbers: 0 alarms in 1 runs"),
        ("Values are drawn, shares of simulated runs",), figure="calibration",
    ),
    "collocation": Case(
        {"source": 1, "seed": 1, "law": 2, "share": 3, "sampler": 5, "step": 3}, ("error of u: median (range)",),
        ("Lines: exact", "512 draws, 95 % intervals", "Medians of 10 seeds", "closed form", "Not as published"),
        weighted_points_have_no_bias,
    ),
    "cost": Case(
        {"along": 4, "repeat": 1}, ("parameters",),
        ("medians of 5 repeats", "Slopes of the time", "Memory of the most draws over that of 64"),
        costs_are_measured,
    ),
    "directions": Case({"directions": 3, "seed": 1, "estimator": 4}, ("theory",), ("From theory", "closed forms")),
    "extrapolation": Case(
        {"step": 2, "seed": 2, "row": 4, "workers": 2}, ("slope", "workers"),
        ("1024 draws", "exact, by enumeration", "Not reproduced", "meet at K ="),
    ),
    "finite_differences": Case(
        {"network": 1, "dtype": 2, "step": 3, "space": 2, "oracle": 2}, ("best step",),
        ("values are drawn: 1024 draws", "±1.96", "3 standard errors above 0", "MLP, tanh: least distance"),
        distances_have_errors,
    ),
    "fused_losses": Case(
        {"groups": 2, "seed": 1, "repeat": 3, "way": 3}, ("naive/fused",), ("medians of 31 repeats",),
    ),
    "groups": Case({"losses": 2, "groups": 2, "seed": 1}, ("test error (range)",), PROXY),
    "guesses": Case(
        {"space": 1, "target": 2, "guess": 2, "seed": 1, "reference": 2}, ("activity/local/Gaussian",),
        ("256 draws for each of 3 seeds", "44 steps of backprop"), a_guess_of_the_target_is_the_target,
    ),
    "initialisation": Case(
        {"net": 2, "start": 2, "lr": 1, "seed": 2, "when": 2, "layer": 5}, ("after / before", " of 8"),
        ("All values are exact", "over 10 seeds", "d + 1 = 1953", "Lower after than before", "which fgvar refuses"),
        weight_perturbation_has_no_start,
    ),
    "language_model": Case(
        {"trainable": 2, "seed": 1, "stage": 3, "estimator": 5, "end": 2}, ("LoRA 1",),
        ("Test perplexity of a byte", "128 draws", "At equal cost", "ρ < fan-in", "not measured"),
        extra="transformers",
    ),
    "local_losses": Case({"losses": 2, "groups": 1, "seed": 1}, ("test error (range)",), PROXY),
    "private": Case(
        {"rank": 2, "seed": 1, "kind": 2, "layer": 4, "sigma": 3}, ("DP-SGD", "σ = 2"),
        ("exact", "32 draws a network", "no ε is claimed", "unknown to us"),
    ),
    "pruning": Case(
        {"seed": 1, "epoch": 3, "mask": 3, "estimator": 5, "network": 2}, ("share", "FG-W, live"),
        ("Occam gradient descent", "Lines exact", "drawn", "10 seeds", "Not the script's setting"),
        live_weights_have_their_law,
    ),
    "quickstart": Case(
        {"step": 1, "estimator": 5}, ("trained by LG-FG-A", "relative variance"),
        ("given one batch of 64 examples", "exact (black edges): LG-BP"),
        probes_are_whole,
    ),
    "rdp": Case(
        {"top": 2, "tree_top": 2, "seed": 1, "potentials": 2, "row": 6, "law": 3}, ("fault 1 exactly",),
        ("Points: drawn, 1024 draws", "±1.96 standard errors", "Lines are exact, but for the dashed one",
         "whose potentials are not published", "in all 112 pairs"),
    ),
    "scaling": Case(
        {"place": 2, "seed": 1}, ("predicted",),
        ("exact", "drawn", "(replayed)", "standard errors over seeds", "95 % intervals"), weight_perturbation_loses_d,
    ),
    "streams": Case(
        {"seed": 2, "feed": 4, "optimiser": 5, "steps": 4, "weight": 88}, ("over Adam",),
        ("Points: drawn", "64 streams of each kind", "exact of momentum", "their DGrad and Cos are not built"),
    ),
    "table1": Case(
        {"space": 2, "noise": 2, "seed": 1, "route": 3}, ("formula",), ("Lines: Table 1 of Ren et al. 2023",),
        all_table_routes_agree,
    ),
    "unlearning": Case(
        {"forgotten": 2, "seed": 1, "way": 2, "steps": 3, "shaping": 7}, ("by damage", "random mask, alone"),
        ("Lines: exact", "Rings: drawn", "Means of 10 seeds", "First order ends", "was not measured"),
        steps_begin_at_the_gradient,
    ),
    "weight_sharing": Case(
        {"kind": 2, "positions": 2, "example": 1}, ("medians over examples, exact",),
        ("All values are exact", "288 of 288 problems", "linear, loss pooled: nowhere", "Fan-in: linear 16"),
        lambda found: weight_sharing.agreement(found).all(),
    ),
}  # fmt: skip
SWEEPS = [name for name in CASES if "run" in import_module(f"studies.{name}").Config.__annotations__]


def figure_of(name: str) -> Any:
    return import_module(f"figures.{CASES[name].figure or name}")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.hf if case.extra else ()) for name, case in CASES.items()]
)
def test_smoke(name: str, tmp_path: Path, capsys, monkeypatch) -> None:
    """Of all schemes every ninth; and by a thread in place of a process, which would load torch again."""
    if CASES[name].extra:
        pytest.importorskip(CASES[name].extra, reason="needs the extra fgvar[hf]")
    schemes = fgvar.schemes()[::9]
    monkeypatch.setattr(fgvar, "schemes", lambda: schemes)
    monkeypatch.setattr(check_calibration, "ProcessPoolExecutor", ThreadPoolExecutor)
    study, case, figure = import_module(f"studies.{name}"), CASES[name], figure_of(name)
    study.main(tyro.cli(study.Config, args=["--smoke", "--out", str(tmp_path / "a.nc")]))
    out, printed = tmp_path / ("a_smoke.nc" if name in SWEEPS else "a.nc"), capsys.readouterr().out
    assert [words for words in case.printed if words not in printed] == []
    for suffix in (".nc", ".pdf", ".png"):
        assert out.with_suffix(suffix).stat().st_size > 1000, suffix
    assert out.with_suffix(".txt").read_text().startswith("A smoke run: the numbers mean nothing.")
    found = fgvar.open_dataset(out)
    assert set(figure.PAGE.needed) <= {*found.variables}
    assert case.sizes.items() <= {str(dim): size for dim, size in found.sizes.items()}.items()
    assert (found.get("status", xr.DataArray("done")) == "done").all()
    assert found.attrs["study"] == name
    assert str(tmp_path) not in str(found.attrs), "no path of this machine"
    case.holds(found)


@pytest.mark.parametrize("name", SWEEPS)
def test_nothing_to_collect_is_told(name: str, tmp_path: Path) -> None:
    study = import_module(f"studies.{name}")
    with pytest.raises(ValueError, match="no cell is done; see above, or run without --collect"):
        study.main(tyro.cli(study.Config, args=["--collect", "--out", str(tmp_path / "a.nc")]))


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("audit", ["--stages", "late"], r"stages has \['late'\], expected some of: initial, pretrained, half"),
        ("audit", ["--parts", "all"], r"parts has \['all'\], expected some of: isotropic, low rank, subspaces"),
        ("audit", ["--trainable", "last block"], "trainable is 'last block', expected full, or LoRA and a rank"),
        ("collocation", ["--uniform", "25"], r"uniform is \[25\] and probe 12, expected 0 to 24 points and 1 to 20"),
        ("directions", ["--directions", "161"], "expected numbers from 1 to 160"),
        ("finite_differences", ["--draws", "100"], "multiple of the blocks"),
        ("finite_differences", ["--networks", "sigmoid"], "networks are tanh, relu, mixer"),
        ("finite_differences", ["--dtypes", "half"], "dtypes float32 and float64"),
        ("initialisation", ["--starts", "zero"], r"starts has \['zero'\], expected constant, Kaiming or both"),
        ("language_model", ["--trainable", "LoRA"], "expected full, last block, or LoRA and a rank, as 'LoRA 4'"),
        ("rdp", ["--top", "2", "50"], r"K1 is \[2, 50\] of a budget of 50 and 500 states.*; expected less than the"),
        (
            "rdp",
            ["--tree-budget", "2001"],
            "and 2000; expected less than the budget, and that no more than the states",
        ),
        ("pruning", ["--share", "1"], r"share is 1\.0 and epochs 20, expected within \(0, 1\) and at least 1"),
        ("streams", ["--steps", "4", "2"], r"steps are \[4, 2\], expected ascending numbers from 1 on"),
        ("table1", ["--size", "0"], "sizes and batches are at least 1"),
        ("unlearning", ["--steps", "0", "7"], r"steps are \[0, 7\], expected ascending multiples of 5"),
        ("unlearning", ["--forgotten", "all"], r"forgotten has \['all'\], expected some of: a tenth, a class"),
        ("weight_sharing", ["--positions", "3"], r"positions are \[3\], expected powers of two from 1 to 256"),
        ("weight_sharing", ["--examples", "0"], "examples is 0 and fan_out 32, expected at least 1 and at least 2"),
    ],
)
def test_wrong_input_is_refused(name: str, arguments: list[str], message: str, tmp_path: Path) -> None:
    study = import_module(f"studies.{name}")
    with pytest.raises(ValueError, match=message):
        study.main(tyro.cli(study.Config, args=[*arguments, "--out", str(tmp_path / "a.nc")]))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", CASES)
def test_captions_say_how_numbers_came(name: str) -> None:
    text = figure_of(name).caption(fgvar.open_dataset(DATA / f"{CASES[name].figure or name}.nc"))
    assert [words for words in CASES[name].caption if words not in text] == []


@pytest.mark.parametrize("name", CASES)
def test_foreign_data_is_refused(name: str) -> None:
    for use in (figure_of(name).draw, figure_of(name).caption):
        with pytest.raises(ValueError, match=rf"not a dataset of studies/{name}\.py: it lacks variable"):
            use(xr.Dataset())


# ---- the command line -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plain:
    """A study that does not sweep."""

    out: Path = Path("a.nc")


@dataclass(frozen=True)
class Swept:
    """A study that does."""

    run: common.Run = common.Options(Path("a.nc"))


@pytest.mark.parametrize(
    ("config", "error", "line"),
    [
        (Plain, ValueError("no such thing"), "depth: no such thing"),
        (Swept, OSError("disk full"), "depth: disk full"),
        (Plain, KeyboardInterrupt(), "depth: stopped; the same command begins anew"),
        (Swept, KeyboardInterrupt(), "depth: stopped; the same command goes on from here"),
    ],
)
def test_what_the_user_can_mend_is_one_line(config: type, error: BaseException, line: str, monkeypatch) -> None:
    def study(_config: object) -> None:
        raise error

    monkeypatch.setattr("sys.argv", ["studies/depth.py"])
    with pytest.raises(SystemExit, match=f"^{line}$"):
        common.main(study, config, "Depth.")


FILES = sorted(Path(common.__file__).parent.glob("*.py"))


@pytest.mark.parametrize("name", [path.stem for path in FILES if "\nclass Config" in path.read_text()])
def test_help_has_words_for_users_alone(name: str, capsys) -> None:
    """Comments beside a field are its help, where it has no other."""
    with pytest.raises(SystemExit):
        tyro.cli(import_module(f"studies.{name}").Config, args=["--help"])
    text = capsys.readouterr().out
    assert "noqa" not in text
    assert "``run:" not in text
    assert ("Where cells are computed and kept" in text) == ("run options" in text)


def test_a_command_line_loads_little() -> None:
    code = "import studies.common, sys; print(*({'torch', 'xarray', 'numpy'} & {*sys.modules}))"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, check=True).stdout == b"\n"


def test_configurations_are_described_without_a_path() -> None:
    out = Path("/somewhere/a.nc")
    assert common.described(Plain(out)) == repr(Plain(Path("results/a.nc")))
    assert common.described(Swept(common.Options(out))) == repr(Swept(common.Options(Path("results/a.nc"))))
    config = table3.Config(data="/data/mnist", onto=Path("/data/table3.nc"))
    assert "/data" not in common.described(config)
    assert "data='mnist'" in common.described(config)
    assert "onto=PosixPath('table3.nc')" in common.described(config)


def test_options() -> None:
    args = ["--out", "results/a.nc", "--seed", "0", "1", "--workers", "2", "--shard", "1/4"]
    assert tyro.cli(common.Options, args=args).arguments() == {
        "folder": Path("results/a"), "out": Path("results/a.nc"), "seed": (0, 1), "workers": 2, "scheduler": None,
        "shard": "1/4", "timeout": None, "compute": True,
    }  # fmt: skip
    assert common.Options(Path("a.nc"), smoke=True, collect=True).arguments()["folder"] == Path("a_smoke")


def test_help_keeps_a_study_s_paragraphs(capsys, monkeypatch) -> None:
    study = import_module("studies.directions")
    monkeypatch.setattr(sys, "argv", ["directions.py", "--help"])
    with pytest.raises(SystemExit):
        common.main(study.main, study.Config, study.__doc__)
    lines = capsys.readouterr().out.splitlines()
    for word in ("Question", "Claim", "Shown", "Cost", "Run", "Full size"):
        assert sum(line.startswith(f"{word}  ") for line in lines) == 1, word
