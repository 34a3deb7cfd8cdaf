"""Eight systems of the field as rows, written as a user would, each with what has to be true of it."""

import pytest
import torch
from cases import labels, randn
from torch import Tensor, nn
from torch.func import hessian

import fgvar
from fgvar import points, sampling, streams
from fgvar import transforms as t
from fgvar.testing import expectation
from fgvar.testing.enumeration import variances

EXACT = fgvar.ExactGradient()


def mlp(count: int = 6) -> fgvar.Problem:
    net = fgvar.networks.MLP(3, width=4, depth=1, classes=2, activation="tanh").double()
    return fgvar.Problem(net, "cross_entropy", (randn(count, 3), labels(count, 2)))


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in found.values()])


def numbers(ds, name: str) -> dict[str, float]:
    """Of all parameters together, against the target, by row."""
    at = {"layer": "total", "reference": "target"}
    return ds[name].sel({dim: at[dim] for dim in at if dim in ds[name].dims}).to_series().to_dict()


def test_residual_points_of_a_pinn() -> None:
    """Weighted points are unbiased, published ones off by Σ(p_n − 1/N) g_n; both variances are closed forms."""
    x = ((torch.arange(64, dtype=torch.float64) + 0.5) / 64)[:, None]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1), nn.Flatten(0)).double()
    problem = fgvar.Problem(net, "mse", (x, torch.sin(9 * x[:, 0])))
    half, m = sampling.Mixed(sampling.Outputs(), uniform=0.5), 24
    rows = {
        "uniform": fgvar.Stochastic(sample=sampling.Draw(m)),
        "weighted": fgvar.Stochastic(sample=sampling.Draw(m, by=half)),
        "unweighted": fgvar.Stochastic(sample=sampling.Draw(m, by=half, weigh="none")),
    }
    published = (sampling.Draw(6, replace=False), sampling.Draw(18, by=sampling.Outputs()))
    rows["published"] = fgvar.Stochastic(sample=sampling.Union(published, weigh="none"))
    ds = fgvar.measure(rows, problem, route="exact")
    g = torch.stack([flat(problem.rows(torch.tensor([n])).backprop()) for n in range(64)])
    r = net(x).detach().abs()
    p, mean = 0.5 * r / r.sum() + 0.5 / 64, g.mean(0)
    variance = {
        "uniform": (g.square().sum() / 64 - mean @ mean) / m,
        "weighted": ((g.square().sum(1) / p).sum() / 64**2 - mean @ mean) / m,
        "unweighted": (p @ g.square().sum(1) - (p @ g) @ (p @ g)) / m,
    }
    bias = {
        "uniform": 0,
        "weighted": 0,
        "unweighted": (p - 1 / 64) @ g,
        "published": 0.75 * (r / r.sum() - 1 / 64) @ g,
    }
    for name, value in variance.items():
        assert numbers(ds, "variance")[name] == pytest.approx(float(value), rel=1e-12)
    for name, value in bias.items():
        squared = float(torch.as_tensor(value).square().sum())
        assert numbers(ds, "sq_bias")[name] == pytest.approx(squared, rel=1e-9, abs=1e-25)
        assert bool(rows[name].bias_reason) == (squared > 0)


