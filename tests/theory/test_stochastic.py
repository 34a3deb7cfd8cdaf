"""Closed forms of stochastic gradients: against all that can be drawn, listed."""

import pytest
import torch
from cases import CASES, labels, mixer, randn
from torch import Tensor, nn

import fgvar
from fgvar import sampling, theory, transforms
from fgvar.measurement.data_variance import DataVariance
from fgvar.measurement.draws import Enumeration
from fgvar.stochastic.sampling import Sample
from fgvar.testing import expectation
from fgvar.testing.enumeration import variances
from fgvar.theory import closed_forms, no_closed_form

Gradients = dict[str, Tensor]

RANDOM = (
    sampling.Draw(2),
    sampling.Draw(2, replace=False),
    sampling.Draw(2, weigh="normalised"),
    sampling.Draw(2, by=sampling.Losses()),
    sampling.Draw(2, by=sampling.GradientNorms()),
    sampling.Draw(2, by=sampling.Losses(), weigh="none"),
    sampling.Draw(1, top=1, by=sampling.Losses()),
    sampling.Draw(2, top=1, weigh="none"),
    sampling.Union((sampling.Draw(1), sampling.Draw(1, by=sampling.Losses()))),
    sampling.Poisson(0.3),
    sampling.Poisson(0.3, divide="sampled"),
)


def assert_close(found: Gradients, expected: Gradients) -> None:
    """To 1e-9 of every entry, and to rounding of the largest where a norm makes a parameter dead."""
    assert set(found) == set(expected)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-9, atol=1e-15 + 1e-13 * largest, msg=lambda m, n=name: f"{n}: {m}"
        )


def affine(batch: int = 3, loss: object = "cross_entropy") -> fgvar.Problem:
    """A linear layer of 6 numbers, with a site behind it."""
    net = fgvar.with_sites(nn.Linear(2, 2).double())
    with torch.no_grad():
        net.weight.copy_(randn(2, 2, seed=3))
        net.bias.copy_(randn(2, seed=4))
    return fgvar.Problem(net, loss, (randn(batch, 2, seed=1), labels(batch, 2)))


