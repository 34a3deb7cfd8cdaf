"""GradInit: a plain loop of its definition, what its factors keep, and what it refuses."""

import math

import pytest
import torch
from cases import labels, randn
from torch import Tensor, nn

import fgvar
from fgvar.networks import gradinit
from fgvar.networks.gradinit import FLOOR

BATCHES = [(randn(6, 3, seed=seed), labels(6, 2)) for seed in range(3)]


def mlp() -> fgvar.Problem:
    net = fgvar.networks.MLP(3, width=4, depth=1, classes=2, activation="tanh", seed=1).double()
    with torch.no_grad():
        for seed, p in enumerate(net.parameters()):
            p.copy_(randn(*p.shape, seed=seed))
    return fgvar.Problem(net, "cross_entropy", BATCHES[0])


def factors(problem: fgvar.Problem, params: dict[str, Tensor]) -> dict[str, float]:
    """m of every tensor; each is one number times what it was."""
    found = {}
    for name, p in problem.params.items():
        m = (params[name] * p).sum() / p.square().sum().clamp_min(1e-300)
        torch.testing.assert_close(params[name], m * p, rtol=1e-12, atol=0)
        found[name] = float(m)
    return found


def plain(problem: fgvar.Problem, eta: float, gamma: float, steps: int, lr: float, rule: str) -> dict[str, Tensor]:
    """The definition with torch.autograd, Adam by hand, and every factor on its own."""
    names = list(problem.params)
    m = dict.fromkeys(names, 1.0)
    averages = {(kind, name): (0.0, 0.0, 0) for kind in ("bound", "objective") for name in names}

    def loss(params: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
        hidden = torch.tanh(batch[0] @ params["layer0.weight"].T + params["layer0.bias"])
        logits = hidden @ params["readout.linear.weight"].T + params["readout.linear.bias"]
        return nn.functional.cross_entropy(logits, batch[1])

    for step in range(steps):
        batch, following = BATCHES[step % 3], BATCHES[(step + 1) % 3]
        scalars = {name: torch.tensor(value, dtype=torch.float64).requires_grad_() for name, value in m.items()}
        scaled = {name: scalars[name] * p for name, p in problem.params.items()}
        g = torch.autograd.grad(loss(scaled, batch), list(scaled.values()), create_graph=True)
        norm = sum(v.square().sum() for v in g).sqrt() if rule == "sgd" else sum(v.abs().sum() for v in g)
        kind = "bound" if norm > gamma else "objective"
        value = norm
        if kind == "objective":
            direction = [(v / norm if rule == "sgd" else v.sign()).detach() for v in g]
            moved = {name: p - eta * a for (name, p), a in zip(scaled.items(), direction, strict=True)}
            both = tuple(torch.cat([one[:3], other[3:]]) for one, other in zip(batch, following, strict=True))
            value = loss(moved, both) / eta
        for name, d in zip(names, torch.autograd.grad(value, list(scalars.values())), strict=True):
            d = min(max(float(d), -1.0), 1.0)
            first, second, count = averages[kind, name]
            first, second, count = 0.9 * first + 0.1 * d, 0.999 * second + 0.001 * d**2, count + 1
            averages[kind, name] = first, second, count
            root = math.sqrt(second / (1 - 0.999**count))
            m[name] = max(m[name] - lr * first / (1 - 0.9**count) / (root + 1e-8), 0.0 if "bias" in name else 0.01)
    return {name: m[name] * p for name, p in problem.params.items()}


@pytest.mark.parametrize("rule", ["sgd", "adam"])
@pytest.mark.parametrize("gamma", [0.1, 1.0, math.inf])
def test_it_is_a_plain_loop(rule: str, gamma: float) -> None:
    problem = mlp()
    found = gradinit(problem, BATCHES, eta=0.2, gamma=gamma, steps=25, lr=0.03, rule=rule)
    expected = plain(problem, 0.2, gamma, 25, 0.03, rule)
    for name, p in problem.params.items():
        torch.testing.assert_close(found[name], expected[name], rtol=1e-9, atol=1e-12)
        assert not torch.allclose(found[name], p, rtol=0.01)


def test_without_steps_it_is_where_it_began() -> None:
    """Whatever the bound; a copy, so that writing to it leaves the problem alone."""
    problem = mlp()
    for gamma in (0.1, math.inf):
        params = gradinit(problem, BATCHES, gamma=gamma, steps=0)
        for name, p in problem.params.items():
            assert torch.equal(params[name], p)
            assert params[name].data_ptr() != p.data_ptr()


def test_factors_stay_above_their_floors() -> None:
    """Bounded by nearly nothing, weights come to a hundredth; a bias that is all there is of the gradient to 0."""
    problem = mlp()
    found = factors(problem, gradinit(problem, BATCHES, gamma=1e-9, steps=60, lr=0.1))
    weights = [m for name, m in found.items() if name.endswith("weight")]
    assert min(weights) == pytest.approx(FLOOR, rel=1e-12)
    alone = nn.Linear(3, 2).double()
    batch = torch.zeros(2, 3).double(), torch.zeros(2, 2).double()
    squares = fgvar.Problem(alone, "mse", batch)
    params = gradinit(squares, [batch], gamma=1e-9, steps=60, lr=0.1)
    assert not params["bias"].any()
    assert torch.equal(params["weight"], squares.params["weight"])


def test_it_draws_nothing_and_leaves_the_problem_alone() -> None:
    problem = mlp()
    before, state = problem.clone(), torch.get_rng_state()
    one, other = (gradinit(problem, BATCHES, steps=5) for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert torch.equal(state, torch.get_rng_state())
    for name, tensor in problem.tensors().items():
        assert torch.equal(tensor, before.tensors()[name]), name


def test_tensors_of_zeros_stay_and_frozen_ones_are_left() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    nn.init.zeros_(net[0].bias)
    net[2].weight.requires_grad_(False)
    problem = fgvar.Problem(net, "cross_entropy", BATCHES[0])
    params = gradinit(problem, BATCHES, steps=5)
    assert params.keys() == problem.params.keys()
    assert not params["0.bias"].any()
    assert not torch.equal(params["0.weight"], problem.params["0.weight"])


def test_hidden_units_and_examples_have_no_order() -> None:
    """Permuted units give the permuted initialisation; examples within each half of a batch may be in any order."""
    problem, order = mlp(), torch.tensor([2, 0, 3, 1])
    p = problem.params
    permuted = {
        "layer0.weight": p["layer0.weight"][order],
        "layer0.bias": p["layer0.bias"][order],
        "readout.linear.weight": p["readout.linear.weight"][:, order],
        "readout.linear.bias": p["readout.linear.bias"],
    }
    plain_factors = factors(problem, gradinit(problem, BATCHES, steps=10))
    other = problem.at(permuted)
    assert factors(other, gradinit(other, BATCHES, steps=10)) == pytest.approx(plain_factors, rel=1e-9)
    halves = torch.tensor([2, 1, 0, 4, 5, 3])
    shuffled = [(x[halves], y[halves]) for x, y in BATCHES]
    assert factors(problem, gradinit(problem, shuffled, steps=10)) == pytest.approx(plain_factors, rel=1e-9)


def test_the_first_step_leaves_less_and_the_norm_is_bounded() -> None:
    problem, eta = mlp(), 0.1
    at = problem.at(gradinit(problem, BATCHES[:1], eta=eta, gamma=1.0, steps=200))

    def norm(here: fgvar.Problem) -> float:
        return float(torch.cat([g.flatten() for g in here.backprop().values()]).norm())

    def after(here: fgvar.Problem) -> float:
        g = here.backprop()
        return float(here.loss({name: p - eta * g[name] / norm(here) for name, p in here.params.items()}))

    assert norm(at) < 1.1
    assert after(at) < after(problem) / 1.2


def test_networks_with_sites_and_structured_batches_are_rescaled() -> None:
    mixer = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=1, patches=2, channels=8, groups=2, seed=1)
    images = [(randn(4, 1, 4, 4, seed=seed).float(), labels(4, 3)) for seed in range(2)]
    problem = fgvar.Problem(mixer, "cross_entropy", images[0])
    params = gradinit(problem, images, steps=2)
    assert {name: p.dtype for name, p in params.items()} == {name: p.dtype for name, p in problem.params.items()}

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x: Tensor, z: Tensor) -> Tensor:
            out: Tensor = self.layer(x + z)
            return out

    batches = [((x, 2 * x), y) for x, y in BATCHES]
    found = gradinit(fgvar.Problem(Sum(), "cross_entropy", batches[0]), batches, steps=2)
    assert found["layer.weight"].shape == (2, 3)


