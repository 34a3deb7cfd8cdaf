"""Streams: the study's pass against rows of the library, its closed forms against enumeration, and its claims."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from cases import labels, randn

import fgvar
from fgvar import sampling, streams, transforms
from fgvar.plot import intervals
from fgvar.testing import covariance, expectation
from studies import stream_directions as of
from studies import streams as study

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(ROOT / "figures/data/streams.nc")


def small() -> fgvar.Problem:
    net = fgvar.networks.MLP(3, width=2, depth=1, classes=2, activation="tanh").double()
    return fgvar.Problem(net, "cross_entropy", (randn(3, 3), labels(3, 2)))


def test_the_pass_is_that_of_the_library_s_rows() -> None:
    """Of the same noise, for every optimiser and every length."""
    problem, feed, draws, steps = small(), fgvar.scheme("FG-A"), 2, 3
    numbers = range(draws * steps)
    stream = of.estimates(feed, problem, draws * steps, seed=7).reshape(draws, steps, -1)
    noise = feed.randomness(problem).sample(7, numbers, dtype=torch.float64)
    words = {
        "momentum": streams.Momentum(), "Adam": streams.Adam(), "AMSGrad": streams.Adam(amsgrad=True),
        "diffGrad": streams.Adam(factor=streams.DiffGrad()),
    }  # fmt: skip
    for step, outputs in of.outputs(stream):
        for draw in range(draws):
            given = {name: u[draw * steps : draw * steps + step] for name, u in noise.items()}
            rows = {name: fgvar.History(feed, word, step) for name, word in words.items()}
            rows["sign of momentum"] = fgvar.Stochastic(of=rows["momentum"], then=(transforms.Sign(),))
            for index, name in enumerate(of.OPTIMISERS):
                found = of.flat(rows[name].estimate(problem, given).gradient, problem)
                torch.testing.assert_close(outputs[index, draw], found, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_momentum_s_cosine_is_enumerated(steps: int) -> None:
    """Over all draws of one of three examples, put back."""
    problem, feed = small(), fgvar.Stochastic(sample=sampling.Draw(1))
    row = fgvar.History(feed, streams.Momentum(), steps)
    mean = of.flat(expectation(row, problem, method="support"), problem)
    trace = sum(covariance(row, problem, method="support")[name].trace() for name in problem.perturbed)
    g = of.flat(problem.backprop(), problem)
    found = of.theory(g, of.spread(feed, problem), [steps])["cosine_theory"][0, 0]
    assert float(found) == pytest.approx(float(mean @ g / (g.norm() * (mean @ mean + trace).sqrt())), rel=1e-9)


def test_without_noise_adam_and_its_kin_are_the_sign() -> None:
    g = randn(5)
    found = of.theory(g, torch.zeros(5).double(), [1, 4])["cosine_theory"]
    drawn = of.at_rest(g.expand(2, 4, 5), g, [1, 4])
    sign = float(torch.cosine_similarity(g.sign(), g, dim=0))
    torch.testing.assert_close(drawn["cosine"], found, rtol=1e-6, atol=1e-7)
    assert found[1:, 1].tolist() == pytest.approx([sign] * 4)
    assert found[3, 0] > found[3, 1], "diffGrad knows of no gradient before the first one"
    assert not drawn["cosine_se"].any()


def test_adam_with_its_mean_square_is_a_scaled_momentum() -> None:
    """Σ D_i g_i² / (‖g‖ √Σ D_i²(g_i² + gain V_i)), by a loop over numbers."""
    g, variance, gain = randn(4), randn(4, seed=1).square(), streams.Momentum().gain(7)
    d = [(x**2 + v) ** -0.5 for x, v in zip(g.tolist(), variance.tolist(), strict=True)]
    top = sum(scale * x**2 for scale, x in zip(d, g.tolist(), strict=True))
    below = sum(s**2 * (x**2 + gain * v) for s, x, v in zip(d, g.tolist(), variance.tolist(), strict=True)) ** 0.5
    found = of.theory(g, variance, [7])
    assert float(found["cosine_theory"][1, 0]) == pytest.approx(top / (float(g.norm()) * below), rel=1e-12)
    assert found["cosine_theory"][3].isnan().all(), "diffGrad's has no closed form"


def test_the_jackknife_is_a_plain_loop() -> None:
    x, y, n = randn(6, 3), randn(3, seed=1), 6

    def value(rows: list[int]) -> float:
        some = x[rows]
        return float((some @ y).mean() / (some.square().sum(1).mean() * (y @ y)).sqrt())

    without = [value([row for row in range(n) if row != left]) for left in range(n)]
    center = sum(without) / n
    found, error = of.Alignment(x, y).estimate(lambda values: values)
    assert float(found) == pytest.approx(n * value(list(range(n))) - (n - 1) * center, rel=1e-10)
    assert float(error) == pytest.approx(((n - 1) / n * sum((v - center) ** 2 for v in without)) ** 0.5, rel=1e-10)


def test_second_moments_are_adam_s() -> None:
    """v̂ is Adam's own, bias-corrected; and its mean for weight perturbation is V_i + g_i² = ‖g‖² + 2g_i²."""
    problem = small()
    g = of.flat(problem.backprop(), problem)
    stream = of.estimates(fgvar.scheme("FG-W"), problem, 10, seed=0).reshape(2, 5, -1)
    adam, beta = streams.Adam(), streams.Adam().beta2
    state = adam.start({"": stream[:, 0]})
    for gradient in stream.unbind(1):
        _, state = adam({"": gradient}, state)
    v, _, mean, square = of.second_moments(stream, g)
    torch.testing.assert_close(v * (g @ g), (state.second.sum[""] / (1 - beta**5)).mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(mean * (g @ g), of.spread(fgvar.scheme("FG-W"), problem) + g.square())
    torch.testing.assert_close(square * (g @ g), g.square())


def test_the_lag_is_of_first_order() -> None:
    problem = study.problem_of(16, seed=0)
    off = [found / theory - 1 for found, theory in (of.lag(problem, rate) for rate in (2e-4, 1e-4))]
    assert abs(off[1]) < 0.01
    assert off[0] / off[1] == pytest.approx(2, rel=0.1)


def test_a_scaled_loss_turns_diffgrad_into_adam_at_both_ends() -> None:
    g = randn(5)
    stream = g + randn(4, 3, 5, seed=1)
    found = of.of_scale(stream, g, [1e-5, 1.0, 1e5])["difference"]
    assert abs(float(found[0])) < 1e-4
    assert abs(float(found[2])) < 1e-2
    assert abs(float(found[1])) > 1e-3


def test_the_stored_dataset_agrees_with_theory(stored: xr.Dataset) -> None:
    """36 drawn cosines and 880 v̂: a normal one beyond 4.5 errors has probability 6e-3 in all."""
    assert (stored["status"] == "done").all()
    assert not stored.attrs["commit"].endswith("+")
    assert stored.sizes["seed"] == 10
    momentum = intervals.over_seeds(stored).sel(optimiser="momentum", feed=["minibatch", "FG-A", "FG-W"])
    z = (momentum["cosine"] - momentum["cosine_theory"]) / momentum["cosine_se"]
    assert float(abs(z).max()) < 4.5
    assert float(abs((stored["second"] - stored["second_theory"]) / stored["second_se"]).max()) < 4.5
    np.testing.assert_allclose(
        stored["cosine"].sel(feed="exact"), stored["cosine_theory"].sel(feed="exact"), rtol=1e-4
    )
    late = intervals.over_seeds(stored).sel(optimiser="Adam", feed=["minibatch", "FG-A", "FG-W"]).isel(steps=-1)
    assert float(abs((late["cosine"] - late["cosine_theory"]) / late["cosine_se"]).max()) < 4.5


def test_the_stored_dataset_keeps_the_claim(stored: xr.Dataset) -> None:
    data = intervals.over_seeds(stored)
    last = data.isel(steps=-1)
    told = {
        f"{last['cosine'].sel(feed=feed, optimiser=name).item():.3f}"
        for feed in ("minibatch", "FG-A")
        for name in ("momentum", "Adam", "sign of momentum")
    }
    told |= {f"{last['cosine'].sel(feed='exact', optimiser='Adam').item():.3f}"}
    told |= {f"{float(abs(data['over'].sel(optimiser='AMSGrad')).max()):.4f}"}
    margins = data["difference"]
    at = {"minibatch": 10.0, "FG-A": 10.0, "FG-W": 1.0}
    for feed, scale in at.items():
        its = margins.sel(feed=feed)
        assert float(its["scale"][int(np.argmax(abs(its.values)))]) == scale
        told |= {f"{abs(its.sel(scale=scale).item()):.3f}"}
    signs = {
        feed: set(np.sign(stored["difference"].sel(feed=feed, scale=scale).values)) for feed, scale in at.items()
    }
    assert signs == {"minibatch": {1.0}, "FG-A": {-1.0}, "FG-W": {-1.0}}, "in every network"
    assert float(margins.sel(feed="minibatch").max()) == float(margins.max())
    exact = stored["second_theory"]
    told |= {f"{last['turned'].sel(feed='FG-W').item():.4f}"}
    told |= {f"{last['cosine'].sel(feed='FG-W', optimiser=name).item():.3f}" for name in ("momentum", "Adam")}
    told |= {f"{float((exact.std('weight') / exact.mean('weight')).mean()):.1%}".replace("%", " %")}
    section = (
        (ROOT / "studies/README.md").read_text().partition("## Optimisers of streams\n")[2].partition("\n## ")[0]
    )
    for text in (str(study.__doc__), *([section] if section else [])):
        assert [number for number in sorted(told) if number not in text] == []
        assert "DGrad and Cos are not built" in text.replace("\n           ", " ").replace("\n", " ")


def test_the_lag_stays_below_the_noise(stored: xr.Dataset) -> None:
    from figures.streams import noise

    data = intervals.over_seeds(stored)
    ratio = (data["lag"] / data["lag_theory"]).sel(rate=[0.001, 0.003, 0.01])
    assert float(abs(ratio - 1).max()) < 0.09
    assert float(data["lag"].max()) < min(noise(data).values())
