"""Exact expectations, by enumerating the noise."""

import torch
from torch import Tensor
from tqdm.auto import tqdm

from fgvar.analysis.draws import Enumeration, estimates, ranges
from fgvar.estimators.estimator import GradientEstimator
from fgvar.problem import Problem


def expectation(
    estimator: GradientEstimator, problem: Problem, *, method: str = "nodes", chunk: int = 256
) -> dict[str, Tensor]:
    """E ĝ given the batch, exactly: the average over an enumeration of the noise.

    Args:
        estimator: any gradient estimator.
        problem: best in float64, and small: the cost is 2d estimates ("nodes") or 2^d ("signs") for d
            random numbers.
        method: "nodes" (exact for estimators that are even and quadratic in their noise, as every composed
            scheme with the `Jvp` oracle is) or "signs" (exact for any estimator, under Rademacher noise).
        chunk: estimates computed at once.

    Returns:
        A dict like ``problem.params``, in float64.

    Raises:
        ValueError: see `Enumeration`.

    Example:
        >>> from fgvar.estimators.schemes import scheme
        >>> x, y = torch.randn(2, 3, dtype=torch.float64), torch.tensor([0, 1])
        >>> problem = Problem(torch.nn.Linear(3, 2, dtype=torch.float64), "cross_entropy", (x, y))
        >>> mean, target = expectation(scheme("FG-W"), problem), problem.backprop()
        >>> bool(torch.allclose(mean["weight"], target["weight"], rtol=0, atol=1e-12))
        True
    """
    enumeration = Enumeration(estimator.randomness(problem), method)
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in problem.params.items()}
    windows = list(ranges(0, len(enumeration), chunk))
    for numbers in tqdm(windows, desc="enumerating", unit="chunk", delay=1, leave=False, disable=None):
        noise = enumeration.take(numbers.start, numbers.stop, dtype=problem.dtype)
        noise = {name: u.to(problem.device) for name, u in noise.items()}
        for name, gradient in estimates(estimator, problem, noise).items():
            total[name] += gradient.double().sum(0)
    return {name: value / len(enumeration) for name, value in total.items()}
