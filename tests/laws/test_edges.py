"""Edges where estimators used to be judged, or to fail, for the wrong reason."""

from dataclasses import replace

import pytest
import torch
from cases import CASES, labels, mixer, randn
from torch import nn

import fgvar
from fgvar.testing import check_estimator, expectation


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_a_correct_estimator_passes_on_a_problem_in_float32(name: str) -> None:
    batch = (randn(4, 3).float(), labels(4, 2))
    model = nn.Linear(3, 2)
    with torch.no_grad():
        for p, seed in ((model.weight, 1), (model.bias, 2)):
            p.copy_(randn(*p.shape, seed=seed))
    report = check_estimator(fgvar.scheme(name), [fgvar.Problem(fgvar.with_sites(model), "cross_entropy", batch)])
    assert report.passed, str(report)


@pytest.mark.parametrize("name", ["LG-FG-W", "LG-FG-A"])
@pytest.mark.parametrize("oracle", [fgvar.oracles.CentralDifference(1e-5), fgvar.oracles.ForwardDifference(1e-7)])
def test_differences_stop_where_derivatives_stop(name: str, oracle) -> None:
    """What follows a stop-gradient is not moved by what comes before it."""
    problem = mixer()
    exact, moved = fgvar.scheme(name), fgvar.scheme(name, oracle=oracle)
    noise = {k: u[0] for k, u in exact.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    found, expected = moved.estimate(problem, noise).gradient, exact.estimate(problem, noise).gradient
    size = max(float(g.abs().max()) for g in expected.values())
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-4 * size, msg=lambda m, k=key: f"{k}: {m}")


def test_one_number_an_example() -> None:
    net = fgvar.with_sites(nn.Sequential(nn.Linear(3, 1), nn.Flatten(0)).double())
    problem = fgvar.Problem(net, "mse", (randn(4, 3), randn(4, seed=1)))
    column = fgvar.Problem(net[0], "mse", (randn(4, 3), randn(4, seed=1)[:, None]))
    assert torch.equal(problem.backprop()["0.weight"], column.backprop()["weight"])
    assert torch.isfinite(fgvar.scheme("DFA").estimate(problem, {}).gradient["0.weight"]).all()


def test_direct_feedback_needs_one_tensor() -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.layer(x), x

    def loss(outputs: tuple[torch.Tensor, torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        return (outputs[0] - targets).square().sum(1)

    problem = fgvar.Problem(fgvar.with_sites(Pair()), loss, (torch.ones(2, 3), torch.ones(2, 2)))
    with pytest.raises(TypeError, match="the network returns tuple, expected one tensor"):
        fgvar.scheme("DFA").estimate(problem, {})


def test_local_heads_of_fewer_classes() -> None:
    net = fgvar.with_local_heads(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 3)), after=("0",), classes=2)
    with pytest.raises(ValueError, match=r"local head '0\.local\.head' has 2 classes.*classes="):
        fgvar.Problem(net, "cross_entropy", (torch.ones(3, 3), labels(3, 3)))


def test_the_ends_of_blocks_may_be_any_iterable() -> None:
    net = fgvar.with_local_heads(nn.Sequential(nn.Linear(3, 4)), after=iter(["0"]), classes=2)  # type: ignore[arg-type]
    assert "0.local.head" in dict(net.named_modules())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"noise": "Gaussian"}, "noise is 'Gaussian' without sample, expected one like Gaussian"),
        ({"noise": fgvar.Gaussian}, r"noise is the class Gaussian, expected an instance: Gaussian\(…\)"),
        ({"noise": fgvar.Randomness({})}, r"noise is Randomness\(leaves=\{\}\), expected a law like Gaussian"),
        ({"space": fgvar.Gaussian()}, "space is Gaussian.* expected one like WeightSpace"),
        ({"oracle": fgvar.GlobalLoss()}, "oracle is GlobalLoss.* without bias_order"),
    ],
)
def test_words_in_the_wrong_place(words: dict, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        fgvar.Estimator(**words)


@pytest.mark.parametrize("words", [{"draws": 1e2}, {"seed": 1.5}, {"chunk": 16.0}, {"draws": "10"}])
def test_numbers_of_measure_are_integers(words: dict) -> None:
    with pytest.raises(TypeError, match=rf"{next(iter(words))} is .*, expected an integer"):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, CASES["linear"](), **words)


def test_measure_takes_a_problem() -> None:
    with pytest.raises(TypeError, match=r"problem is Linear, expected fgvar\.Problem"):
        fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, nn.Linear(3, 2))  # type: ignore[arg-type]


def test_projections_on_parallel_sign_vectors_are_biased_and_say_so() -> None:
    """Two sign vectors of two numbers are parallel half of the time: E P = 3/4, for K/d = 1."""
    problem = fgvar.Problem(nn.Linear(2, 1, bias=False).double(), "mse", (randn(2, 2), randn(2, 1, seed=1)))
    normal = fgvar.Estimator(directions=2, combine=fgvar.combine.Projection("mean"))
    signs = replace(normal, noise=fgvar.Rademacher())
    mean = expectation(signs, problem, method="signs")["weight"]
    torch.testing.assert_close(mean, 0.75 * problem.backprop()["weight"], rtol=0, atol=1e-12)
    assert (normal.bias_reason, replace(signs, directions=1).bias_reason) == ("", "")
    assert "span less" in signs.bias_reason


def test_a_sham_does_not_shuffle_a_direction_with_its_opposite() -> None:
    """−c for −u would be the estimate with the other sign."""
    problem = CASES["linear"]()
    estimator = fgvar.Estimator(antithetic=True, combine=fgvar.combine.ShuffledCredit(across="directions"))
    noise = {k: u[0] for k, u in estimator.randomness(problem).sample(0, [0], dtype=torch.float64).items()}
    with pytest.raises(ValueError, match="one of them to shuffle"):
        estimator.estimate(problem, noise)


def test_a_mean_in_closed_form_where_sites_lead_to_other_losses() -> None:
    """One of two parallel branches ends a block: sites of one kind of credit are not next to each other."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(3, 4) for _ in range(3))
            self.last = nn.Linear(4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(torch.tanh(self.a(x)) + torch.tanh(self.b(x)) * torch.tanh(self.c(x)))

    net = fgvar.with_local_heads(Branches().double(), after=("b",), classes=2, inputs=randn(2, 3))
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(2, 3), labels(2, 2)))
    estimator = fgvar.scheme("LG-FG-A")
    mean, expected = fgvar.theory.mean(estimator, problem), expectation(estimator, problem)
    for key, value in estimator.target(problem).items():
        torch.testing.assert_close(mean[key], value, rtol=0, atol=1e-12)
        torch.testing.assert_close(expected[key], value, rtol=0, atol=1e-9)
