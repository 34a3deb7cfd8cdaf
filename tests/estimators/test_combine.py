"""Combining directions: projections against least squares, their scales exactly, shams, and Replay."""

import itertools
from dataclasses import replace

import pytest
import torch
from cases import CASES, mixer, randn
from hypothesis import assume, given, settings
from torch import Tensor

import fgvar
from fgvar.measurement.draws import Enumeration, estimates
from fgvar.testing import covariance, expectation, strategies


def rows(tensors: dict[str, Tensor], names: tuple[str, ...]) -> Tensor:
    return torch.cat([tensors[name].flatten(1) for name in names], 1)


def drawn(estimator, problem: fgvar.Problem, draws: int = 3) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    noise = estimator.randomness(problem).sample(0, range(draws), dtype=torch.float64)
    return noise, estimates(estimator, problem, noise)


# ---- projections ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["none", "norm", "mean"])
@pytest.mark.parametrize("antithetic", [False, True])
def test_projection_is_least_squares(scale: str, antithetic: bool) -> None:
    problem = CASES["mlp_relu"]()
    estimator = fgvar.scheme("FG-W", directions=5, antithetic=antithetic, combine=fgvar.combine.Projection(scale))
    u, found = drawn(estimator, problem)
    names = problem.perturbed
    target = torch.cat([estimator.target(problem)[k].flatten() for k in names])
    d = len(target)
    for draw in range(3):
        span = torch.stack([torch.cat([u[k][draw, i].flatten() for k in names]) for i in range(5)], 1)
        projected = span @ torch.linalg.lstsq(span, target[:, None]).solution
        factor = {"none": 1, "norm": (d / 5) ** 0.5, "mean": d / 5}[scale]
        torch.testing.assert_close(rows(found, names)[draw], factor * projected[:, 0], rtol=1e-9, atol=1e-12)


def test_projection_in_activity_space_is_each_example_s_own() -> None:
    problem = CASES["mlp_relu"]()
    space = fgvar.ActivitySpace(mask_inactive=False)
    estimator = fgvar.Estimator(space, directions=4, combine=fgvar.combine.Projection())
    u, found = drawn(estimator, problem, 1)
    sites = tuple(problem.trace.sites)
    taps = {site: torch.zeros(4, 6, dtype=torch.float64) for site in sites}
    credits = torch.func.grad(lambda t: problem.losses(problem.run(problem.params, t)[0]).sum())(taps)
    projected = {site: torch.zeros_like(tap) for site, tap in taps.items()}
    for n in range(4):
        span = torch.stack([torch.cat([u[s][0, k, n] for s in sites]) for k in range(4)], 1)
        own = torch.cat([credits[s][n] for s in sites])
        both = span @ torch.linalg.lstsq(span, own[:, None]).solution[:, 0]
        for site, piece in zip(sites, both.split(6), strict=True):
            projected[site][n] = piece
    linearised = space.linearise(problem, fgvar.GlobalLoss())
    for name, value in linearised.backward(projected).items():
        torch.testing.assert_close(found[name][0], value, rtol=0, atol=1e-12)


@pytest.mark.parametrize("losses", [fgvar.GlobalLoss(), fgvar.LocalLosses()])
@pytest.mark.parametrize("space", [fgvar.WeightSpace(), fgvar.ActivitySpace()], ids=["weights", "activities"])
@pytest.mark.parametrize("scale", ["none", "mean", "norm"])
def test_enough_directions_span_everything(losses, space, scale: str) -> None:
    """As many directions as numbers give the gradient itself, whatever the copies and masks."""
    problem = mixer(blocks=1, channels=4, groups=2)
    numbers = sum(value.numel() for value in (problem.params[k] for k in problem.perturbed))
    estimator = fgvar.Estimator(space, losses=losses, directions=numbers, combine=fgvar.combine.Projection(scale))
    _, found = drawn(estimator, problem, 1)
    for name, value in estimator.target(problem).items():
        torch.testing.assert_close(found[name][0], value, rtol=0, atol=1e-8)


def line(size: int, dtype: torch.dtype) -> fgvar.Problem:
    net = torch.nn.Linear(size, 1, bias=False, dtype=dtype)
    with torch.no_grad():
        net.weight.copy_(randn(1, size, seed=3))
    return fgvar.Problem(net, "mse", (randn(3, size).to(dtype), randn(3, 1, seed=1).to(dtype)))


