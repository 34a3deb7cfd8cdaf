"""A measurement of four estimators, one with a name that HTML would obey, its page, and a report of two checks."""

import pytest
import torch
import xarray as xr

import fgvar
from fgvar.pages import of_dataset
from fgvar.testing.report import FAILED, PASSED, Report, Row


@pytest.fixture(scope="package")
def measured() -> xr.Dataset:
    torch.manual_seed(0)
    net = fgvar.with_sites(torch.nn.Linear(3, 2).double())
    problem = fgvar.Problem(net, "cross_entropy", (torch.randn(4, 3).double(), torch.tensor([0, 1, 1, 0])))
    rows = {name: fgvar.scheme(name) for name in ("BP", "FG-W", "FG-A")} | {"<mine> & co": fgvar.scheme("FG-W")}
    return fgvar.measure(rows, problem, draws=64, seed=0)


@pytest.fixture(scope="package")
def page(measured) -> str:
    return of_dataset(measured)


@pytest.fixture(scope="package")
def report() -> Report:
    rows = (
        Row("unbiased", "linear", FAILED, "E ĝ of 'bias' is off its target by 0.01 of the target's norm"),
        Row("unbiased", "relu", PASSED, "exact: 146 nodes, to 1e-09"),
        Row("pure", "linear", PASSED, "untouched"),
        Row("pure", "relu", PASSED, "untouched"),
    )
    return Report("Mine(step=0.1)", rows)