def test_collocation_points_of_poissons_equation() -> None:
    """The mixture with weights has no bias and less variance than uniform points, without weights a bias of 1.7 ‖g‖.

    The published law, which keeps each point once, as an exact mean and variance beside 512 draws: 5 errors, a false
    alarm in 10⁶.
    """
    x = ((torch.arange(512) + 0.5) / 512)[:, None]
    problem = fgvar.Problem(fgvar.networks.PoissonResidual(width=20, source=0.02), "mse", (x, torch.zeros(512)))
    half = sampling.Mixed(sampling.Outputs(), uniform=0.5)
    rows = {
        "uniform": fgvar.Stochastic(sample=sampling.Draw(24)),
        "weighted": fgvar.Stochastic(sample=sampling.Draw(24, by=half)),
        "unweighted": fgvar.Stochastic(sample=sampling.Draw(24, by=half, weigh="none")),
    }
    parts = (sampling.Draw(12, replace=False), sampling.Draw(12, by=sampling.Outputs(), replace=False))
    rows["published"] = fgvar.Stochastic(sample=sampling.Union(parts, weigh="none", distinct=True))
    ds = fgvar.measure(rows, problem, route="exact")
    square = float(ds["gradient_norm"].isel(estimator=0).sel(layer="total", reference="target")) ** 2
    bias, variance = numbers(ds, "sq_bias"), numbers(ds, "relative_variance")
    assert bias["uniform"] < 1e-9 * square > bias["weighted"]
    assert variance["weighted"] < variance["uniform"] / 2
    assert min(bias["unweighted"], bias["published"]) > 2 * square
    drawn = fgvar.measure({"published": rows["published"]}, problem, draws=512)
    for name, exact in (("relative_variance", variance), ("slope", numbers(ds, "slope"))):
        found, error = (numbers(drawn, f"{name}{end}")["published"] for end in ("", "_se"))
        assert abs(found - exact["published"]) < 5 * error, name


def test_low_rank_private_gradients() -> None:
    """Rank r takes noise of std s down to r(m + n − r) s² a matrix; its bias is DP-SGD's, and what it leaves out."""
    problem, clip, rate, sigma = mlp(8), 0.5, 0.25, 1.0
    s = sigma * clip / (rate * problem.batch_size)
    rows = {"DP-SGD": fgvar.Stochastic(sample=sampling.Poisson(rate), each=(t.Clip(clip),), then=(t.AddNoise(s),))}
    for rank in (1, 2, 4):
        there = t.Carriers(rank)
        for name, noise in ((f"rank {rank}", t.AddNoise(s)), (f"silent {rank}", t.AddNoise(0))):
            rows[name] = fgvar.Stochastic(
                sample=sampling.Poisson(rate), each=(there, t.Clip(clip)), then=(noise, there.back)
            )
    found = numbers(fgvar.measure(rows, problem, route="exact"), "variance")
    for rank in (1, 2, 4):
        kept = sum(
            p.numel() if p.ndim < 2 else (r := min(rank, *p.shape)) * (sum(p.shape) - r)
            for p in problem.params.values()
        )
        assert found[f"rank {rank}"] - found[f"silent {rank}"] == pytest.approx(kept * s**2, rel=1e-9)
    assert found["rank 1"] < found["rank 2"] < found["rank 4"]


def test_extrapolation_and_sharpness() -> None:
    """Workers divide the variance and keep the bias, to the last digit; sharpness-aware is ∇L at θ + ρ g/‖g‖."""
    problem, one = mlp(3), fgvar.Stochastic(sample=sampling.Draw(1))
    rows = {
        f"{g}, {k}": fgvar.Stochastic(at=points.Ahead(by=one, step=g), sample=sampling.Draw(1), workers=k)
        for g in (0.0, 0.2)
        for k in (1, 2)
    }
    for g in (0.0, 0.2):
        single, both = rows[f"{g}, 1"], rows[f"{g}, 2"]
        torch.testing.assert_close(
            flat(expectation(single, problem)), flat(expectation(both, problem)), rtol=1e-12, atol=0
        )
        torch.testing.assert_close(
            flat(variances(both, problem)), flat(variances(single, problem)) / 2, rtol=1e-10, atol=1e-16
        )
        bias = flat(expectation(single, problem)) - flat(problem.backprop())
        assert (float(bias.norm()) < 1e-12) == (not single.bias_reason) == (g == 0)
    rows["SAM"] = fgvar.Stochastic(at=points.Ahead(by=EXACT, step=-0.1, unit=True))
    g = problem.backprop()
    moved = problem.at({name: p + 0.1 * g[name] / flat(g).norm() for name, p in problem.params.items()})
    torch.testing.assert_close(rows["SAM"].estimate(problem, {}).gradient, moved.backprop(), rtol=1e-12, atol=1e-15)
    ds = fgvar.measure(rows, problem, draws=256, paired=True)
    assert numbers(ds, "cosine_difference")["0.0, 1"] == 0
    assert numbers(ds, "variance")["SAM"] == 0


