"""Points: gradients taken ahead, at noise and at tapped sites, against their closed forms and against plain loops."""

import itertools
from typing import ClassVar

import pytest
import torch
from cases import linear, mlp_relu, randn
from torch import Tensor, nn

import fgvar
from fgvar import points, sampling, theory
from fgvar.testing import CHECKS, covariance, default_problems, expectation

ONE = fgvar.Stochastic(sample=sampling.Draw(1))
STEP = 0.3


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.detach().double().flatten() for g in gradient.values()])


def mean(estimator: fgvar.GradientEstimator, problem: fgvar.Problem) -> Tensor:
    return flat(expectation(estimator, problem, method="support"))


def total_variance(estimator: fgvar.GradientEstimator, problem: fgvar.Problem) -> float:
    return float(sum(c.trace() for c in covariance(estimator, problem, method="support").values()))


def unflat(rows: Tensor, problem: fgvar.Problem) -> dict[str, Tensor]:
    pieces = rows.split([p.numel() for p in problem.params.values()])
    return {name: u.reshape(p.shape) for (name, p), u in zip(problem.params.items(), pieces, strict=True)}


def hessian(problem: fgvar.Problem) -> Tensor:
    point = flat(problem.params)
    return torch.func.jacrev(torch.func.grad(lambda w: problem.loss(unflat(w, problem))))(point)


def gradient_at(problem: fgvar.Problem, moved: Tensor) -> Tensor:
    """The gradient at θ + moved."""
    there = {
        name: p + u for (name, p), u in zip(problem.params.items(), unflat(moved, problem).values(), strict=True)
    }
    return flat(problem.at(there).backprop())


def tanh(batch: int = 3) -> fgvar.Problem:
    net = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 1)).double()
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p.copy_(randn(*p.shape, seed=index))
    return fgvar.Problem(fgvar.with_sites(net), "mse", (randn(batch, 2, seed=8), randn(batch, 1, seed=9)))


def quadratic() -> tuple[fgvar.Problem, Tensor, Tensor]:
    """Three quadratics: the problem, their gradients [3, d] and Hessians [3, d, d]."""
    problem = linear().rows(slice(0, 3))
    each = [problem.example(n) for n in range(3)]
    return problem, torch.stack([flat(p.backprop()) for p in each]), torch.stack([hessian(p) for p in each])


# ---- ahead -------------------------------------------------------------------------------------------------------


def test_ahead_by_a_fresh_minibatch_of_quadratics_has_its_closed_form() -> None:
    problem, g, h = quadratic()
    z = g.mean(0)
    there = g - STEP * h @ z  # of a gradient's mean over what it is taken ahead by
    spread = there.sub(there.mean(0)).square().sum() / 3
    spread += STEP**2 * sum((h[j] @ (g[i] - z)).square().sum() for i in range(3) for j in range(3)) / 9
    estimator = fgvar.Stochastic(at=points.Ahead(by=ONE, step=STEP), sample=sampling.Draw(1))
    torch.testing.assert_close(mean(estimator, problem), z - STEP * h.mean(0) @ z, rtol=0, atol=1e-12)
    assert total_variance(estimator, problem) == pytest.approx(float(spread), rel=1e-12)
    # Workers buy variance, never bias.
    two = fgvar.Stochastic(at=estimator.at, sample=estimator.sample, workers=2)
    torch.testing.assert_close(mean(two, problem), mean(estimator, problem), rtol=0, atol=1e-12)
    assert total_variance(two, problem) == pytest.approx(float(spread) / 2, rel=1e-12)


def test_one_minibatch_for_both_has_its_deviations_turned_by_the_hessian() -> None:
    x = randn(1, 3).expand(3, 3).contiguous()  # the same inputs, hence the same Hessian
    problem = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (x, randn(3, 2, seed=1)))
    g, h = torch.stack([flat(problem.example(n).backprop()) for n in range(3)]), hessian(problem)
    both = fgvar.Stochastic(
        of=fgvar.Stochastic(at=points.Ahead(by=fgvar.ExactGradient(), step=STEP)), sample=sampling.Draw(1)
    )
    there = (g - g.mean(0)) @ (torch.eye(len(h)) - STEP * h)
    assert total_variance(both, problem) == pytest.approx(float(there.square().sum()) / 3, rel=1e-12)


