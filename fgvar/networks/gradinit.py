"""GradInit: an initialisation rescaled, tensor by tensor, so that the first step of training lowers the loss most."""

import math
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, grad_and_value
from torch.nn.functional import normalize
from torch.utils._pytree import tree_map

from fgvar.errors import NonFiniteError, require_integer, require_type, unknown
from fgvar.estimators.protocol import require_problem
from fgvar.nn import failures
from fgvar.problem import Problem
from fgvar.problem_checks import require_pair

FLOOR = 0.01  # of the factors of weights; those of biases may come to 0
CLIP = 1.0  # of the derivatives by the factors
Numbers = Callable[[Tensor], Tensor]
# Of the optimiser whose first step is taken: A, which that is along, and the norm that is bounded; of all numbers.
RULES: dict[str, tuple[Numbers, Numbers]] = {
    "sgd": (lambda g: normalize(g, dim=0), lambda g: g.norm()),  # a gradient of 0 has no direction: 0
    "adam": (lambda g: g.sign(), lambda g: g.abs().sum()),
}


def gradinit(
    problem: Problem,
    batches: Iterable[tuple[Any, Any]],
    *,
    eta: float = 0.1,
    gamma: float = 1.0,
    steps: int = 300,
    lr: float = 0.01,
    rule: str = "sgd",
) -> dict[str, Tensor]:
    """Parameters m_i θ_i, one factor a tensor, after which a first step of size η leaves the smallest loss.

    Minimises L(B'; θ_m − η A[g])/η subject to ‖g‖_p ≤ γ, where g = ∇L(B; θ_m) and B' shares half of B: A[g] = g/‖g‖
    and p = 2 for SGD, sign g and p = 1 for Adam. A step is one of Adam on m: down the gradient of ‖g‖_p where that is
    above γ, else down that of the objective, in which A[g] is a constant. The two have averages of their own;
    derivatives are clipped at ±1; factors begin at 1 and stay above 0.01, those of biases above 0. Tensors that are 0
    stay 0, and frozen ones as they are.

    Nothing is drawn: equal batches give equal parameters. The problem, its batch included, is left as it is; measure
    at ``problem.at(params)``.

    Args:
        problem: network, loss, and the parameters θ to begin with.
        batches: B of each step, over and over; B' is the first half of it and the second half of the next one. Of a
            single batch B' is B.
        eta: η, the size of the first step.
        gamma: γ, in units of the gradient. ``math.inf`` leaves the objective alone.
        steps: of Adam on m; 0 returns θ.
        lr: of Adam on m.
        rule: "sgd" or "adam", the optimiser whose first step it is.

    Returns:
        A dict like ``problem.params``.

    Raises:
        TypeError: ``problem`` is none, ``steps`` is no integer, another setting no number.
        ValueError: no batch, or one that is no pair; a setting out of its range; an unknown rule.
        NonFiniteError: the gradient's norm becomes NaN or infinity.

    Source: Zhu et al. 2021 (2102.08098), and the authors' code for what is constant, the clip and the floors; there
    halves of batches are drawn one by one.

    Example:
        >>> x, y = torch.randn(8, 3), torch.randint(2, (8,))
        >>> problem = Problem(torch.nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> params = gradinit(problem, [(x, y)], steps=20)
        >>> bool(problem.at(params).loss() < problem.loss())
        True
    """
    every = _checked(problem, batches, {"eta": eta, "gamma": gamma, "lr": lr}, steps, rule)
    along, size = RULES[rule]
    like: dict[str, Any] = {"dtype": problem.dtype, "device": problem.device}
    factors = torch.ones(len(problem.params), **like)
    biases = [name.rpartition(".")[2] == "bias" for name in problem.params]
    floors = torch.tensor([0.0 if bias else FLOOR for bias in biases], **like)
    bounding, improving = (torch.optim.Adam([factors], lr=lr) for _ in range(2))
    for step in range(steps):
        batch, following = (every[number % len(every)] for number in (step, step + 1))
        here, optimiser = problem.at(batch=batch), bounding
        with failures.coached_derivatives():
            factors.grad, (norm, g) = grad_and_value(_norm, has_aux=True)(factors, here, size)
            if not math.isfinite(norm):
                raise NonFiniteError(f"the gradient's norm is {norm} in step {step} of gradinit; take a smaller lr")
            if norm <= gamma:
                there, optimiser = problem.at(batch=_half_shared(batch, following)), improving
                factors.grad = grad(_objective)(factors, there, eta * along(g), eta)
        factors.grad.clamp_(-CLIP, CLIP)
        optimiser.step()
        torch.maximum(factors, floors, out=factors)
    return {name: p.detach().clone() for name, p in _scaled(problem, factors).items()}


def _scaled(problem: Problem, factors: Tensor) -> dict[str, Tensor]:
    return {name: factor * p for factor, (name, p) in zip(factors, problem.params.items(), strict=True)}


def _norm(factors: Tensor, problem: Problem, size: Numbers) -> tuple[Tensor, Tensor]:
    """The norm of the gradient at the scaled parameters, and that gradient, in one vector."""
    g = torch.cat([value.flatten() for value in grad(problem.loss)(_scaled(problem, factors)).values()])
    return size(g), g


def _objective(factors: Tensor, problem: Problem, move: Tensor, eta: float) -> Tensor:
    """The loss after a step whose length does not follow the factors, over η."""
    scaled = _scaled(problem, factors)
    moves = move.split([p.numel() for p in scaled.values()])
    params = {name: p - by.view_as(p) for by, (name, p) in zip(moves, scaled.items(), strict=True)}
    return problem.loss(params) / eta


def _half_shared(batch: Any, following: Any) -> tuple[Any, Any]:
    """The first half of a batch, and the second half of the next one."""

    def joined(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first[: (len(first) + 1) // 2], second[(len(second) + 1) // 2 :]])

    inputs, targets = (tree_map(joined, *parts) for parts in zip(batch, following, strict=True))
    return inputs, targets


def _checked(
    problem: object, batches: Iterable[Any], settings: Mapping[str, object], steps: object, rule: str
) -> list[tuple[Any, Any]]:
    """The batches; raise where something cannot be used."""
    require_problem(problem)
    require_integer("steps", steps, 0)
    for name, value in settings.items():
        require_type(name, value, Real, "a positive number")
        if not value > 0:  # type: ignore[operator]
            raise ValueError(f"{name} is {value!r}, expected a positive number")
    if rule not in RULES:
        raise ValueError(unknown("rule", rule, RULES))
    found = [require_pair(batch) for batch in batches]
    if not found:
        raise ValueError("batches are none, expected at least one pair (inputs, targets)")
    return found
