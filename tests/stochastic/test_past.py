"""Past gradients: the last output of a stream and gradients that are kept, against plain loops and by enumeration."""

import itertools

import pytest
import torch
from cases import linear, mlp_relu, randn
from shaping import bowl, flat

import fgvar
from fgvar import points, sampling, streams
from fgvar.testing import CHECKS, check_estimator, expectation

ONE = fgvar.Stochastic(sample=sampling.Draw(1))
AHEAD = points.Ahead(by=points.Past(), step=0.2)


def stream(steps: int, lr: float, through: streams.Momentum | None = None, **words: object) -> fgvar.History:
    """Extrapolation from the past: g_t at θ_t − 0.2 g_{t−1}, by one example each."""
    of = fgvar.Stochastic(**{"at": AHEAD, "sample": sampling.Draw(1)} | words)
    return fgvar.History(of, through or streams.Momentum(0), steps=steps, lr=lr)


@pytest.mark.parametrize("lr", [0.0, 0.3])
def test_extrapolation_from_the_past_is_a_plain_loop(lr: float) -> None:
    """Draw for draw; and its mean over all draws."""
    problem, found = bowl(), []
    row = stream(3, lr)
    for drawn in itertools.product(range(5), repeat=3):
        here, z = problem.params, {name: 0 * p for name, p in problem.params.items()}
        for n in drawn:
            there = {name: p - 0.2 * z[name] for name, p in here.items()}
            z = problem.example(n).at(there).backprop()
            last, here = z, {name: p - lr * z[name] for name, p in here.items()}
        found.append(flat(last))
    noise = {"sample": torch.tensor([[3], [1], [4]])}
    own = flat(row.estimate(problem, noise).gradient)
    torch.testing.assert_close(own, found[3 * 25 + 1 * 5 + 4], rtol=0, atol=1e-12)
    mean = flat(expectation(row, problem, method="support"))
    torch.testing.assert_close(mean, torch.stack(found).mean(0), rtol=0, atol=1e-12)


def test_at_rest_the_second_step_has_the_law_of_a_fresh_minibatch() -> None:
    problem = bowl()
    fresh = fgvar.Stochastic(at=points.Ahead(by=ONE, step=0.2), sample=sampling.Draw(1))
    mean = flat(expectation(stream(2, 0.0), problem, method="support"))
    torch.testing.assert_close(mean, flat(expectation(fresh, problem, method="support")), rtol=0, atol=1e-12)
    assert float((mean - flat(problem.backprop())).norm()) > 1e-3
    first = stream(1, 0.0)  # no output yet
    torch.testing.assert_close(
        flat(expectation(first, problem, method="support")), flat(problem.backprop()), rtol=0, atol=1e-12
    )


def test_what_is_looked_ahead_along_is_the_optimiser_s_output() -> None:
    problem, row = bowl(), stream(3, 0.1, streams.Momentum(0.9))
    z, here, so_far = {k: 0 * p for k, p in problem.params.items()}, dict(problem.params), []
    for n in (2, 0, 1):
        there = {name: p - 0.2 * z[name] for name, p in here.items()}
        so_far.append(problem.example(n).at(there).backprop())
        weights = [0.9**k for k in range(len(so_far))][::-1]
        z = {k: sum(w * g[k] for w, g in zip(weights, so_far, strict=True)) / sum(weights) for k in z}
        here = {name: p - 0.1 * z[name] for name, p in here.items()}
    found = row.estimate(problem, {"sample": torch.tensor([[2], [0], [1]])}).gradient
    torch.testing.assert_close(flat(found), flat(z), rtol=0, atol=1e-12)


def test_nested_words_and_targets_are_told_the_last_output_and_inner_streams_keep_their_own() -> None:
    problem, noise = bowl(), {"sample": torch.tensor([[3], [1]])}
    of = stream(2, 0.1).of
    expected = flat(stream(2, 0.1).estimate(problem, noise).gradient)
    nested = fgvar.Stochastic(of=of)
    against = fgvar.Against(nested, fgvar.ExactGradient())
    for one in (nested, against):
        row = fgvar.History(one, streams.Momentum(0), steps=2, lr=0.1)
        (name,) = row.randomness(problem).leaves
        found = row.estimate(problem, {name: noise["sample"]}).gradient
        torch.testing.assert_close(flat(found), expected, rtol=0, atol=1e-12)
    inner = fgvar.History(stream(2, 0.1), streams.Momentum(0), steps=1)
    found = inner.estimate(problem, {"sample": noise["sample"][None]}).gradient
    torch.testing.assert_close(flat(found), expected, rtol=0, atol=1e-12)


