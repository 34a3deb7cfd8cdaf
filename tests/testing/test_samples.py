"""Samples and transforms under the checks: right ones pass, broken ones fail where they should and nowhere before."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from cases import randn
from torch import Tensor, nn

import fgvar
from fgvar import sampling, transforms
from fgvar.testing import CHECKS, check_estimator, default_problems
from fgvar.testing.mutants import MUTANTS

PROBLEMS = default_problems()
MIXED = sampling.Mixed(sampling.Outputs())
RIGHT = {
    "uniform": fgvar.Stochastic(sample=sampling.Draw(2)),
    "not-put-back": fgvar.Stochastic(sample=sampling.Draw(1, replace=False)),
    "norms": fgvar.Stochastic(sample=sampling.Draw(2, by=sampling.GradientNorms())),
    "losses": fgvar.Stochastic(sample=sampling.Draw(2, by=sampling.Losses())),
    "residuals-not-put-back": fgvar.Stochastic(sample=sampling.Draw(1, by=MIXED, replace=False)),
    "top": fgvar.Stochastic(sample=sampling.Draw(1, top=1, by=sampling.GradientNorms())),
    "poisson": fgvar.Stochastic(sample=sampling.Poisson(0.5)),
    "FG-W": fgvar.Stochastic(of=fgvar.scheme("FG-W"), sample=sampling.Draw(2)),
    "FG-A": fgvar.Stochastic(of=fgvar.scheme("FG-A", noise=fgvar.Rademacher()), sample=sampling.Draw(2)),
    "noise": fgvar.Stochastic(sample=sampling.Poisson(0.5), then=(transforms.AddNoise(0.01),)),
    "workers": fgvar.Stochastic(sample=sampling.Draw(2), workers=2),
}
ROUNDED = fgvar.Stochastic(sample=sampling.Draw(2), then=(transforms.Quantise(4),))
CHOSEN = fgvar.Stochastic(sample=sampling.Draw(2), then=(transforms.RandomK(0.5),))


# Samplers differ by the examples, of which these have two and five; local heads and convolutions meet three rows.
SAMPLED = {name: PROBLEMS[name] for name in ("linear", "relu")}
EVERYWHERE = ("uniform", "norms", "FG-W")


@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_pass_every_check(name: str) -> None:
    report = check_estimator(RIGHT[name], PROBLEMS if name in EVERYWHERE else SAMPLED)
    assert report.passed, report
    found = {(row.check, row.outcome) for row in report.rows}
    assert {("unbiased", "passed"), ("weights", "passed"), ("repr", "passed")} <= found
    exact = [row.note for row in report.rows if row.check in ("unbiased", "scale")]
    assert all(note.startswith("exact: ") for note in exact), exact


@pytest.mark.parametrize("estimator", [ROUNDED, CHOSEN], ids=["rounded", "random-k"])
def test_what_is_not_the_same_draw_by_draw_passes_in_the_mean(estimator: fgvar.Stochastic) -> None:
    """Verdicts with a false-alarm rate of 1e-6 in all."""
    report = check_estimator(estimator, PROBLEMS["linear"])
    assert report.passed, report


BROKEN = {
    "unweighted-residuals": {"unbiased", "scale", "weights", "variance"},
    "as-put-back": {"unbiased", "scale", "weights"},
    "refilled-top": {"unbiased", "scale", "weights"},
    "unnormalised-scores": {"unbiased", "scale", "weights", "variance"},
    "inverted-weights": {"unbiased", "scale", "weights", "variance"},
    "without-rate": {"unbiased", "scale", "weights", "variance"},
    "descending-sam": {"unbiased", "scale", "linear_in_loss", "bias_order"},
    "sampled-size": {"unbiased", "scale", "weights", "variance"},
    "rounded-size": {"unbiased", "scale", "weights", "variance"},
    "attached-proposal": {"unbiased", "scale"},
    "clipped-mean": {"sensitivity", "linear_in_loss"},  # a clip is no linear map, be it of the mean or not
    "mean-of-mean-loss": {"unbiased", "scale"},
    "shrunk-layer": {"unbiased", "scale"},
    "left-carriers-alone": {"unbiased", "scale"},
    "noise-of-the-sum": {"variance"},
    "times-workers": {"unbiased", "scale"},
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_ones_fail_where_they_should_alone(name: str) -> None:
    mutant = MUTANTS[name]
    report = check_estimator(mutant.estimator, {mutant.shows_on: PROBLEMS[mutant.shows_on]})
    assert set(report.failures) == BROKEN[name], report


def test_the_right_way_back_from_carriers_passes() -> None:
    mutant = MUTANTS["left-carriers-alone"]
    report = check_estimator(mutant.right, mutant.problem())
    assert report.passed, report


@pytest.mark.parametrize(
    ("name", "check", "note"),
    [
        ("refilled-top", "weights", "E ω of example 4 is 2 \\(exact\\), expected 1"),
        ("sampled-size", "scale", "slope of 'weight' is 0.4375, expected 1"),  # 1 − (1 − q)^N, q = 1/4, N = 2
        ("rounded-size", "scale", "slope of 'layer0.weight' is 1.25, expected 1"),  # 2.5 for 2
        ("shrunk-layer", "scale", "slope of 'bias' is 0.01, expected 1"),
        ("noise-of-the-sum", "variance", "variance of 'weight' is 4 times the declared one \\(exact"),  # N²
        ("times-workers", "scale", "slope of 'weight' is 2, expected 1"),
        ("mean-of-mean-loss", "scale", "slope of 'weight' is 0.5, expected 1"),  # 1/N
        ("clipped-mean", "sensitivity", "another example 0 moves the estimate by .*, declared is at most 0.00533"),
    ],
)
def test_a_broken_one_is_off_by_what_its_source_says(name: str, check: str, note: str) -> None:
    mutant = MUTANTS[name]
    with pytest.raises(AssertionError, match=note):
        CHECKS[check](mutant.estimator, {mutant.shows_on: PROBLEMS[mutant.shows_on]})


def test_a_declared_bias_does_not_make_a_check_pass() -> None:
    normalised = fgvar.Stochastic(sample=sampling.Draw(2, by=MIXED, weigh="normalised"))
    assert normalised.bias_reason
    report = check_estimator(normalised, PROBLEMS["linear"], checks=["unbiased", "weights"])
    assert report.failures == ("unbiased", "weights")


# ---- weights -------------------------------------------------------------------------------------------------------


class Sum(nn.Module):
    """log Σ_z exp(a_z) of four numbers for each example, through `fgvar.Terms`."""

    def __init__(self) -> None:
        super().__init__()
        self.scores = nn.Linear(3, 4).double()
        self.terms = fgvar.Terms(log=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.terms(self.scores(x)).logsumexp(-1, keepdim=True).exp()


def sums() -> fgvar.Problem:
    return fgvar.Problem(Sum(), lambda outputs, _: outputs.sum(1), (randn(2, 3), torch.zeros(2)))


def test_terms_inside_the_network_are_weighed_too() -> None:
    right = fgvar.Stochastic(sample=sampling.Draw(1, over="terms", by=sampling.TermSizes()))
    assert (
        CHECKS["weights"](right, sums())[0].note == "E ω = 1 for each of 10 terms, exactly"
    )  # 2 examples, 2·4 terms
    assert CHECKS["unbiased"](right, sums())[0].note.startswith("exact: all 16 values")
    wrong = fgvar.Stochastic(sample=sampling.Draw(1, over="terms", by=sampling.TermSizes(), weigh="none"))
    with pytest.raises(AssertionError, match=r"E ω of term \(\d, \d\) of 'terms' is .* \(exact\), expected 1"):
        CHECKS["weights"](wrong, sums())


def large(batch: int = 20) -> fgvar.Problem:
    return fgvar.Problem(nn.Linear(3, 2).double(), "mse", (randn(batch, 3), randn(batch, 2, seed=1)))


def test_what_has_too_many_values_is_drawn() -> None:
    """Three verdicts of false-alarm rate 1e-7 each; 20⁴ values are not enumerated."""
    row = CHECKS["weights"](fgvar.Stochastic(sample=sampling.Draw(4)), large())[0]
    assert row.note == "E ω = 1: 8192 draws, false alarms 1e-07 (nominal)"
    half = fgvar.Stochastic(sample=replace(MUTANTS["as-put-back"].estimator.sample, size=10, by=MIXED))
    with pytest.raises(AssertionError, match=r"E ω of example \d+ is \d\.\d+, expected 1: z = "):
        CHECKS["weights"](half, large())
    seldom = fgvar.Stochastic(sample=sampling.Draw(4, by=sampling.Losses(power=8.0)))
    row = check_estimator(seldom, large(), checks=["weights"]).rows[0]
    assert (row.outcome, row.note.split(";")[0]) == (
        "undecided",
        "terms of 'batch' were drawn too seldom for a verdict",
    )


def test_every_sample_of_nested_sentences_is_looked_at() -> None:
    inner = fgvar.Stochastic(sample=sampling.Draw(2, by=MIXED, weigh="none"))
    for outer in (fgvar.Stochastic(of=inner), fgvar.Against(inner, fgvar.ExactGradient())):
        with pytest.raises(AssertionError, match="E ω of example"):
            CHECKS["weights"](outer, PROBLEMS["linear"])
    assert CHECKS["weights"](fgvar.scheme("FG-W"), PROBLEMS["linear"])[0].note == "declares no sample word"


@dataclass(frozen=True)
class Sliced:
    """The first examples, in a batch of its own."""

    bias_reason: ClassVar[str] = ""

    def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:  # noqa: ARG002
        return {}

    def batch_size(self, problem: fgvar.Problem) -> int:  # noqa: ARG002
        return 1

    def view(self, here: fgvar.Problem, noise: Mapping[str, Tensor], problem: fgvar.Problem) -> fgvar.Problem:  # noqa: ARG002
        return here.at(batch=(here.inputs[:1], here.targets[:1]))


def test_a_sample_that_cannot_be_followed_is_told_how() -> None:
    with pytest.raises(AssertionError, match=r"view makes a batch of its own; take problem\.rows"):
        CHECKS["weights"](fgvar.Stochastic(sample=Sliced()), PROBLEMS["linear"])


# ---- sensitivity ---------------------------------------------------------------------------------------------------


def test_sensitivity_is_declared_where_it_is_known() -> None:
    clip, problem = (transforms.Clip(0.5),), large(6)

    def of(sample: Any, each: Any = clip, then: Any = ()) -> float | None:
        return fgvar.Stochastic(sample=sample, each=each, then=then).sensitivity(problem)

    assert of(sampling.Poisson(0.25)) == pytest.approx(2 * 0.5 / (0.25 * 6))
    assert of(sampling.Poisson(0.25, divide="sampled")) == 1.0  # it can be the only one
    assert of(sampling.Draw(3, replace=False)) == pytest.approx(2 * 0.5 / 3)
    assert of(sampling.Draw(3)) == 1.0  # it can be drawn every time
    assert of(sampling.Everything()) == pytest.approx(2 * 0.5 / 6)
    assert of(sampling.Everything(), then=(transforms.AddNoise(1.0),)) == pytest.approx(2 * 0.5 / 6)
    for unknown in (
        of(sampling.Draw(3, by=sampling.Losses())),
        of(sampling.Everything(), each=()),
        of(sampling.Everything(), each=(transforms.Clip(float("inf")),)),
        of(sampling.Everything(), then=(transforms.Quantise(2),)),
        of(sampling.Everything(), each=(*clip, transforms.Sign())),
    ):
        assert unknown is None


def test_carriers_and_back_move_no_example_further() -> None:
    carriers = transforms.Carriers(1)
    estimator = fgvar.Stochastic(
        sample=sampling.Poisson(0.5), each=(carriers, transforms.Clip(0.2)),
        then=(transforms.AddNoise(0.1), carriers.back),
    )  # fmt: skip
    row = CHECKS["sensitivity"](estimator, PROBLEMS["linear"])[0]
    assert row.outcome == "passed"
    assert row.note.endswith("of an allowed 0.4")


def test_private_gradients_keep_to_their_sensitivity_and_others_do_not() -> None:
    """Of what replacing an example moves, a share of the declared bound near 1 is found: it is no empty one."""
    right = fgvar.Stochastic(sample=sampling.Poisson(0.5), each=(transforms.Clip(1e-2),))
    note = CHECKS["sensitivity"](right, PROBLEMS["relu"])[0].note
    assert note == "another example moves it by 0.0065 at most, of an allowed 0.008"
    sampled = replace(right, sample=type(MUTANTS["sampled-size"].estimator.sample)(0.5))
    with pytest.raises(AssertionError, match=r"moves the estimate by 0\.0163, declared is at most 0\.008"):
        CHECKS["sensitivity"](sampled, PROBLEMS["relu"])

    class Unclipped(fgvar.Stochastic):
        def term(self, example: fgvar.Problem, noise: Any, problem: fgvar.Problem) -> dict[str, Tensor]:  # noqa: ARG002
            return self.of.estimate(example, {}).gradient

    with pytest.raises(AssertionError, match=r"declared is at most 0\.008"):
        CHECKS["sensitivity"](Unclipped(sample=right.sample, each=right.each), PROBLEMS["relu"])


# ---- what has changed in other checks ------------------------------------------------------------------------------


def test_drawing_by_the_loss_is_no_linear_estimate_of_it() -> None:
    row = CHECKS["linear_in_loss"](RIGHT["losses"], PROBLEMS["linear"])[0]
    assert (row.outcome, row.note.split(",")[0]) == ("not applicable", "it draws by the loss")
    assert CHECKS["linear_in_loss"](RIGHT["norms"], PROBLEMS["relu"])[0].note == "1000·L and L + L² to 1e-09"


def test_indices_of_examples_move_with_them() -> None:
    """Draw by draw: no mean is needed."""
    for name in ("uniform", "norms", "residuals-not-put-back", "poisson", "FG-A"):
        assert CHECKS["batch_order"](RIGHT[name], PROBLEMS["relu"])[0].note == "5 examples, rolled by one"
    # Indices of a gradient's numbers stay, although there are as many of them as examples.
    eight = fgvar.Problem(nn.Linear(3, 2).double(), "mse", (randn(8, 3), randn(8, 2, seed=1)))
    chosen = fgvar.Stochastic(then=(transforms.RandomK(3),))
    assert CHECKS["batch_order"](chosen, eight)[0].note == "8 examples, rolled by one"


def test_noise_that_is_added_to_what_no_loss_reaches_may_be_finite() -> None:
    assert CHECKS["non_finite"](RIGHT["noise"], PROBLEMS["mixer"])[0].note == "NaN loss shows"


def token_weights(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return (outputs - targets).square().sum(1), targets[:, 0].abs() + 0.1


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_losses_with_weights_and_single_precision(dtype: torch.dtype) -> None:
    net = nn.Linear(3, 2, dtype=dtype)
    with torch.no_grad():
        net.weight.copy_(randn(2, 3, seed=2))
        net.bias.copy_(randn(2, seed=3))
    problem = fgvar.Problem(net, token_weights, (randn(5, 3).to(dtype), randn(5, 2, seed=1).to(dtype)))
    for name in ("uniform", "norms", "residuals-not-put-back", "poisson"):
        report = check_estimator(
            RIGHT[name], problem, checks=["weights", "unbiased", "scale", "batch_order", "noise"]
        )
        assert {row.outcome for row in report.rows} == {"passed"}, report


def test_a_chain_of_sampled_sums_passes() -> None:
    """Randomised dynamic programming: the gradient of Ẑ, of two steps of two states for each of two examples."""
    net = fgvar.networks.LinearChain(2, 2).double()
    chain = fgvar.Problem(net, lambda outputs, _: outputs[0].exp(), (randn(2, 3, 2), torch.zeros(2)))
    for by in (sampling.TermSizes(), sampling.Uniform()):
        report = check_estimator(fgvar.Stochastic(sample=sampling.Draw(1, over="terms", by=by)), chain)
        assert report.passed, report
        notes = {row.check: row.note for row in report.rows}
        assert notes["unbiased"].startswith("exact: all 64 values")
        assert notes["weights"] == "E ω = 1 for each of 14 terms, exactly"
