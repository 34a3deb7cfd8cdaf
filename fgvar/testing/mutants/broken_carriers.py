"""Broken carriers: private low-rank gradients that lose on the way back what the way there has kept."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from fgvar.problem import Problem
from fgvar.stochastic.carriers import LEFT, Carriers, FromCarriers
from fgvar.stochastic.sentence import Stochastic
from fgvar.stochastic.targets import Against
from fgvar.stochastic.transforms import AddNoise, Gradient
from fgvar.testing.mutants.mutant import Mutant


class LeftAlone(FromCarriers):
    """Back by the left carriers, a R, although both were clipped, noised and paid for (RGP's code)."""

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:  # noqa: ARG002
        found = {}
        for name, weight in problem.params.items():
            _, right = self.carriers.bases(name, weight) if weight.ndim > 1 else (None, None)
            found[name] = gradient[name] if right is None else (gradient[name + LEFT] @ right).reshape(weight.shape)
        return found


@dataclass(frozen=True)
class Projected:
    """What carriers can say of the gradient: g − (1 − LLᵀ) g (1 − RᵀR)."""

    carriers: Carriers

    def __call__(self, problem: Problem) -> Gradient:
        return self.carriers.back(self.carriers(problem.backprop(), problem, {}), problem, {})


ONE = Carriers(1)

CARRIERS = (
    Mutant(
        "left-carriers-alone",
        Against(Stochastic(each=(ONE,), then=(AddNoise(0.1), LeftAlone(ONE))), Projected(ONE)), "unbiased",
        "The way back leaves the right carriers out: what lies in L alone is lost, though its noise budget is spent.",
        reported="RGP, released code",
        right=Against(Stochastic(each=(ONE,), then=(AddNoise(0.1), ONE.back)), Projected(ONE)),
    ),
)  # fmt: skip
