"""The exact route beside estimators that have no closed form."""

import numpy as np
import pytest
from cases import CASES

import fgvar
from fgvar.measurement.dataset import FLAGS


def test_beside_others_what_has_no_closed_form_is_nan_with_a_flag() -> None:
    problem = CASES["mlp_relu"]()
    rows = {"FG-A": fgvar.scheme("FG-A"), "SPSA": fgvar.scheme("SPSA"), "BP": fgvar.scheme("BP")}
    with pytest.warns(
        UserWarning, match="'SPSA' has no closed form: .*NaN with a flag, and route='drawn' measures it"
    ):
        ds = fgvar.measure(rows, problem, route="exact")
    without, known = ds.sel(estimator="SPSA"), ds.sel(estimator="FG-A")
    assert all(np.isnan(without[name]).all() for name in ("variance", "relative_variance", "sq_bias", "slope", "snr"))
    assert (without["flag"] & FLAGS["no_closed_form"] > 0).all()
    assert without["cost"] > 0
    assert np.isfinite(known["variance"]).all()
    assert not (ds.sel(estimator="BP")["flag"] & FLAGS["no_closed_form"]).any()
    (line,) = (line for line in fgvar.summary(ds).splitlines() if line.startswith("SPSA"))
    assert line.split() == ["SPSA", *"––––"]
