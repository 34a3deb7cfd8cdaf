"""Weights of a loss, Σ w ℓ / Σ w: sliced with the batch wherever it is, by every route to every number."""

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

W = torch.tensor([0.25, 2.25, 1.0, 0.5], dtype=torch.float64)  # their mean is 1
RAW = 3 * W  # what the loss returns
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


def squares(outputs: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return (outputs - targets["y"]).square().mean(1), targets["w"]


def entropies(outputs: Tensor, targets: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return functional.cross_entropy(outputs, targets["y"], reduction="none"), targets["w"]


def linear() -> fgvar.Problem:
    net = fgvar.with_sites(fixed(nn.Linear(3, 2)))
    return fgvar.Problem(net, squares, (randn(4, 3), {"y": randn(4, 2, seed=1), "w": RAW}))


def local(batch: int = 2) -> fgvar.Problem:
    return mixer(blocks=1, batch=batch, loss=entropies, targets={"y": labels(batch, 3), "w": RAW[:batch]})


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
    losses = (outputs - problem.targets["y"]).square().mean(1)
    torch.testing.assert_close(problem.loss(), (RAW * losses).sum() / RAW.sum())
    found = problem.backprop()
    torch.testing.assert_close(torch.cat([g.flatten() for g in found.values()]), torch.stack(by_hand()).mean(0))


@pytest.mark.parametrize("which", [slice(1, 3), slice(None, None, 2), torch.tensor([3, 0, 3]), W > 0.4])
def test_rows_take_their_weights_along(which: slice | Tensor) -> None:
    problem, part = linear(), linear().rows(which)
    assert torch.equal(part.inputs, problem.inputs[which])
    assert torch.equal(part.targets["y"], problem.targets["y"][which])
    torch.testing.assert_close(part.weights, W[which])
    expected = torch.stack(by_hand())[which].mean(0)
    torch.testing.assert_close(torch.cat([g.flatten() for g in part.backprop().values()]), expected)


def test_an_example_has_its_own_weight() -> None:
    problem = linear()
    each = [torch.cat([g.flatten() for g in problem.example(n).backprop().values()]) for n in range(4)]
    torch.testing.assert_close(torch.stack(each), torch.stack(by_hand()))
    torch.testing.assert_close(problem.example(-1).weights, W[3:])
    at_once = problem.per_example(lambda one: one.backprop())
    torch.testing.assert_close(torch.cat([g.flatten(1) for g in at_once.values()], 1), torch.stack(by_hand()))


def test_what_is_given_beside_is_taken_example_by_example() -> None:
    problem = linear()
    found = problem.per_example(lambda one, factor, more: (factor * one.loss(), more["x"]), W, {"x": problem.inputs})
    expected = torch.stack([W[n] * problem.example(n).loss() for n in range(4)])
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(found[1], problem.inputs)


def test_weights_belong_to_their_batch() -> None:
    """Of another batch they are divided by its own sum, whether or not some of it is taken."""
    problem = linear()
    batch = problem.inputs[:2], {"y": problem.targets["y"][:2], "w": RAW[:2]}
    other, anew = problem.at(batch=batch), fgvar.Problem(fixed(nn.Linear(3, 2)), squares, batch)
    torch.testing.assert_close(other.loss(), anew.loss())
    torch.func.vmap(lambda w: w * other.example(0).loss())(RAW)
    assert other.weights is None  # nothing of a transform stays
    torch.testing.assert_close(other.rows(slice(1)).loss(), anew.rows(slice(1)).loss())
    torch.testing.assert_close(other.weights, anew.weights)  # computed once
    each = other.per_example(lambda one: one.backprop())
    assert_close({name: g.mean(0) for name, g in each.items()}, other.backprop())
    doubled = {name: 2 * p for name, p in problem.params.items()}
    assert problem.at(doubled).weights is problem.weights


def test_weights_keep_the_precision() -> None:
    single = linear().to(torch.float32)
    assert single.weights.dtype == single.targets["w"].dtype == single.loss().dtype == torch.float32


def test_equal_weights_are_none() -> None:
    ones = fgvar.Problem(
        fixed(nn.Linear(3, 2)), squares, (plain().inputs, {"y": plain().targets, "w": 7 * torch.ones(4)})
    )
    torch.testing.assert_close(ones.loss(), plain().loss())
    assert_close(ones.backprop(), plain().backprop())


def returning(weights: object) -> object:
    return lambda outputs, targets: ((outputs - targets).square().mean(1), weights)


SCALE = nn.Parameter(torch.ones(4).double())
CONSTANT = r"made of the targets alone; multiply the loss itself"


@pytest.mark.parametrize(
    ("loss", "error", "message"),
    [
        (returning([1.0] * 4), ValueError, r"weights are list, expected a tensor of one number an example, \(4,\)"),
        (returning(torch.ones(3)), ValueError, r"weights are \(3,\), expected a tensor of one number an example"),
        (returning(torch.ones(4, 1)), ValueError, r"weights are \(4, 1\), expected a tensor of one number"),
        (returning(SCALE), ValueError, rf"weights require a gradient; .*{CONSTANT}"),
        (returning(torch.tensor([1.0, torch.nan, 1, 1])), NonFiniteError, "weights holds NaN or infinity"),
        (
            returning(torch.tensor([1, -1, 2, 2])),
            ValueError,
            r"sum to 4 and their least is -1, expected none below 0",
        ),
        (returning(torch.zeros(4)), ValueError, r"sum to 0 and .*are all targets ignored"),
        (
            lambda o, t: ((o - t).square().mean(1), o.square().sum(1)),
            ValueError,
            rf"depend on .*{CONSTANT}",
        ),
        (lambda o, t: ((o - t).square().mean(1), o.detach().abs().sum(1)), ValueError, rf"depend on .*{CONSTANT}"),
        (lambda o, t: ((o - t).square().mean(1), 1 + o.argmax(1)), ValueError, rf"depend on .*{CONSTANT}"),
    ],
)
def test_other_weights_are_refused(loss: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        fgvar.Problem(fixed(nn.Linear(3, 2)), loss, (randn(4, 3), randn(4, 2, seed=1)))


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
    """One parameter θ = 1 and targets 0: w x² has the gradients 2 w x², here 4/3, 8/3, 16."""
    net = nn.Linear(1, 1, bias=False).double()
    nn.init.ones_(net.weight)
    x, w = torch.tensor([[1.0], [2.0], [2.0]]).double(), torch.tensor([2, 1, 6])  # 3w/Σw = 2/3, 1/3, 2
    problem = fgvar.Problem(net, squares, (x, {"y": 0 * x, "w": w}))
    ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, route="exact")
    assert float(ds["loss"]) == pytest.approx(30 / 9)
    assert float(ds["data_variance"].sel(reference="backprop", layer="total").squeeze()) == pytest.approx(592 / 27)


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
    problem, estimator = local(4), fgvar.scheme(name)
    randomness = estimator.randomness(problem)
    noise = noise_of(estimator, problem) if randomness.size else {}

    def own(n: int) -> dict[str, Tensor]:
        return estimator.estimate(problem.example(n), {key: u[n : n + 1] for key, u in noise.items()}).gradient

    each = [own(n) for n in range(4)]
    mean = {key: torch.stack([one[key] for one in each]).mean(0) for key in each[0]}
    assert_close(mean, estimator.estimate(problem, noise).gradient)


def test_a_minibatch_of_weighted_examples() -> None:
    """Where example n is drawn the estimate is the gradient of w_n ℓ_n."""
    problem = linear()
    for n in range(4):
        noise = {"sample": torch.tensor([n])}
        assert_close(fgvar.scheme("minibatch").estimate(problem, noise).gradient, problem.example(n).backprop())


def test_cross_entropy_of_weighted_classes() -> None:
    """Class weights w_y, divided by their sum: torch's own mean."""
    net, x, y = nn.Linear(3, 3).double(), randn(5, 3), labels(5, 3)
    classes = torch.tensor([0.5, 1.0, 4.0]).double()
    problem = fgvar.Problem(net, lambda o, t: entropies(o, {"y": t, "w": classes[t]}), (x, y))
    torch.testing.assert_close(problem.loss(), functional.cross_entropy(net(x), y, weight=classes).detach())
