"""Targets: what estimates are held against, where that is not what they estimate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor
from torch.func import grad, vjp

from fgvar.errors import require_type, require_word
from fgvar.estimators.estimator import Estimate, GradientEstimator, require_estimator, require_problem
from fgvar.estimators.randomness import Randomness
from fgvar.problem import Problem
from fgvar.stochastic.past import after

Target = Callable[[Problem], dict[str, Tensor]]

MOST_NUMBERS = 4096  # of parameters, whose Hessian is made: 128 MiB in float64


@dataclass(frozen=True)
class TargetOf:
    """The target of another estimator.

    Raises:
        TypeError: what has no ``target``.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> bool((TargetOf(scheme("FG-W"))(problem)["bias"] == problem.backprop()["bias"]).all())
        True
    """

    estimator: GradientEstimator

    def __post_init__(self) -> None:
        require_word("estimator", self.estimator, ("target",), "fgvar.ExactGradient()")

    def __call__(self, problem: Problem) -> dict[str, Tensor]:
        return self.estimator.target(problem)


@dataclass(frozen=True)
class Against:
    """An estimator's estimates, held against another target: what it does for something that it was not made for.

    Args:
        estimator: whose estimates.
        target: a callable problem → dict like ``problem.params``, or an object with ``target(problem)``, such as
            another estimator. For a repr that evaluates, an instance of a frozen dataclass, as in `fgvar.targets`.

    Raises:
        TypeError: no estimator, or no target.

    Example:
        >>> from fgvar.estimators.estimator import ExactGradient
        >>> from fgvar.estimators.schemes import scheme
        >>> Against(scheme("FG-W"), ExactGradient()).target
        TargetOf(estimator=ExactGradient(losses=GlobalLoss(heads=False)))
    """

    estimator: GradientEstimator
    target: Target

    def __post_init__(self) -> None:
        require_estimator("estimator", self.estimator)
        if isinstance(self.target, type) or not (callable(self.target) or hasattr(self.target, "target")):
            got = f"the class {self.target.__name__}" if isinstance(self.target, type) else type(self.target).__name__
            raise TypeError(f"target is {got}, expected a callable (problem) -> gradient, or an estimator")
        if not callable(self.target):
            object.__setattr__(self, "target", TargetOf(self.target))

    def randomness(self, problem: Problem) -> Randomness:
        return self.estimator.randomness(problem)

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        return self.estimator.estimate(problem, noise)

    def after(self, output: Mapping[str, Tensor]) -> "Against":
        """The same after a step of a stream, whose last output the estimator may ask for."""
        return replace(self, estimator=after(self.estimator, output))


@dataclass(frozen=True)
class Newton:
    """The damped Newton direction (H + μ)⁻¹ g: g of the problem that is asked, H of another one's loss.

    Both at the parameters of the problem that is asked. The Hessian, of all parameters together, is made and solved.

    Args:
        problem: whose loss has the Hessian H.
        damping: μ, in units of the Hessian. H + μ should be positive definite: else directions of negative curvature
            are turned.

    Raises:
        TypeError: what is no problem, or a ``damping`` that is no number.
        ValueError: on use, more than 4096 numbers, or a problem of other parameters.

    Source: Martens 2010 (damping); Huang et al. 2024 (as what unlearning steps follow).

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> direction = Newton(problem, damping=1e6)(problem)
        >>> bool(torch.allclose(1e6 * direction["bias"], problem.backprop()["bias"], atol=1e-4))
        True
    """

    problem: Problem
    damping: float

    def __post_init__(self) -> None:
        require_problem(self.problem)
        require_type("damping", self.damping, Real, "a number")

    def __call__(self, problem: Problem) -> dict[str, Tensor]:
        params = problem.params
        sizes = [p.numel() for p in params.values()]
        if sum(sizes) > MOST_NUMBERS:
            raise ValueError(
                f"{sum(sizes)} parameters, expected at most {MOST_NUMBERS}, as their Hessian is made; freeze some, "
                "or take a smaller network"
            )

        def shaped(flat: Tensor) -> dict[str, Tensor]:
            pieces = zip(params.items(), flat.split(sizes), strict=True)
            return {name: piece.reshape(p.shape) for (name, p), piece in pieces}

        gradient = _flat(problem.backprop())
        eye = torch.eye(len(gradient), dtype=gradient.dtype, device=gradient.device)
        times = vjp(grad(self.problem.to(problem.dtype).at(params).loss), dict(params))[1]  # H v, as H is symmetric
        hessian = torch.stack([_flat(times(shaped(row))[0]) for row in eye])
        return shaped(torch.linalg.solve(hessian + self.damping * eye, gradient))


def _flat(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])