@pytest.mark.parametrize("workers", [1, 2])
def test_extrapolation_has_a_bias_of_first_order_whose_remainder_is_of_second(workers: int) -> None:
    problem = tanh()
    g = flat(problem.backprop())
    found, left = [], []
    for step in (0.05, 0.025):
        ahead = points.Ahead(by=ONE, step=step)
        bias = mean(fgvar.Stochastic(at=ahead, sample=sampling.Draw(1), workers=workers), problem) - g
        found.append(float(bias.norm()))
        left.append(float((bias + step * hessian(problem) @ g).norm()))
    assert found[0] / found[1] == pytest.approx(2, rel=0.05)
    assert left[0] / left[1] == pytest.approx(4, rel=0.05)


def test_sharpness_aware_minimisation_goes_along_the_curvature_of_the_gradient() -> None:
    problem = tanh()
    g, left = flat(problem.backprop()), []
    for radius in (0.1, 0.05):
        sam = fgvar.Stochastic(at=points.Ahead(by=fgvar.ExactGradient(), step=-radius, unit=True))
        found = flat(sam.estimate(problem, {}).gradient)
        torch.testing.assert_close(found, gradient_at(problem, radius * g / g.norm()), rtol=0, atol=1e-12)
        left.append(float((found - g - radius * hessian(problem) @ g / g.norm()).norm()))
    assert left[0] / left[1] == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("size", [1, 2])
def test_nested_words_take_the_same_minibatch_and_words_side_by_side_a_fresh_one(size: int) -> None:
    problem, radius = tanh(), 0.2
    ahead = points.Ahead(by=fgvar.ExactGradient(), step=-radius, unit=True)
    nested = fgvar.Stochastic(of=fgvar.Stochastic(at=ahead), sample=sampling.Draw(size))
    batches = [problem.rows(torch.tensor(rows)) for rows in itertools.product(range(3), repeat=size)]
    own = [flat(some.backprop()) for some in batches]
    same = [gradient_at(some, radius * g / g.norm()) for some, g in zip(batches, own, strict=True)]
    torch.testing.assert_close(mean(nested, problem), torch.stack(same).mean(0), rtol=0, atol=1e-12)
    by = fgvar.Stochastic(sample=sampling.Draw(size))
    fresh = fgvar.Stochastic(at=points.Ahead(by=by, step=-radius, unit=True), sample=sampling.Draw(size))
    every = [gradient_at(some, radius * g / g.norm()) for some in batches for g in own]
    torch.testing.assert_close(mean(fresh, problem), torch.stack(every).mean(0), rtol=0, atol=1e-12)
    assert float((torch.stack(every).mean(0) - torch.stack(same).mean(0)).norm()) > 1e-3


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 1e-23), (torch.float32, 1e25), (torch.float16, 1e-4), (torch.float16, 1e3)]
)
def test_a_unit_step_is_as_long_whatever_the_gradient_s_squares(dtype: torch.dtype, scale: float) -> None:
    inputs, targets = torch.tensor([[1.0, 2.0]], dtype=dtype), torch.zeros(1, dtype=dtype)
    problem = fgvar.Problem(nn.Linear(2, 1).to(dtype), lambda outputs, _: scale * outputs[:, 0], (inputs, targets))
    there = points.Ahead(by=fgvar.ExactGradient(), step=-1.0, unit=True).view(problem, {})
    moved = flat(there.params) - flat(problem.params)
    assert float(moved.norm()) == pytest.approx(1, abs=2e-3 if dtype == torch.float16 else 1e-6)


def test_where_the_estimate_is_0_a_unit_step_stays() -> None:
    problem = fgvar.Problem(nn.Linear(2, 1).double(), lambda outputs, _: 0 * outputs[:, 0], (randn(3, 2), randn(3)))
    sam = points.Ahead(by=fgvar.ExactGradient(), step=-0.1, unit=True)
    for name, p in sam.view(problem, {}).params.items():
        assert bool((p == problem.params[name]).all())


def test_a_moved_contrastive_problem_has_the_keys_of_its_point() -> None:
    model = fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=1, patches=2, channels=8, groups=2).double()
    views = randn(3, 1, 4, 4, seed=1), randn(3, 1, 4, 4, seed=2)
    problem = fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), views)
    there = {name: 1.1 * p for name, p in problem.params.items()}
    assert float(problem.moved(there).loss()) == float(problem.at(there).loss())
    assert problem.moved(there).moved(problem.params).origin is problem