def test_a_kept_gradient_biases_by_its_own_curvature_of_first_order() -> None:
    problem = bowl()
    z, g = problem.rows(slice(0, 2)).backprop(), flat(problem.backprop())
    curved = flat(torch.func.jvp(torch.func.grad(problem.loss), (problem.params,), (z,))[1])
    left = []
    for step in (0.02, 0.01):
        there = fgvar.Stochastic(at=points.Ahead(by=points.Kept(z), step=step), sample=sampling.Draw(1), workers=2)
        left.append(float((flat(expectation(there, problem, method="support")) - g + step * curved).norm()))
    assert left[0] / left[1] == pytest.approx(4, rel=0.05)


@pytest.mark.parametrize("lr", [0.0, 0.1])
def test_the_order_of_the_bias_by_the_past_is_1_along_a_path_too(lr: float) -> None:
    """Along a path there is another bias, from which the step's is told apart."""
    problem = fgvar.testing.default_problems()["linear"]
    row = CHECKS["bias_order"](stream(2, lr), {"linear": problem})[0]
    assert row.outcome == "passed"
    assert row.note.startswith("bias ~ step^1.0")
    by = points.Ahead(by=points.Kept(problem.backprop()), step=0.1)
    assert CHECKS["bias_order"](fgvar.Stochastic(at=by), {"linear": problem})[0].note.startswith("bias ~ step^1.0")


def test_the_order_is_found_beside_another_bias() -> None:
    clipped = fgvar.Stochastic(at=points.Ahead(by=ONE, step=0.1), then=(fgvar.transforms.Clip(0.1),))
    row = CHECKS["bias_order"](clipped, {"linear": fgvar.testing.default_problems()["linear"]})[0]
    assert (row.outcome, row.note[:14]) == ("passed", "bias ~ step^1.")


def test_checks_of_a_stream_that_recalls() -> None:
    problem = {"linear": fgvar.testing.default_problems()["linear"]}
    found = check_estimator(stream(2, 0.0), problem)
    assert set(found.failures) <= {"unbiased", "scale", "linear_in_loss"}, found
    notes = {row.check: row.note for row in found.rows}
    assert notes["stream"] == "its states are its own; its estimates depend on its outputs"
    kept = fgvar.Stochastic(at=points.Ahead(by=points.Kept(problem["linear"].backprop()), step=0.1))
    row = CHECKS["repr"](kept, problem)[0]
    assert (row.outcome, "holds a problem or tensors" in row.note) == ("not applicable", True)


def test_closed_forms_are_of_kept_gradients_and_not_of_streams_that_recall() -> None:
    problem = mlp_relu()
    z = problem.backprop()
    kept = fgvar.Stochastic(at=points.Ahead(by=points.Kept(z), step=0.1), sample=sampling.Draw(2))
    there = problem.at({name: p - 0.1 * z[name] for name, p in problem.params.items()})
    torch.testing.assert_close(fgvar.theory.mean(kept, problem), there.backprop(), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="each of its gradients depends on the last output"):
        fgvar.theory.mean(stream(2, 0.0), problem)
    ds = fgvar.measure({"past": stream(2, 0.1), "kept": kept}, problem, draws=32)
    assert bool(ds["cosine"].sel(layer="total", reference="target").notnull().all())


def test_kept_gradients_are_told_apart() -> None:
    one, other = ({"weight": randn(2, 3, seed=s), "bias": randn(2, seed=s)} for s in (0, 1))
    assert repr(points.Kept(one)).startswith("Kept(<weight, bias: ")
    assert repr(points.Kept(one)) == repr(points.Kept(dict(one))) != repr(points.Kept(other))
    assert points.Past() == points.Past()
    assert points.Kept(one).target(linear()) == one
    assert AHEAD.bias_reason == "taken ahead of the parameters, of order step^1"


def test_refusals() -> None:
    problem = linear()
    with pytest.raises(ValueError, match=r"Past\(\) has no gradient outside of a stream, .* put it into .*History"):
        fgvar.Stochastic(at=AHEAD).estimate(problem, {})
    with pytest.raises(ValueError, match=r"Past\(\) has no gradient outside of a stream"):
        points.Past().target(problem)
    with pytest.raises(ValueError, match=r"has the shapes \{'weight': \(2,\)\}, expected those of the parameters"):
        points.Kept({"weight": torch.ones(2)}).estimate(problem, {})
    with pytest.raises(TypeError, match=r"gradient is None, expected a dict of tensors, like problem\.params"):
        points.Kept(None)
