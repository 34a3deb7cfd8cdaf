"""Figures of several seeds: the mean of each seed's ratios, whose denominators differ, and no ratio of means."""

import numpy as np
import pytest
import torch
import xarray as xr

import fgvar
from fgvar import plot
from fgvar.plot.bias_variance import split

SCALES = (1.0, 10.0)  # of the loss, hence of gradients: what is relative to them is alike


def measured(seed: int = 0, scale: float = 1.0, **how) -> xr.Dataset:
    net = fgvar.networks.MLP(6, width=8, depth=1, classes=3, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    batch = torch.randn(16, 6, generator=draw), torch.randint(0, 3, (16,), generator=draw)

    def loss(output, target):
        return scale * torch.nn.functional.cross_entropy(output, target, reduction="none")

    rows = {name: fgvar.scheme(name) for name in ("FA", "FG-W")}
    return fgvar.measure(rows, fgvar.Problem(net, loss, batch), seed=seed, **how)


def joined(seeds: list[xr.Dataset]) -> xr.Dataset:
    return xr.concat(seeds, xr.Variable("seed", range(len(seeds)))).assign_attrs(seeds[0].attrs)


@pytest.fixture(scope="module")
def exact() -> list[xr.Dataset]:
    return [measured(scale=scale, route="exact") for scale in SCALES]


@pytest.fixture(scope="module")
def drawn() -> list[xr.Dataset]:
    return [measured(seed, draws=64) for seed in (0, 1)]


def test_squared_biases_are_relative_to_each_seeds_own_target(exact: list[xr.Dataset]) -> None:
    one = split(exact[0], "perturbed")["bias_drawn"]
    assert one.sel(estimator="FA") > 0.1
    both = split(joined(exact), "perturbed")["bias_drawn"]
    np.testing.assert_allclose(both.values, one.values, rtol=1e-6)


def test_biases_of_layers_are_relative_to_each_seeds_own_target(exact: list[xr.Dataset]) -> None:
    both, one = (
        {bars.get_label(): bars[0].get_xdata() for bars in plot.layers(dataset).axes[0].containers}
        for dataset in (joined(exact), exact[0])
    )
    np.testing.assert_allclose(both["FA"], one["FA"], rtol=1e-6)


def test_biases_that_are_not_excluded_are_relative_to_each_seeds_own_target(drawn: list[xr.Dataset]) -> None:
    """The square root of the mean square's upper end, as of any other quantity over seeds."""
    both, scaled = joined(drawn), joined([drawn[0], drawn[1].copy(deep=True)])
    for name in ("sq_bias", "sq_bias_se", "sq_bias_high", "gradient_norm"):
        power = 1 if name == "gradient_norm" else 2
        scaled[name].loc[{"seed": 1}] = 1000**power * drawn[1][name]
    told = [plot.caption(dataset, "tradeoff") + plot.caption(dataset, "ranking") for dataset in (both, scaled)]
    assert "not excluded are biases up to" in told[0]
    assert told[0] == told[1]


def test_theory_of_layers_is_the_mean_of_each_seeds(drawn: list[xr.Dataset]) -> None:
    """1 + d‖g‖²/‖g_layer‖² with the norms of that seed's gradient."""
    expected = []
    for one in drawn:
        norm = one["gradient_norm"].sel(estimator="FG-W", reference="target")
        expected.append(1 + one["size"] * (norm.sel(layer="perturbed", drop=True) / norm) ** 2)
    rows = plot.by_layer.prepared(joined(drawn))["layer"]
    axes = next(axes for axes in plot.layers(joined(drawn)).axes if axes.get_title() == "relative variance")
    ticks = next(line.get_xdata() for line in axes.lines if line.get_label() == "FG-W, theory")
    mean = xr.concat(expected, "seed").mean("seed").sel(layer=rows).where(rows != "total")
    np.testing.assert_allclose(ticks, mean.values, rtol=1e-12)