# ---- noise -------------------------------------------------------------------------------------------------------


def test_isotropic_noise_adds_half_the_gradient_of_the_trace_of_the_hessian() -> None:
    problem, sigma = tanh(1), 0.01
    smoothed = fgvar.Stochastic(at=points.Ahead(by=points.Noise(fgvar.Rademacher()), step=sigma))
    bias = mean(smoothed, problem) - flat(problem.backprop())

    def trace(point: Tensor) -> Tensor:
        return hessian(problem.at(unflat(point, problem))).trace()

    step, point = 1e-4, flat(problem.params)
    slopes = [(trace(point + step * e) - trace(point - step * e)) / (2 * step) for e in torch.eye(len(point))]
    expected = sigma**2 / 2 * torch.stack(slopes)
    assert float((bias - expected).norm()) < 0.01 * float(expected.norm())


def test_noise_on_quadratics_has_no_bias() -> None:
    problem = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (randn(3, 3), randn(3, 2, seed=1)))
    noisy = fgvar.Stochastic(at=points.Ahead(by=points.Noise(fgvar.Rademacher()), step=1.0))
    torch.testing.assert_close(mean(noisy, problem), flat(problem.backprop()), rtol=0, atol=1e-12)


def test_noise_is_right_of_itself() -> None:
    assert not any(bool(g.any()) for g in points.Noise().target(tanh()).values())
    for check in ("structure", "unbiased", "repr"):
        CHECKS[check](points.Noise(), {"linear": default_problems()["linear"]})


# ---- the declared order ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", ["linear", "conv", "relu", "mixer"])
@pytest.mark.parametrize("unit", [True, False])
@pytest.mark.parametrize("by", [fgvar.ExactGradient(), ONE], ids=["exact", "drawn"])
def test_the_order_of_the_bias_is_1_in_the_step(by: fgvar.GradientEstimator, unit: bool, problem: str) -> None:
    ahead = points.Ahead(by=by, step=-0.1, unit=unit)
    for estimator in (fgvar.Stochastic(at=ahead), fgvar.Stochastic(of=fgvar.Stochastic(at=ahead))):
        rows = CHECKS["bias_order"](estimator, {problem: default_problems()[problem]})
        assert rows[0].outcome == "passed", rows
        assert rows[0].note.startswith("bias ~ step^1.0"), rows


@pytest.mark.parametrize("by", [points.Noise(), points.Noise(fgvar.Rademacher())])
def test_the_order_of_the_bias_of_noise_is_2(by: fgvar.GradientEstimator) -> None:
    estimator = fgvar.Stochastic(at=points.Ahead(by=by, step=0.1))
    assert CHECKS["bias_order"](estimator, {"linear": default_problems()["linear"]})[0].note.startswith(
        "bias ~ step^2"
    )
    assert "of order step^2" in estimator.bias_reason


def test_noise_beside_heads_that_learn_exactly_is_of_order_1() -> None:
    """Of a network without heads the same point's bias falls faster, which is no fault."""
    estimator = fgvar.Stochastic(at=points.Ahead(by=fgvar.controls.IsotropicNull(), step=0.1))
    assert "of order step^1" in estimator.bias_reason
    net = fgvar.networks.MLP(1, width=2, depth=1, classes=2, activation="tanh").double()
    headed = fgvar.Problem(net, "cross_entropy", (randn(4, 1), torch.tensor([0, 1, 1, 0])))
    for problem, order in ((headed, 1), (default_problems()["linear"], 2)):
        assert CHECKS["bias_order"](estimator, problem)[0].note.startswith(f"bias ~ step^{order}")


class Boastful(points.Ahead):
    bias_order: ClassVar[int] = 2  # type: ignore[misc]


def test_a_boastful_point_is_refuted() -> None:
    estimator = fgvar.Stochastic(at=Boastful(by=fgvar.ExactGradient(), step=0.1))
    with pytest.raises(AssertionError, match=r"falls as step\^1.00, declared is step\^2"):
        CHECKS["bias_order"](estimator, {"linear": default_problems()["linear"]})


def test_the_order_of_a_difference_behind_a_sampler_is_found_where_it_stands() -> None:
    difference = fgvar.Estimator(noise=fgvar.Rademacher(), oracle=fgvar.oracles.ForwardDifference(1e-3))
    estimator = fgvar.Stochastic(of=difference, sample=sampling.Draw(1))
    assert CHECKS["bias_order"](estimator, {"linear": default_problems()["linear"]})[0].outcome == "passed"


