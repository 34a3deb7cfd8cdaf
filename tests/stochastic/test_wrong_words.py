"""A word in the wrong place, of the wrong type or without what it needs: got, expected, do this."""

from dataclasses import dataclass

import pytest
import torch
from cases import labels, randn
from fgvar.noise import Bernoulli, Choice
from torch import Tensor, nn

import fgvar
from fgvar import points, sampling, streams, targets, transforms
from fgvar.testing import check_estimator

CLIP, DRAW, EXACT = transforms.Clip(1.0), sampling.Draw(3), fgvar.ExactGradient()


def line(features: int = 3) -> fgvar.Problem:
    return fgvar.Problem(nn.Linear(features, 2), "cross_entropy", (randn(4, features).float(), labels(4, 2)))


def summed() -> fgvar.Problem:
    network = nn.Sequential(nn.Linear(3, 2), fgvar.Terms())
    return fgvar.Problem(network, "cross_entropy", (randn(4, 3).float(), labels(4, 2)))


@dataclass(frozen=True)
class Scored:
    """Scores that are given."""

    given: object
    adapted, of_loss, linear = True, False, True

    def scores(self, problem: fgvar.Problem, over: str) -> object:  # noqa: ARG002
        return self.given


WRONG_TYPES = [
    # what stands in a sentence
    (lambda: fgvar.Stochastic(then=[CLIP]), r"then is \[Clip.*expected a tuple of transforms: \(Clip\(norm=1.0\),\)"),
    (lambda: fgvar.Stochastic(of="FG-W"), r"'of' is the text 'FG-W', expected an estimator: fgvar.scheme\('FG-W'\)"),
    (lambda: fgvar.Stochastic(sample=8), r"sample is 8 without leaves.*expected one like fgvar\.sampling\.Draw\(8\)"),
    (lambda: fgvar.Stochastic(sample=CLIP), "sample is Clip.* without view, batch_size, expected one like"),
    (lambda: fgvar.Stochastic(sample=sampling.Losses()), r"sample is Losses\(power=1.0\) without leaves"),
    (lambda: fgvar.Stochastic(then=(transforms.Magnitude(0.4),)), r"then is Magnitude.* without leaves, __call__"),
    (lambda: fgvar.Stochastic(at=DRAW), r"at is Draw.*expected a point like fgvar.points.Here\(\); .*sample="),
    (lambda: fgvar.Stochastic(at=EXACT), r"at is ExactGradient.* without leaves, view, expected one like .*points"),
    (lambda: fgvar.measure({"row": DRAW}, line()), r"'row' is Draw, expected randomness.* go into fgvar.Stochastic"),
    # numbers
    (lambda: sampling.Draw("8"), "size is '8', expected an integer of at least 1"),
    (lambda: sampling.Draw(0.5), "size is 0.5, expected an integer of at least 1"),
    (lambda: sampling.Draw(3, top=1.5), "top is 1.5, expected a non-negative integer"),
    (lambda: sampling.Poisson("0.1"), "rate is '0.1', expected a probability above 0 and at most 1"),
    (lambda: sampling.Losses("1"), "power is '1', expected a number"),
    (lambda: sampling.Mixed(sampling.Losses(), uniform="half"), "uniform is 'half', expected a share between"),
    (lambda: streams.Momentum("0.9"), "beta is '0.9', expected a decay from 0 on and below 1"),
    (lambda: streams.Adam(eps="0"), "eps is '0', expected a positive number"),
    (lambda: Bernoulli("x"), "rate is 'x', expected a probability between 0 and 1"),
    (lambda: Choice([0.5, 0.5]), r"probabilities is \[0.5, 0.5\], expected a tensor \[..., N\]"),
    (lambda: fgvar.networks.LinearChain(3, states=2.0), "states is 2.0, expected an integer of at least 1"),
    # words of words
    (lambda: sampling.Draw(3, by="losses"), r"by is 'losses' without adapted.*one like fgvar.sampling.Losses"),
    (lambda: sampling.Draw(3, by=DRAW), r"by is Draw\(.* without adapted, of_loss, scores, expected one like"),
    (lambda: sampling.Reweighted("losses"), "by is 'losses' without adapted"),
    (lambda: points.Noise(0.1), r"law is 0.1 without sample, expected one like fgvar.Gaussian\(\)"),
    (lambda: points.Tapped("site", 0.1), r"noise is 0.1 without sample, expected one like fgvar.Gaussian\(\)"),
    (lambda: streams.Adam(factor=streams.DiffGrad), "factor is the class DiffGrad, expected an instance"),
    (lambda: streams.Adam(factor=0.5), "factor is 0.5 without start, __call__, expected one like fgvar.streams.Diff"),
    (lambda: fgvar.History(EXACT, CLIP, 2), r"through is Clip.* without start, expected one like fgvar.streams.Mom"),
    (lambda: transforms.FromCarriers(3), r"carriers is 3 without bases, shapes, expected one like .*Carriers\(2\)"),
    (lambda: targets.TargetOf("FG-W"), r"estimator is 'FG-W' without target, expected one like fgvar.ExactGradient"),
    (lambda: targets.Newton(nn.Linear(3, 2), 0.1), "problem is Linear, expected fgvar.Problem"),
    (lambda: check_estimator(DRAW), r"'estimator' is Draw, expected randomness.*go into fgvar.Stochastic"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), WRONG_TYPES)
