"""References and controls, exactly where a finite sum does it."""

import pytest
import torch
from cases import CASES, mixer
from torch import Tensor

import fgvar
from fgvar.testing import expectation
from fgvar.testing.enumeration import variances


def minibatch(size: int, **words: object) -> fgvar.Stochastic:
    return fgvar.scheme("minibatch", sample=fgvar.sampling.Draw(size), **words)


def close(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-12) -> None:
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("losses", [fgvar.GlobalLoss(), fgvar.LocalLosses()])
@pytest.mark.parametrize("size", [1, 3])
def test_a_minibatch_has_the_batch_s_gradient_as_mean(losses, size: int) -> None:
    problem = mixer(batch=4)
    estimator = minibatch(size, of=fgvar.ExactGradient(losses))
    close(expectation(estimator, problem, method="support"), estimator.target(problem))


def test_a_minibatch_has_the_data_variance() -> None:
    """(1/N) Σ‖g_n − ḡ‖² for one example: over the examples, which are its whole law."""
    problem = mixer(batch=4)
    estimator = minibatch(1)
    found = variances(estimator, problem, method="support")
    each = problem.per_example(estimator.target)
    for name in problem.params:
        expected = (each[name] - each[name].mean(0)).square().flatten(1).mean(0)
        torch.testing.assert_close(found[name], expected, rtol=1e-10, atol=1e-14)
    ds = fgvar.measure({"one": minibatch(1), "four": minibatch(4)}, problem, draws=1024)
    drawn = ds["variance"].sel(layer="total")
    ratio = float(drawn.sel(estimator="one") / drawn.sel(estimator="four"))
    error = ratio * float(((ds["variance_se"].sel(layer="total") / drawn) ** 2).sum() ** 0.5)
    assert abs(ratio - 4) < 5.5 * error, "false alarms 4e-8"
    assert 5.5 * error < 2, "a variance that does not fall as 1/size would be seen"


def test_a_frozen_trunk_learns_at_its_heads_alone() -> None:
    problem = mixer()
    found = fgvar.controls.FrozenTrunk().estimate(problem, {}).gradient
    exact = fgvar.scheme("FG-W").target(problem)
    for name in problem.params:
        expected = exact[name] if name in problem.network.exact else 0 * exact[name]
        torch.testing.assert_close(found[name], expected, rtol=0, atol=1e-15)
    assert any(found[name].any() for name in problem.network.exact)


@pytest.mark.parametrize("like", ["FG-A"])
def test_matched_noise_has_the_target_as_mean_and_the_variance(like: str) -> None:
    """5.5 standard errors of 2,048 draws, 26 comparisons: false alarms 1e-6; a variance 40 % off would be seen."""
    problem, estimator = mixer(), fgvar.scheme(like)
    matched = fgvar.controls.MatchedNoise(estimator)
    expected = fgvar.theory.trace(estimator, problem)
    ds = fgvar.measure({"matched": matched}, problem, draws=2048).sel(estimator="matched")
    live = [name for name in problem.perturbed if name != "block1.token.bias"]
    for name in live:
        here = ds.sel(layer=name)
        error = float(here["variance_se"])
        assert abs(float(here["variance"]) - float(expected[name])) < 5.5 * error, name
        assert float(here["bias_p"].sel(reference="target")) > 1e-7, name
    total = ds.sel(layer="perturbed")
    assert 5.5 * float(total["variance_se"]) < 0.4 * float(total["variance"])
    heads = ds["variance"].sel(layer=list(problem.network.exact))
    assert not heads.any(), "heads learn exactly by both"


