"""Samplers: mean, variance and squares of what they draw, against loops over every outcome, to 1e-12."""

from dataclasses import replace

import naive_sampling as naive
import pytest
import torch
from cases import labels, randn
from fgvar.sampling import (
    Draw,
    Everything,
    GradientNorms,
    Losses,
    Mixed,
    Outputs,
    Poisson,
    Reweighted,
    Uniform,
    Union,
)
from torch import Tensor, nn

import fgvar
from fgvar.measurement.draws import Enumeration
from fgvar.testing import expectation
from fgvar.testing.enumeration import variances

N = 4
ONE, TWO, RANKED = Draw(1, replace=False), Draw(2, by=Losses()), Draw(2, by=Losses(), replace=False)
# Those of the second list say that they have no closed form; what they draw is compared.
SAMPLERS = [
    Everything(), Draw(3), Draw(2, by=GradientNorms()), Draw(2, by=Losses(), weigh="none"), Draw(2, weigh="none"),
    Draw(2, weigh="normalised"), Draw(3, replace=False), Draw(N, replace=False), Draw(2, replace=False, weigh="none"),
    Draw(2, top=1, by=Outputs()), Draw(2, top=1, by=Losses(), weigh="none"), Poisson(0.3), Poisson(0.3, "sampled"),
    Poisson(1.0), Reweighted(Losses(-0.5)), Union((ONE, TWO)), Union((ONE, TWO), weigh="none"),
    *(Union(parts, weigh="none", distinct=True) for parts in ((ONE, RANKED), (RANKED, Draw(3, replace=False)),
      (ONE, Draw(3, by=Losses(), replace=False)), (RANKED,), (Draw(2, by=Losses(3), replace=False), ONE),
      (Draw(2, replace=False),))),
]  # fmt: skip
WITHOUT_CLOSED_FORM = [
    Draw(2, by=Losses(), replace=False), Draw(2, top=1, by=Losses(), replace=False),
    Draw(2, by=Losses(), weigh="normalised"),
]  # fmt: skip


def network() -> nn.Module:
    torch.manual_seed(0)
    return fgvar.with_sites(nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 2)).double())


def problem() -> fgvar.Problem:
    return fgvar.Problem(network(), "cross_entropy", (randn(N, 3), labels(N, 2)))


def outcomes(sampler: object, at: fgvar.Problem):
    """By loops, from the words of the sampler."""
    match sampler:
        case Draw(size, top, by, replaced, weigh):
            return naive.draw(by.scores(at, "batch").tolist(), size, top, replace=replaced, weigh=weigh)
        case Poisson(rate, divide):
            return naive.poisson(N, rate, sampled=divide == "sampled")
        case Reweighted(by):
            scores = by.scores(at, "batch").tolist()
            return [(1.0, [(n, N * s / sum(scores)) for n, s in enumerate(scores)])]
        case Union(parts, weigh, distinct):
            parts = [replace(part, weigh=weigh) for part in parts]
            found = naive.union(*((part.top + part.size, list(outcomes(part, at))) for part in parts))
            return naive.distinct(N, found) if distinct else found
    return [(1.0, [(n, 1.0) for n in range(N)])]