def weighing(outputs: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy whose examples count differently, as sequences of several lengths do."""
    return nn.functional.cross_entropy(outputs, targets, reduction="none"), targets + 0.5


def assert_enumerated(estimator: fgvar.Stochastic, problem: fgvar.Problem, rest: str = "hermite") -> None:
    """Mean and variance are those of all values of the noise; of Gaussian leaves, of quadrature that is exact."""
    leaves = estimator.randomness(problem).leaves.values()
    method = "support" if all(leaf.is_finite for leaf in leaves) else f"support × {rest}"
    assert no_closed_form(estimator, problem) is None
    assert_close(theory.mean(estimator, problem), expectation(estimator, problem, method=method))
    spread = variances(estimator, problem, method=method)
    expected = {name: spread[name].reshape(p.shape) for name, p in problem.params.items()}
    assert_close(theory.variance(estimator, problem), expected)
    assert max(float(v.max()) for v in expected.values()) > 1e-6, "0 would be compared with 0"


def listed(estimator: fgvar.Stochastic, problem: fgvar.Problem) -> tuple[Gradients, Gradients]:
    """Mean and variance by the definition: Σ_ω p(ω) of those of ``of``, given the batch that ω chooses."""
    own = estimator.sample.leaves(problem)
    enumeration = Enumeration(fgvar.Randomness({f"sample{name}": leaf for name, leaf in own.items()}), "support")
    numbers = range(len(enumeration))
    noise, chances = enumeration.take(numbers), enumeration.probabilities(numbers)
    moments = []
    for number in numbers:
        seen = estimator.sample.view(problem, {name: noise[f"sample{name}"][number] for name in own}, problem)
        moments.append((theory.mean(estimator.of, seen), theory.variance(estimator.of, seen)))
    mean = {k: sum(p * m[k] for p, (m, _) in zip(chances, moments, strict=True)) for k in problem.params}
    second = {k: sum(p * (m[k] ** 2 + v[k]) for p, (m, v) in zip(chances, moments, strict=True)) for k in mean}
    return mean, {k: second[k] - mean[k] ** 2 for k in mean}


@pytest.mark.parametrize("loss", ["cross_entropy", weighing])
@pytest.mark.parametrize("sample", RANDOM, ids=repr)
def test_sampled_backprop(sample: Sample, loss: object) -> None:
    assert_enumerated(fgvar.Stochastic(sample=sample), affine(loss=loss))


@pytest.mark.parametrize("noise", [fgvar.Gaussian(), fgvar.Rademacher()], ids=repr)
@pytest.mark.parametrize("of", ["FG-W", "FG-A"])
@pytest.mark.parametrize("sample", [*RANDOM, sampling.Reweighted(sampling.Losses())], ids=repr)
def test_sampled_perturbations(sample: Sample, of: str, noise: fgvar.Gaussian) -> None:
    """Noise and data together: all choices, times quadrature or all signs."""
    assert_enumerated(fgvar.Stochastic(of=fgvar.scheme(of, noise=noise), sample=sample), affine(loss=weighing))


class Table:
    """Scores of one's own, which neither parameters nor batch change, and which are not all the same."""

    adapted, of_loss, linear = False, False, True

    def scores(self, problem: fgvar.Problem, over: str) -> Tensor:  # noqa: ARG002
        return torch.arange(1.0, problem.batch_size + 1).double()


def test_scores_that_are_fixed_are_weighed_all_the_same() -> None:
    problem = affine()
    for replace in (True, False):
        estimator = fgvar.Stochastic(sample=sampling.Draw(2, by=Table(), replace=replace))
        assert_close(expectation(estimator, problem, method="support"), problem.backprop())
        assert (no_closed_form(estimator, problem) is None) == replace
    assert_enumerated(fgvar.Stochastic(of=fgvar.scheme("FG-A"), sample=sampling.Draw(2, by=Table())), problem)
    assert "count the same" in sampling.Draw(2, by=Table(), weigh="none").bias_reason
    assert sampling.Reweighted(Table()).bias_reason
    assert sampling.Draw(2, by=sampling.Mixed(Table(), uniform=1.0), weigh="none").bias_reason == ""
    assert sampling.Draw(2, by=Table()).largest_share(problem) is None


@pytest.mark.parametrize("of", ["FG-W", "FG-A", "BP"])
def test_a_batch_of_one_has_nothing_to_draw(of: str) -> None:
    problem, one = affine(batch=1), fgvar.scheme(of)
    assert_close(
        theory.variance(fgvar.Stochastic(of=one, sample=sampling.Draw(1)), problem), theory.variance(one, problem)
    )
    assert_enumerated(fgvar.Stochastic(of=one, sample=sampling.Poisson(0.3)), problem)


PERTURBATIONS = [
    fgvar.scheme(name, shared=shared) for name in ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A") for shared in (True, False)
]


@pytest.mark.parametrize("of", [*PERTURBATIONS, fgvar.scheme("L-BP"), fgvar.scheme("LG-BP")], ids=repr)
@pytest.mark.parametrize("sample", [sampling.Draw(2, by=sampling.Losses()), sampling.Poisson(0.4)], ids=repr)
def test_schemes_of_networks(of: fgvar.Estimator, sample: Sample) -> None:
    """Groups, local losses and a read-out that learns exactly: by the definition, of two examples (above: three)."""
    estimator, problem = fgvar.Stochastic(of=of, sample=sample), mixer(batch=2)
    mean, variance = listed(estimator, problem)
    assert_close(theory.mean(estimator, problem), mean)
    assert_close(theory.variance(estimator, problem), variance)


@pytest.mark.parametrize("of", ["FG-W", "FG-A", "FA", "DFA", "frozen"])
def test_tied_weights_feedback_and_a_frozen_trunk(of: str) -> None:
    estimator = fgvar.Stochastic(of=fgvar.scheme(of), sample=sampling.Draw(2))
    problem = CASES["mlp_relu" if of in ("DFA", "frozen") else "shared_weights"]().rows(slice(0, 3))
    if theory.no_closed_form(estimator.of, problem):
        return assert_enumerated(estimator, problem)
    mean, variance = listed(estimator, problem)
    assert_close(theory.mean(estimator, problem), mean)
    return assert_close(theory.variance(estimator, problem), variance)


SHAPED = {
    "clipped": {"each": (transforms.Clip(0.3),)},
    "clipped, then noise": {"each": (transforms.Clip(0.3),), "then": (transforms.AddNoise(0.1),)},
    "masked": {"each": (transforms.Mask(transforms.Magnitude(0.4)),)},
    "largest": {"each": (transforms.TopK(3),)},
    "some at random, each its own": {"each": (transforms.RandomK(3),)},
    "some at random": {"then": (transforms.RandomK(3),)},
    "signs": {"each": (transforms.Sign(scaled=True),)},
    "workers": {"each": (transforms.Clip(0.3),), "workers": 2},
}


@pytest.mark.parametrize("words", SHAPED.values(), ids=SHAPED)
@pytest.mark.parametrize("sample", [sampling.Draw(1), sampling.Poisson(0.3)], ids=repr)
def test_shaped_terms(sample: Sample, words: dict[str, object]) -> None:
    assert_enumerated(fgvar.Stochastic(sample=sample, **words), affine(batch=2))


def test_perturbations_shaped_one_by_one_or_as_a_whole() -> None:
    """A linear transform takes noise, each example's own; workers halve its variance."""
    half, problem = transforms.Mask(transforms.Magnitude(0.4)), affine(batch=2)
    for words in ({"each": (half,)}, {"then": (half,)}, {"then": (half,), "workers": 2}):
        noise = fgvar.Gaussian() if "workers" not in words else fgvar.Rademacher()
        for of in ("FG-A", "FG-W"):
            estimator = fgvar.Stochastic(of=fgvar.scheme(of, noise=noise), sample=sampling.Draw(1), **words)
            assert_enumerated(estimator, problem)


@pytest.mark.parametrize("of", ["BP", "FG-W"])
def test_ahead_by_what_is_known_and_held_against_something_else(of: str) -> None:
    """Probabilities are those at θ, gradients those at θ'."""
    ahead = fgvar.points.Ahead(by=fgvar.ExactGradient(), step=-0.5, unit=True)
    estimator = fgvar.Stochastic(of=fgvar.scheme(of), at=ahead, sample=sampling.Draw(2, by=sampling.Losses()))
    assert_enumerated(estimator, affine())
    against = fgvar.Against(estimator, fgvar.ExactGradient())
    assert_close(closed_forms.moments(against, affine()).variance, theory.variance(estimator, affine()))
    assert_close(theory.mean(against, affine()), theory.mean(estimator, affine()))


def test_factors_that_the_problem_has_already() -> None:
    problem = affine(batch=2).weighted(torch.tensor([0.5, 2.0]).double())
    for words in (
        {"each": (transforms.Clip(0.3),)},
        {"each": (transforms.RandomK(3),)},
        {"of": fgvar.scheme("FG-W")},
        {},
    ):
        assert_enumerated(fgvar.Stochastic(sample=sampling.Draw(1), **words), problem)


def test_sentences_inside_of_a_sentence() -> None:
    inner = fgvar.Stochastic(of=fgvar.scheme("FG-A"), then=(transforms.RandomK(3),))
    estimator = fgvar.Stochastic(of=inner, workers=2)
    problem = affine(batch=1)
    assert_close(theory.mean(estimator, problem), theory.mean(inner, problem))
    halves = {name: v / 2 for name, v in theory.variance(inner, problem).items()}
    assert_close(theory.variance(estimator, problem), halves)
    assert_enumerated(
        fgvar.Stochastic(of=inner, sample=sampling.Draw(1), each=(transforms.Mask(transforms.Magnitude(0.4)),)),
        problem,
    )


@pytest.mark.parametrize(
    ("noise", "kurtosis"), [(fgvar.Gaussian(), 3), (fgvar.Rademacher(), 1)], ids=["normal", "signs"]
)
def test_table_1_is_one_row(noise: fgvar.Gaussian, kurtosis: int) -> None:
    """FG-W of a minibatch of m: (d + κ − 2)(S + V/m) + V/m, in closed form, enumerated and drawn.

    4,000 draws of a fixed seed, within 5 standard errors: a false alarm in 2 of a million seeds.
    """
    problem, m = affine(), 2
    estimator = fgvar.Stochastic(of=fgvar.scheme("FG-W", noise=noise), sample=sampling.Draw(m))
    each = problem.per_example(lambda one: one.backprop())
    g = torch.cat([value.flatten(1) for value in each.values()], 1)
    s, v = g.mean(0).square().sum(), (g - g.mean(0)).square().sum(1).mean()
    table = float((g.shape[1] + kurtosis - 2) * (s + v / m) + v / m)
    assert float(sum(theory.trace(estimator, problem).values())) == pytest.approx(table, rel=1e-12)
    assert_enumerated(estimator, problem)
    exact = fgvar.measure({"FG-W": estimator}, problem, route="exact").sel(estimator="FG-W", layer="total")
    drawn = fgvar.measure({"FG-W": estimator}, problem, draws=4000).sel(estimator="FG-W", layer="total")
    assert float(exact["variance"]) == pytest.approx(table, rel=1e-12)
    assert float(exact["sq_bias"].max()) < 1e-28
    assert abs(float(drawn["variance"]) - table) < 5 * float(drawn["variance_se"])


def test_the_data_variance_is_that_of_a_minibatch_of_all() -> None:
    """tr Cov(g_n)/N, with N − 1 for a sample's variance, and 1/N for the batch's: N/(N − 1) times a draw of N."""
    problem, n = mixer(batch=5), 5
    drawn = theory.trace(fgvar.Stochastic(sample=sampling.Draw(n)), problem)
    found = DataVariance(problem, 16).of(fgvar.ExactGradient()).value[0, : len(drawn)]
    expected = torch.stack(list(drawn.values())) * n / (n - 1)
    torch.testing.assert_close(torch.tensor(found), expected, rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize("budget", [1, 3000, 1 << 30])
def test_blocks_of_examples_and_columns_change_nothing(budget: int) -> None:
    problem = mixer(batch=5)
    estimator = fgvar.Stochastic(sample=sampling.Draw(3), each=(transforms.Clip(0.3),))
    assert_close(theory.variance(estimator, problem, budget=budget), theory.variance(estimator, problem))


def test_single_precision_is_good_to_its_rounding() -> None:
    problem = mixer(batch=4)
    for of in ("BP", "FG-W", "FG-A"):
        estimator = fgvar.Stochastic(of=fgvar.scheme(of), sample=sampling.Draw(2))
        found, expected = theory.trace(estimator, problem.to(torch.float32)), theory.trace(estimator, problem)
        assert {value.dtype for value in found.values()} == {torch.float32}
        assert float(sum(found.values())) == pytest.approx(float(sum(expected.values())), rel=1e-4)


def test_a_gradient_without_noise_has_no_variance() -> None:
    """Also of losses that couple examples, which no sampler takes apart."""
    shaped = fgvar.Stochastic(then=(transforms.Clip(0.1),))
    problem = affine()
    assert_close(theory.mean(shaped, problem), shaped.estimate(problem, {}).gradient)
    assert not any(v.any() for v in theory.variance(shaped, problem).values())


class Wandering:
    """A point that is drawn."""

    bias_reason = "the parameters move"

    def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:  # noqa: ARG002
        return {"": fgvar.Leaf((1,), fgvar.Gaussian())}

    def view(self, problem: fgvar.Problem, noise: dict[str, Tensor]) -> fgvar.Problem:  # noqa: ARG002
        return problem


class Tell:
    """A sampler, and a transform, that say nothing of moments."""

    bias_reason, linear = "", True

    def leaves(self, problem: fgvar.Problem, *shapes: object) -> dict[str, fgvar.Leaf]:  # noqa: ARG002
        return {} if shapes else {"": fgvar.Leaf((1,), fgvar.Gaussian())}

    def batch_size(self, problem: fgvar.Problem) -> int:
        return problem.batch_size

    def view(self, here: fgvar.Problem, *_: object) -> fgvar.Problem:
        return here

    def __call__(self, gradient: Gradients, *_: object) -> Gradients:
        return gradient


class Mine(fgvar.ExactGradient):
    """It estimates something else, of which it says nothing."""

    def estimate(self, problem, noise):
        return fgvar.Estimate({name: g.square() for name, g in super().estimate(problem, noise).gradient.items()})


FG_W = fgvar.scheme("FG-W")
TWO = sampling.Draw(2)
REFUSED = {
    "at random": (fgvar.Stochastic(at=Wandering()), "Wandering .* takes the gradient at a random point"),
    "silent sampler": (fgvar.Stochastic(sample=Tell()), "Tell .* does not say mean and spread"),
    "silent transform": (fgvar.Stochastic(sample=TWO, then=(Tell(),)), "Tell .* does not say moments"),
    "scores": (
        fgvar.Stochastic(sample=sampling.Draw(2, by=sampling.Losses(), replace=False)),
        "without putting back",
    ),
    "nested": (fgvar.Stochastic(of=fgvar.Stochastic(of=FG_W, sample=TWO), sample=TWO), "write all words in one"),
    "not additive": (fgvar.Stochastic(of=Mine(), sample=TWO), "does not say that it is additive"),
    "differences": (fgvar.Stochastic(of=fgvar.scheme("SPSA"), sample=TWO), "is not quadratic in the noise"),
    "random": (fgvar.Stochastic(sample=TWO, then=(transforms.Clip(1.0),)), "Clip.* of a random gradient"),
    "noisy terms": (
        fgvar.Stochastic(of=FG_W, sample=TWO, each=(transforms.Clip(1.0),)),
        "Clip.* of a random gradient",
    ),
}


@pytest.mark.parametrize(("estimator", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_closed_form_says_why_and_what_to_use(estimator: fgvar.Stochastic, reason: str) -> None:
    problem = affine()
    with pytest.raises(ValueError, match=f"no closed form: .*{reason}.*(draw|fgvar.measure)"):
        theory.variance(estimator, problem)
    with pytest.raises(ValueError, match=f"no closed form: .*{reason}"):
        closed_forms.moments(estimator, problem)
    with pytest.raises(ValueError, match=f"estimator 'x' has no closed form: .*{reason}.*route='drawn'"):
        fgvar.measure({"x": estimator}, problem, route="exact")
