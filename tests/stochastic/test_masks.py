"""Masks: which weights are live, what is kept of the gradient, and forward gradients along live weights alone."""

import numpy as np
import pytest
import torch
from cases import CASES, mixer, randn
from shaping import bowl, flat, line
from torch import nn
from torch.func import hessian, vmap

import fgvar
from fgvar import transforms as t
from fgvar.testing import expectation
from fgvar.testing.enumeration import variances


def net_of(weight: torch.Tensor) -> fgvar.Problem:
    net = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        net.weight.copy_(weight)
    return fgvar.Problem(net, "mse", (randn(2, weight.shape[1]), randn(2, weight.shape[0], seed=1)))


# ---- which are live --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.2, 0.37, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("zeros", [0, 5])
def test_magnitude_is_the_quantile_of_the_nonzero_weights(share: float, zeros: int) -> None:
    """As NumPy has it; biases are kept, and what is 0 already stays dead."""
    weight = randn(4, 5)
    weight.view(-1)[:zeros] = 0
    problem, sizes = net_of(weight), weight.abs().numpy()
    found = t.Magnitude(share).mask(problem)
    expected = (sizes >= np.quantile(sizes[sizes > 0], share)) & (sizes > 0)
    assert found["weight"].numpy().astype(bool).tolist() == expected.tolist()
    assert found["bias"].tolist() == [1] * 4


def test_masks_of_dead_layers_ties_and_half_precision() -> None:
    assert not t.Magnitude(0.5).mask(net_of(torch.zeros(2, 3)))["weight"].any()
    assert t.Magnitude(0.5).mask(net_of(torch.full((2, 3), -0.3)))["weight"].all()  # none is below the quantile
    problem = net_of(torch.arange(6.0).reshape(2, 3))
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        found = t.Magnitude(0.5).mask(problem.to(dtype))["weight"]
        assert found.dtype == dtype
        assert found.flatten().tolist() == [0, 0, 0, 1, 1, 1]


def test_shuffled_weights_are_as_many_at_other_places() -> None:
    problem = net_of(randn(6, 7))
    plain, one, two, again = (t.Magnitude(0.4, shuffled=s).mask(problem)["weight"] for s in (None, 0, 1, 0))
    assert plain.sum() == one.sum() == two.sum()
    assert torch.equal(one, again)
    assert not torch.equal(one, two)
    assert not torch.equal(one, plain)


def test_magnitude_runs_under_vmap_over_parameters() -> None:
    problem = net_of(randn(4, 5))
    params = {name: torch.stack([p, p.abs() + 1, 0 * p]) for name, p in problem.params.items()}
    for keep in (t.Magnitude(0.4), t.Magnitude(0.4, shuffled=1)):
        found = vmap(lambda p, keep=keep: keep.mask(problem.at(p))["weight"])(params)
        for i in range(3):
            one = keep.mask(problem.at({name: p[i] for name, p in params.items()}))["weight"]
            assert torch.equal(found[i], one)


@pytest.mark.parametrize("size", [1, 2, None])
def test_saliency_compares_mean_squared_gradients_of_minibatches(size: int | None) -> None:
    """By a loop over minibatches, with 1e-15 added to both."""
    problem = bowl()
    retain = problem.at(batch=(randn(5, 4, seed=7), randn(5, 2, seed=8)))

    def fisher(of: fgvar.Problem) -> torch.Tensor:
        step = size or of.batch_size
        parts = [of.rows(slice(start, start + step)) for start in range(0, of.batch_size, step)]
        return torch.stack([flat(part.backprop()).square() for part in parts]).mean(0)

    expected = (fisher(problem) + 1e-15) / (fisher(retain) + 1e-15) >= 0.8
    assert 0 < int(expected.sum()) < len(expected)
    assert flat(t.Saliency(retain, 0.8, size).mask(problem)).bool().tolist() == expected.tolist()
    assert flat(t.Saliency(retain, 0.0, size).mask(problem)).all(), "γ = 0 keeps all"
    moved = {name: 2 * p for name, p in problem.params.items()}  # both at the same parameters
    assert flat(t.Saliency(problem, 1.0, size).mask(problem.at(moved))).all()


