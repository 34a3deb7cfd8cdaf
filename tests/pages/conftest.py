"""A measurement of four estimators, one with a name that HTML would obey, and its page."""

import pytest
import torch
import xarray as xr

import fgvar
from fgvar.pages import of_dataset


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
