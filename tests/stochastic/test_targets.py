"""Targets: estimates held against something else than what they estimate."""

import pytest
import torch
from cases import linear, randn
from torch import Tensor, nn

import fgvar
from fgvar import points, sampling, targets, transforms
from fgvar.testing import CHECKS, default_problems

FORWARD = fgvar.scheme("FG-W")


def twice(problem: fgvar.Problem) -> dict[str, Tensor]:
    return {name: 2 * g for name, g in problem.backprop().items()}


def flat(gradient: dict[str, Tensor]) -> Tensor:
    return torch.cat([g.detach().flatten() for g in gradient.values()])


def test_estimates_stay_and_the_target_changes() -> None:
    problem = linear()
    against = fgvar.Against(FORWARD, twice)
    noise = {name: u[0] for name, u in against.randomness(problem).sample(0, [3], dtype=torch.float64).items()}
    assert against.randomness(problem) == FORWARD.randomness(problem)
    for name, g in FORWARD.estimate(problem, noise).gradient.items():
        assert bool((against.estimate(problem, noise).gradient[name] == g).all())
        assert bool((against.target(problem)[name] == 2 * problem.backprop()[name]).all())


def test_the_slope_to_the_other_target_is_measured_and_found_by_the_checks() -> None:
    rows = {"half": fgvar.Against(fgvar.ExactGradient(), twice)}
    slope = fgvar.measure(rows, linear(), draws=2)["slope"].sel(layer="total", reference="target")
    assert float(slope.squeeze()) == pytest.approx(0.5, rel=1e-12)
    with pytest.raises(AssertionError, match=r"slope of 'weight' is 0.5, expected 1"):
        CHECKS["scale"](rows["half"], {"linear": default_problems()["linear"]})


@pytest.mark.parametrize("target", [fgvar.ExactGradient(), targets.TargetOf(fgvar.ExactGradient())])
def test_another_estimator_s_target_is_one_and_its_repr_evaluates(target) -> None:
    against = fgvar.Against(fgvar.Stochastic(sample=sampling.Draw(1)), target)
    assert against.target == targets.TargetOf(fgvar.ExactGradient())
    problem = {"linear": default_problems()["linear"]}
    assert CHECKS["repr"](against, problem)[0].outcome == "passed"
    CHECKS["structure"](against, problem)


def test_what_is_taken_elsewhere_can_be_held_against_what_is_there() -> None:
    ahead = points.Ahead(by=fgvar.ExactGradient(), step=0.1)

    def there(problem: fgvar.Problem) -> dict[str, Tensor]:
        return ahead.view(problem, {}).backprop()

    CHECKS["unbiased"](
        fgvar.Against(fgvar.Stochastic(of=FORWARD, at=ahead), there), {"linear": default_problems()["linear"]}
    )


def test_what_is_held_against_another_target_says_so() -> None:
    against = fgvar.Against(fgvar.scheme("projected-FG-W"), targets.Newton(linear(), 1.0))
    assert fgvar.Against(FORWARD, twice).bias_reason == "held against another target"
    assert against.bias_reason == f"{against.estimator.bias_reason}; held against another target"
    assert fgvar.Stochastic(of=against, sample=sampling.Draw(2)).bias_reason == against.bias_reason
    assert fgvar.History(against, fgvar.streams.Momentum(), 2).bias_reason == against.bias_reason


# ---- Newton ------------------------------------------------------------------------------------------------------


def network(seed: int) -> fgvar.Problem:
    net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    with torch.no_grad():
        for index, p in enumerate(net.parameters()):
            p.copy_(randn(*p.shape, seed=index))
    return fgvar.Problem(net, "cross_entropy", (randn(4, 2, seed=seed), torch.tensor([0, 1, 1, 0])))


