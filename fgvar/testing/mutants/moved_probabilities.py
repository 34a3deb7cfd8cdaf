"""Moved probabilities, weighed by but not drawn by, and a point on the wrong side of the parameters."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fgvar.estimators.protocol import Estimate
from fgvar.problem import Problem
from fgvar.stochastic.draw import Draw
from fgvar.stochastic.points import Ahead, Point
from fgvar.stochastic.sampling import Sample
from fgvar.stochastic.scores import GradientNorms
from fgvar.stochastic.sentence import Stochastic


@dataclass(frozen=True)
class AtPoint:
    """The gradient at a point that needs no noise: the mean of estimates there, if terms are weighed right."""

    at: Point

    def __call__(self, problem: Problem) -> dict[str, Tensor]:
        return self.at.view(problem, {}).backprop()


@dataclass(frozen=True)
class MovedProbabilities(Stochastic):
    """Draws by the probabilities at θ, and weighs by those at θ': E ω is not 1, as seen in a prototype of this."""

    sample: Sample = Draw(1, by=GradientNorms())
    at: Point = Ahead(by=Stochastic(), step=1.0)

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        here = self.at.view(problem, {})
        return self.of.estimate(self.sample.view(here, {"": noise["sample"]}, here), {})


class DownHill(Ahead):
    """On the other side of the parameters than declared: at θ + step·z."""

    def view(self, problem: Problem, noise: Mapping[str, Tensor]) -> Problem:
        return Ahead(self.by, -self.step, self.unit).view(problem, noise)