@pytest.mark.parametrize("size", [16, 64])
def test_as_many_directions_as_numbers_give_the_gradient_in_float32(size: int) -> None:
    """The Gram matrix squares the condition of the directions: of float32 alone some draws are 0.1 off and more."""
    problem = line(size, torch.float32)
    estimator = fgvar.Estimator(directions=size, combine=fgvar.combine.Projection())
    noise = estimator.randomness(problem).sample(0, range(40))
    g = problem.backprop()["weight"]
    off = (estimates(estimator, problem, noise)["weight"] - g).flatten(1).norm(dim=1) / g.norm()
    assert float(off.max()) < 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("combine", [fgvar.combine.Projection(), fgvar.combine.Projection("mean")], ids=repr)
def test_projections_run_in_half_precision(combine: fgvar.combine.Projection, dtype: torch.dtype) -> None:
    problem, estimator = line(8, dtype), fgvar.Estimator(directions=3, combine=combine)
    noise = estimator.randomness(problem).sample(0, range(4), dtype=dtype)
    found = estimates(estimator, problem, noise)["weight"]
    wide = {name: u.double() for name, u in noise.items()}
    expected = estimates(estimator, problem.to(torch.float64), wide)["weight"]
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=0.05 * float(expected.abs().max()))


def test_lengths_and_numbers_of_directions_are_told_in_half_precision() -> None:
    """Of 90,000 numbers, the square of the length and their count are no numbers of float16."""
    net = torch.nn.Linear(90_000, 1, bias=False, dtype=torch.float16)
    torch.nn.init.zeros_(net.weight)
    inputs, targets = torch.full((1, 90_000), 0.01).half(), torch.zeros(1).half()
    problem = fgvar.Problem(net, lambda outputs, _: outputs[:, 0], (inputs, targets))
    ones = {"weight": torch.ones(1, 90_000).half()}  # along the gradient: its projection is itself
    for combine, factor in ((fgvar.combine.Normalised(), 1.0), (fgvar.combine.Projection("norm"), 300.0)):
        found = fgvar.Estimator(combine=combine).estimate(problem, ones).gradient["weight"]
        torch.testing.assert_close(found, factor * inputs, rtol=1e-2, atol=0)


def test_uniform_directions_span_evenly() -> None:
    """Exactly, over the symmetries of their law, of which each is as likely as the draw itself; and as drawn."""
    problem = line(3, torch.float64)
    estimator = fgvar.Estimator(noise=fgvar.noise.Uniform(), directions=2, combine=fgvar.combine.Projection("mean"))
    drawn_one = estimator.randomness(problem).sample(0, [0], dtype=torch.float64)["weight"][0]  # [2, 1, 3]
    turned = [
        drawn_one[..., list(order)] * torch.tensor(flips).double()
        for order in itertools.permutations(range(3))
        for flips in itertools.product((1.0, -1.0), repeat=3)
    ]
    found = estimates(estimator, problem, {"weight": torch.stack(turned)})["weight"].mean(0)
    torch.testing.assert_close(found, problem.backprop()["weight"], rtol=0, atol=1e-12)
    assert estimator.bias_reason == ""
    assert fgvar.testing.unbiased(estimator, problem, draws=4096).passed, "false alarms 1e-6, nominal"


def signs(estimator, problem: fgvar.Problem) -> tuple[dict[str, Tensor], float]:
    """Mean and mean squared length of the perturbed part over all sign vectors."""
    enumeration = Enumeration(estimator.randomness(problem), "signs")
    found = estimates(estimator, problem, enumeration.take(range(len(enumeration)), dtype=torch.float64))
    square = sum(found[name].square().flatten(1).sum(1).mean() for name in problem.perturbed)
    return {name: g.mean(0) for name, g in found.items()}, float(square)