# ---- names of leaves ---------------------------------------------------------------------------------------------


class Reserved(nn.Module):
    """A network whose parameters are called like words."""

    def __init__(self) -> None:
        super().__init__()
        for index, name in enumerate(("of", "sample", "at", "each", "then")):
            self.register_parameter(name, nn.Parameter(randn(2, seed=index)))

    def forward(self, x: Tensor) -> Tensor:
        return (x * self.of + self.sample).tanh() * self.at + self.each * self.then


def test_parameters_called_like_words_keep_their_noise() -> None:
    problem = fgvar.Problem(Reserved(), "mse", (randn(2, 2), randn(2, 2, seed=1)))
    forward = fgvar.scheme("FG-W")
    inner = fgvar.Stochastic(of=forward, sample=sampling.Draw(2), at=points.Ahead(by=forward, step=0.1))
    outer = fgvar.Stochastic(of=inner, at=points.Ahead(by=inner, step=0.2))
    own = [f"of.{name}" for name in problem.params]
    assert list(inner.randomness(problem).leaves) == [*own, "sample", *(f"at.{name}" for name in problem.params)]
    noise = {k: u[0] for k, u in outer.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    inside, ahead = (
        {name: noise[f"{word}.{name}"] for name in inner.randomness(problem).leaves} for word in ("of", "at")
    )
    z = inner.estimate(problem, ahead).gradient
    there = problem.moved({name: p - 0.2 * z[name] for name, p in problem.params.items()})
    z = forward.estimate(there, {name: inside[f"at.{name}"] for name in problem.params}).gradient
    here = there.moved({name: p - 0.1 * z[name] for name, p in there.params.items()}).rows(inside["sample"])
    expected = forward.estimate(here, {name: inside[f"of.{name}"] for name in problem.params}).gradient
    assert bool((flat(outer.estimate(problem, noise).gradient) == flat(expected)).all())


def test_names_are_as_they_were_where_nothing_clashes() -> None:
    names = list(fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=sampling.Draw(2)).randomness(linear()).leaves)
    assert names == ["weight", "bias", "sample"]


# ---- tapped ------------------------------------------------------------------------------------------------------


def smoothed(problem: fgvar.Problem, site: str, scale: float) -> Tensor:
    """The gradient of the mean loss over all sign vectors at a site, by a loop over taps."""
    shape = (problem.batch_size, *problem.trace.sites[site][1:])
    signs = list(itertools.product((-1.0, 1.0), repeat=torch.Size(shape).numel()))

    def loss(params: dict[str, Tensor]) -> Tensor:
        each = [
            problem.losses(problem.run(params, {site: scale * torch.tensor(s).double().reshape(shape)})[0]).mean()
            for s in signs
        ]
        return torch.stack(each).mean()

    return flat(torch.func.grad(loss)(dict(problem.params)))


def test_a_tapped_site_has_the_mean_of_the_smoothed_loss() -> None:
    problem = tanh()
    tapped = fgvar.Stochastic(at=points.Tapped("0.site", fgvar.Rademacher(), scale=0.7))
    found = mean(tapped, problem)
    torch.testing.assert_close(found, smoothed(problem, "0.site", 0.7), rtol=0, atol=1e-12)
    assert float((found - flat(problem.backprop())).norm()) > 0.01
    assert tapped.bias_reason == "smoothed by noise on '0.site'"
    assert points.Tapped("0.site", scale=0.0).bias_reason == ""


def test_smoothing_adds_half_the_gradient_of_the_trace_of_the_activities_hessian() -> None:
    problem, sigma = tanh(), 0.01

    def trace(params: dict[str, Tensor]) -> Tensor:
        def loss(tap: Tensor) -> Tensor:
            return problem.losses(problem.run(params, {"0.site": tap.reshape(3, 2)})[0]).mean()

        return torch.func.hessian(loss)(torch.zeros(6).double()).trace()

    bias = mean(fgvar.Stochastic(at=points.Tapped("0.site", fgvar.Rademacher(), sigma)), problem)
    expected = sigma**2 / 2 * flat(torch.func.grad(trace)(dict(problem.params)))
    assert float((bias - flat(problem.backprop()) - expected).norm()) < 1e-3 * float(expected.norm())


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"oracle": fgvar.oracles.CentralDifference(1e-4)},
        {"directions": 2},
        {"space": fgvar.ActivitySpace(per_tensor=True)},
    ],
    ids=["one pass", "difference", "directions", "per tensor"],
)
def test_activities_are_perturbed_around_the_tap_of_their_site(words: dict) -> None:
    problem = tanh().tapped("0.site", randn(3, 2, seed=5))
    method = "hermite" if "oracle" in words else "nodes"
    some = problem.rows(slice(0, 1)) if "oracle" in words else problem
    found = flat(expectation(fgvar.scheme("FG-A", **words), some, method=method))
    torch.testing.assert_close(found, flat(some.backprop()), rtol=0, atol=1e-6 if "oracle" in words else 1e-11)
    assert float((flat(some.backprop()) - flat(tanh().rows(slice(0, some.batch_size)).backprop())).norm()) > 0.1


