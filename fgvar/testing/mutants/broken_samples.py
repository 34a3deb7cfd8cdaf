"""Broken samples and transforms: sentences with one defect, each from code that was shipped or reported."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import torch
from torch import Tensor
from torch.func import grad

from fgvar.estimators.noise import Uniform
from fgvar.estimators.protocol import Estimate
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.draw import Chosen, Draw
from fgvar.stochastic.scores import Mixed, Outputs
from fgvar.stochastic.sentence import Stochastic
from fgvar.stochastic.transforms import AddNoise, Clip, Gradient
from fgvar.stochastic.union import Union
from fgvar.stochastic.weighing import Poisson
from fgvar.testing.mutants.mutant import Mutant
from fgvar.testing.mutants.published_draws import PublishedDraw

Kind = TypeVar("Kind", bound=type)


def claiming(kind: Kind) -> Kind:
    """A class that says of itself what the right one says, which by doing otherwise it does not inherit."""
    for claim in ("no_closed_form", "mean", "spread", "squares", "largest_share", "moments"):
        if hasattr(kind, claim):
            setattr(kind, claim, getattr(kind, claim))
    return kind


# ---- which terms are looked at -----------------------------------------------------------------------------------


@claiming
class Unweighted(Draw):
    """Drawn by residuals, and their mean is taken; declared to be unbiased (adaptive-selfsupervision-pinns)."""

    bias_reason = ""

    def chosen(self, drawn: Tensor, problem: Problem) -> Chosen:
        found = super().chosen(drawn, problem)
        return Chosen(found.numbers, torch.ones_like(found.factors))


@claiming
class Unnormalised(Draw):
    """Weighed by 1/(N s) with scores s that do not sum to 1."""

    def chosen(self, drawn: Tensor, problem: Problem) -> Chosen:
        scores = self.by.scores(problem, self.over)
        return Chosen(drawn, 1 / (problem.batch_size * scores[drawn]))


@claiming
class Inverted(Draw):
    """Weighed by N p in place of 1/(N p): what is drawn often counts more, too."""

    def chosen(self, drawn: Tensor, problem: Problem) -> Chosen:
        found = super().chosen(drawn, problem)
        return Chosen(found.numbers, 1 / found.factors)


class Unique(Union):
    """Points that two draws have in common are kept once, with the weight of one (adaptive-selfsupervision-pinns)."""

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        numbers = torch.cat([noise[str(index)] for index in range(len(self.parts))])
        again = (numbers[:, None] == numbers).tril(-1).any(1)
        return super().view(here, noise, problem).weighted((~again).to(problem.dtype))


class OneSided(Draw):
    """Every input is moved by U(0, h) to one side, with h = 1 (adaptive-selfsupervision-pinns: half a grid step)."""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        return super().leaves(problem) | {"moved": Leaf((self.size, *problem.inputs.shape[1:]), Uniform())}

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        seen = super().view(here, noise, problem)
        return seen.at(batch=(seen.inputs + 0.5 + noise["moved"] / 12**0.5, seen.targets))


@claiming
class WithoutRate(Poisson):
    """A Poisson sample over the whole batch's number, not divided by the rate."""

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:  # noqa: ARG002
        return here.weighted(noise[""])


@claiming
class SampledSize(Poisson):
    """Divided by the number of examples that were drawn, and declared to be by the expected one (opacus#420)."""

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        return Poisson(self.rate, "sampled").view(here, noise, problem)


@claiming
class RoundedSize(Poisson):
    """Divided by ⌊qN⌋ (opacus#819)."""

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        return here.weighted(noise[""] * (problem.batch_size / int(self.rate * problem.batch_size)))


@dataclass(frozen=True)
class Proposal:
    """Scores in proportion to exp ℓ: a proposal that depends on the parameters."""

    adapted: ClassVar[bool] = True
    of_loss: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    def scores(self, problem: Problem, over: str) -> Tensor:  # noqa: ARG002
        return problem.losses(problem.run(problem.params)[0]).softmax(0).detach()


class AttachedProposal(Stochastic):
    """The proposal in 1/p is differentiated, too: its score term is missing (RDP: softmax of emissions)."""

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        def ratio(params: Mapping[str, Tensor]) -> Tensor:
            losses = problem.losses(problem.run(params)[0])
            return (losses / losses.softmax(0))[noise["sample"]].mean() / problem.batch_size

        return Estimate(dict(grad(ratio)(problem.params)))


# ---- what becomes of a gradient ----------------------------------------------------------------------------------


class ClippedMean(Stochastic):
    """The mean is clipped, not each example's gradient: no bias where nothing is too long, and no privacy."""

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        of_mean = Stochastic(self.of, self.sample, self.at, then=(*self.each, *self.then), workers=self.workers)
        return of_mean.estimate(problem, noise)


