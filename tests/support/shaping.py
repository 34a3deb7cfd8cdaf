"""What the tests of transforms share: small problems, gradients as one vector, and exact moments of a sentence."""

import torch
from cases import randn
from torch import Tensor, nn

import fgvar
from fgvar.stochastic.transforms import Gradient, Moments, Transform
from fgvar.testing import expectation
from fgvar.testing.enumeration import variances


def line(batch: int = 4, inputs: int = 3) -> fgvar.Problem:
    """Few enough numbers (inputs + 1) for every law: a linear unit, its squared error, and gradients that differ."""
    torch.manual_seed(1)
    net = nn.Linear(inputs, 1).double()
    return fgvar.Problem(fgvar.with_sites(net), "mse", (randn(batch, inputs), randn(batch, 1, seed=1)))


def bowl(width: int = 3) -> fgvar.Problem:
    """Two layers and biases: matrices of several shapes."""
    torch.manual_seed(2)
    net = fgvar.with_sites(nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 2)).double())
    return fgvar.Problem(net, "mse", (randn(5, 4), randn(5, 2, seed=1)))


def flat(gradient: Gradient) -> Tensor:
    """All numbers of a gradient in a row."""
    return torch.cat([g.double().flatten() for g in gradient.values()])


def rows(problem: fgvar.Problem) -> Tensor:
    """Gradients of the examples, one by one: [examples, numbers]."""
    return torch.stack([flat(problem.example(n).backprop()) for n in range(problem.batch_size)])


def exact(estimator: fgvar.GradientEstimator, problem: fgvar.Problem, method: str = "support") -> Moments:
    """Mean and variance of every number, by enumeration."""
    mean = flat(expectation(estimator, problem, method=method))
    return Moments({"": mean}, {"": flat(variances(estimator, problem, method=method))})


def shaped(transform: Transform, vector: list[float] | Tensor, problem: fgvar.Problem | None = None, **noise: Tensor):
    """What a transform makes of numbers in two tensors, as one vector."""
    v = torch.as_tensor(vector, dtype=torch.float64)
    given = {"one": v[:2].reshape(1, 2), "two": v[2:]}
    return flat(transform(given, problem or line(), noise))
