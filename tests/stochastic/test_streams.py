"""Streams: momentum, Adam and error feedback against plain loops, their closed forms, and torch's own."""

import itertools
import math

import pytest
import torch
from cases import linear, randn
from torch import Tensor, nn

import fgvar
from fgvar import points, sampling, streams, theory, transforms
from fgvar.estimators.randomness import Randomness
from fgvar.stochastic.transforms import Gradient, Transform
from fgvar.testing import check_estimator, covariance, default_problems, expectation
from fgvar.testing.mutants.broken_streams import AliasedDiffGrad

ONE = fgvar.Stochastic(sample=sampling.Draw(1))
GRADIENTS = [{"w": 10.0**-t * randn(3, seed=t), "b": randn(2, 2, seed=90 + t)} for t in range(12)]


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.detach().double().flatten() for g in gradient.values()])


def passed(through, gradients: list[Gradient] = GRADIENTS) -> list[Gradient]:
    """All outputs of an optimiser."""
    state, found = through.start(gradients[0]), []
    for gradient in gradients:
        output, state = through(gradient, state)
        found.append(output)
    return found


def assert_equal(found: Gradient, expected: Gradient, tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=tolerance, atol=tolerance)


# ---- momentum ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("beta", [0.0, 0.5, 0.9])
def test_momentum_is_the_decaying_mean(beta: float) -> None:
    for count, output in enumerate(passed(streams.Momentum(beta)), start=1):
        weights = [beta**k for k in range(count)]
        for name, found in output.items():
            terms = [w * GRADIENTS[count - 1 - k][name] for k, w in enumerate(weights)]
            torch.testing.assert_close(found, sum(terms) / sum(weights), rtol=1e-12, atol=1e-14)
        gain = sum(w**2 for w in weights) / sum(weights) ** 2
        assert streams.Momentum(beta).gain(count) == pytest.approx(gain, rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_momentum_at_rest_has_its_closed_form(beta: float, steps: int) -> None:
    problem = linear().rows(slice(0, 3))
    history = fgvar.History(ONE, streams.Momentum(beta), steps)
    mean, exact = (flat(expectation(e, problem, method="support")) for e in (history, ONE))
    torch.testing.assert_close(mean, exact, rtol=0, atol=1e-12)
    of, found = (covariance(e, problem, method="support") for e in (ONE, history))
    factor = (1 - beta) * (1 + beta**steps) / ((1 + beta) * (1 - beta**steps))
    for name, value in of.items():
        torch.testing.assert_close(found[name], factor * value, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "of", [ONE, fgvar.scheme("FG-W"), fgvar.Stochastic(of=fgvar.scheme("FG-A"), sample=ONE.sample)]
)
def test_theory_knows_momentum_at_rest(of: fgvar.GradientEstimator) -> None:
    problem, steps = linear(), 4
    history = fgvar.History(of, streams.Momentum(0.5), steps)
    assert_equal(theory.mean(history, problem), problem.backprop(), 1e-9)
    one, gain = theory.variance(of, problem), streams.Momentum(0.5).gain(steps)
    assert_equal(theory.variance(history, problem), {name: gain * v for name, v in one.items()})
    rows = fgvar.measure({"rest": history, "one": of}, problem, route="exact")["variance"].sel(layer="total")
    assert float(rows.sel(estimator="rest") / rows.sel(estimator="one")) == pytest.approx(gain, rel=1e-9)


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (fgvar.History(ONE, streams.Momentum(), 2, lr=0.1), r"those of a path \(lr is not 0\)"),
        (fgvar.History(ONE, streams.Adam(), 2), r"Adam\(.*\) does not keep the mean, or does not say"),
        (fgvar.History(ONE, streams.ErrorFeedback(transforms.RandomK(2)), 2), "does not say what it leaves"),
        (
            fgvar.History(fgvar.scheme("FG-W", space=fgvar.WeightSpace(per_tensor=True)), streams.Momentum(), 2),
            "one tensor",
        ),
    ],
)
def test_theory_says_why_a_stream_has_no_closed_form(history: fgvar.History, reason: str) -> None:
    with pytest.raises(ValueError, match=f"no closed form: .*{reason}"):
        theory.variance(history, linear())