@pytest.mark.parametrize("sampler", SAMPLERS, ids=repr)
def test_closed_forms(sampler: object) -> None:
    """Of any terms x_n, entry by entry: mean, variance, and the squares by which noise of their own counts."""
    at, x = problem(), randn(N, 5, seed=3)
    assert sampler.no_closed_form(at) is None
    found = (sampler.mean(x, at), sampler.spread(x, at), sampler.squares(x, at))
    for value, expected in zip(found, naive.moments(outcomes(sampler, at), x.numpy()), strict=True):
        torch.testing.assert_close(value, torch.as_tensor(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("sampler", SAMPLERS + WITHOUT_CLOSED_FORM, ids=repr)
def test_estimates_are_those_of_the_outcomes(sampler: object) -> None:
    """Mean and variance of the estimate over every draw, as the loop over outcomes weighs each example's gradient."""
    at = problem()
    estimator = fgvar.Stochastic(sample=sampler)
    each = torch.cat([g.flatten(1) for g in at.per_example(lambda one: one.backprop()).values()], 1)
    mean, variance, _ = (torch.as_tensor(found) for found in naive.moments(outcomes(sampler, at), each.numpy()))
    if not estimator.randomness(at).size:
        torch.testing.assert_close(flat(estimator.estimate(at, {}).gradient), mean, rtol=0, atol=1e-12)
        return
    torch.testing.assert_close(flat(expectation(estimator, at, method="support")), mean, rtol=0, atol=1e-12)
    torch.testing.assert_close(flat(variances(estimator, at, method="support")), variance, rtol=0, atol=1e-12)
    bias = float((mean - each.mean(0)).abs().max())
    assert (bias > 1e-9) == bool(estimator.bias_reason), (bias, estimator.bias_reason)


def flat(found: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten() for value in found.values()])


@pytest.mark.parametrize("sampler", WITHOUT_CLOSED_FORM, ids=repr)
def test_what_has_no_closed_form_says_so(sampler: Draw) -> None:
    reason = sampler.no_closed_form(problem())
    assert reason is not None
    assert "draws by scores without putting back, or divides by the sum" in reason
    assert Union((Draw(1), sampler)).no_closed_form(problem()) == reason


def test_distinct_examples_that_are_all_are_the_whole() -> None:
    """Whatever is drawn by scores beside them."""
    at, x = problem(), randn(N, 3)
    for parts in ((Draw(N, replace=False), RANKED), (ONE, Draw(N, by=Losses(), replace=False))):
        sampler = Union(parts, weigh="none", distinct=True)
        torch.testing.assert_close(sampler.mean(x, at), x.mean(0), rtol=0, atol=1e-14)
        torch.testing.assert_close(sampler.spread(x, at), torch.zeros(3).double(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("parts", [(ONE, ONE), (RANKED, RANKED), (ONE, TWO), (ONE, Draw(1, top=1, by=Losses()))])
def test_duplicates_of_other_parts_have_no_closed_form(parts: tuple[Draw, ...]) -> None:
    reason = Union(parts, weigh="none", distinct=True).no_closed_form(problem())
    assert reason is not None
    assert "drops duplicates of other parts than one drawn evenly and one by scores" in reason


def test_the_printed_closed_forms() -> None:
    """In total over the numbers: rows of the table of minibatches, ḡ the mean of g_n."""
    at, g, m, q = problem(), randn(N, 6, seed=4), 2, 0.3
    mean, norms = g.mean(0), g.square().sum(1)
    scores = GradientNorms().scores(at, "batch")
    p = scores / scores.sum()
    centred = float((g - mean).square().sum())
    rows = {
        Draw(m, by=GradientNorms()): float((norms / (N**2 * p)).sum() - mean.square().sum()) / m,
        Draw(m, by=GradientNorms(), weigh="none"): float((p * norms).sum() - (p @ g).square().sum()) / m,
        Draw(m, replace=False): (1 - m / N) / m * centred / (N - 1),
        Poisson(q): (1 - q) / q * float(norms.sum()) / N**2,
    }
    for sampler, expected in rows.items():
        assert float(sampler.spread(g, at).sum()) == pytest.approx(expected, rel=1e-12), sampler
    sampled = Poisson(q, "sampled")
    torch.testing.assert_close(sampled.mean(g, at), (1 - (1 - q) ** N) * mean, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "sampler", [Draw(2), Draw(2, by=Losses()), Draw(1, top=1, by=Losses()), Draw(2, by=Losses(), weigh="none")]
)
def test_examples_that_are_alike_have_no_variance(sampler: Draw) -> None:
    """None at all: neither rounding, nor less than nothing."""
    for count in (3, 5, 6, 7, 10):
        x, y = torch.full((count, 1), 0.3).double(), torch.full((count, 1), 0.1).double()
        alike = fgvar.Problem(torch.nn.Linear(1, 1, bias=False).double(), "mse", (x, y))
        found = fgvar.theory.variance(fgvar.Stochastic(sample=sampler), alike)["weight"]
        assert float(found) == 0


def test_gradient_norms_vary_least() -> None:
    """p ∝ ‖g_n‖ is the minimum over p: (mean ‖g_n‖)² − ‖ḡ‖², over m."""
    at = problem()
    each = torch.cat([g.flatten(1) for g in at.per_example(lambda one: one.backprop()).values()], 1)
    least = float(each.norm(dim=1).mean().square() - each.mean(0).square().sum())
    by = (GradientNorms(), Uniform(), Losses(-1), Outputs())
    found = {score: float(Draw(1, by=score).spread(each, at).sum()) for score in by}
    assert found[GradientNorms()] == pytest.approx(least, rel=1e-12)
    assert all(value > 1.001 * least for score, value in found.items() if score != GradientNorms())


def test_batches_without_putting_back_all_and_in_any_precision() -> None:
    """All examples, each once, are the batch, in whatever order; and a float32 problem has float32 estimates."""
    at = problem().to(torch.float32)
    estimator = fgvar.Stochastic(sample=Draw(N, replace=False))
    noise = {k: u[0] for k, u in estimator.randomness(at).sample(0, [5]).items()}
    found = estimator.estimate(at, noise).gradient
    for name, value in at.backprop().items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value)


def test_all_terms_taken_for_certain_are_the_whole() -> None:
    """Whatever is drawn beside them counts nothing."""
    at = problem()
    for by in (Losses(), Outputs(), Mixed(Losses(), 0.5)):
        estimator = fgvar.Stochastic(sample=Draw(2, top=N, by=by))
        noise = estimator.randomness(at).sample(0, range(3), dtype=torch.float64)
        for draw in range(3):
            found = estimator.estimate(at, {k: u[draw] for k, u in noise.items()}).gradient
            for name, value in at.backprop().items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-15)
        x = randn(N, 3)
        torch.testing.assert_close(estimator.sample.mean(x, at), x.mean(0))
        torch.testing.assert_close(estimator.sample.spread(x, at), torch.zeros(3).double(), rtol=0, atol=1e-15)
    alike = fgvar.Stochastic(sample=Draw(2, top=N, by=Losses(), weigh="none"))  # what is drawn counts as they do
    mean, variance = expectation(alike, at, method="support"), variances(alike, at, method="support")
    each = torch.cat([g.flatten(1) for g in at.per_example(lambda one: one.backprop()).values()], 1)
    torch.testing.assert_close(alike.sample.mean(each, at), flat(mean), rtol=0, atol=1e-12)
    torch.testing.assert_close(alike.sample.spread(each, at), flat(variance), rtol=0, atol=1e-12)


class Scores:
    """Numbers as they are given."""

    adapted, of_loss, linear = True, False, True

    def __init__(self, *numbers: float) -> None:
        self.numbers = torch.tensor(numbers)

    def scores(self, problem: fgvar.Problem, over: str) -> Tensor:  # noqa: ARG002
        return self.numbers


def test_scores_of_zero() -> None:
    """All of them: uniform, among those left where some are taken for certain. One: never drawn, and missing."""
    at, x = problem(), randn(N, 3)
    even = Draw(2)
    for value in ("mean", "spread", "squares"):
        found = getattr(Draw(2, by=Scores(0, 0, 0, 0)), value)(x, at)
        torch.testing.assert_close(found, getattr(even, value)(x, at), rtol=0, atol=1e-15)
    alone = Draw(2, top=1, by=Scores(0, 5, 0, 0))
    torch.testing.assert_close(alone.mean(x, at), x.mean(0), rtol=0, atol=1e-15)
    expected = naive.moments(naive.draw([1, 9, 1, 1], 2, 1, replace=True, weigh="unbiased"), x.numpy())
    torch.testing.assert_close(alone.spread(x, at), torch.as_tensor(expected[1]), rtol=0, atol=1e-15)
    missing = Draw(2, by=Scores(1, 0, 1, 1))
    torch.testing.assert_close(missing.mean(x, at), x[[0, 2, 3]].sum(0) / N)
    mended = replace(missing, by=Mixed(missing.by, 0.2))
    torch.testing.assert_close(mended.mean(x, at), x.mean(0), rtol=0, atol=1e-15)
    assert mended.by.scores(at, "batch").tolist() == pytest.approx(
        [0.8 / 3 + 0.05, 0.05, 0.8 / 3 + 0.05, 0.8 / 3 + 0.05]
    )


@pytest.mark.parametrize("replaced", [True, False])
def test_several_thousand(replaced: bool) -> None:
    """4,000 of 5,000 examples, by scores: one estimate, finite, of the whole gradient's size."""
    net = nn.Linear(3, 2).double()
    at = fgvar.Problem(net, "mse", (randn(5000, 3), randn(5000, 2, seed=1)))
    estimator = fgvar.Stochastic(sample=Draw(4000, top=100, by=Losses(), replace=replaced))
    noise = {k: u[0] for k, u in estimator.randomness(at).sample(0, [0], dtype=torch.float64).items()}
    found, exact = flat(estimator.estimate(at, noise).gradient), flat(at.backprop())
    assert float((found - exact).norm() / exact.norm()) < 0.2


def test_poisson_of_several_thousand() -> None:
    """Of size K: E 1/K over K ≥ 1, here near 1/(Nq) + (1 − q)/(Nq)², the next order below 1e-7."""
    x = torch.ones(5000, 1, dtype=torch.float64)
    found = float(Poisson(0.3, "sampled").squares(x, problem()))
    assert found == pytest.approx(1 / 1500 + 0.7 / 1500**2, rel=1e-5)
    assert float(Poisson(0.3, "sampled").mean(x, problem())) == pytest.approx(1)


def test_a_union_counts_an_example_twice_that_two_parts_drew() -> None:
    at = problem()
    estimator = fgvar.Stochastic(sample=Union((Draw(1), Draw(1)), weigh="none"))
    assert [*estimator.randomness(at).leaves] == ["sample.0", "sample.1"]
    for one, other in ((2, 2), (0, 3)):
        noise = {"sample.0": torch.tensor([one]), "sample.1": torch.tensor([other])}
        found = flat(estimator.estimate(at, noise).gradient)
        mean = (flat(at.example(one).backprop()) + flat(at.example(other).backprop())) / 2
        torch.testing.assert_close(found, mean, rtol=0, atol=1e-15)


def test_what_a_sampler_says_of_itself() -> None:
    """Biased where ω is not by the probabilities drawn with; linear in the loss where ω is not by another loss's."""
    assert not Union((Draw(1), Draw(2, by=Losses()))).bias_reason
    assert (
        Union((Draw(1), Draw(2, by=Losses())), weigh="none").bias_reason
        == Draw(2, by=Losses(), weigh="none").bias_reason
    )
    assert not Union((Draw(1), Draw(2)), weigh="none").bias_reason
    assert not Draw(2, weigh="normalised").bias_reason
    assert "count by their scores" in Reweighted(Losses()).bias_reason
    outputs = Mixed(Outputs())
    linear = [Everything(), Poisson(0.5), Draw(2), Draw(2, by=GradientNorms()), Draw(2, top=1, by=Outputs()),
              Union((Draw(2), Draw(1, by=Outputs()))), Reweighted(Outputs()), Draw(1, by=outputs)]  # fmt: skip
    assert all(sampler.linear for sampler in linear)
    other = [Draw(2, by=Losses()), Draw(2, top=1, by=GradientNorms()), Draw(2, by=Mixed(GradientNorms())),
             Draw(2, by=GradientNorms(), weigh="normalised"), Union((Draw(2), Draw(1, by=Losses()))),
             Reweighted(GradientNorms())]  # fmt: skip
    assert not any(sampler.linear for sampler in other)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS + WITHOUT_CLOSED_FORM if s.linear], ids=repr)