@pytest.mark.parametrize("per_tensor", [False, True])
def test_scales_of_a_projection_are_exact_over_sign_vectors(per_tensor: bool) -> None:
    """K = 1: E ĝ = ∇/d ("none"), E‖ĝ‖² = ‖∇‖² ("norm"), E ĝ = ∇ ("mean"); d of each tensor where it moves alone."""
    problem = CASES["linear"]()  # 6 weights and 2 biases
    target = problem.backprop()
    square = sum(float(g.square().sum()) for g in target.values())
    sizes = {"weight": 6, "bias": 2} if per_tensor else {"weight": 8, "bias": 8}
    words = {"space": fgvar.WeightSpace(per_tensor=per_tensor), "noise": fgvar.Rademacher()}
    for combine, factor in (
        (fgvar.combine.Projection(), lambda d: 1 / d),
        (fgvar.combine.Normalised(), lambda d: 1 / d),
        (fgvar.combine.Projection("norm"), lambda d: d**-0.5),
        (fgvar.combine.Projection("mean"), lambda _: 1),
    ):
        mean, length = signs(fgvar.Estimator(combine=combine, **words), problem)
        for name, g in target.items():
            torch.testing.assert_close(mean[name], factor(sizes[name]) * g, rtol=0, atol=1e-12)
        if combine == fgvar.combine.Projection("norm"):
            assert length == pytest.approx(square, rel=1e-10)
        if combine == fgvar.combine.Normalised() and not per_tensor:
            assert length == pytest.approx(square / 8, rel=1e-10), "variance (1/d − 1/d²)‖∇‖²"


def test_normalised_is_the_mean_of_projections() -> None:
    problem = CASES["mlp_relu"]()
    estimator = fgvar.scheme("FG-W", directions=3, combine=fgvar.combine.Normalised())
    u, found = drawn(estimator, problem, 1)
    target, names = estimator.target(problem), problem.perturbed
    each = []
    for k in range(3):
        direction = torch.cat([u[name][0, k].flatten() for name in names])
        along = sum(float((u[name][0, k] * target[name]).sum()) for name in names)
        each.append(along * direction / direction.square().sum())
    torch.testing.assert_close(rows(found, names)[0], torch.stack(each).mean(0), rtol=0, atol=1e-12)


def test_one_tensor_at_a_time_leaves_out_the_noise_of_the_others() -> None:
    """Unbiased all the same, and tr Cov of a tensor of d numbers is (d + 1)‖∇‖² of its own."""
    problem = CASES["linear"]()
    estimator = fgvar.Estimator(fgvar.WeightSpace(per_tensor=True))
    mean, spread = expectation(estimator, problem), covariance(estimator, problem)
    for name, g in estimator.target(problem).items():
        torch.testing.assert_close(mean[name], g, rtol=0, atol=1e-12)
        expected = (g.numel() + 1) * float(g.square().sum())
        assert float(spread[name].trace()) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("losses", [fgvar.GlobalLoss(), fgvar.LocalLosses()])
def test_one_site_at_a_time_is_unbiased(losses) -> None:
    problem = mixer()
    estimator = fgvar.Estimator(fgvar.ActivitySpace(per_tensor=True), losses=losses)
    mean = expectation(estimator, problem)
    for name, g in estimator.target(problem).items():
        torch.testing.assert_close(mean[name], g, rtol=0, atol=1e-10)


# ---- shams ---------------------------------------------------------------------------------------------------


def test_a_sham_has_no_mean_and_the_same_size() -> None:
    problem = mixer(batch=3)
    sham = fgvar.scheme("LG-FG-A", combine=fgvar.combine.ShuffledCredit())
    mean = expectation(sham, problem)
    target = sham.target(problem)
    for name in problem.params:
        expected = target[name] if name in problem.network.exact else 0 * target[name]
        torch.testing.assert_close(mean[name], expected, rtol=0, atol=1e-12)
    across = fgvar.scheme("FG-W", directions=3, combine=fgvar.combine.ShuffledCredit(across="directions"))
    mean = expectation(across, problem)
    assert max(float(mean[name].abs().max()) for name in problem.perturbed) < 1e-12
    ds = fgvar.measure({"sham": sham, "real": fgvar.scheme("LG-FG-A")}, problem, draws=512)
    sizes = ds["variance"].sel(layer="perturbed")
    assert 0.5 < float(sizes.sel(estimator="sham") / sizes.sel(estimator="real")) < 2