def test_wrong_types(make, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        make()


@pytest.mark.parametrize(
    ("given", "got"), [(torch.ones(3), r"\(3,\)"), ([1.0] * 4, "list"), (torch.ones(4, 1), r"\(4, 1\)")]
)
@pytest.mark.parametrize("sampler", [sampling.Draw(2), sampling.Reweighted(sampling.Uniform())], ids=repr)
def test_scores_of_another_shape_leave_no_term_out(sampler, given: Tensor, got: str) -> None:
    """Three scores for four examples would leave the last one out without a word."""
    for by in (Scored(given), sampling.Mixed(Scored(given))):
        row = fgvar.Stochastic(sample=type(sampler)(**{**vars(sampler), "by": by}))
        with pytest.raises(
            ValueError, match=rf"(?s)scores by Scored\(.*\) are {got}, expected a tensor of shape \(4,\)"
        ):
            row.randomness(line())


WRONG_VALUES = [
    (lambda: fgvar.networks.LinearChain(0, states=2), "features is 0, expected an integer of at least 1"),
    (lambda: targets.Newton(line(), 0.1)(summed()), r"params lack \['weight', 'bias'\] and have \['0.weight'"),
    (lambda: sampling.Draw(1, over="state").leaves(summed()), r"unknown over 'state' \(valid: 1, batch, terms\)"),
]


@pytest.mark.parametrize(("make", "message"), WRONG_VALUES)
def test_wrong_values(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


@dataclass(frozen=True)
class Forgetful:
    """A sampler, a point, a transform or an optimiser whose last step is left out."""

    bias_reason, linear = "", True

    def leaves(self, problem: fgvar.Problem, shapes: object = None) -> dict[str, fgvar.Leaf]:  # noqa: ARG002
        return {}

    def view(self, here: fgvar.Problem, *_: object) -> Tensor:
        return here.inputs

    def start(self, gradient: dict[str, Tensor]) -> None:  # noqa: ARG002
        return None

    def __call__(self, gradient: dict[str, Tensor], *_: object) -> list[Tensor]:
        return list(gradient.values())


class ForgetfulSampler(Forgetful):
    def batch_size(self, problem: fgvar.Problem) -> int:
        return problem.batch_size


class Stateless(Forgetful):
    def __call__(self, gradient: dict[str, Tensor], *_: object) -> dict[str, Tensor]:
        return gradient


UNFINISHED = [
    (fgvar.Stochastic(sample=ForgetfulSampler()), r"view of .*Sampler\(\) is Tensor, expected a problem, as here"),
    (fgvar.Stochastic(at=Forgetful()), r"the view of Forgetful\(\) is Tensor, expected a problem"),
    (fgvar.Stochastic(then=(Forgetful(),)), r"Forgetful\(\) returned list, expected a dict of tensors, like"),
    (fgvar.Stochastic(each=(Forgetful(),)), r"Forgetful\(\) returned list, expected a dict of tensors"),
    (fgvar.History(EXACT, Stateless(), 2), r"Stateless\(\) returned dict, expected \(output, state\)"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "message"), UNFINISHED)
def test_what_a_word_of_ones_own_returns(row, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        row.estimate(line(), {})