def test_matched_noise_around_another_mean() -> None:
    """The same noise, bit by bit, on the target of ``mean``, also of heads that only ``like`` moves."""
    problem, like = mixer(), fgvar.scheme("LG-FG-A")
    own, other = fgvar.controls.MatchedNoise(like), fgvar.controls.MatchedNoise(like, mean=fgvar.scheme("BP"))
    assert other.randomness(problem).leaves == own.randomness(problem).leaves
    noise = {name: u[0] for name, u in own.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    found, beside = (one.estimate(problem, noise).gradient for one in (other, own))
    local, backprop = like.target(problem), fgvar.scheme("BP").target(problem)
    close(other.target(problem), backprop, 0)
    close(
        {name: found[name] - backprop[name] for name in found}, {name: beside[name] - local[name] for name in found}
    )
    assert any((local[name] - backprop[name]).norm() > 1e-3 for name in problem.perturbed), "the means differ"


def test_joint_noise_stays_two_directions_when_matched() -> None:
    """Both estimates that matched noise is made of have a sphere of their own."""
    problem = CASES["mlp_relu"]()
    matched = fgvar.controls.MatchedNoise(fgvar.scheme("FG-W", noise=fgvar.noise.Sphere()))
    noise = matched.randomness(problem).sample(0, [0], dtype=torch.float64)
    d = sum(problem.params[name].numel() for name in problem.perturbed)
    for which in "ab":
        square = sum(float(u.square().sum()) for name, u in noise.items() if name.startswith(f"{which}."))
        assert square == pytest.approx(d)
    assert not torch.equal(noise["a.layer0.weight"], noise["b.layer0.weight"])


def test_matched_noise_of_matched_noise_keeps_the_names_apart() -> None:
    """Names of leaves are part of what is drawn: of a leaf "w" there are "a.w" and "b.w", at any depth."""
    problem = CASES["mlp_relu"]()
    inner = fgvar.controls.MatchedNoise(fgvar.scheme("FG-W"))
    names = [*inner.randomness(problem).leaves]
    perturbed = [*fgvar.scheme("FG-W").randomness(problem).leaves]
    assert names == [f"{copy}.{name}" for copy in "ab" for name in perturbed] + [
        f"u.{name}" for name in problem.params
    ]
    outer = fgvar.controls.MatchedNoise(inner)
    noise = {name: u[0] for name, u in outer.randomness(problem).sample(3, [0], dtype=torch.float64).items()}
    assert [*noise][: 2 * len(names)] == [f"{copy}.{name}" for copy in "ab" for name in names]
    one, two = (inner.estimate(problem, {k: noise[f"{copy}.{k}"] for k in names}) for copy in "ab")
    found, target = outer.estimate(problem, noise), outer.target(problem)
    for name, value in target.items():
        spread = (one.gradient[name] - two.gradient[name]).norm() / (2 * value.numel()) ** 0.5
        torch.testing.assert_close(found.gradient[name], value + spread * noise[f"u.{name}"], rtol=0, atol=0)


def test_matched_noise_of_an_exact_gradient_is_the_gradient() -> None:
    problem = CASES["mlp_relu"]()
    matched = fgvar.controls.MatchedNoise(fgvar.scheme("BP"))
    noise = {name: u[0] for name, u in matched.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    close(matched.estimate(problem, noise).gradient, matched.target(problem), 0)


@pytest.mark.parametrize("name", ["isotropic-null", "sham"])
def test_controls_have_no_mean_in_the_trunk_and_say_that_it_is_there_alone(name: str) -> None:
    problem, control = mixer(batch=3), fgvar.scheme(name)
    assert control.bias_reason == "a control: E ĝ = 0 in the trunk"
    mean, target = expectation(control, problem), control.target(problem)
    exact = {name: float(name in problem.network.exact) * g for name, g in target.items()}
    close(mean, exact)
    assert any(bool(g.any()) for g in exact.values())


@pytest.mark.parametrize(("dtype", "value", "numbers"), [(torch.float16, 300.0, 90_000), (torch.float32, 1e-30, 4)])
def test_noise_has_the_gradient_s_length_whatever_its_squares(dtype: torch.dtype, value: float, numbers: int) -> None:
    inputs, targets = torch.full((1, numbers), value, dtype=dtype), torch.zeros(1, dtype=dtype)
    net = torch.nn.Linear(numbers, 1, bias=False, dtype=dtype)
    torch.nn.init.zeros_(net.weight)
    problem = fgvar.Problem(net, lambda outputs, _: outputs[:, 0], (inputs, targets))
    null = fgvar.controls.IsotropicNull()
    found = null.estimate(problem, {"u.weight": torch.ones(1, numbers, dtype=dtype)}).gradient["weight"]
    torch.testing.assert_close(found, problem.backprop()["weight"], rtol=1e-3, atol=0)


def test_the_isotropic_null_knows_nothing() -> None:
    problem = CASES["mlp_relu"]()
    null = fgvar.controls.IsotropicNull()
    noise = null.randomness(problem).sample(0, range(2), dtype=torch.float64)
    one, opposite = (null.estimate(problem, {k: s * u[0] for k, u in noise.items()}).gradient for s in (1, -1))
    for name in problem.perturbed:
        torch.testing.assert_close(one[name], -opposite[name])
    ds = fgvar.measure({"null": null}, problem, draws=2048).sel(estimator="null", reference="target")
    for layer in problem.perturbed:
        here = ds.sel(layer=layer)
        assert abs(float(here["cosine"])) < 5.5 * float(here["cosine_se"]), layer
        assert float(here["relative_variance"]) == pytest.approx(1, abs=5.5 * float(here["relative_variance_se"]))