def test_linear_samplers_are(sampler: object) -> None:
    """ĝ(L + L²) = ĝ(L) + ĝ(L²) of every value of the noise."""
    at, estimator = problem(), fgvar.Stochastic(sample=sampler)

    def with_loss(change) -> fgvar.Problem:
        return fgvar.Problem(network(), lambda o, t: change(nn.functional.cross_entropy(o, t, reduction="none")),
                             (at.inputs, at.targets))  # fmt: skip

    parts = [with_loss(change) for change in (lambda x: x + x**2, lambda x: x, lambda x: x**2)]
    noise = {}
    if estimator.randomness(at).size:
        enumeration = Enumeration(estimator.randomness(at), "support")
        noise = enumeration.take(range(min(len(enumeration), 20)))
    for value in range(len(next(iter(noise.values()))) if noise else 1):
        one = {k: u[value] for k, u in noise.items()}
        whole, first, second = (flat(estimator.estimate(part, one).gradient) for part in parts)
        torch.testing.assert_close(whole, first + second, rtol=1e-10, atol=1e-13)


def test_refusals() -> None:
    at = problem()
    with pytest.raises(ValueError, match="size is 0, expected an integer of at least 1"):
        Draw(0)
    with pytest.raises(ValueError, match="top is -1, expected a non-negative integer"):
        Draw(1, top=-1)
    with pytest.raises(ValueError, match="unknown weigh 'unbiassed'; did you mean 'unbiased'"):
        Draw(1, weigh="unbiassed")
    with pytest.raises(ValueError, match=r"top=0 and size=5 of 4 terms.*where terms are not put back"):
        fgvar.Stochastic(sample=Draw(5, replace=False)).randomness(at)
    with pytest.raises(ValueError, match=r"top=5 and size=1 of 4 terms; expected a top of 4 at most"):
        fgvar.Stochastic(sample=Draw(1, top=5)).randomness(at)
    with pytest.raises(ValueError, match=r"2 indices of 1 terms of positive probability.*Mixed"):
        fgvar.Stochastic(sample=Draw(2, by=Scores(0, 0, 1, 0), replace=False)).randomness(at).sample(0, [0])
    for numbers in ((1, -1, 1, 1), (1, float("nan"), 1, 1), (1, float("inf"), 1, 1)):
        for sampler in (Draw(2, by=Scores(*numbers)), Reweighted(Scores(*numbers))):
            with pytest.raises(ValueError, match=r"scores by .* reach from .* expected finite numbers from 0 on"):
                fgvar.Stochastic(sample=sampler).randomness(at)
    with pytest.raises(ValueError, match=r"rate is 0, expected a probability above 0 and at most 1"):
        Poisson(0)
    with pytest.raises(ValueError, match="unknown divide 'mean'"):
        Poisson(0.5, divide="mean")
    with pytest.raises(TypeError, match=r"parts are \[.*expected a tuple of draws"):
        Union([Draw(1)])
    with pytest.raises(TypeError, match=r"expected a tuple of draws: \(Draw\(8\), Draw\(8, by=Losses\(\)\)\)"):
        Union((Poisson(0.5),))
    with pytest.raises(ValueError, match="expected at least one draw, all of them over='batch'"):
        Union((Draw(1, over="terms"),))
    with pytest.raises(ValueError, match="expected at least one draw"):
        Union(())
    with pytest.raises(ValueError, match=r"what is dropped takes its weight along; expected weigh='none', or dist"):
        Union((Draw(1),), distinct=True)
    with pytest.raises(ValueError, match="unknown weigh 'normalised'"):
        Union((Draw(1),), weigh="normalised")