def test_momentum_along_a_path_lags_by_the_age_of_its_gradients() -> None:
    problem, beta, steps = linear(), 0.9, 40
    weights = [beta**k for k in range(steps)]
    age = sum(k * w for k, w in enumerate(weights)) / sum(weights)
    assert age == pytest.approx(8.4, abs=0.05)
    g, left = flat(problem.backprop()), []
    curved = flat(torch.func.jvp(torch.func.grad(problem.loss), (dict(problem.params),), (problem.backprop(),))[1])
    for lr in (1e-3, 5e-4):
        found = flat(
            fgvar.History(fgvar.ExactGradient(), streams.Momentum(beta), steps, lr).estimate(problem, {}).gradient
        )
        # The last gradient is at the end of a path of steps − 1 moves, and the mean of age steps before.
        left.append(float((found - g + lr * (steps - 1 - age) * curved).norm()))
    assert left[0] / left[1] == pytest.approx(4, rel=0.05)


def test_without_momentum_a_path_is_local_sgd() -> None:
    problem, lr, numbers = linear(), 0.1, torch.tensor([[1], [3], [0]])
    found = fgvar.History(ONE, streams.Momentum(0.0), 3, lr).estimate(problem, {"sample": numbers}).gradient
    params = dict(problem.params)
    for number in (1, 3):
        own = problem.at(params).example(number).backprop()
        params = {name: p - lr * own[name] for name, p in params.items()}
    assert_equal(found, problem.at(params).example(0).backprop())


# ---- Adam --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("amsgrad", [False, True])
def test_adam_is_torch_s(amsgrad: bool) -> None:
    weights = {name: nn.Parameter(torch.zeros_like(g)) for name, g in GRADIENTS[0].items()}
    theirs = torch.optim.Adam(weights.values(), lr=1.0, betas=(0.8, 0.9), eps=1e-3, amsgrad=amsgrad)
    for gradient, output in zip(GRADIENTS, passed(streams.Adam(0.8, 0.9, 1e-3, amsgrad=amsgrad)), strict=True):
        for name, p in weights.items():
            p.data.zero_()  # so that no digit of the step is lost to where it starts
            p.grad = gradient[name].clone()
        theirs.step()
        assert_equal(output, {name: -p.detach() for name, p in weights.items()}, 1e-12)


def test_amsgrad_differs() -> None:
    plain, largest = (passed(streams.Adam(0.8, 0.9, amsgrad=amsgrad))[-1] for amsgrad in (False, True))
    assert not torch.allclose(plain["w"], largest["w"], rtol=0.1)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adam_of_one_gradient_is_its_sign(beta1: float) -> None:
    given = {"w": torch.tensor([3.0, -1e-3, 0.0]).double()}
    found = passed(streams.Adam(beta1, eps=1e-15), [given])[0]["w"]
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 0.0]).double(), rtol=0, atol=1e-9)


def test_diffgrad_is_a_plain_loop() -> None:
    """diffGrad.py, version 2, without its step size."""
    first = second = previous = torch.zeros(3).double()
    outputs = passed(streams.Adam(0.8, 0.9, 1e-3, factor=streams.DiffGrad()))
    for count, (gradient, output) in enumerate(zip(GRADIENTS, outputs, strict=True), start=1):
        g = gradient["w"]
        first, second = 0.8 * first + 0.2 * g, 0.9 * second + 0.1 * g**2
        factor = 1 / (1 + torch.exp(-(previous - g).abs()))
        expected = factor * first / (1 - 0.8**count) / ((second / (1 - 0.9**count)).sqrt() + 1e-3)
        torch.testing.assert_close(output["w"], expected, rtol=1e-12, atol=1e-14)
        previous = g


def test_an_aliased_previous_gradient_is_half_of_adam() -> None:
    aliased, adam = (passed(streams.Adam(factor=factor)) for factor in (AliasedDiffGrad(), None))
    for half, whole in zip(aliased, adam, strict=True):
        assert_equal(half, {name: g / 2 for name, g in whole.items()}, 0.0)