def test_randomised_dynamic_programming() -> None:
    """The last of all states drawn is no draw: exact. With fewer for certain E Ẑ = Z all the same, enumerated."""
    chain = fgvar.networks.LinearChain(features=2, states=4).double()
    tags = torch.tensor([[1, 3]])
    problem = fgvar.Problem(chain, fgvar.networks.chain_nll, (randn(1, 2, 2), tags))
    z = fgvar.Problem(chain, lambda out, tags: out[0].exp() + 0 * tags.sum(1), (problem.inputs, tags))
    rows = {
        f"{k}:{4 - k}": fgvar.Stochastic(
            sample=sampling.Draw(4 - k, top=k, by=sampling.TermSizes(), replace=False, over="terms")
        )
        for k in (3, 2, 1)
    }
    for row in rows.values():
        for name, value in expectation(row, z, method="support").items():
            torch.testing.assert_close(value, z.backprop()[name], rtol=1e-12, atol=1e-12)
    ds = fgvar.measure(rows, problem, draws=64)
    assert numbers(ds, "relative_variance")["3:1"] < 1e-28
    assert numbers(ds, "cosine")["3:1"] == pytest.approx(1, abs=1e-12)
    assert numbers(ds, "relative_variance")["1:3"] > numbers(ds, "relative_variance")["2:2"] > 1e-6


def test_occam_gradient_descent() -> None:
    """Slope and cosine² are the energy kept; FG-W on live weights varies by (d_live + 1)‖Mg‖², not by all of ‖g‖²."""
    problem, keep = mlp(), t.Magnitude(0.4)
    rows = {
        "Occam": fgvar.Stochastic(then=(t.Mask(keep),)),
        "FG-W live": fgvar.scheme("FG-W", space=fgvar.WeightSpace(keep=keep)),
        "FG-W masked after": fgvar.Stochastic(of=fgvar.scheme("FG-W"), then=(t.Mask(keep),)),
    }
    ds = fgvar.measure(rows, problem, route="exact")
    perturbed = {name: problem.backprop()[name] for name in problem.perturbed}
    mask = keep.mask(problem)
    g, live = flat(perturbed), flat({name: mask[name] for name in perturbed})
    whole, kept, d = float(g @ g), float((live * g) @ (live * g)), float(live.sum())
    at = {"layer": "perturbed", "reference": "target"}
    for name in rows:
        assert float(ds["slope"].sel(estimator=name, **at)) == pytest.approx(kept / whole, rel=1e-12)
    assert float(ds["cosine"].sel(estimator="Occam", **at)) ** 2 == pytest.approx(kept / whole, rel=1e-12)
    variance = ds["variance"].sel(layer="perturbed").to_series()
    assert variance["FG-W live"] == pytest.approx((d + 1) * kept, rel=1e-12)
    assert variance["FG-W masked after"] == pytest.approx(d * whole + kept, rel=1e-12)