# ---- what is kept ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [bowl, mixer])
@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.8])
def test_slope_and_squared_cosine_are_the_energy_kept(build, share) -> None:
    problem, keep = build(), t.Magnitude(share)
    g = flat(problem.backprop())
    masked = flat(keep.mask(problem)) * g
    found = flat(fgvar.Stochastic(then=(t.Mask(keep),)).estimate(problem, {}).gradient)
    torch.testing.assert_close(found, masked, rtol=0, atol=1e-15)
    kept = float(masked @ masked / (g @ g))
    ds = fgvar.measure({"masked": fgvar.Stochastic(then=(t.Mask(keep),))}, problem, draws=2)
    row = ds.sel(layer="total", reference="target", estimator="masked")
    assert float(row["slope"]) == pytest.approx(kept, rel=1e-12)
    assert float(row["cosine"]) ** 2 == pytest.approx(kept, rel=1e-12)
    assert float(row["sq_bias"]) == pytest.approx(float(g @ g - masked @ masked), abs=1e-12)


def test_a_mask_of_each_is_that_of_the_whole_batch() -> None:
    """Saliency, too, which reads the batch: one mask for all examples."""
    problem = bowl()
    mask = t.Mask(t.Saliency(problem.at(batch=(randn(5, 4, seed=7), randn(5, 2, seed=8))), 0.8))
    each, then = (flat(fgvar.Stochastic(**{w: (mask,)}).estimate(problem, {}).gradient) for w in ("each", "then"))
    torch.testing.assert_close(each, then, rtol=0, atol=1e-14)


# ---- noise on live weights alone -------------------------------------------------------------------------------

KEEP = t.Magnitude(0.4)
LIVE = fgvar.WeightSpace(keep=KEEP)


def energy(estimator: fgvar.GradientEstimator, problem: fgvar.Problem, method: str = "polarisation") -> float:
    return float(flat(variances(estimator, problem, method=method)).sum())


@pytest.mark.parametrize("build", [CASES["linear"], CASES["shared_weights"], bowl])
def test_live_weights_cost_the_live_alone(build) -> None:
    """(d_live + 1)‖Mg‖², where a mask afterwards leaves d_live‖g‖² + ‖Mg‖²: by enumeration and in closed form."""
    problem = build()
    g, mask = flat(problem.backprop()), flat(KEEP.mask(problem))
    kept, live = (mask * g) @ (mask * g), float(mask.sum())
    assert 0 < live < len(mask)
    on_live = fgvar.scheme("FG-W", space=LIVE)
    after = fgvar.Stochastic(of=fgvar.scheme("FG-W"), then=(t.Mask(KEEP),))
    assert energy(on_live, problem) == pytest.approx(float((live + 1) * kept), rel=1e-9)
    assert energy(after, problem) == pytest.approx(float(live * (g @ g) + kept), rel=1e-9)
    for estimator in (on_live, after):
        found = flat(expectation(estimator, problem))
        torch.testing.assert_close(found, mask * g, rtol=0, atol=1e-12)
    assert float(sum(fgvar.theory.trace(on_live, problem).values())) == pytest.approx(
        float((live + 1) * kept), rel=1e-9
    )
    assert on_live.bias_reason
    assert not fgvar.scheme("FG-W").bias_reason


WORDS = {
    "signs": {"noise": fgvar.Rademacher()},
    "own noise": {"shared": False},
    "directions": {"directions": 2},
    "replay": {"oracle": fgvar.oracles.Replay()},
    "antithetic": {"antithetic": True},
    "local": {"losses": fgvar.LocalLosses()},
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS.keys())
def test_closed_forms_of_live_weights_are_those_enumerated(words) -> None:
    """Mean M∇ and variance of every weight, of heads as well, which learn exactly."""
    problem = mixer(blocks=1, channels=2, groups=1) if "losses" in words else CASES["linear"]()
    estimator = fgvar.Estimator(LIVE, **words)
    target, mask = estimator.target(problem), KEEP.mask(problem)
    mean, spread = fgvar.theory.mean(estimator, problem), fgvar.theory.variance(estimator, problem)
    found, enumerated = expectation(estimator, problem), variances(estimator, problem)
    for name, m in mask.items():
        torch.testing.assert_close(mean[name], m * target[name], rtol=0, atol=1e-12)
        torch.testing.assert_close(found[name], m * target[name], rtol=0, atol=1e-12)
        expected = enumerated[name].reshape(m.shape)
        torch.testing.assert_close(spread[name], expected, rtol=0, atol=1e-9 * max(1.0, float(expected.max())))
        assert not spread[name][m == 0].any()


