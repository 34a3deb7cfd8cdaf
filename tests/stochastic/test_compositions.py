"""Words put together as nobody has yet: sentences within sentences, joint laws, scalars, factors of the problem."""

from dataclasses import replace

import pytest
import torch
from cases import randn
from shaping import bowl, exact, flat, line
from torch import Tensor, nn

import fgvar
from fgvar import noise, points, sampling, streams, theory, transforms
from fgvar.networks import LocalMixer
from fgvar.stochastic.sampling import Sample
from fgvar.stochastic.scores import Score
from fgvar.theory.closed_forms import moments

SIGNS = fgvar.scheme("FG-W", noise=fgvar.Rademacher())
BY_LOSS = sampling.Mixed(sampling.Losses(), uniform=0.3)
BY_NORM = sampling.Mixed(sampling.GradientNorms(), uniform=0.3)


def off(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


# ---- probabilities of a sampler within: those of the problem at which they were declared -------------------------


@pytest.mark.parametrize("by", [BY_LOSS, BY_NORM], ids=["losses", "norms"])
def test_a_sampler_behind_weights_keeps_its_declared_probabilities(by: Score) -> None:
    """Not those of examples that the outer one has weighed: E ĝ would be 30 % off."""
    inner = fgvar.Stochastic(sample=sampling.Draw(1, by=by))
    found = exact(fgvar.Stochastic(of=inner, sample=sampling.Poisson(0.4)), line(3))
    assert off(found.mean[""], flat(line(3).backprop())) < 1e-12


@pytest.mark.parametrize("by", [BY_LOSS, sampling.Outputs()], ids=["losses", "outputs"])
def test_a_sampler_behind_a_tap_keeps_its_declared_probabilities(by: Score) -> None:
    problem, tap = line(3), points.Tapped("site", fgvar.Rademacher(), 0.5)
    alone = exact(fgvar.Stochastic(at=tap), problem).mean[""]
    found = exact(fgvar.Stochastic(of=fgvar.Stochastic(sample=sampling.Draw(1, by=by)), at=tap), problem)
    assert off(found.mean[""], alone) < 1e-12


@pytest.mark.parametrize("by", [BY_LOSS, BY_NORM], ids=["losses", "norms"])
def test_closed_forms_weigh_before_they_sample(by: Score) -> None:
    problem = line(3)
    row = fgvar.Stochastic(
        of=fgvar.Stochastic(sample=sampling.Draw(2, by=by)), sample=sampling.Reweighted(sampling.Losses())
    )
    found, known = exact(row, problem), moments(row, problem)
    assert off(flat(known.mean), found.mean[""]) < 1e-12
    assert off(flat(known.variance), found.variance[""]) < 1e-9
    alone = fgvar.Stochastic(sample=sampling.Reweighted(sampling.Losses())).estimate(problem, {}).gradient
    assert off(found.mean[""], flat(alone)) < 1e-12


# ---- closed forms of what is within ------------------------------------------------------------------------------

WITHIN = {
    "stream": fgvar.Stochastic(of=fgvar.History(SIGNS, streams.Momentum(0.5), steps=2)),
    "against": fgvar.Stochastic(of=fgvar.Against(SIGNS, fgvar.ExactGradient()), sample=sampling.Draw(2)),
    "against backprop": fgvar.Stochastic(
        of=fgvar.Against(fgvar.ExactGradient(), SIGNS), sample=sampling.Draw(2, by=BY_LOSS)
    ),
    "stream of each": fgvar.Stochastic(
        of=fgvar.History(SIGNS, streams.Momentum(0.5), steps=2), each=(transforms.RandomK(1),)
    ),
    "workers of streams": fgvar.Stochastic(
        of=fgvar.History(fgvar.Stochastic(sample=sampling.Draw(1)), streams.Momentum(0.5), steps=2), workers=2
    ),
}


@pytest.mark.parametrize("row", WITHIN.values(), ids=WITHIN)
def test_closed_forms_of_what_is_within(row: fgvar.Stochastic) -> None:
    problem = line(2, inputs=1)
    found, known = exact(row, problem), moments(row, problem)
    assert off(flat(known.mean), found.mean[""]) < 1e-12
    assert off(flat(known.variance), found.variance[""]) < 1e-9


def test_what_looks_at_the_batch_that_is_sampled_has_no_closed_form() -> None:
    """The mask of a weighted batch is another one: the closed form was off by 60 %."""
    other = line(3).at(batch=(line(3).inputs.flip(0) * 2, line(3).targets))
    live = replace(SIGNS, space=fgvar.WeightSpace(keep=transforms.Saliency(other, 1.0)))
    with pytest.raises(ValueError, match=r"Saliency.* may look at the batch, which Draw.* weighs at random"):
        theory.variance(fgvar.Stochastic(of=live, sample=sampling.Draw(2)), line(3))
    stream = fgvar.History(SIGNS, streams.Momentum(0.5), steps=2)
    with pytest.raises(ValueError, match="samples for what samples itself"):
        theory.variance(fgvar.Stochastic(of=stream, sample=sampling.Draw(2)), line(3))


def test_coupled_examples_have_no_closed_form_where_they_are_sampled() -> None:
    row = fgvar.Stochastic(sample=sampling.Poisson(0.5))
    with pytest.raises(ValueError, match="the loss couples the examples, so that none has a gradient of its own"):
        theory.variance(row, contrastive(stop=False))


class Curve(nn.Module):
    """a x + b x², of two parameters without an axis."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = (nn.Parameter(torch.tensor(value).double()) for value in (0.7, 0.2))

    def forward(self, x: Tensor) -> Tensor:
        return self.a * x + self.b * x**2


SCALARS = {
    "draw": fgvar.Stochastic(sample=sampling.Draw(2)),
    "FG-W": fgvar.Stochastic(of=SIGNS, sample=sampling.Draw(2)),
    "each": fgvar.Stochastic(of=SIGNS, sample=sampling.Poisson(0.3), each=(transforms.RandomK(1),)),
    "clip": fgvar.Stochastic(sample=sampling.Poisson(0.3), each=(transforms.Clip(0.5),)),
}


@pytest.mark.parametrize("row", SCALARS.values(), ids=SCALARS)
def test_parameters_may_be_scalars(row: fgvar.Stochastic) -> None:
    problem = fgvar.Problem(Curve(), "mse", (line(3).inputs[:, :1], line(3).targets))
    found, known = exact(row, problem), moments(row, problem)
    assert off(flat(known.mean), found.mean[""]) < 1e-12
    assert off(flat(known.variance), found.variance[""]) < 1e-9
    assert not fgvar.testing.check_estimator(row, problem, checks=["noise", "variance", "sensitivity"]).failures


# ---- joint laws: one direction of each estimate ------------------------------------------------------------------


def gradients(row: fgvar.GradientEstimator, problem: fgvar.Problem, draws: int = 8) -> Tensor:
    drawn = row.randomness(problem).sample(0, range(draws), dtype=problem.dtype)
    return torch.stack(
        [flat(row.estimate(problem, {k: u[i] for k, u in drawn.items()}).gradient) for i in range(draws)]
    )


@pytest.mark.parametrize(
    "around",
    [
        lambda of: fgvar.Stochastic(of=of, workers=2),
        lambda of: fgvar.History(of, streams.Momentum(0.5), steps=2),
        lambda of: fgvar.Stochastic(of=of, each=(transforms.Clip(float("inf")),)),
        lambda of: fgvar.Stochastic(of=fgvar.Stochastic(of=of, workers=2), workers=2),
    ],
    ids=["workers", "steps", "examples", "workers of workers"],
)
def test_as_many_orthogonal_directions_as_numbers_are_exact_wherever_they_stand(around) -> None:
    """They are orthogonal among themselves, not across workers, steps or examples."""
    problem = line(3)
    of = fgvar.scheme("FG-W", noise=noise.Orthogonal(), directions=4)
    assert float((gradients(around(of), problem) - flat(problem.backprop())).abs().max()) < 1e-12


def test_words_have_joint_laws_of_their_own() -> None:
    """√d e_i of the d numbers that a word perturbs: both words move, in every draw."""
    of = fgvar.scheme("FG-W", noise=noise.Coordinate())
    inner = fgvar.Stochastic(of=of, at=points.Ahead(of, step=0.1))
    row = fgvar.Stochastic(of=inner, at=points.Ahead(of, step=0.1))
    problem = line(3)
    drawn = row.randomness(problem).sample(0, range(16), dtype=problem.dtype)
    for word in ("of.at.", "at.", ""):
        own = {f"{word}{name}" for name in problem.params}
        u = torch.cat([drawn[name].flatten(1) for name in sorted(own)], 1)
        assert bool((u.abs().sort(dim=1).values == torch.tensor([0.0, 0.0, 0.0, 2.0])).all())


# ---- factors -----------------------------------------------------------------------------------------------------


def contrastive(*, stop: bool = True) -> fgvar.contrastive.Contrastive:
    torch.manual_seed(0)
    net = LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=8, groups=2).double()
    views = torch.rand(2, 3, 1, 8, 8).double()
    return fgvar.contrastive.Contrastive(net, fgvar.contrastive.InfoNCE(stop_gradient=stop), tuple(views))


@pytest.mark.parametrize("sample", [sampling.Draw(1, by=BY_NORM), sampling.Poisson(0.5)], ids=repr)
def test_local_contrastive_losses_are_weighed_like_the_last_one(sample: Sample) -> None:
    problem, of = contrastive(), fgvar.scheme("LG-BP")
    found = exact(fgvar.Stochastic(of=of, sample=sample), problem)
    assert off(found.mean[""], flat(of.target(problem))) < 1e-12


class Sums(nn.Module):
    """Of three terms each; with ``log`` the terms are their exponentials."""

    def __init__(self, log: bool) -> None:
        super().__init__()
        self.linear, self.terms, self.log = nn.Linear(2, 3), fgvar.Terms(log=log), log

    def forward(self, x: Tensor) -> Tensor:
        z = self.terms(self.linear(x))
        return z.exp().sum(1) if self.log else z.sum(1)


@pytest.mark.parametrize("log", [False, True])
def test_factors_of_terms_that_are_sampled_twice_multiply(log: bool) -> None:
    """Of one of three terms, E ω² = 3, and of two such factors 9."""
    torch.manual_seed(0)
    problem = fgvar.Problem(
        Sums(log).double(), lambda outputs, y: outputs * y, (torch.randn(1, 2).double(), torch.ones(1).double())
    )
    once = fgvar.Stochastic(sample=sampling.Draw(1, over="terms"))
    twice = fgvar.Stochastic(of=once, sample=sampling.Draw(1, over="terms"))
    rows = torch.stack([g.reshape(3, -1).sum(1) for g in (problem.backprop()["linear.bias"],)])
    for row, second in ((once, 3), (twice, 9)):
        found = exact(row, problem)
        assert off(found.mean[""], flat(problem.backprop())) < 1e-12
        variance = found.variance[""][-3:]
        assert torch.allclose(variance, (second - 1) * rows[0] ** 2, rtol=1e-9)


def test_losses_below_0_are_no_scores_of_an_even_power() -> None:
    problem = fgvar.Problem(nn.Linear(1, 1), lambda outputs, y: outputs[:, 0] * y, (torch.ones(2, 1), torch.ones(2)))
    problem = problem.at(batch=(torch.ones(2, 1), torch.tensor([1.0, -1.0])))
    with pytest.raises(ValueError, match=r"scores by Losses.* expected finite numbers from 0 on"):
        fgvar.Stochastic(sample=sampling.Draw(1, by=sampling.Losses(2.0))).randomness(problem)


# ---- what one example can do -------------------------------------------------------------------------------------

PRIVATE = fgvar.Stochastic(sample=sampling.Poisson(0.5), each=(transforms.Clip(0.3),))


def test_factors_of_the_problem_count_in_the_sensitivity() -> None:
    problem = line(3).weighted(torch.tensor([1.0, 0.5, 3.0]).double())
    assert PRIVATE.sensitivity(problem) == pytest.approx(3 * PRIVATE.sensitivity(line(3)))
    report = fgvar.testing.check_estimator(PRIVATE, problem, checks=["sensitivity"])
    assert not report.failures


def test_where_one_example_moves_the_gradients_of_all_no_sensitivity_is_known() -> None:
    problem = line(3)
    moved = replace(PRIVATE, at=points.Ahead(fgvar.ExactGradient(), step=0.5))
    masked = replace(PRIVATE, then=(transforms.Mask(transforms.Saliency(problem, 0.5)),))
    kept = replace(PRIVATE, then=(transforms.Mask(transforms.Magnitude(0.5)),))
    assert moved.sensitivity(problem) is None
    assert masked.sensitivity(problem) is None
    assert kept.sensitivity(problem) == PRIVATE.sensitivity(problem)
    masked_first = replace(PRIVATE, each=(*masked.then, *PRIVATE.each))
    kept_first = replace(PRIVATE, each=(*kept.then, *PRIVATE.each))
    assert masked_first.sensitivity(problem) is None
    assert kept_first.sensitivity(problem) == PRIVATE.sensitivity(problem)
    weighs = fgvar.Problem(
        nn.Linear(1, 1).double(),
        lambda outputs, y: ((outputs[:, 0] - y).square(), y.abs()),
        (torch.ones(3, 1).double(), torch.arange(1.0, 4.0).double()),
    )
    assert PRIVATE.sensitivity(weighs) is None
    keyed = fgvar.contrastive.Contrastive(
        nn.Linear(2, 2).double(), fgvar.contrastive.InfoNCE(), (randn(3, 2), randn(3, 2, seed=1))
    )
    assert PRIVATE.sensitivity(keyed) is None


# ---- 16 bits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_fractions_are_rounded_up_as_seldom_in_half_precision(dtype: torch.dtype) -> None:
    """1 of 10,000 numbers in a million: 100 ± 10, false alarms below 1e-6 at 6 σ; of 16-bit numbers it were 1,100."""
    problem = bowl().to(dtype)
    rounding = transforms.Quantise(1)
    leaf = rounding.leaves(problem, {"two": (10_000,)})["two"]
    drawn = fgvar.Randomness({"two": leaf}).sample(0, range(100), dtype=dtype)["two"]
    vector = torch.full((10_002,), 1e-4, dtype=dtype)
    vector[0] = 1
    given = {"one": vector[:2].reshape(1, 2), "two": vector[2:]}
    ups = sum(int((rounding(given, problem, {"one": torch.ones(1, 2), "two": u})["two"] > 0).sum()) for u in drawn)
    assert 40 < ups < 160


def test_adam_in_half_precision_is_that_of_single() -> None:
    """ε and the squares of gradients below 0.01 are no numbers of 16 bits."""
    gradient = {"w": torch.tensor([0.0, 1e-4, -0.01, 3.0], dtype=torch.float16)}
    for adam in (streams.Adam(), streams.Adam(factor=streams.DiffGrad(), amsgrad=True)):
        found = adam(gradient, adam.start(gradient)).gradient["w"]
        single = {"w": gradient["w"].float()}
        assert found.dtype == torch.float16
        assert torch.allclose(found.float(), adam(single, adam.start(single)).gradient["w"], atol=1e-3)


def test_momentum_in_half_precision_gets_there() -> None:
    """In bfloat16 alone, steps of 1/1000 are rounded away."""
    momentum, gradient = streams.Momentum(0.999), {"w": torch.full((1,), 3.0, dtype=torch.bfloat16)}
    state = momentum.start(gradient)
    for _ in range(500):
        found, state = momentum(gradient, state)
    assert float(found["w"]) == 3.0


OTHER = line(3).at(batch=(line(3).inputs.flip(0) * 2, line(3).targets))
WITH_ANOTHER = {
    "saliency": fgvar.Stochastic(then=(transforms.Mask(transforms.Saliency(OTHER, 1.0)),)),
    "retained": fgvar.Stochastic(then=(transforms.Retained(OTHER, steps=2, lr=0.1),)),
    "newton": fgvar.Against(fgvar.ExactGradient(), fgvar.targets.Newton(OTHER, damping=1.0)),
}


@pytest.mark.parametrize("row", WITH_ANOTHER.values(), ids=WITH_ANOTHER)
def test_another_problem_follows_the_precision_of_the_one_that_is_asked(row: fgvar.GradientEstimator) -> None:
    report = fgvar.testing.check_estimator(row, line(3), checks=["structure", "precision"])
    assert report.passed, report
    assert row.estimate(line(3).to(torch.bfloat16), {}).gradient["weight"].dtype == torch.bfloat16


def test_examples_that_count_nothing_do_not_take_all() -> None:
    """Of a negative power, losses of 0 do; those of a batch of which none counts are alike."""
    x, y = torch.tensor([[1.0], [2.0], [3.0]]).double(), torch.zeros(3).double()
    plain = fgvar.Problem(nn.Linear(1, 1).double(), lambda outputs, y: (outputs[:, 0] - y).square(), (x, y))
    weighs = fgvar.Problem(
        nn.Linear(1, 1),
        lambda outputs, y: ((outputs[:, 0] - y[:, 0]).square(), y[:, 1]),
        (x.float(), torch.tensor([[0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])),
    )
    inverse, live = sampling.Losses(-0.5), torch.tensor([True, False, True])
    for problem in (plain.weighted(live.double()), weighs):
        scores, losses = inverse.scores(problem, "batch"), problem.losses(problem.run(problem.params)[0]).double()
        assert float(scores[1]) == 0
        assert torch.allclose(scores[live] / scores[live].sum(), losses[live] ** -0.5 / (losses[live] ** -0.5).sum())
    assert bool((inverse.scores(plain.weighted(torch.zeros(3).double()), "batch") == 1).all())