def test_optimisers_of_streams() -> None:
    """Momentum at rest keeps the mean and V(1−β)(1+β^T)/((1+β)(1−β^T)); diffGrad is Adam times factors in [½, 1)."""
    problem = mlp()
    feeds = {"minibatch": fgvar.Stochastic(sample=sampling.Draw(2)), "FG-A": fgvar.scheme("FG-A")}
    optimisers = {
        "momentum": streams.Momentum(), "Adam": streams.Adam(), "diffGrad": streams.Adam(factor=streams.DiffGrad())
    }  # fmt: skip
    rows = {
        f"{o} of {f}": fgvar.History(of, through, steps=50)
        for f, of in feeds.items()
        for o, through in optimisers.items()
    }
    assert all(0 < abs(value) < 1 for value in numbers(fgvar.measure(rows, problem, draws=4), "cosine").values())
    momentum = {f: rows[f"momentum of {f}"] for f in feeds}
    exact, alone = (numbers(fgvar.measure(what, problem, route="exact"), "variance") for what in (momentum, feeds))
    for f in feeds:
        gain = 0.1 * (1 + 0.9**50) / (1.9 * (1 - 0.9**50))
        assert exact[f] == pytest.approx(gain * alone[f], rel=1e-12)
        drawn = rows[f"Adam of {f}"].randomness(problem).sample(0, [0], dtype=torch.float64)
        noise = {name: u[0] for name, u in drawn.items()}
        adam, diff = (flat(rows[f"{o} of {f}"].estimate(problem, noise).gradient) for o in ("Adam", "diffGrad"))
        ratio = (diff / adam)[adam != 0]
        assert bool(((ratio >= 0.5) & (ratio < 1)).all())


def test_unlearning_follows_newton_as_far_as_steps_on_what_is_kept_go() -> None:
    """Of losses with one Hessian, (I − hH)^K g_f against (H + μ)⁻¹ g_f, by matrices; K = 0 is the forget gradient."""
    net = nn.Linear(3, 1, bias=False).double()
    x, y = randn(12, 3), randn(12, 1)
    forget, retain = (fgvar.Problem(net, "mse", (x[part], y[part])) for part in (slice(4), slice(4, 12)))
    newton = fgvar.targets.Newton(retain, damping=0.01)
    rows = {
        f"K = {k}": fgvar.Against(fgvar.Stochastic(then=(t.Retained(retain, steps=k, lr=0.05),)), newton)
        for k in (0, 5, 20, 100)
    }
    rows["mask"] = fgvar.Against(fgvar.Stochastic(then=(t.Mask(t.Saliency(retain, 1.0)),)), newton)
    found = numbers(fgvar.measure(rows, forget, draws=2), "cosine")
    g = flat(forget.backprop())
    h = hessian(lambda w: retain.loss({"weight": w}))(retain.params["weight"]).reshape(3, 3)
    aim = torch.linalg.solve(h + 0.01 * torch.eye(3).double(), g)
    for k in (0, 5, 20, 100):
        step = torch.linalg.matrix_power(torch.eye(3).double() - 0.05 * h, k) @ g
        assert found[f"K = {k}"] == pytest.approx(float(torch.cosine_similarity(step, aim, dim=0)), abs=1e-9)
    assert found["K = 0"] < found["K = 5"]
    ratio = [
        torch.stack([flat(p.rows(torch.tensor([n])).backprop()) for n in range(p.batch_size)]).square().mean(0)
        for p in (forget, retain)
    ]
    masked = g * (ratio[0] >= ratio[1])
    assert found["mask"] == pytest.approx(float(torch.cosine_similarity(masked, aim, dim=0)), abs=1e-12)
    harder = fgvar.Stochastic(sample=sampling.Reweighted(sampling.Losses(-0.5)), then=rows["mask"].estimator.then)
    assert harder.bias_reason == "examples count by their scores, not alike; dead parameters have no gradient"


def test_local_steps_are_a_plain_loop() -> None:
    """K steps of SGD with fresh minibatches: the last gradient of the loop, draw for draw."""
    problem, lr = mlp(), 0.3
    row = fgvar.History(fgvar.Stochastic(sample=sampling.Draw(2)), streams.Momentum(0), steps=4, lr=lr)
    drawn = row.randomness(problem).sample(0, [0])["sample"][0]
    here = problem
    for chosen in drawn:
        gradient = here.rows(chosen).backprop()
        here = here.at({name: p - lr * gradient[name] for name, p in here.params.items()})
    torch.testing.assert_close(row.estimate(problem, {"sample": drawn}).gradient, gradient, rtol=1e-12, atol=1e-15)
