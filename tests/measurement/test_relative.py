"""Relative numbers: what counts as no noise, as a dead layer and as lost, in every precision."""

import numpy as np
import pytest
import torch
from torch import nn

import fgvar
from fgvar import sampling, transforms
from fgvar.measurement import FLAGS

DEAD, NO_NOISE, LOST = (FLAGS[name] for name in ("dead", "no_noise", "lost_digits"))


def seeded(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def total_of(estimator: fgvar.GradientEstimator, problem: fgvar.Problem, draws: int = 256):
    found = fgvar.measure({"one": estimator}, problem, draws=draws)
    return found.sel(estimator="one", reference="target", layer="total")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("size", "lost"), [(1.0, False), (3e4, True)], ids=["known", "lost"])
def test_noise_far_below_the_target_is_noise(dtype: torch.dtype, size: float, lost: bool) -> None:
    """Clipped to 1, as gradients of data that are not scaled: beside ‖g‖ = 40 to 10⁶ there is a spread of 0.9."""
    net = nn.Linear(8, 1)
    nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
    problem = fgvar.Problem(net, "mse", (30 * seeded(16, 8), size * (1 + 0.3 * seeded(16, 1, seed=1)))).to(dtype)
    row = fgvar.Stochastic(each=(transforms.Clip(1.0),), then=(transforms.AddNoise(0.3),))
    found = total_of(row, problem)
    noise = row.randomness(problem).sample(0, range(256), dtype=dtype)
    each = [row.estimate(problem, {k: u[i] for k, u in noise.items()}).gradient for i in range(256)]
    flat = torch.stack([torch.cat([g.flatten() for g in one.values()]) for one in each]).double()
    target = torch.cat([g.flatten() for g in problem.backprop().values()]).double()
    assert found["variance"].item() == pytest.approx(float(flat.var(0).sum()), rel=1e-3)
    assert found["variance_low"] < found["variance"] < found["variance_high"]
    assert found["bias_z"] > 100, "what clipping biases is seen"
    assert not int(found["flag"]) & NO_NOISE
    assert bool(int(found["flag"]) & LOST) == bool(found["cosine"].isnull()) == lost
    if not lost:
        cosines = flat @ target / flat.norm(dim=1) / target.norm()
        assert found["cosine"].item() == pytest.approx(float(cosines.mean()), rel=1e-5)


def test_half_precision_has_noise_and_live_layers() -> None:
    """0.bias holds a twentieth of the norm, which is within ten roundings of bfloat16."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(32, 64), nn.Tanh(), nn.Linear(64, 10))
    problem = fgvar.Problem(net, "cross_entropy", (seeded(16, 32), torch.arange(16) % 10)).to(torch.bfloat16)
    rows = {"FG-W": fgvar.scheme("FG-W"), "8": fgvar.scheme("FG-W", directions=8)}
    found = fgvar.measure(rows, problem, draws=64, paired=True)
    its = found.sel(estimator="FG-W", reference="target")
    assert (its["gradient_norm"].sel(layer="0.bias") < 0.078 * its["gradient_norm"].sel(layer="total")).all()
    assert (its["flag"] == 0).all()
    assert (its["variance_low"] < its["variance_high"]).all()
    assert its["cosine"].notnull().all()
    assert (found["slope_difference_se"].sel(estimator="8") > 0).all()


class Shifted(nn.Module):
    """The shift before a norm has a gradient of rounding alone."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 3)
        self.shift = nn.Parameter(torch.full((1,), 0.3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.norm(self.first(x) + self.shift)))


def sigmoids() -> nn.Module:
    """The first of ten layers has 10⁻⁸ of the gradient's norm, known to six digits in float32."""
    torch.manual_seed(0)
    return nn.Sequential(*(part for _ in range(10) for part in (nn.Linear(8, 8), nn.Sigmoid())), nn.Linear(8, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_small_gradients_are_live_and_rounding_is_dead(dtype: torch.dtype) -> None:
    labels = torch.arange(8) % 3
    for net, inputs, layer, dead in (
        (sigmoids(), seeded(8, 8), "0.weight", False),
        (Shifted(), seeded(8, 4), "shift", True),
    ):
        problem = fgvar.Problem(net.to(dtype), "cross_entropy", (inputs.to(dtype), labels))
        found = fgvar.measure({"BP": fgvar.scheme("BP")}, problem, draws=2).isel(estimator=0)
        flags = found["flag"].sel(layer=layer).values
        assert all(bool(flag & DEAD) == dead for flag in flags), found["gradient_norm"].sel(layer=layer).values
        assert bool(found["slope"].sel(layer=layer).isnull().all()) == dead


def test_a_problem_of_one_precision_alone_is_measured() -> None:
    """Nothing tells what is small there from rounding: it is called dead."""

    class Small(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.small = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight + 1e-9 * self.small

    def single(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs @ torch.eye(3, dtype=torch.float32) - targets).square().mean(1)

    batch = seeded(5, 4), seeded(5, 3)
    for loss, dead in ((single, DEAD), ("mse", 0)):
        found = fgvar.measure({"BP": fgvar.scheme("BP")}, fgvar.Problem(Small(), loss, batch), draws=2)
        assert (found["flag"].sel(layer="small") & DEAD == dead).all()


@pytest.mark.parametrize("route", ["drawn", "exact"])
def test_noise_of_layers_far_below_the_whole_is_noise(route: str) -> None:
    """Minibatches: where the float32 gradient has digits, its noise has them, too; where it has none, nor noise."""
    labels, row = torch.arange(8) % 3, {"one": fgvar.Stochastic(sample=sampling.Draw(1))}
    problem = fgvar.Problem(sigmoids(), "cross_entropy", (seeded(8, 8), labels))
    found, precise = (
        fgvar.measure(row, each, draws=64, route=route).isel(estimator=0)
        for each in (problem, problem.to(torch.float64))
    )
    assert found["gradient_norm"].sel(layer="0.weight")[0] < 1e-7 * found["gradient_norm"].sel(layer="total")[0]
    assert not (found["flag"] & NO_NOISE).any()
    for name in ("relative_variance", "snr") + (("relative_variance_high", "slope_low") if route == "drawn" else ()):
        np.testing.assert_allclose(found[name], precise[name], rtol=2e-3, err_msg=name)
    shifted = fgvar.Problem(Shifted(), "cross_entropy", (seeded(8, 4), labels))
    flags = fgvar.measure(row, shifted, draws=64, route=route)["flag"].sel(layer="shift")
    assert (flags & (NO_NOISE | DEAD) == NO_NOISE | DEAD).all()
