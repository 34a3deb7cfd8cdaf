"""Weights of the examples: sliced with the batch wherever it is, by every route to every number."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cases import labels, mixer, randn
from nets import fixed
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.errors import NonFiniteError
from fgvar.measurement.data_variance import DataVariance
from fgvar.testing import covariance, expectation

W = torch.tensor([0.25, 3.0, 1.0, 0.5], dtype=torch.float64)
INDEPENDENT = {"shared": False}
SCHEMES = {
    "FG-W": fgvar.scheme("FG-W"),
    "FG-W, independent": fgvar.scheme("FG-W", **INDEPENDENT),
    "FG-A": fgvar.scheme("FG-A"),
    "FG-A, shared": fgvar.scheme("FG-A", shared=True),
}
LOCAL = {
    "LG-FG-A": fgvar.scheme("LG-FG-A"),
    "LG-FG-W": fgvar.scheme("LG-FG-W"),
    "LG-FG-W, independent": fgvar.scheme("LG-FG-W", **INDEPENDENT),
}


def plain() -> fgvar.Problem:
    net = fgvar.with_sites(fixed(nn.Linear(3, 2)))
    return fgvar.Problem(net, "mse", (randn(4, 3), randn(4, 2, seed=1)))


def linear() -> fgvar.Problem:
    return plain().weighted(W)


def local() -> fgvar.Problem:
    return mixer(blocks=1, batch=2).weighted(W[:2])


def by_hand() -> list[Tensor]:
    """Gradients of w_n ℓ_n by the weight and bias of `linear`, one example at a time, by autograd."""
    problem = plain()
    found = []
    for x, y, w in zip(problem.inputs, problem.targets, W, strict=True):
        theta = [problem.params[name].clone().requires_grad_() for name in ("weight", "bias")]
        (w * (functional.linear(x, *theta) - y).square().mean()).backward()
        found.append(torch.cat([p.grad.flatten() for p in theta]))
    return found


def noise_of(estimator: fgvar.Estimator, problem: fgvar.Problem) -> dict[str, Tensor]:
    sampled = estimator.randomness(problem).sample(0, [3], dtype=problem.dtype)
    return {name: u[0] for name, u in sampled.items()}


def assert_close(found: dict[str, Tensor], expected: dict[str, Tensor], atol: float = 1e-12) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


# ---- the problem -------------------------------------------------------------------------------------------


def test_loss_and_gradient_are_weighted_means() -> None:
    problem = linear()
    outputs = functional.linear(problem.inputs, problem.params["weight"], problem.params["bias"])
    losses = (outputs - problem.targets).square().mean(1)
    torch.testing.assert_close(problem.loss(), (W * losses).mean())
    found = problem.backprop()
    torch.testing.assert_close(torch.cat([g.flatten() for g in found.values()]), torch.stack(by_hand()).mean(0))


@pytest.mark.parametrize("which", [slice(1, 3), slice(None, None, 2), torch.tensor([3, 0, 3]), W > 0.4])
def test_rows_take_their_weights_along(which: slice | Tensor) -> None:
    problem, part = linear(), linear().rows(which)
    assert torch.equal(part.inputs, problem.inputs[which])
    assert torch.equal(part.targets, problem.targets[which])
    assert torch.equal(part.weights, W[which])
    expected = torch.stack(by_hand())[which].mean(0)
    torch.testing.assert_close(torch.cat([g.flatten() for g in part.backprop().values()]), expected)


def test_an_example_has_its_own_weight() -> None:
    problem = linear()
    each = [torch.cat([g.flatten() for g in problem.example(n).backprop().values()]) for n in range(4)]
    torch.testing.assert_close(torch.stack(each), torch.stack(by_hand()))
    assert torch.equal(problem.example(-1).weights, W[3:])
    at_once = problem.per_example(lambda one: one.backprop())
    torch.testing.assert_close(torch.cat([g.flatten(1) for g in at_once.values()], 1), torch.stack(by_hand()))


def test_what_is_given_beside_is_taken_example_by_example() -> None:
    problem = linear()
    found = problem.per_example(lambda one, factor, more: (factor * one.loss(), more["x"]), W, {"x": problem.inputs})
    expected = torch.stack([W[n] * problem.example(n).loss() for n in range(4)])
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(found[1], problem.inputs)


def test_weights_belong_to_their_batch() -> None:
    problem = linear()
    other = problem.at(batch=(problem.inputs[:2], problem.targets[:2]))
    assert other.weights is None
    assert torch.equal(other.loss(), plain().rows(slice(2)).loss())
    doubled = {name: 2 * p for name, p in problem.params.items()}
    assert problem.at(doubled).weights is problem.weights
    assert torch.equal(other.weighted(W[:2]).loss(), problem.rows(slice(2)).loss())


def test_weights_multiply_and_keep_the_precision() -> None:
    problem = linear().weighted(2 * W)
    torch.testing.assert_close(problem.weights, 2 * W**2)
    assert problem.to(torch.float32).weights.dtype == problem.to(torch.float32).loss().dtype == torch.float32
    ones = plain().weighted(torch.ones(4, dtype=torch.float64))
    assert torch.equal(ones.loss(), plain().loss())


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ([1.0] * 4, TypeError, r"weights is list, expected a tensor of one number an example, \(4,\)"),
        (torch.ones(3).double(), ValueError, r"weights have shape \(3,\), expected one number an example, \(4,\)"),
        (torch.ones(4, 1).double(), ValueError, r"weights have shape \(4, 1\), expected one number"),
        (torch.ones(4), ValueError, r"weights are torch.float32 on cpu, the problem is torch.float64.*weights\.to\("),
        (torch.ones(4).double().to("meta"), ValueError, r"on meta, the problem is torch.float64 on cpu"),
        (torch.ones(4).double().requires_grad_(), ValueError, r"weights require a gradient.*weights\.detach\(\)"),
        (torch.tensor([1.0, 1.0, torch.nan, 1.0]).double(), NonFiniteError, "weights holds NaN or infinity"),
    ],
)
def test_other_weights_are_refused(weights: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        plain().weighted(weights)


@pytest.mark.parametrize(
    ("which", "error", "message"),
    [
        (2, TypeError, r"rows are 2, expected a slice or a tensor"),
        ([0, 1], TypeError, r"rows are \[0, 1\], expected a slice or a tensor"),
        (torch.tensor(1), TypeError, r"rows are tensor\(1\), expected a slice or a tensor \[rows\]"),
        (slice(4, 9), ValueError, r"rows slice\(4, 9, None\) are none of the batch of 4"),
    ],
)
def test_other_rows_are_refused(which: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        linear().rows(which)


@pytest.mark.parametrize("index", [4, -5])
def test_there_are_as_many_examples_as_there_are(index: int) -> None:
    with pytest.raises(IndexError, match=f"example {index} of a batch of 4"):
        linear().example(index)


# ---- data variance -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_data_variance_is_that_of_a_loop(chunk: int) -> None:
    """tr Cov(w_n ∇ℓ_n)/N; with weights unsliced it is another number."""
    weighted, each = linear(), torch.stack(by_hand())
    expected = float(each.var(0).sum() / 4)
    _, backprop = DataVariance(weighted, chunk).of(fgvar.scheme("FG-W")).value
    np.testing.assert_allclose(backprop[-1], expected, rtol=1e-12)
    assert abs(expected / float(DataVariance(plain(), chunk).of(fgvar.scheme("FG-W")).value[1, -1]) - 1) > 0.1


def test_data_variance_by_hand() -> None:
    """One parameter θ = 1 and targets 0: w x² has the gradients 2 w x², here 2, 4, 24."""
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(net.weight)
    x, w = torch.tensor([[1.0], [2.0], [2.0]]).double(), torch.tensor([1.0, 0.5, 3.0]).double()
    problem = fgvar.Problem(net, "mse", (x, 0 * x)).weighted(w)
    ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, route="exact")
    assert float(ds["loss"]) == pytest.approx(5)
    assert float(ds["data_variance"].sel(reference="backprop", layer="total").squeeze()) == pytest.approx(148 / 3)


# ---- estimators, by both routes ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*SCHEMES, *LOCAL])
def test_unbiased_and_of_the_variance_in_closed_form(name: str) -> None:
    """Enumerated mean = target, enumerated covariance = closed form: slope 1 where it was 0.31."""
    estimator = {**SCHEMES, **LOCAL}[name]
    problem = local() if name in LOCAL else linear()
    assert_close(expectation(estimator, problem), estimator.target(problem), atol=1e-9)
    exact = fgvar.theory.variance(estimator, problem)
    for key, enumerated in covariance(estimator, problem).items():
        size = max(float(enumerated.diagonal().max()), 1e-6)
        torch.testing.assert_close(exact[key].flatten(), enumerated.diagonal(), rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("route", ["exact", "drawn"])
@pytest.mark.parametrize("name", ["FG-W", "FG-W, independent", "FG-A"])
def test_the_slope_is_one_by_both_routes(name: str, route: str) -> None:
    """Drawn: 5.5 standard errors of 2,048 draws, three estimators: a false alarm in 10⁷; 0.31 would be seen."""
    ds = fgvar.measure({name: SCHEMES[name]}, linear(), draws=2048, route=route).sel(
        layer="total", reference="target"
    )
    off, error = abs(float(ds["slope"].squeeze()) - 1), float(ds["slope_se"].squeeze())
    assert off <= 5.5 * error + 1e-9
    assert 5.5 * error < 0.5


@pytest.mark.parametrize("name", ["FG-W, independent", "FG-A"])
def test_both_routes_tell_one_variance(name: str) -> None:
    """5.5 standard errors of 2,048 draws, two estimators: a false alarm in 10⁷."""
    words = {"draws": 2048, "seed": 1}
    one, other = (fgvar.measure({name: SCHEMES[name]}, linear(), route=r, **words) for r in ("exact", "drawn"))
    one, other = (ds.sel(layer="total").isel(estimator=0) for ds in (one, other))
    assert abs(float(one["variance"]) - float(other["variance"])) < 5.5 * float(other["variance_se"])
    assert float(one["data_variance"][0]) == pytest.approx(float(other["data_variance"][0]))


@pytest.mark.parametrize("name", [*SCHEMES, "LG-FG-A", "LG-FG-W"])
def test_replay_repeats_it(name: str) -> None:
    estimator = {**SCHEMES, **LOCAL}[name]
    problem = local() if name in LOCAL else linear()
    replayed = replace(estimator, oracle=fgvar.oracles.Replay())
    noise = noise_of(estimator, problem)
    assert_close(replayed.estimate(problem, noise).gradient, estimator.estimate(problem, noise).gradient)


@pytest.mark.parametrize("name", list(SCHEMES))
def test_no_chunk_changes_it(name: str) -> None:
    ds = [fgvar.measure({name: SCHEMES[name]}, linear(), draws=40, chunk=chunk) for chunk in (1, 16)]
    for variable in ("variance", "slope", "data_variance", "cosine"):
        np.testing.assert_allclose(ds[0][variable], ds[1][variable], rtol=1e-9, atol=1e-12)


def test_paired_differences_are_of_the_weighted_problem() -> None:
    estimators = {"FG-W": SCHEMES["FG-W"], "again": SCHEMES["FG-W"], "independent": SCHEMES["FG-W, independent"]}
    ds = fgvar.measure(estimators, linear(), draws=64, paired=True).sel(layer="total", reference="target")
    assert float(ds["slope_difference"].sel(estimator="again")) == 0
    apart = float(ds["slope"].sel(estimator="independent") - ds["slope"].sel(estimator="FG-W"))
    assert float(ds["slope_difference"].sel(estimator="independent")) == pytest.approx(apart)


@pytest.mark.parametrize("name", ["BP", "LG-BP", "L-BP", "FA", "DFA", "LG-FG-A"])
def test_the_mean_over_examples_of_any_gradient_is_that_of_the_batch(name: str) -> None:
    """What is linear in the loss is the mean of the weighted examples' own."""
    problem, estimator = mixer(batch=4).weighted(W), fgvar.scheme(name)
    randomness = estimator.randomness(problem)
    noise = noise_of(estimator, problem) if randomness.size else {}

    def own(n: int) -> dict[str, Tensor]:
        return estimator.estimate(problem.example(n), {key: u[n : n + 1] for key, u in noise.items()}).gradient

    each = [own(n) for n in range(4)]
    mean = {key: torch.stack([one[key] for one in each]).mean(0) for key in each[0]}
    assert_close(mean, estimator.estimate(problem, noise).gradient)


