"""Closed forms: compute mean and variance of perturbation and of stochastic gradients, without a single draw.

A weight's estimate is a quadratic form ĝ_w = uᵀMu with M = Σ_k e_k X_k c_kᵀ over the perturbed numbers k:
X_k = ∂z_k/∂w is what w moves, c_k the gradient, by all perturbed numbers, of the loss terms that credit k. For
independent coordinates of kurtosis κ

    E ĝ_w = Σ_k X_k c_kk,        Var ĝ_w = ‖M‖² + tr M² + (κ − 3) Σ_k M_kk².

Where examples are sampled, too, that is the variance given their ω, and E_ω Var(ĝ | ω) + Var_ω E(ĝ | ω) the total.
"""

import torch
from torch import Tensor

from fgvar.estimators.estimator import Estimator
from fgvar.estimators.protocol import GradientEstimator
from fgvar.problem import Problem
from fgvar.stochastic.history import History
from fgvar.stochastic.sentence import Stochastic
from fgvar.stochastic.transforms import Moments
from fgvar.theory import perturbation, stochastic
from fgvar.theory.applicability import estimates_of, no_closed_form

BUDGET = 1 << 30  # bytes


def mean(estimator: GradientEstimator, problem: Problem, *, budget: int = BUDGET) -> dict[str, Tensor]:
    """E ĝ given the batch, exactly: the target, unless ``bias_reason`` says that it is another.

    Args:
        estimator: a composed `Estimator` with the `Jvp` oracle, an `ExactGradient`, or a `Stochastic` of them.
        problem: network, loss and batch.
        budget: bytes that examples worked on at once may take.

    Returns:
        A dict like ``problem.params``; gradients of the batch mean. Of a problem in 16 bits they are in float32.

    Raises:
        ValueError: an estimator without a closed form (see `variance`).

    Source: E ĝ_w = tr M, see the module's head; Ren et al. 2023, Sec. 3.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> x, y = torch.ones(2, 3), torch.tensor([0, 1])
        >>> problem = Problem(torch.nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> bool(torch.allclose(mean(scheme("FG-W"), problem)["weight"], problem.backprop()["weight"]))
        True
    """
    estimator, problem = _checked(estimator, problem)
    if isinstance(estimator, History | Stochastic):
        return stochastic.of_one(estimator, problem, budget).mean
    if isinstance(estimator, Estimator):
        return perturbation.mean(estimator, problem, budget)
    return estimator.target(problem)


def variance(estimator: GradientEstimator, problem: Problem, *, budget: int = BUDGET) -> dict[str, Tensor]:
    """Var ĝ of every weight given the batch, exactly; without sampling 0 for heads, which learn exactly.

    Covers both spaces, shared and independent noise, masking, every loss and credit, subsets of sites and
    tied weights. The mean of K directions has 1/K of the variance; antithetic pairs repeat one estimate.
    Weight perturbation, and activity perturbation where linear layers and convolutions reach their site as
    themselves, elementwise or through a layer norm, cost O(groups) backward passes (O(patches · groups) where
    patches mix after a site); other modules need the Jacobian of their site by each parameter.

    Of a `Stochastic` gradient it is the total variance, of noise and data: of gradients without noise, or shaped term
    by term, by one gradient of each of the N examples; of perturbations of sampled batches by means and variances of
    N + 1 weighted ones. FG-W of m drawn and put back: (d + κ − 2)(S + V/m) + V/m, S = ‖ḡ‖², V = Σ‖g_n − ḡ‖²/N. A
    `History` at rest has its optimiser's ``gain`` times the variance of one estimate.

    Args:
        estimator: a composed `Estimator` with the `Jvp` oracle, an `ExactGradient`, or a `Stochastic` of them.
        problem: network, loss and batch. In float64 good to 1e-9 of a tensor's largest variance, but for tensors
            which a layer norm cancels all but for rounding, like a 1 × 1 token layer; in float32 to about 1e-5 where
            gradients are above 1e-19, whose squares it holds; in 16 bits it is that of the problem in float32.
        budget: bytes that local Jacobians, and examples worked on at once, may take. With activity noise
            *shared* by the batch all examples are worked on at once, whatever the budget.

    Returns:
        A dict like ``problem.params``, in gradient²; of a problem in 16 bits in float32.

    Raises:
        ValueError: an estimator without a closed form (finite differences, dependent coordinates, a class of
            your own, a random point, a sampler or a transform that knows none): draw with ``fgvar.measure`` or
            enumerate with ``fgvar.testing``; a local Jacobian beyond the budget, naming site and module; a site that
            mixes copies which it declares apart.

    Source: Ren et al. 2023, Sec. 3 and Table 1, for one linear layer; the quadratic form in general.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> x, y = torch.ones(1, 3), torch.tensor([0])
        >>> problem = Problem(torch.nn.Linear(3, 2, bias=False), "cross_entropy", (x, y))
        >>> square = problem.backprop()["weight"].square().sum()
        >>> round(float(variance(scheme("FG-W"), problem)["weight"].sum() / square), 4)  # d + 1
        7.0
    """
    estimator, problem = _checked(estimator, problem)
    if isinstance(estimator, History | Stochastic):
        return stochastic.of_one(estimator, problem, budget).variance
    if isinstance(estimator, Estimator):
        return perturbation.variance(estimator, problem, budget)
    return {name: torch.zeros_like(value) for name, value in problem.params.items()}


def moments(estimator: GradientEstimator, problem: Problem, *, budget: int = BUDGET) -> Moments:
    """`mean` and `variance`, at once where that takes less time.

    Example:
        >>> from fgvar.stochastic.draw import Draw
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.zeros(4, 2)))
        >>> float(moments(Stochastic(sample=Draw(2)), problem).variance["bias"].sum())  # of examples that are alike
        0.0
    """
    one, problem = _checked(estimator, problem)
    if isinstance(one, Estimator | History | Stochastic):
        return stochastic.of_one(one, problem, budget)
    return Moments(mean(one, problem, budget=budget), variance(one, problem, budget=budget))


def trace(estimator: GradientEstimator, problem: Problem, *, budget: int = BUDGET) -> dict[str, Tensor]:
    """tr Cov(ĝ) of every parameter tensor: `variance`, summed over its entries.

    Args:
        estimator, problem, budget: as of `variance`, which also says what is raised.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> {name: value.ndim for name, value in trace(scheme("FG-W"), problem).items()}
        {'weight': 0, 'bias': 0}
    """
    return {name: value.sum() for name, value in variance(estimator, problem, budget=budget).items()}


def _checked(estimator: GradientEstimator, problem: Problem) -> tuple[GradientEstimator, Problem]:
    """What makes the estimates, and of what; raises where it has no closed form, and what it refuses itself."""
    if reason := no_closed_form(estimator, problem):
        raise ValueError(
            f"no closed form: {reason}; draw instead (fgvar.measure), or enumerate small problems "
            "(fgvar.testing.expectation)"
        )
    estimator.randomness(problem)
    # Squares of gradients, and sums of them, leave float16's range, and bfloat16 has no digits for their differences.
    return estimates_of(estimator), problem if problem.dtype.itemsize > 2 else problem.to(torch.float32)
