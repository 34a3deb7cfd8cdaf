"""Feedback alignment and its direct form, against loops by hand."""

import pytest
import torch
from cases import CASES, labels, mixer, randn
from torch import Tensor, nn

import fgvar
from fgvar.estimators.guesses import drawn


def estimate(estimator, problem: fgvar.Problem) -> dict[str, Tensor]:
    assert estimator.randomness(problem).size == 0
    return estimator.estimate(problem, {}).gradient


def conv() -> fgvar.Problem:
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, groups=1), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.Tanh(),
        nn.Flatten(), nn.Linear(16, 3),
    ).double()  # fmt: skip
    return fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(3, 1, 6, 6), labels(3, 3)))


def attention() -> fgvar.Problem:
    layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.0, batch_first=True)
    net = nn.Sequential(nn.Linear(2, 4), layer, nn.Flatten(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p.copy_(0.5 * randn(*p.shape, seed=index) + (p if p.ndim == 1 else 0))
    return fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(3, 2, 2), labels(3, 3)))


def by_hand(problem: fgvar.Problem, seed: int) -> dict[str, Tensor]:
    """Feedback alignment of the MLP of `cases`, layer by layer."""
    p, n = problem.params, problem.batch_size
    back = {name: drawn(problem, name, seed) for name in ("layer1.weight", "readout.linear.weight")}
    z0 = problem.inputs @ p["layer0.weight"].T + p["layer0.bias"]
    z1 = z0.relu() @ p["layer1.weight"].T + p["layer1.bias"]
    logits = z1.relu() @ p["readout.linear.weight"].T + p["readout.linear.bias"]
    error = (logits.softmax(1) - nn.functional.one_hot(problem.targets, 3)) / n
    d1 = (error @ back["readout.linear.weight"]) * (z1 > 0)
    d0 = (d1 @ back["layer1.weight"]) * (z0 > 0)
    found = {}
    for name, delta, inputs in (
        ("layer0", d0, problem.inputs), ("layer1", d1, z0.relu()), ("readout.linear", error, z1.relu())
    ):  # fmt: skip
        found |= {f"{name}.weight": delta.T @ inputs, f"{name}.bias": delta.sum(0)}
    return found


@pytest.mark.parametrize("seed", [0, 1])
def test_feedback_alignment_is_what_its_papers_say(seed: int) -> None:
    problem = CASES["mlp_relu"]()
    found, expected = estimate(fgvar.scheme("FA", seed=seed), problem), by_hand(problem, seed)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-14, msg=lambda m, n=name: f"{n}: {m}")


def test_direct_feedback_is_what_its_paper_says() -> None:
    problem = CASES["mlp_relu"]()
    from fgvar.estimators.random_streams import Stream

    found = estimate(fgvar.scheme("DFA", seed=2), problem)
    values = problem.run(problem.params, watch=("site0", "site1", "act0"))
    error = values[0].softmax(1) - nn.functional.one_hot(problem.targets, 3)
    inputs = {"0": problem.inputs, "1": values[1]["act0"]}
    for index, x in inputs.items():
        back = Stream(2, f"feedback site{index}", 0).normal((3, 6), torch.float64, torch.device("cpu"))
        delta = (error @ back / 3**0.5) * (values[1][f"site{index}"] > 0)
        torch.testing.assert_close(found[f"layer{index}.weight"], delta.T @ x / 4, rtol=0, atol=1e-14)
    exact = problem.backprop()
    torch.testing.assert_close(found["readout.linear.weight"], exact["readout.linear.weight"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("build", [CASES["mlp_relu"], mixer, conv, attention, CASES["shared_weights"]])
def test_feedback_through_the_transposes_is_backpropagation(build) -> None:
    """With B = W in every module, on every kind of network, the way back is the true one."""
    problem = build()
    whole = {**problem.params, **{alias: problem.params[name] for alias, name in problem.network.aliases.items()}}
    weights = {
        owner: {
            path.removeprefix(f"{owner}."): value for path, value in whole.items() if path.startswith(f"{owner}.")
        }
        for owner in {path.rpartition(".")[0] for path in whole}
    }
    for name in ("BP", "L-BP", "LG-BP") if problem.trace.ends else ("BP",):
        exact = fgvar.scheme(name)
        found = exact.target(problem.with_feedback(weights))
        for key, value in exact.target(problem).items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-13, msg=lambda m, k=key: f"{k}: {m}")


@pytest.mark.parametrize("build", [mixer, conv, attention, CASES["mlp_relu"]])
@pytest.mark.parametrize("name", ["FA", "L-FA", "LG-FA", "DFA"])
def test_on_any_network_with_sites(build, name: str) -> None:
    """What nothing follows learns exactly; the loss is the same; another seed gives another gradient."""
    problem = build()
    if name in ("L-FA", "LG-FA") and not problem.trace.ends:
        with pytest.raises(ValueError, match="no local heads"):
            fgvar.scheme(name).randomness(problem)
        return
    estimator = fgvar.scheme(name)
    found, target = estimate(estimator, problem), estimator.target(problem)
    other = estimate(fgvar.scheme(name, seed=1), problem)
    for key in problem.network.exact:
        torch.testing.assert_close(found[key], target[key], rtol=0, atol=1e-14)
    assert all(bool(value.isfinite().all()) for value in found.values())
    first = problem.perturbed[0]
    assert float((found[first] - target[first]).abs().max()) > 1e-6
    assert not torch.equal(found[first], other[first])
    torch.testing.assert_close(estimate(estimator, problem)[first], found[first], rtol=0, atol=0)
    assert estimator.bias_reason
    ds = fgvar.measure({name: estimator}, problem, draws=2).sel(estimator=name)
    assert float(ds["variance"].sel(layer="total")) < 1e-12, "rounding at most"
    assert bool(ds["cosine"].sel(layer="perturbed").notnull().all())


def test_local_losses_stop_the_feedback() -> None:
    """LG-FA: no error from later blocks reaches a block; L-FA: it does."""
    problem = mixer(blocks=2)
    moved = problem.at({k: v + (0.5 if k.startswith("block1") else 0) for k, v in problem.params.items()})
    for name, reaches in (("LG-FA", False), ("L-FA", True)):
        one, other = estimate(fgvar.scheme(name), problem), estimate(fgvar.scheme(name), moved)
        same = all(torch.equal(one[k], other[k]) for k in problem.perturbed if k.startswith("block0"))
        assert same != reaches, name


def test_the_gradient_afterwards_is_as_before() -> None:
    """Feedback weights belong to the problem that has them, even where its pass failed."""
    problem = mixer()
    before = problem.backprop()
    with pytest.raises(RuntimeError):
        problem.with_feedback({"block0.channel": {"weight": torch.ones(3)}}).backprop()
    estimate(fgvar.scheme("FA"), problem)
    for name, value in problem.backprop().items():
        assert torch.equal(value, before[name]), name


def test_direct_feedback_compiles() -> None:
    """torch.compile traced the estimate in pieces around NumPy's draws, and failed inside of a transform."""
    problem = mixer(blocks=1, batch=3)
    estimator = fgvar.feedback.DirectFeedback()
    compiled = torch.compile(lambda params: estimator.estimate(problem.at(params), {}).gradient, backend="eager")
    found, expected = compiled(problem.params), estimator.estimate(problem, {}).gradient
    assert max(float((found[name] - expected[name]).abs().max()) for name in expected) < 1e-12