def test_newton_solves_with_the_hessian_of_one_problem_the_gradient_of_the_other() -> None:
    forget, retain, damping = network(7), network(8), 2.0
    direction = flat(targets.Newton(retain, damping)(forget))
    sizes = [p.numel() for p in retain.params.values()]

    def loss(point: Tensor) -> Tensor:
        pieces = zip(retain.params.items(), point.split(sizes), strict=True)
        return retain.loss({name: piece.reshape(p.shape) for (name, p), piece in pieces})

    hessian = torch.func.hessian(loss)(flat(retain.params))
    found = hessian @ direction + damping * direction
    torch.testing.assert_close(found, flat(forget.backprop()), rtol=0, atol=1e-12)


def test_the_hessian_is_at_the_parameters_of_the_problem_that_is_asked() -> None:
    """Of a quadratic, Newton's step from anywhere ends in the minimum."""
    x = randn(12, 3)
    problem = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (x, randn(12, 2, seed=1)))
    moved = problem.at({name: p + randn(*p.shape, seed=3) for name, p in problem.params.items()})
    step = fgvar.Against(FORWARD, targets.Newton(problem, 0.0)).target(moved)
    end = problem.at({name: p - step[name] for name, p in moved.params.items()})
    assert float(flat(end.backprop()).norm()) < 1e-12


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-5), (torch.float16, 2e-2), (torch.bfloat16, 0.2)])
def test_newton_solves_in_any_precision(dtype: torch.dtype, allowed: float) -> None:
    """Held against float64 from the same numbers; of 16 bits torch itself solves none."""
    forget, retain = network(7).to(dtype), network(8).to(dtype)
    found = targets.Newton(retain, 1.0)(forget)
    assert {g.dtype for g in found.values()} == {dtype}
    exact = flat(targets.Newton(retain.to(torch.float64), 1.0)(forget.to(torch.float64)))
    assert float((flat(found).double() - exact).norm() / exact.norm()) < allowed


def test_a_network_too_large_for_its_hessian_is_refused() -> None:
    problem = fgvar.Problem(nn.Linear(64, 65), "mse", (torch.ones(2, 64), torch.ones(2, 65)))
    with pytest.raises(ValueError, match="4225 parameters, expected at most 4096, as their Hessian is made"):
        targets.Newton(problem, 0.1)(problem)


def test_the_gradient_of_live_weights_is_what_forward_gradients_on_them_estimate() -> None:
    """Against M g the check finds no bias, which it finds against g: by enumeration."""
    keep, linear_problem = transforms.Magnitude(0.4), default_problems()["linear"]
    live = fgvar.scheme("FG-W", space=fgvar.WeightSpace(keep=keep))
    (row,) = CHECKS["unbiased"](fgvar.Against(live, targets.Masked(keep)), {"linear": linear_problem})
    assert row.outcome == "passed"
    with pytest.raises(AssertionError, match="unbiased, linear: "):
        CHECKS["unbiased"](fgvar.Against(live, fgvar.ExactGradient()), {"linear": linear_problem})
    mask, g = keep.mask(linear_problem), linear_problem.backprop()
    for name, value in targets.Masked(keep)(linear_problem).items():
        assert torch.equal(value, mask[name] * g[name])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (lambda: fgvar.Against("FG-W", twice), "'estimator' is the text 'FG-W'"),
        (lambda: fgvar.Against(FORWARD, {"weight": 1}), "target is dict, expected a callable"),
        (lambda: fgvar.Against(FORWARD, targets.Newton), "target is the class Newton, expected a callable"),
        (lambda: targets.Newton(linear(), "much"), "damping is 'much', expected a number"),
        (lambda: targets.Propagated(nn.Linear(1, 1), 1, 0.1), r"problem is Linear, expected fgvar\.Problem"),
        (lambda: targets.Propagated(linear(), 1, "fast"), "lr is 'fast', expected a number"),
        (lambda: targets.Masked("large"), "keep is 'large' without mask, expected one like"),
    ],
)
def test_a_target_refuses_what_is_none(word, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        word()