def test_a_minibatch_of_weighted_examples() -> None:
    """Example n is drawn by a coordinate: the estimate is the gradient of w_n ℓ_n."""
    problem = linear()
    for n in range(4):
        noise = {"minibatch": 2 * torch.eye(4, dtype=torch.float64)[n : n + 1]}
        assert_close(fgvar.controls.Minibatch(1).estimate(problem, noise).gradient, problem.example(n).backprop())


# ---- contrastive problems ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", [True, False])
def test_weights_of_queries(stop: bool) -> None:
    net = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=1, patches=2, channels=8, groups=2).double()
    views = randn(3, 1, 4, 4, seed=1), randn(3, 1, 4, 4, seed=2)
    even = fgvar.contrastive.Contrastive(net, fgvar.contrastive.InfoNCE(stop_gradient=stop), views)
    w = torch.arange(1.0, even.batch_size + 1).double()
    problem = even.weighted(w)
    torch.testing.assert_close(problem.loss(), (w * even.losses(even.run(even.params)[0])).mean())
    assert problem.at(problem.params, views).weights is None
    for name in ("FG-W", "FG-A", "LG-FG-A"):
        estimator = fgvar.scheme(name)
        assert_close(expectation(estimator, problem), estimator.target(problem), atol=1e-9)
    if stop:
        each = problem.per_example(lambda one: one.backprop())
        assert_close({name: g.mean(0) for name, g in each.items()}, problem.backprop())
    else:
        with pytest.raises(ValueError, match="none has a problem of its own"):
            problem.rows(slice(2))


def test_cross_entropy_of_weighted_classes() -> None:
    """Class weights w_y, divided by N: torch's own sum over the batch."""
    net, x, y = nn.Linear(3, 3).double(), randn(5, 3), labels(5, 3)
    classes = torch.tensor([0.5, 1.0, 4.0]).double()
    problem = fgvar.Problem(net, "cross_entropy", (x, y)).weighted(classes[y])
    expected = functional.cross_entropy(net(x), y, weight=classes, reduction="sum") / 5
    torch.testing.assert_close(problem.loss(), expected.detach())
