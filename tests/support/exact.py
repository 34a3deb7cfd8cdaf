"""Exact variances against their definition: what the tests of theory share."""

import torch
from torch import Tensor

import fgvar
from fgvar import theory
from fgvar.testing import covariance, expectation

TOLERANCE = 1e-9  # of a tensor's largest variance


def enumerated_variance(estimator: fgvar.Estimator, problem: fgvar.Problem) -> dict[str, Tensor]:
    """Var ĝ by polarisation, which assumes (and checks) a quadratic form, and nothing of where it comes from."""
    found = covariance(estimator, problem, chunk=1024)
    return {name: found[name].diagonal().reshape(p.shape) for name, p in problem.params.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = TOLERANCE) -> None:
    assert set(found) == set(expected)
    largest = max(float(value.abs().max()) for value in expected.values())
    for name, value in expected.items():
        atol = tolerance * max(float(value.abs().max()), 1e-12 * largest)
        torch.testing.assert_close(found[name], value, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def assert_exact(estimator: fgvar.Estimator, problem: fgvar.Problem, tolerance: float = TOLERANCE) -> None:
    variance = theory.variance(estimator, problem)
    assert_same(variance, enumerated_variance(estimator, problem), tolerance)
    assert max(float(variance[name].max()) for name in problem.perturbed) > 0, "0 would be compared with 0"
    mean = theory.mean(estimator, problem)
    for name, value in expectation(estimator, problem).items():
        torch.testing.assert_close(mean[name], value, rtol=0, atol=1e-10)
