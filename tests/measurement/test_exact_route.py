"""The exact route beside estimators that have no closed form."""

import numpy as np
import pytest
import torch
from cases import CASES, labels, randn

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


def test_what_is_only_certain_of_ones_is_nan_with_a_flag_too() -> None:
    """Two levels of four equal numbers are all of them, but of no other four: a clip behind them has no variance."""
    net = torch.nn.Linear(2, 2, bias=False).double()
    problem = fgvar.Problem(net, "cross_entropy", (randn(3, 2), labels(3, 2)))
    t = fgvar.transforms
    rows = {"FG-W": fgvar.scheme("FG-W"), "clipped": fgvar.Stochastic(then=(t.Quantise(2), t.Clip(0.1)))}
    with pytest.warns(UserWarning, match=r"'clipped' has no closed form: .*Clip.* of a random gradient"):
        ds = fgvar.measure(rows, problem, route="exact")
    assert (ds.sel(estimator="clipped")["flag"] & FLAGS["no_closed_form"] > 0).all()
    assert np.isfinite(ds.sel(estimator="FG-W")["variance"]).all()


@pytest.mark.parametrize("scale", [1e-3, 500.0])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_of_16_bits_squares_have_the_range_and_the_digits_of_32(dtype: torch.dtype, scale: float) -> None:
    """One loss over d = 51 numbers has d + 1 times the squared gradient, however small or large that is."""
    net = fgvar.with_sites(torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Tanh(), torch.nn.Linear(6, 3)))
    for index, p in enumerate(net.parameters()):
        p.data = randn(*p.shape, seed=index).float()
    batch = randn(8, 4).float(), labels(8, 3)
    half = fgvar.Problem(
        net, lambda out, y: scale * torch.nn.functional.cross_entropy(out, y, reduction="none"), batch
    ).to(dtype)
    rows = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A")}
    for estimator in (*rows.values(), fgvar.Stochastic(sample=fgvar.sampling.Draw(2))):
        for function in (fgvar.theory.mean, fgvar.theory.variance):
            found, expected = function(estimator, half), function(estimator, half.to(torch.float32))
            assert all(torch.equal(found[name], value) for name, value in expected.items())
    found = fgvar.measure(rows, half, route="exact").sel(layer="perturbed", reference="target")
    assert float(found["relative_variance"].sel(estimator="FG-W")) == pytest.approx(52, rel=1e-2)
    assert float(found["slope"].sel(estimator="FG-W")) == pytest.approx(1, abs=1e-2)
    assert not (found["flag"] & (FLAGS["no_noise"] | FLAGS["dead"])).any()
    assert np.isnan(found["cosine"]).all()