def test_sham_errors() -> None:
    with pytest.raises(ValueError, match="unknown axis to shuffle across 'example'; did you mean 'examples'"):
        fgvar.combine.ShuffledCredit(across="example")
    problem = CASES["linear"]()
    with pytest.raises(ValueError, match="take noise of their own in activity space, or across='directions'"):
        drawn(fgvar.scheme("FG-W", combine=fgvar.combine.ShuffledCredit()), problem)
    for estimator in (
        fgvar.scheme("FG-W", shared=False, combine=fgvar.combine.ShuffledCredit()),
        fgvar.scheme("FG-A", combine=fgvar.combine.ShuffledCredit(across="directions")),
    ):
        with pytest.raises(ValueError, match="has one of them to shuffle, expected at least two"):
            drawn(estimator, problem)
    with pytest.raises(ValueError, match="unknown scale 'norms'; did you mean 'norm'"):
        fgvar.combine.Projection("norms")


# ---- replay --------------------------------------------------------------------------------------------------


@settings(max_examples=40)
@given(pair=strategies.pairs())
def test_replay_is_jvp_under_the_same_noise(pair) -> None:
    """Masks, copies, shared and independent noise, directions: to 1e-10 of the largest entry."""
    estimator, problem = pair
    assume(isinstance(estimator, fgvar.Estimator))
    assert_replayed(estimator, problem)


@pytest.mark.parametrize("credit", ["unbiased", "published"])
@pytest.mark.parametrize("per_tensor", [False, True])
def test_replay_of_local_losses(credit: str, per_tensor: bool) -> None:
    losses = fgvar.LocalLosses(credit=credit)
    for space in (fgvar.WeightSpace(per_tensor=per_tensor), fgvar.ActivitySpace(per_tensor=per_tensor)):
        two = fgvar.Estimator(space, losses=losses, directions=2)
        assert_replayed(two, mixer(blocks=2, channels=12, groups=3, batch=3))
        assert_replayed(replace(two, losses=fgvar.LocalLosses(stop=False)), mixer(blocks=3))


def assert_replayed(estimator: fgvar.Estimator, problem: fgvar.Problem) -> None:
    replay = fgvar.Estimator(**{**vars(estimator), "oracle": fgvar.oracles.Replay()})
    assert repr(replay.randomness(problem)) == repr(estimator.randomness(problem))
    _, found = drawn(replay, problem)
    _, expected = drawn(fgvar.Estimator(**{**vars(estimator), "oracle": fgvar.Jvp()}), problem)
    for name, value in expected.items():
        size = max(float(value.abs().max()), 1.0)
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-10 * size, msg=lambda m, n=name: f"{n}: {m}")


def test_replayed_draws_cost_no_further_pass() -> None:
    """The gradients are computed once for all draws of a chunk, outside of its vmap."""
    from fgvar.measurement.cost import Flops

    problem = mixer()
    estimator = fgvar.scheme("LG-FG-A", oracle=fgvar.oracles.Replay())

    def flops(draws: int) -> int:
        noise = estimator.randomness(problem).sample(0, range(draws), dtype=torch.float64)
        with Flops() as counted:
            estimates(estimator, problem, noise)
        return counted.count

    linearised = fgvar.ActivitySpace().linearise(problem, estimator.losses)
    with Flops() as pullback:
        linearised.backward({site: randn(*value.shape) for site, value in linearised.point.items()})
    assert flops(9) - flops(1) <= 8 * pullback.count * 1.01


@pytest.mark.parametrize("space", [fgvar.WeightSpace(), fgvar.ActivitySpace()], ids=["weights", "activities"])
def test_replayed_losses_behind_cuts_share_their_passes(space: fgvar.WeightSpace | fgvar.ActivitySpace) -> None:
    """As many passes for four blocks as for two: as a number of local backprops, no more."""
    from fgvar.measurement.cost import Flops

    def local_backprops(blocks: int) -> float:
        problem, found = mixer(blocks=blocks, channels=12, groups=3), list[int]()
        replay = fgvar.Estimator(space, losses=fgvar.LocalLosses(), oracle=fgvar.oracles.Replay())
        for estimator in (replay, fgvar.scheme("LG-BP")):
            noise = estimator.randomness(problem).sample(0, [0], dtype=torch.float64)
            with Flops() as counted:
                estimator.estimate(problem, {name: u[0] for name, u in noise.items()})
            found.append(counted.count)
        return found[0] / found[1]

    assert local_backprops(4) <= 1.1 * local_backprops(2)