class OfMeanLoss(Stochastic):
    """Examples' gradients of the *mean* loss, averaged again (against which RGP multiplies by n)."""

    def term(self, example: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Gradient:
        return {name: g / problem.batch_size for name, g in super().term(example, noise, problem).items()}


class ShrunkLayer(Stochastic):
    """Examples' gradients of the last tensor are divided by 100 and stay so (RGP: ``grad_sample /= 100``)."""

    def term(self, example: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Gradient:
        found = super().term(example, noise, problem)
        return {name: g / 100 if name == list(found)[-1] else g for name, g in found.items()}


@claiming
class NoiseOfTheSum(AddNoise):
    """Noise of the sum over the batch, added to the mean (jax_privacy#383)."""

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        return AddNoise(self.std * problem.batch_size)(gradient, problem, noise)


class TimesWorkers(Stochastic):
    """The loss is multiplied by the number of workers, over a local mean (NeMo Automodel#3846)."""

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        return Estimate({name: self.workers * g for name, g in super().estimate(problem, noise).gradient.items()})


_RESIDUALS = Mixed(Outputs(), uniform=0.1)
_IDLE = (Clip(math.inf),)

SAMPLES = (
    Mutant(
        "unweighted-residuals", Stochastic(sample=Unweighted(2, by=_RESIDUALS)), "unbiased",
        "Examples are drawn by their residuals, and all count the same: the loss of a harder problem is learned.",
        reported="adaptive-selfsupervision-pinns",
    ),
    Mutant(
        "as-put-back", Stochastic(sample=PublishedDraw(2, by=_RESIDUALS, replace=False, as_put_back=True)),
        "weights",
        "Indices are not put back, and weighed as if they were: likely ones count too little.", shows_on="relu",
        reported="Fu et al. 2022, released code",
    ),
    Mutant(
        "refilled-top", Stochastic(sample=PublishedDraw(2, top=1, by=Outputs(), refilled=True)), "weights",
        "Top terms have probability 10⁻⁷ instead of 0: they count twice, seldom and then a lot.",
        shows_on="relu", reported="Fu et al. 2022, released code",
    ),
    Mutant(
        "unnormalised-scores", Stochastic(sample=Unnormalised(2, by=Outputs())), "weights",
        "Importance weights are of scores, not of probabilities: gradients are in units of the scores' sum.",
    ),
    Mutant(
        "inverted-weights", Stochastic(sample=Inverted(2, by=_RESIDUALS)), "weights",
        "Examples count N p, not 1/(N p): those that are drawn often count more each time, too.",
    ),
    Mutant(
        "unique-points", Stochastic(sample=Unique((Draw(1, replace=False), Draw(1, by=_RESIDUALS)))), "weights",
        "Of two draws duplicates are dropped, and with them a weight: E ω < 1, least where both draw the same terms.",
    ),
    Mutant(
        "one-sided-points", Stochastic(sample=OneSided(2)), "unbiased",
        "Collocation points are jittered to one side alone: in the mean, the gradient of a grid that is moved.",
    ),
    Mutant(
        "without-rate", Stochastic(sample=WithoutRate(0.5)), "scale",
        "The sum over a Poisson sample is divided by N, not by the expected number: the rate times the gradient.",
    ),
    Mutant(
        "sampled-size", Stochastic(sample=SampledSize(0.25)), "scale",
        "A Poisson sample is divided by its own size: batches without examples are missing, and variance is another.",
    ),
    Mutant(
        "rounded-size", Stochastic(sample=RoundedSize(0.5)), "scale",
        "The expected size of a Poisson sample is rounded down: 2 for 2.5.", shows_on="relu", reported="opacus#819",
    ),
    Mutant(
        "attached-proposal", AttachedProposal(sample=Draw(1, by=Proposal())), "unbiased",
        "Importance weights are differentiated: the proposal's own score is missing from the gradient.",
        reported="Fu et al. 2022, released code",
    ),
    Mutant(
        "clipped-mean", ClippedMean(sample=Poisson(0.75), each=(Clip(1e-2),)), "sensitivity",
        "The mean is clipped for its examples: one of them can move it from one end to the other.",
        shows_on="relu",
    ),
    Mutant(
        "mean-of-mean-loss", OfMeanLoss(each=_IDLE), "scale",
        "Examples' gradients are of the mean loss, and averaged once more: N times too small.",
    ),
    Mutant(
        "shrunk-layer", ShrunkLayer(sample=Draw(2), each=_IDLE), "scale",
        "A layer is made small before the clip and never large again: it learns a hundred times more slowly.",
        reported="RGP, released code",
    ),
    Mutant(
        "noise-of-the-sum", Stochastic(then=(NoiseOfTheSum(0.1),)), "variance",
        "Noise that belongs to the sum is added to the mean: N² times the variance that is declared.",
    ),
    Mutant(
        "times-workers", TimesWorkers(sample=Draw(1), workers=2), "scale",
        "The loss is multiplied by the number of workers, whose gradients are averaged: K times too large.",
        reported="NeMo Automodel#3846",
    ),
)  # fmt: skip
