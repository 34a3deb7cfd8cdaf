"""Twins: right estimators, and problems, that look as suspicious as the mutants."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.estimator import Estimator
from fgvar.estimators.losses import GlobalLoss, LocalLosses
from fgvar.estimators.noise import Rademacher
from fgvar.estimators.oracles import CentralDifference
from fgvar.estimators.protocol import Estimate, GradientEstimator
from fgvar.estimators.random_streams import Stream
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.estimators.schemes import scheme
from fgvar.estimators.structured_noise import Coordinate, Sphere
from fgvar.estimators.weight_space import WeightSpace
from fgvar.networks import MLP
from fgvar.nn.heads import blank_linear
from fgvar.nn.sites import with_sites
from fgvar.problem import Problem
from fgvar.testing.problems import default_problems, randn, randomise


@dataclass(frozen=True)
class Lookalike:
    """A right estimator that looks wrong: every check must pass, or have nothing to test.

    Attributes:
        name: what it is called in `LOOKALIKES`.
        estimator: the estimator.
        suspicion: why it is suspected.
        problem: builds the problem on which it is.

    Example:
        >>> from fgvar.testing import check_estimator
        >>> twin = LOOKALIKES["one-number"]
        >>> check_estimator(twin.estimator, twin.problem()).failures
        ()
    """

    name: str
    estimator: GradientEstimator
    suspicion: str
    problem: Callable[[], Problem]


@dataclass(frozen=True)
class Uniform:
    """Numbers uniform between −√3 and √3: E u = 0, E u² = 1, E u⁴ = 1.8."""

    shared: bool | None = None
    directions: int = 1
    antithetic: bool = False
    kurtosis: ClassVar[float] = 1.8

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        uniform = torch.special.ndtr(stream.normal(shape, torch.float64, device))
        return (12**0.5 * (uniform - 0.5)).to(dtype)


@dataclass(frozen=True)
class Spsa:
    """Two evaluations of the loss, at θ ± step·v, written without any of fgvar's words (Spall 1992)."""

    step: float = 1e-3
    bias_order: ClassVar[int | None] = 2

    def randomness(self, problem: Problem) -> Randomness:
        return Randomness({name: Leaf(tuple(p.shape), Rademacher()) for name, p in problem.params.items()})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        ahead, behind = (
            problem.loss({name: p + sign * self.step * noise[name] for name, p in problem.params.items()})
            for sign in (1, -1)
        )
        slope = (ahead - behind) / (2 * self.step)
        return Estimate({name: slope / v for name, v in noise.items()}, (ahead + behind) / 2)

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return problem.backprop()


def _linear(inputs: int, outputs: int, *, batch: int, bias: bool = True) -> Problem:
    layer = nn.Linear(inputs, outputs, bias=False, device="meta") if not bias else blank_linear(inputs, outputs)
    layer = layer.to_empty(device="cpu").double()
    randomise(layer, 7)
    return Problem(with_sites(layer), "mse", (randn(batch, inputs, seed=8), randn(batch, outputs, seed=9)))


def one_number() -> Problem:
    """One weight, one example."""
    return _linear(1, 1, batch=1, bias=False)


def wide() -> Problem:
    """260 weights behind one loss."""
    return _linear(64, 4, batch=2)


def dead_units() -> Problem:
    """Half of the units of the first layer are inactive on every example."""
    model = MLP(3, width=4, depth=2, classes=3).double()
    randomise(model, 11)
    with torch.no_grad():
        model.get_parameter("layer0.bias")[:2] = -100
    return Problem(model, "cross_entropy", (randn(3, 3, seed=12), torch.tensor([0, 1, 2])))


def _default(name: str) -> Callable[[], Problem]:
    return lambda: default_problems()[name]


_ACTIVITIES = ActivitySpace()
_TWINS = (
    Lookalike(
        "backprop", scheme("BP"), "It has no variance at all.", _default("mixer"),
    ),
    Lookalike(
        "one-number", Estimator(noise=Rademacher()), "d − 1 = 0: every estimate is the gradient.", one_number,
    ),
    Lookalike(
        "one-gaussian-number", Estimator(), "With one number the noise is the only factor: a χ² law.", one_number,
    ),
    Lookalike(
        "many-directions", Estimator(directions=64), "Next to no variance.", _default("linear"),
    ),
    Lookalike(
        "wide", Estimator(), "Hundreds of times more variance than gradient.", wide,
    ),
    Lookalike(
        "masked-dead-units", Estimator(_ACTIVITIES), "Whole tensors of noise go unused.", dead_units,
    ),
    Lookalike(
        "unmasked-dead-units", Estimator(ActivitySpace(mask_inactive=False)),
        "Units without gradient get noise.", dead_units,
    ),
    Lookalike(
        "shared-activities", Estimator(_ACTIVITIES, shared=True),
        "The trap of shared activity noise, avoided by per-example derivatives.", _default("relu"),
    ),
    Lookalike(
        "independent-weights", Estimator(WeightSpace(), Rademacher(), shared=False, directions=2),
        "Every example perturbs the weights its own way.", _default("linear"),
    ),
    Lookalike(
        "uniform", Estimator(_ACTIVITIES, Uniform(), shared=True),
        "Noise that is neither normal nor signs, and heads whose variance is 0 but for rounding.", _default("relu"),
    ),
    Lookalike(
        "coordinate", Estimator(noise=Coordinate()), "Almost all noise is 0.", _default("linear"),
    ),
    Lookalike(
        "sphere", Estimator(_ACTIVITIES, Sphere()), "Its numbers depend on each other.", _default("linear"),
    ),
    Lookalike(
        "antithetic", Estimator(antithetic=True),
        "With the exact derivative, a pair repeats one estimate.", _default("linear"),
    ),
    Lookalike(
        "by-hand", Spsa(), "A protocol of its own: divides by the noise, and is biased by step².", _default("linear"),
    ),
    Lookalike(
        "differences", Estimator(_ACTIVITIES, Rademacher(), antithetic=True, oracle=CentralDifference(1e-4)),
        "A finite difference, whose bias is below what rounding shows.", _default("linear"),
    ),
    Lookalike(
        "all-terms", Estimator(WeightSpace(), losses=LocalLosses(stop=False)),
        "Every weight is credited by all later blocks.", _default("mixer"),
    ),
    Lookalike(
        "idle-heads", Estimator(losses=GlobalLoss(heads=False)), "Heads with gradient 0.", _default("mixer"),
    ),
)  # fmt: skip

LOOKALIKES = {twin.name: twin for twin in _TWINS}
