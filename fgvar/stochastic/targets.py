"""Targets: what estimates are held against, where that is not what they estimate."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from numbers import Real

import torch
from torch import Tensor
from torch.func import grad, vjp

from fgvar.errors import require_integer, require_type, require_word
from fgvar.estimators.protocol import Estimate, GradientEstimator, require_estimator, require_problem
from fgvar.estimators.randomness import Randomness
from fgvar.estimators.spaces import Keep
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

    @property
    def bias_reason(self) -> str:
        """Why its mean is not its target."""
        own = getattr(self.estimator, "bias_reason", "")
        return "; ".join(reason for reason in (own, "held against another target") if reason)

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
        # Solved in float64: of 16 bits torch solves none, and in 32 a Hessian near singular costs most digits.
        h = hessian(self.problem.to(problem.dtype).at(problem.params)).double()
        damped = h + self.damping * torch.eye(len(h), dtype=h.dtype, device=h.device)
        direction = torch.linalg.solve(damped, _flat(problem.backprop()).double())
        return _shaped(direction.to(problem.dtype), problem)


@dataclass(frozen=True)
class Propagated:
    """The gradient after K steps of gradient descent on another problem, as its Hessian H alone has it: (I − hH)ᴷ g.

    Of several rounds, each a step along g and K of the others, Σ_r (I − hH)^(rK) g, r from 1 to their number: after
    many, near (KhH)⁻¹ g. What `fgvar.transforms.Retained` estimates to first order in h. Both are taken at the
    parameters of the problem that is asked.

    Args:
        problem: whose loss has the Hessian H.
        steps: K.
        lr: h, learning rate.
        rounds: of one step along g and K others.

    Raises:
        TypeError: what is no problem, or no number.
        ValueError: a negative number of steps, or no round; a problem whose keys move with its parameters
            (`fgvar.contrastive.InfoNCE` with the stop), as its gradient has another derivative than H.

    Source: Huang et al. 2024 (their update's fixed direction, which is not derived there in this form).

    Example:
        >>> net = torch.nn.Linear(1, 1, bias=False)
        >>> retain = Problem(net, "mse", (torch.ones(1, 1), torch.zeros(1, 1)))  # H = 2, and g = 2 w
        >>> ratio = Propagated(retain, steps=2, lr=0.25)(retain)["weight"] / retain.backprop()["weight"]
        >>> round(float(ratio), 4)
        0.25
    """

    problem: Problem
    steps: int
    lr: float
    rounds: int = 1

    def __post_init__(self) -> None:
        require_problem(self.problem)
        require_integer("steps", self.steps, 0)
        require_type("lr", self.lr, Real, "a number")
        require_integer("rounds", self.rounds, 1)
        if self.problem.of_batch and not self.problem.coupled:
            raise ValueError(
                f"{self.problem!r} holds its keys, which move along the path, so that its Hessian does not tell what "
                "the steps do; take InfoNCE(stop_gradient=False)"
            )

    def __call__(self, problem: Problem) -> dict[str, Tensor]:
        gradient, times = problem.backprop(), _products(self.problem.to(problem.dtype).at(problem.params))
        found = {name: torch.zeros_like(g) for name, g in gradient.items()}
        for _ in range(self.rounds):
            found = {name: value + gradient[name] for name, value in found.items()}
            for _ in range(self.steps):
                turned = times(found)
                found = {name: torch.sub(value, turned[name], alpha=self.lr) for name, value in found.items()}
        return found


@dataclass(frozen=True)
class Masked:
    """The gradient of the live parameters, M g: what forward gradients along these alone estimate.

    Args:
        keep: which are live, such as `fgvar.transforms.Magnitude`.

    Raises:
        TypeError: a ``keep`` that is none.

    Example:
        >>> from fgvar.stochastic.masks import Magnitude
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> int((Masked(Magnitude(0.5))(problem)["weight"] != 0).sum())
        3
    """

    keep: Keep

    def __post_init__(self) -> None:
        require_word("keep", self.keep, ("mask",), "fgvar.transforms.Magnitude(0.4)")

    def __call__(self, problem: Problem) -> dict[str, Tensor]:
        live = self.keep.mask(problem)
        return {name: live[name] * g for name, g in problem.backprop().items()}


def hessian(problem: Problem) -> Tensor:
    """The Hessian [d, d] of a problem's loss at its parameters, all together in their order, each flattened.

    Raises:
        ValueError: more than 4096 numbers.

    Example:
        >>> hessian(Problem(torch.nn.Linear(1, 1), "mse", (torch.ones(1, 1), torch.ones(1, 1))))
        tensor([[2., 2.],
                [2., 2.]])
    """
    count = sum(p.numel() for p in problem.params.values())
    if count > MOST_NUMBERS:
        raise ValueError(
            f"{count} parameters, expected at most {MOST_NUMBERS}, as their Hessian is made; freeze some, or take a "
            "smaller network"
        )
    times = _products(problem)
    eye = torch.eye(count, dtype=problem.dtype, device=problem.device)
    return torch.stack([_flat(times(_shaped(row, problem))) for row in eye])


def _products(problem: Problem) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """v → H v, of the loss at the problem's parameters."""
    times = vjp(grad(problem.loss), dict(problem.params))[1]  # vᵀH, as H is symmetric
    return lambda vector: times(vector)[0]


def _flat(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


def _shaped(flat: Tensor, problem: Problem) -> dict[str, Tensor]:
    """A vector as a dict like the problem's parameters."""
    params = problem.params
    pieces = flat.split([p.numel() for p in params.values()])
    return {name: piece.reshape(p.shape) for (name, p), piece in zip(params.items(), pieces, strict=True)}
