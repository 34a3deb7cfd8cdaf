"""Initialisation: the study's network and numbers against plain ones, and what its dataset says of GradInit."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from figures import initialisation as figure
from studies import initialisation as study
from studies.residual_network import Residual

ROOT = Path(__file__).parents[2]
LAWS = [("plain", "constant"), ("plain", "Kaiming"), ("layer norm", "constant"), ("layer norm", "Kaiming")]


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(ROOT / "figures/data/initialisation.nc")


@pytest.mark.parametrize("norm", [False, True])
def test_the_network_is_a_plain_loop_and_keeps_examples_apart(norm: bool) -> None:
    net = Residual(16, 8, 2, 10, norm=norm, start="Kaiming", seed=3)
    x = torch.randn(5, 16)

    def normed(z: torch.Tensor) -> torch.Tensor:
        if not norm:
            return z
        return (z - z.mean(1, keepdim=True)) / (z.var(1, correction=0, keepdim=True) + 1e-5).sqrt()

    z = x @ net.embedding.weight.T
    for block in net.blocks:
        z = z + (normed(z) @ block.first.weight.T).relu() @ block.second.weight.T
    torch.testing.assert_close(net(x), normed(z) @ net.head.weight.T)
    torch.testing.assert_close(net(x)[2:3], net(x[2:3]))


def test_starts_have_their_standard_deviations() -> None:
    """Of 64² weights, to 5 standard errors (1.1 % each): a false alarm in 10⁶."""
    for start, std in (("constant", 0.1), ("Kaiming", (2 / 64) ** 0.5)):
        weight = Residual(16, 64, 1, 10, norm=False, start=start, seed=0).blocks[0].first.weight
        assert float(weight.detach().std()) == pytest.approx(std, rel=0.056)


def test_noise_is_that_of_every_layer_and_of_all() -> None:
    """Data variance by a plain loop over examples; FG-W of a layer is (d_l‖g‖² + ‖g_l‖²)/‖g_l‖², of all d + 1."""
    model = Residual(16, 8, 1, 10, norm=True, start="Kaiming", seed=0).double()
    problem = fgvar.Problem(fgvar.with_sites(model), "cross_entropy", study.digits(6, seed=0))
    found = study.noise(problem)
    assert list(found["layer"].values) == ["embedding", "1a", "1b", "head", "all"]
    g = problem.backprop()
    each = [problem.example(number).backprop() for number in range(6)]
    square = {name: float(value.square().sum()) for name, value in g.items()}
    whole, d = sum(square.values()), sum(value.numel() for value in g.values())
    forward = found["relative_variance"].sel(estimator="FG-W")
    for layer, name in zip(found["layer"].values, g, strict=False):
        spread = sum(float((one[name] - g[name]).square().sum()) for one in each) / 5 / 6
        assert found["data_variance"].sel(layer=layer).item() == pytest.approx(spread / square[name], rel=1e-9)
        assert forward.sel(layer=layer).item() == pytest.approx(g[name].numel() * whole / square[name] + 1, rel=1e-9)
    assert forward.sel(layer="all").item() == pytest.approx(d + 1, rel=1e-12)
    assert found["norm"].item() == pytest.approx(whole**0.5)


def test_means_over_seeds_are_of_logarithms() -> None:
    values = xr.DataArray([1.0, 10.0, 100.0], dims="seed")
    middle, low, high = (float(value) for value in figure.mean(values))
    assert middle == pytest.approx(10)
    half = 4.302653 * np.log(10) / 3**0.5  # Student's t of two degrees of freedom
    assert (np.log(middle / low), np.log(high / middle)) == pytest.approx((half, half), rel=1e-6)


def test_the_stored_dataset_is_whole(stored: xr.Dataset) -> None:
    assert (stored["status"] == "done").all()
    assert not stored.attrs["commit"].endswith("+")
    assert stored.sizes["seed"] == 10
    whole = stored["relative_variance"].sel(estimator="FG-W", layer="all")
    np.testing.assert_allclose(whole, stored.attrs["d"] + 1, rtol=1e-9)
    assert float(stored["factor"].min()) >= 0.01 - 1e-12


def ratios(values: xr.DataArray, **at: str) -> xr.DataArray:
    """After over before, geometric means over seeds, by layer."""
    middle = figure.mean(values.sel(at))[0]
    return middle.sel(when="after") / middle.sel(when="before")


def test_the_stored_dataset_keeps_the_claim(stored: xr.Dataset) -> None:
    shown, told = stored.isel(lr=0), set()
    lower = figure.improved(shown, "data").sum(("layer", "seed"))
    assert [int(lower.sel(net=net, start=start)) for net, start in LAWS] == [34, 0, 25, 10]
    assert int(figure.improved(stored.isel(lr=1), "data").sel(net="layer norm", start="Kaiming").sum()) == 5
    told |= {"34 and 25", "in 0 ", "in 10 "}
    for net in shown["net"].values:
        at = {"net": net, "start": "Kaiming"}
        by_layer = ratios(shown["data_variance"], **at).drop_sel(layer="all")
        told |= {f"{float(by_layer.min()):.2g} to {float(by_layer.max()):.2g} times"}
        before, after = figure.mean(shown["loss"].sel(at))[0].values
        told |= {f"{before:.3g}", f"{after:.3g}"}
    assert float(figure.mean(shown["norm"].sel(when="after"))[0].max()) < 1
    forward = figure.quantity(shown, "FG-A")
    for net in shown["net"].values:
        told |= {f"{float(ratios(forward, net=net, start='Kaiming').sel(layer='all')):.2f}"}
    told |= {f"up to {float(max(ratios(forward, net=net, start=start).max() for net, start in LAWS)):.0f} times"}
    told |= {f"d + 1 = {stored.attrs['d'] + 1}"}
    section = (ROOT / "studies/README.md").read_text().partition("## GradInit, layer by layer\n")[2]
    for text in (str(study.__doc__), *([section.partition("\n## ")[0]] if section else [])):
        words = " ".join(text.split()) + " "
        assert [number for number in sorted(told) if number not in words] == []


def test_intervals_of_the_section(stored: xr.Dataset) -> None:
    """FG-A's of all layers together, from Kaiming's start, over seeds."""
    whole = figure.quantity(stored.isel(lr=0), "FG-A").sel(layer="all", start="Kaiming")
    for net, told in (("plain", (0.78, 0.50, 1.22)), ("layer norm", (1.57, 1.06, 2.30))):
        its = whole.sel(net=net)
        found = figure.mean(its.sel(when="after") / its.sel(when="before"))
        assert tuple(round(float(value), 2) for value in found) == told
