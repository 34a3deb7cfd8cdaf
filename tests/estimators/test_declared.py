"""What a word says of itself counts for what it does itself: a subclass that does otherwise has only inherited it."""

from dataclasses import dataclass

import pytest
import torch
from cases import CASES, labels, randn
from torch import nn

import fgvar
from fgvar import points, sampling, streams, theory, transforms
from fgvar.estimators.declared import declared
from fgvar.stochastic.compression import only_these
from fgvar.stochastic.populations import is_even
from fgvar.testing import covariance


class Told:
    """It says something of what it does."""

    said = 1

    def does(self) -> None: ...


class Same(Told):
    """It does it as it was."""

    def other(self) -> None: ...


class Otherwise(Same):
    def does(self) -> None: ...


class Again(Otherwise):
    said = 2


class Mixin:
    def does(self) -> None: ...


class Mixed(Mixin, Told):
    pass


@dataclass
class Given(Otherwise):
    said: int = 3


def own(word: object) -> object:
    word.said = 4  # type: ignore[attr-defined]
    return word


@pytest.mark.parametrize(
    ("word", "expected"),
    [(Told(), 1), (Same(), 1), (Otherwise(), None), (Again(), 2), (Mixed(), None), (Given(), 3), (own(Mixed()), 4)],
)
def test_a_declaration_counts_down_to_who_does_otherwise(word: object, expected: int | None) -> None:
    assert declared(word, "said", "does") == expected
    assert declared(word, "unsaid", "does") is None


class Cut(fgvar.Gaussian):
    """Normal numbers cut off at 1."""

    def sample(self, stream, shape, dtype, device):
        return super().sample(stream, shape, dtype, device).clamp(-1, 1)


class OnSphere(fgvar.Gaussian):
    def couple(self, rows):
        return rows * (rows.shape[-1] ** 0.5 / torch.linalg.vector_norm(rows, dim=-1, keepdim=True))


class Published(transforms.RandomK):
    """Without the factor d/k."""

    def __call__(self, gradient, problem, noise):  # noqa: ARG002
        return only_these(gradient, noise[""])


class TwiceTheFirst(sampling.Draw):
    def view(self, here, noise, problem):  # noqa: ARG002
        return here.rows(noise[""]).weighted(1.0 + (noise[""] == 0))


class Chosen(sampling.Draw):
    def chosen(self, drawn, problem):
        found = super().chosen(drawn, problem)
        return type(found)(found.numbers, found.factors**2)


class Plain(streams.Momentum):
    """The first gradient counts as all that there were."""

    def start(self, gradient):
        return super().start(gradient)._replace(steps=1)


class OfBatch(transforms.Magnitude):
    def mask(self, problem):
        return {name: (g > 0).to(g.dtype) for name, g in problem.backprop().items()}


class Longer(transforms.Clip):
    def __call__(self, gradient, problem, noise):
        return {name: 2 * g for name, g in super().__call__(gradient, problem, noise).items()}


class Drifting(points.Noise):
    def estimate(self, problem, noise):
        return fgvar.Estimate({name: 1 + g for name, g in super().estimate(problem, noise).gradient.items()})


class Uneven(sampling.Uniform):
    def scores(self, problem, over):  # noqa: ARG002
        return torch.arange(1.0, 1.0 + problem.batch_size)


DRAW, FG_W = sampling.Draw(2), fgvar.scheme("FG-W")
SILENT = {
    "sample": (fgvar.Estimator(noise=Cut()), "Cut noise states no kurtosis"),
    "couple": (fgvar.Estimator(noise=OnSphere()), "OnSphere noise states no kurtosis"),
    "transform": (fgvar.Stochastic(sample=DRAW, then=(Published(2),)), "Published.* does not say moments"),
    "sampler": (fgvar.Stochastic(sample=TwiceTheFirst(2)), "TwiceTheFirst.* does not say mean and spread"),
    "part": (fgvar.Stochastic(sample=sampling.Union((DRAW, Chosen(1)))), "Chosen.* does not say mean and spread"),
    "stream": (fgvar.History(FG_W, Plain(0.9), 3), "Plain.* what it leaves of the variance"),
    "mask": (
        fgvar.Stochastic(of=fgvar.Estimator(fgvar.WeightSpace(keep=OfBatch(0.5))), sample=DRAW),
        "OfBatch.* may look at the batch",
    ),
}


@pytest.mark.parametrize(("estimator", "reason"), SILENT.values(), ids=SILENT)
def test_no_closed_form_is_inherited_by_who_does_otherwise(estimator: fgvar.GradientEstimator, reason: str) -> None:
    with pytest.raises(ValueError, match=f"no closed form: .*{reason}"):
        theory.variance(estimator, CASES["linear"]())


def test_who_does_the_same_inherits_it() -> None:
    class Named(sampling.Draw):
        bias_reason = "named"

    problem = CASES["linear"]()
    found, expected = (theory.variance(fgvar.Stochastic(sample=one(2)), problem) for one in (Named, sampling.Draw))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize("law", [Cut(), OnSphere()])
def test_fourth_moments_are_not_inherited(law: fgvar.Gaussian) -> None:
    with pytest.raises(ValueError, match="declares no kurtosis"):
        covariance(fgvar.Estimator(noise=law), CASES["linear"](), method="polarisation")


def test_evenness_is_not_inherited() -> None:
    projection = fgvar.combine.Projection("mean")
    assert fgvar.Estimator(directions=2, combine=projection).bias_reason == ""
    assert "span" in fgvar.Estimator(noise=Cut(), directions=2, combine=projection).bias_reason
    assert [is_even(by) for by in (sampling.Uniform(), Uneven())] == [True, False]


def test_the_order_of_a_bias_is_not_inherited() -> None:
    assert points.Ahead(by=points.Noise(), step=0.1).bias_order == 2
    assert points.Ahead(by=Drifting(), step=0.1).bias_order == 1


def test_no_sensitivity_is_inherited() -> None:
    net = fgvar.with_sites(nn.Linear(3, 2).double())
    problem = fgvar.Problem(net, "cross_entropy", (randn(4, 3), labels(4, 2)))
    rate, clip = sampling.Poisson(0.5), transforms.Clip(0.1)
    assert fgvar.Stochastic(sample=rate, each=(clip,)).sensitivity(problem) == pytest.approx(2 * 0.1 / (0.5 * 4))

    class Twice(sampling.Poisson):
        def view(self, here, noise, problem):
            return super().view(here, noise, problem).weighted(torch.full((4,), 2.0))

    for words in ({"each": (Longer(0.1),)}, {"each": (clip,), "then": (Longer(1.0),)}, {"sample": Twice(0.5)}):
        assert fgvar.Stochastic(**{"sample": rate, "each": (clip,), **words}).sensitivity(problem) is None


def test_that_no_example_is_left_out_is_not_inherited() -> None:
    class FirstTwo(sampling.Poisson):
        def view(self, here, noise, problem):  # noqa: ARG002
            return here.rows(torch.arange(2))

        def batch_size(self, problem):  # noqa: ARG002
            return 2

    views, loss = (randn(4, 3), randn(4, 3, seed=1)), fgvar.contrastive.InfoNCE(stop_gradient=False)
    coupled = fgvar.contrastive.Contrastive(nn.Linear(3, 2).double(), loss, views)
    assert fgvar.Stochastic(sample=sampling.Poisson(0.5)).randomness(coupled).leaves
    with pytest.raises(ValueError, match="the loss couples the examples"):
        fgvar.Stochastic(sample=FirstTwo(0.5)).randomness(coupled)