# ---- error feedback ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compress", [transforms.TopK(2), transforms.RandomK(0.3), transforms.Quantise(2)])
def test_what_feedback_leaves_out_comes_later(compress: Transform) -> None:
    problem, feedback, steps = linear(), streams.ErrorFeedback(compress), 12
    noise = Randomness(feedback.leaves(problem)).sample(0, range(steps), dtype=torch.float64)
    gradients = [{n: 10.0**-t * randn(*p.shape, seed=t) for n, p in problem.params.items()} for t in range(steps)]
    state, outputs = feedback.start(gradients[0]), []
    for step, gradient in enumerate(gradients):
        output, state = feedback.on(problem, {name: u[step] for name, u in noise.items()})(gradient, state)
        outputs.append(output)
    for name, left in state.items():
        total = sum(output[name] for output in outputs) + left
        torch.testing.assert_close(total, sum(g[name] for g in gradients), rtol=0, atol=9e-14)
    assert max(float(left.abs().max()) for left in state.values()) > 0


def test_feedback_s_noise_is_a_leaf_beside_those_of_the_estimator() -> None:
    problem, keep = linear(), transforms.RandomK(2)
    history = fgvar.History(ONE, streams.ErrorFeedback(keep), 2)
    assert {name: leaf.shape for name, leaf in history.randomness(problem).leaves.items()} == {
        "sample": (2, 1),
        "through": (2, 2),
    }
    noise = {"sample": torch.tensor([[1], [3]]), "through": torch.tensor([[0, 7], [5, 0]])}
    first, last = (problem.example(number).backprop() for number in (1, 3))
    sent = keep(first, problem, {"": noise["through"][0]})
    owed = {name: last[name] + first[name] - sent[name] for name in last}
    expected = keep(owed, problem, {"": noise["through"][1]})
    assert_equal(history.estimate(problem, noise).gradient, expected)


def test_feedback_says_what_biases_it() -> None:
    assert streams.ErrorFeedback(transforms.RandomK(2)).bias_reason == ""
    found = streams.ErrorFeedback(transforms.TopK(2)).bias_reason
    assert found == "small entries are left out, its errors later"


def test_feedback_needs_tensors_like_the_gradient_s() -> None:
    history = fgvar.History(ONE, streams.ErrorFeedback(transforms.Carriers(1)), 2)
    with pytest.raises(ValueError, match=r"Carriers\(.*\) returns .*, expected tensors like the gradient's"):
        history.randomness(linear())


# ---- histories ---------------------------------------------------------------------------------------------------


