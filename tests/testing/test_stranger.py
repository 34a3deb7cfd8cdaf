"""A stranger's sampler, score, transform and optimiser: each in some ten lines, and held to what ours are held to."""

import ast
from pathlib import Path
from typing import Any

import pytest
import stranger

import fgvar
from fgvar.testing import check_estimator, default_problems

ESTIMATORS = {
    "sampler": fgvar.Stochastic(sample=stranger.Systematic(2)),
    "score": fgvar.Stochastic(sample=fgvar.sampling.Draw(2, by=stranger.InputSizes())),
    "transform": fgvar.Stochastic(sample=stranger.Systematic(2), then=(stranger.Dropped(0.5),)),
    "each": fgvar.Stochastic(each=(stranger.Dropped(0.5),)),
    "optimiser": fgvar.History(fgvar.scheme("FG-W"), stranger.RunningMean(), steps=3),
}
TRIED = {  # the checks that have something to say of each, beside those of every estimator
    "sampler": {"weights", "repr"},
    "score": {"weights", "repr", "variance"},
    "transform": {"weights", "repr"},
    "each": {"weights", "repr"},
    "optimiser": {"stream", "repr"},
}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_what_a_stranger_adds_is_checked(name: str) -> None:
    report = check_estimator(ESTIMATORS[name], {"linear": default_problems()["linear"]})
    assert report.passed, report
    assert TRIED[name] <= {row.check for row in report.rows if row.outcome == "passed"}, report
    mean = next(row.note for row in report.rows if row.check == "unbiased")
    assert mean.startswith("exact: "), mean


def test_a_wrong_one_is_caught() -> None:
    class Unweighted(stranger.Systematic):
        def view(self, here: Any, noise: Any, problem: Any) -> Any:
            return here.weighted(super().view(here, noise, problem).importance / self.k)

    report = check_estimator(fgvar.Stochastic(sample=Unweighted(2)), default_problems()["linear"])
    assert {"weights", "unbiased", "scale"} <= set(report.failures), report


def test_they_take_some_thirty_lines() -> None:
    """Of code: without blank lines, docstrings and imports."""
    tree = ast.parse(Path(stranger.__file__).read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            node.body = [part for part in node.body if not isinstance(part, ast.Expr)]
    tree.body = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert len([line for line in ast.unparse(tree).splitlines() if line]) <= 36