def test_noise_before_and_after_as_a_user_would_ask() -> None:
    """FG-W loses d + 1 from any initialisation."""
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", BATCHES[0])
    params = gradinit(problem, BATCHES, eta=0.1, gamma=1.0, steps=20)
    rows = {"FG-A": fgvar.scheme("FG-A"), "FG-W": fgvar.scheme("FG-W")}
    seen = []
    for at in (problem, problem.at(params)):
        ds = fgvar.measure(rows, at, route="exact")
        relative = ds["data_variance"] / ds["gradient_norm"] ** 2
        seen.append(relative.sel(estimator="FG-A", reference="target", layer="total").item())
        whole = ds["relative_variance"].sel(estimator="FG-W", layer="total")
        assert whole.item() == pytest.approx(sum(p.numel() for p in params.values()) + 1, rel=1e-9)
    assert seen[0] != seen[1]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"problem": nn.Linear(3, 2)},
            TypeError,
            r"problem is Linear, expected fgvar\.Problem",
        ),
        ({"batches": []}, ValueError, r"batches are none, expected at least one pair \(inputs, targets\)"),
        ({"batches": [randn(6, 3)]}, TypeError, "batch is Tensor, expected a pair"),
        ({"eta": 0.0}, ValueError, "eta is 0.0, expected a positive number"),
        ({"gamma": -1.0}, ValueError, "gamma is -1.0, expected a positive number"),
        ({"lr": "fast"}, TypeError, "lr is 'fast', expected a positive number"),
        ({"steps": -1}, ValueError, "steps is -1, expected a non-negative integer"),
        ({"rule": "rmsprop"}, ValueError, "rmsprop.*sgd"),
    ],
)
def test_what_cannot_be_used_is_refused(change: dict, error: type[Exception], message: str) -> None:
    given = {"problem": mlp(), "batches": BATCHES} | change
    with pytest.raises(error, match=message):
        gradinit(given.pop("problem"), given.pop("batches"), **given)


def test_a_norm_that_is_no_number_is_told() -> None:
    huge = [(1e200 * x, y) for x, y in BATCHES]
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2)).double()
    problem = fgvar.Problem(net, lambda out, y: out.square().sum(1) + 0 * y, BATCHES[0])
    with pytest.raises(fgvar.NonFiniteError, match="the gradient's norm is nan in step 0 of gradinit"):
        gradinit(problem, huge)


def test_batch_norm_in_train_mode_stays_refused() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="BatchNorm1d"):
        fgvar.Problem(net, "cross_entropy", BATCHES[0])