def test_closed_forms_of_activity_perturbation_know_the_tap() -> None:
    problem = tanh().tapped("0.site", randn(3, 2, seed=5))
    exact = covariance(fgvar.scheme("FG-A"), problem)
    for name, found in theory.variance(fgvar.scheme("FG-A"), problem).items():
        torch.testing.assert_close(found.flatten(), exact[name].diagonal(), rtol=1e-9, atol=1e-12)


def test_taps_follow_their_examples() -> None:
    problem, tap = tanh(), randn(3, 2, seed=5)
    both = fgvar.Stochastic(at=points.Tapped("0.site", scale=1.0), sample=sampling.Draw(2))
    noise = {"at": tap, "sample": torch.tensor([2, 0])}
    expected = [flat(problem.example(n).tapped("0.site", tap[n : n + 1]).backprop()) for n in (2, 0)]
    found = flat(both.estimate(problem, noise).gradient)
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=0, atol=1e-12)
    each = problem.tapped("0.site", tap).per_example(fgvar.Problem.backprop)
    torch.testing.assert_close(flat({k: g[2] for k, g in each.items()}), expected[0], rtol=0, atol=1e-12)


def test_taps_of_two_points_add_up_and_are_of_the_problem_s_precision() -> None:
    problem, tap = tanh(), randn(3, 2, seed=5)
    twice = points.Tapped("0.site", scale=2.0).view(problem.tapped("0.site", tap), {"": tap})
    assert float(twice.loss()) == pytest.approx(float(problem.tapped("0.site", 3 * tap).loss()), rel=1e-12)
    assert twice.to(torch.float32).loss().dtype == torch.float32
    assert "taps['0.site']" in twice.tensors()
    assert not twice.at(batch=(randn(5, 2), randn(5, 1))).taps  # which other examples have not


def test_a_tapped_row_is_measured_beside_others() -> None:
    rows = {"tapped": fgvar.Stochastic(of=fgvar.scheme("FG-A"), at=points.Tapped("site0", scale=0.1))}
    assert float(fgvar.measure(rows, mlp_relu(), draws=4)["cosine"].isnull().sum()) == 0


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (lambda: points.Ahead(by=fgvar.ExactGradient, step=0.1), "'by' is the class ExactGradient"),
        (lambda: points.Ahead(by=fgvar.ExactGradient(), step="far"), "step is 'far', expected a number"),
        (lambda: points.Tapped("site", scale=None), "scale is None, expected a number"),
        (lambda: points.Tapped("site", fgvar.sampling.Uniform()), r"noise is Uniform\(\) without sample"),
        (lambda: points.Noise(fgvar.Gaussian), r"law is the class Gaussian, expected an instance: Gaussian\(…\)"),
    ],
)
def test_a_point_refuses_what_is_no_word(word, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        word()


def test_a_tap_needs_a_site_with_a_batch_axis() -> None:
    with pytest.raises(ValueError, match="unknown site 'sit'; did you mean 'site'"):
        fgvar.Stochastic(at=points.Tapped("sit")).randomness(linear())
    net = nn.Sequential(nn.Flatten(0, 1), nn.Linear(3, 4), nn.Unflatten(0, (-1, 5)), nn.Flatten(), nn.Linear(20, 2))
    problem = fgvar.Problem(fgvar.with_sites(net.double()), "mse", (randn(2, 5, 3), randn(2, 2)))
    with pytest.raises(ValueError, match=r"site '1.site' has shape \(10, 4\), expected the batch axis \(2\) first"):
        fgvar.Stochastic(at=points.Tapped("1.site")).randomness(problem)
