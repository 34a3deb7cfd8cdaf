"""Without the packages of an extra: one sentence that names it, and nothing else needs them."""

import importlib
import subprocess
import sys

import pytest
import xarray as xr

import fgvar
from studies import common, table1

DRAWING = ("matplotlib", "seaborn", "pandas", "jinja2", "tueplots")


@pytest.fixture
def without(monkeypatch):
    """Makes packages impossible to import, and modules that have imported them load anew."""

    def absent(package: str, *users: str) -> None:
        for user in [name for name in sys.modules if name.split(".")[0] in users or name in users]:
            monkeypatch.delitem(sys.modules, user)
        monkeypatch.setitem(sys.modules, package, None)

    return absent


def test_strategies_ask_for_hypothesis(without) -> None:
    without("hypothesis", "fgvar.testing.strategies")
    with pytest.raises(ImportError, match=r"strategies needs hypothesis: pip install 'fgvar\[testing\]'"):
        importlib.import_module("fgvar.testing.strategies")


def test_the_pytest_face_asks_for_pytest(without) -> None:
    without("pytest")
    with pytest.raises(ImportError, match=r"parametrize_with_checks needs pytest: pip install 'fgvar\[testing\]'"):
        fgvar.testing.parametrize_with_checks([fgvar.scheme("BP")])


@pytest.mark.parametrize("package", DRAWING)
def test_figures_ask_for_what_they_are_drawn_with(without, package: str) -> None:
    without(package, "figures")
    with pytest.raises(ImportError, match=rf"drawing figures needs {package}: pip install 'fgvar\[studies\]'"):
        importlib.import_module("figures")


@pytest.mark.parametrize("package", ["matplotlib", "seaborn", "tueplots"])
def test_plots_ask_for_what_they_are_drawn_with(without, monkeypatch, package: str) -> None:
    monkeypatch.setattr(fgvar, "plot", fgvar.plot)
    without(package, *[name for name in sys.modules if name.startswith("fgvar.plot")])
    plot = importlib.import_module("fgvar.plot")  # costs nothing, and needs nothing yet
    with pytest.raises(ImportError, match=rf"fgvar\.plot needs {package}: pip install 'fgvar\[plot\]'"):
        plot.ranking  # noqa: B018


def test_a_table_needs_no_extra(without) -> None:
    without("matplotlib")
    assert fgvar.table(xr.Dataset({"loss": ("epoch", [2.0, 1.5])}, {"epoch": [0, 1]}), to="markdown")


def test_a_study_says_so_in_a_line_before_it_computes(without, monkeypatch) -> None:
    without("matplotlib", "figures")
    monkeypatch.setattr(sys, "argv", ["table1.py"])
    with pytest.raises(
        SystemExit, match=r"^table1: drawing figures needs matplotlib: pip install 'fgvar\[studies\]'"
    ):
        common.main(table1.main, table1.Config, "")


@pytest.mark.parametrize("name", ["digts", "folder/trian"])
def test_a_mistyped_folder_is_said_to_be_one_before_the_hub_is_asked_for(without, name: str) -> None:
    without("datasets")
    expected = rf"unknown dataset '{name}'.*there is no directory .*{name}; of a name on the hub, .*needs datasets"
    with pytest.raises(ImportError, match=expected + r": pip install 'fgvar\[data\]'"):
        fgvar.data.load(name)


def test_measuring_and_checking_need_no_extra() -> None:
    """In an interpreter of its own, in which none can be imported."""
    extras = ("pytest", "hypothesis", "datasets", "pyarrow", "PIL", "tensorboard", "distributed", "dask", *DRAWING)
    extras = tuple(name for name in extras if name != "pandas")  # which xarray brings
    code = (
        f"import sys\nsys.modules |= dict.fromkeys({extras!r})\nimport fgvar\n"
        "problem = fgvar.testing.default_problems()['linear']\n"
        "report = fgvar.testing.check_estimator(fgvar.scheme('FG-A'), problem, checks=['structure', 'unbiased'])\n"
        "assert report.passed\nfgvar.testing.mutants.LOOKALIKES\n"
        "print(fgvar.summary(fgvar.measure({'FG-A': fgvar.scheme('FG-A')}, problem, draws=4)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