OTHERS = {
    "per tensor": {"space": fgvar.WeightSpace(per_tensor=True, keep=KEEP)},
    "projection": {"directions": 3, "combine": fgvar.combine.Projection("mean")},
    "normalised": {"combine": fgvar.combine.Normalised()},
    "backprop": {"guess": fgvar.guesses.BackpropGradient(), "combine": fgvar.combine.Normalised()},
    "span": {"guess": fgvar.guesses.ActivationSpan()},
    "local": {"guess": fgvar.guesses.LocalGradient(), "losses": fgvar.LocalLosses()},
    "NTK": {"guess": fgvar.guesses.NTK()},
    "differences": {"oracle": fgvar.oracles.CentralDifference()},
}


@pytest.mark.parametrize("words", OTHERS.values(), ids=OTHERS.keys())
def test_dead_weights_are_never_moved(words) -> None:
    """With any other word: an estimate is that of a problem whose gradient by dead weights is cut."""
    problem = mixer(blocks=1)
    mask = KEEP.mask(problem)
    estimator = fgvar.Estimator(**{"space": LIVE, **words})
    noise = {k: u[0] for k, u in estimator.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    found = estimator.estimate(problem, noise).gradient
    for name, m in mask.items():
        assert not found[name][m == 0].any(), name
    assert flat(found).any()
    if "guess" not in words:  # what noise dead weights are given is nobody's business
        other = {k: torch.where(mask[k] == 1, u, 7.0) for k, u in noise.items()}
        torch.testing.assert_close(estimator.estimate(problem, other).gradient, found, rtol=0, atol=1e-10)


def test_the_guess_that_is_the_gradient_projects_on_its_live_part() -> None:
    problem = CASES["linear"]()
    words = {"guess": fgvar.guesses.BackpropGradient(), "combine": fgvar.combine.Normalised()}
    found = flat(fgvar.Estimator(LIVE, **words).estimate(problem, {}).gradient)
    torch.testing.assert_close(found, flat(KEEP.mask(problem)) * flat(problem.backprop()), rtol=0, atol=1e-12)


def test_live_weights_are_measured_exactly_and_drawn() -> None:
    """Drawn within 6 standard errors of the exact route: false alarms below 1e-8."""
    problem = CASES["mlp_relu"]()
    rows = {
        "live": fgvar.scheme("FG-W", space=LIVE),
        "after": fgvar.Stochastic(of=fgvar.scheme("FG-W"), then=(t.Mask(KEEP),)),
    }
    exact = fgvar.measure({"live": rows["live"]}, problem, route="exact").sel(layer="total", estimator="live")
    ds = fgvar.measure(rows, problem, draws=1024).sel(layer="total")
    drawn = ds.sel(estimator="live")
    assert abs(float(drawn["variance"] - exact["variance"])) < 6 * float(drawn["variance_se"])
    assert float(ds["variance"].sel(estimator="after")) > float(drawn["variance"])


# ---- steps on another problem ----------------------------------------------------------------------------------


def pair(net: nn.Module) -> tuple[fgvar.Problem, fgvar.Problem]:
    """What is forgotten, and what is retained, of one network."""
    forget = fgvar.Problem(net.double(), "mse", (randn(4, 3), randn(4, 2, seed=1)))
    return forget, forget.at(batch=(randn(6, 3, seed=2), randn(6, 2, seed=3)))


def curvature(problem: fgvar.Problem) -> torch.Tensor:
    names, found = list(problem.params), hessian(problem.loss)(problem.params)
    sizes = {name: p.numel() for name, p in problem.params.items()}
    return torch.cat([torch.cat([found[a][b].reshape(sizes[a], sizes[b]) for b in names], 1) for a in names])


def two_paths(forget: fgvar.Problem, retain: fgvar.Problem, steps: int, lr: float) -> torch.Tensor:
    """The naive twin: both paths to their ends, and their difference."""
    g = forget.backprop()
    paths = [{k: p + start * lr * g[k] for k, p in forget.params.items()} for start in (1, 0)]
    for _ in range(steps):
        paths = [{k: p - lr * retain.at(path).backprop()[k] for k, p in path.items()} for path in paths]
    return (flat(paths[0]) - flat(paths[1])) / lr


def test_retained_steps_of_a_quadratic_are_its_power() -> None:
    """(I − lr H)ᴷ g exactly, where the Hessian does not change."""
    forget, retain = pair(nn.Linear(3, 2))
    g, h = flat(forget.backprop()), curvature(retain)
    for steps in (0, 1, 5):
        transform = t.Retained(retain, steps, 0.1)
        found = flat(fgvar.Stochastic(then=(transform,)).estimate(forget, {}).gradient)
        expected = torch.linalg.matrix_power(torch.eye(len(g)).double() - 0.1 * h, steps) @ g
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(found, two_paths(forget, retain, steps, 0.1), rtol=0, atol=1e-12)
        assert bool(transform.bias_reason) == (steps > 0)


def test_retained_steps_are_a_power_to_first_order() -> None:
    """Behind a tanh: what is off falls with the learning rate, and loops agree."""
    torch.manual_seed(0)
    forget, retain = pair(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    g, h = flat(forget.backprop()), curvature(retain)
    off = []
    for lr in (0.02, 0.01, 0.005):
        found = flat(t.Retained(retain, 1, lr)(forget.backprop(), forget, {}))
        torch.testing.assert_close(found, two_paths(forget, retain, 1, lr), rtol=0, atol=1e-11)
        off.append(float((found - (g - lr * h @ g)).norm()))
    # One step is off by lr² D³L(g, g)/2: a quarter for half the rate.
    assert [off[0] / off[1], off[1] / off[2]] == pytest.approx([4, 4], rel=0.1)
    assert off[-1] < 1e-4 * float(g.norm())


def test_retained_steps_under_vmap() -> None:
    forget, retain = pair(nn.Linear(3, 2))
    rows = {"retained": fgvar.Stochastic(of=fgvar.scheme("FG-W"), then=(t.Retained(retain, 3, 0.1),))}
    ds = fgvar.measure(rows, forget, draws=32)
    assert np.isfinite(ds["variance"].sel(layer="total")).all()


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: t.Magnitude(1.2), r"share is 1\.2, expected a number from 0 to 1"),
        (lambda: t.Magnitude(0.2, shuffled=-1), "shuffled is -1, expected a non-negative integer"),
        (lambda: t.Saliency(line(), 1.0, size=0), "size is 0, expected an integer of at least 1"),
        (lambda: t.Saliency(line(), 1.0).mask(bowl()), r"params lack \['weight', 'bias'\]"),
        (lambda: t.Retained(line(), -1, 0.1), "steps is -1, expected a non-negative integer"),
        (lambda: t.Retained(line(), 1, 0.0), r"lr is 0\.0, expected a positive number"),
    ],
)
def test_refused_values(make, message) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: t.Magnitude("0.4"), "share is '0.4', expected a number from 0 to 1"),
        (lambda: t.Saliency(line(), None), "threshold is None, expected a number"),
        (lambda: t.Saliency(nn.Linear(1, 1), 1.0), r"problem is Linear, expected fgvar\.Problem"),
        (lambda: t.Retained(None, 1, 0.1), r"problem is NoneType, expected fgvar\.Problem"),
        (lambda: t.Mask(0.4), r"keep is 0\.4 without mask, expected one like fgvar\.transforms\.Magnitude"),
        (lambda: fgvar.WeightSpace(keep=t.Magnitude), "keep is the class Magnitude, expected an instance"),
    ],
)
def test_refused_types(make, message) -> None:
    with pytest.raises(TypeError, match=message):
        make()


def test_keeps_are_frozen_and_say_what_they_are() -> None:
    mask = t.Mask(t.Magnitude(0.4, shuffled=2))
    assert eval(repr(mask), vars(fgvar.stochastic.masks)) == mask
    assert eval(repr(LIVE), {**vars(fgvar.stochastic.masks), "WeightSpace": fgvar.WeightSpace}) == LIVE