class Through(nn.Module):
    """A network with parameters that are called like the leaves of optimisers."""

    def __init__(self) -> None:
        super().__init__()
        self.through, self.of = nn.Parameter(randn(3)), nn.Parameter(randn(3, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.through).sin() * self.of


def test_parameters_called_like_optimisers_keep_their_noise() -> None:
    problem = fgvar.Problem(Through(), "mse", (randn(2, 3), randn(2, 3, seed=1)))
    rounding = transforms.Quantise(2)  # whose noise is called like the parameters
    history = fgvar.History(fgvar.scheme("FG-W"), streams.ErrorFeedback(rounding), 1)
    names = ["of.through", "of.of", "through.through", "through.of"]
    assert list(history.randomness(problem).leaves) == names
    noise = {name: randn(1, 3, seed=index).clamp(-1, 1) for index, name in enumerate(names)}
    of, own = ({name: noise[f"{word}.{name}"][0] for name in problem.params} for word in ("of", "through"))
    expected = rounding(fgvar.scheme("FG-W").estimate(problem, of).gradient, problem, own)
    assert_equal(history.estimate(problem, noise).gradient, expected)


def test_a_stream_without_noise_has_one_estimate() -> None:
    problem = linear()
    history = fgvar.History(fgvar.ExactGradient(), streams.Momentum(), 3)
    assert history.randomness(problem).size == 0
    assert_equal(history.estimate(problem, {}).gradient, problem.backprop())
    assert_equal(history.target(problem), problem.backprop())


def test_a_stream_of_a_stream_is_one() -> None:
    problem = linear().rows(slice(0, 2))
    inner = fgvar.History(ONE, streams.Momentum(0.5), 2)
    mean = expectation(fgvar.History(inner, streams.Momentum(0.5), 2), problem, method="support")
    assert_equal(mean, problem.backprop())


def test_points_and_probabilities_go_along_a_path() -> None:
    """The gradient ahead of where the path is, by a plain loop over all draws."""
    problem, lr, step = linear().rows(slice(0, 2)), 0.2, 0.3
    ahead = fgvar.Stochastic(at=points.Ahead(by=ONE, step=step), sample=sampling.Draw(1))
    found = expectation(fgvar.History(ahead, streams.Momentum(0.5), 2, lr), problem, method="support")

    def taken(here: fgvar.Problem, by: int, of: int) -> Gradient:
        z = here.example(by).backprop()
        return here.at({n: p - step * z[n] for n, p in here.params.items()}).example(of).backprop()

    total = torch.zeros(8).double()
    for first, second, third, fourth in itertools.product(range(2), repeat=4):
        one = taken(problem, first, second)
        two = taken(problem.at({n: p - lr * one[n] for n, p in problem.params.items()}), third, fourth)
        total += (0.5 * flat(one) + flat(two)) / 1.5 / 16
    torch.testing.assert_close(flat(found), total, rtol=0, atol=1e-12)


def test_every_check_that_fits_passes_and_it_is_measured() -> None:
    history = fgvar.History(fgvar.scheme("FG-W"), streams.Momentum(0.9), 3)
    report = check_estimator(history, {"linear": default_problems()["linear"]})
    assert report.passed, report
    passing = {row.check for row in report.rows if row.outcome == "passed"}
    assert {"structure", "unbiased", "scale", "repr", "stream", "batch_order", "linear_in_loss"} <= passing
    of = {
        "momentum": history,
        "Adam": fgvar.History(fgvar.scheme("FG-A"), streams.Adam(factor=streams.DiffGrad()), 2),
    }
    assert math.isfinite(float(fgvar.measure(of, linear(), draws=8)["cosine"].sum()))


def test_what_biases_a_stream_is_said() -> None:
    rest = fgvar.History(ONE, streams.Momentum(), 3)
    assert rest.bias_reason == ""
    assert fgvar.History(ONE, streams.Momentum(), 3, lr=0.1).bias_reason == "gradients along a path"
    assert fgvar.History(ONE, streams.Momentum(), 1, lr=0.1).bias_reason == ""
    ahead = fgvar.Stochastic(at=points.Ahead(by=ONE, step=0.1))
    assert fgvar.History(ahead, streams.Adam(), 1).bias_reason == (
        "taken ahead of the parameters, of order step^1; divided by the root of its mean square"
    )


@pytest.mark.parametrize(
    ("word", "error", "message"),
    [
        (lambda: streams.Momentum(1.0), ValueError, r"beta is 1.0, expected a decay from 0 on and below 1"),
        (lambda: streams.Adam(beta2=-0.1), ValueError, r"beta2 is -0.1, expected a decay"),
        (lambda: streams.Adam(eps=0.0), ValueError, r"eps is 0.0, expected a positive number"),
        (
            lambda: streams.ErrorFeedback(transforms.TopK),
            TypeError,
            "compress is the class TopK, expected an instance",
        ),
        (
            lambda: streams.ErrorFeedback(len),
            TypeError,
            "compress is <built-in function len> without leaves, expected one like fgvar.transforms.TopK",
        ),
        (lambda: fgvar.History("BP", streams.Momentum(), 2), TypeError, "'of' is the text 'BP'"),
        (
            lambda: fgvar.History(ONE, streams.Momentum, 2),
            TypeError,
            "through is the class Momentum, expected an instance",
        ),
        (
            lambda: fgvar.History(ONE, streams.Momentum(), 0),
            ValueError,
            "steps is 0, expected an integer of at least 1",
        ),
        (lambda: fgvar.History(ONE, streams.Momentum(), 2, "slow"), TypeError, "lr is 'slow', expected a number"),
    ],
)
def test_a_stream_refuses_what_is_no_word(word, error, message: str) -> None:
    with pytest.raises(error, match=message):
        word()
