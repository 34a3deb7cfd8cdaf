"""Perturbations and treated gradients of public bug reports and shipped code, with the fault as a switch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fgvar.estimators.noise import Gaussian
from fgvar.estimators.protocol import Estimate
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.problem import Problem
from fgvar.testing.black_box import from_function
from fgvar.testing.polynomials import Gradients


def along(problem: Problem, v: Mapping[str, Tensor], step: float = 1e-4) -> Tensor:
    """A central difference."""
    ahead, behind = (problem.loss({k: p + s * v[k] for k, p in problem.params.items()}) for s in (step, -step))
    return (ahead - behind) / (2 * step)


def signs(problem: Problem, generator: torch.Generator) -> Gradients:
    return {k: torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1 for k, p in problem.params.items()}


def normal(problem: Problem, generator: torch.Generator, dtype: torch.dtype | None = None) -> Gradients:
    draw = {k: torch.randn(p.shape, generator=generator, dtype=dtype or p.dtype) for k, p in problem.params.items()}
    return {k: u.to(problem.dtype) for k, u in draw.items()}


def times(c: Any, v: Mapping[str, Tensor]) -> Gradients:
    return {k: c * u for k, u in v.items()}


def mean(parts: list[Gradients]) -> Gradients:
    return {k: torch.stack([part[k] for part in parts]).mean(0) for k in parts[0]}


# ---- perturbations ---------------------------------------------------------------------------------------------


def several(again: bool) -> Any:
    """The mean over four directions; wrong: the sampler is seeded anew for each."""

    def spsa(problem: Problem, generator: torch.Generator) -> Gradients:
        seed, own, parts = int(torch.randint(2**31, (), generator=generator)), torch.Generator(), []
        own.manual_seed(seed)
        for _ in range(4):
            v = signs(problem, own.manual_seed(seed) if again else own)
            parts.append(times(along(problem, v), v))
        return mean(parts)

    return from_function(spsa, directions=4, step=1e-4)


def from_three(kind: str) -> Any:
    """Signs out of −1, 0 and 1: zeros kept, or replaced by what nobody divides by."""

    def spsa(problem: Problem, generator: torch.Generator) -> Gradients:
        if kind == "signs":
            v = signs(problem, generator)
            return {k: along(problem, v) / u for k, u in v.items()}
        v = {k: torch.randint(-1, 2, p.shape, generator=generator).to(p) for k, p in problem.params.items()}
        if kind == "zeros":
            return times(along(problem, v), v)
        v = {k: u + 1e-8 for k, u in v.items()}
        return {k: along(problem, v) / u for k, u in v.items()}

    return from_function(spsa, step=1e-4)


def paired(same: bool) -> Any:
    """One-sided differences along u and −u; wrong: the partner gets u again."""

    def pair(problem: Problem, generator: torch.Generator, step: float = 1e-4) -> Gradients:
        u, here, parts = normal(problem, generator), problem.loss(), []
        for sign in (1, 1 if same else -1):
            moved = problem.loss({k: p + sign * step * u[k] for k, p in problem.params.items()})
            parts.append(times(sign * (moved - here) / step, u))
        return mean(parts)

    return from_function(pair, antithetic=True, step=1e-4)


@dataclass(frozen=True)
class Halved:
    """Normal numbers by way of bfloat16."""

    kurtosis: float = 3.0

    def sample(self, stream: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        found: Tensor = stream.normal(shape, torch.float32, device).bfloat16().to(dtype)
        return found


@dataclass(frozen=True)
class Forward:
    """Weight perturbation by a law of one's own."""

    law: Any

    def randomness(self, problem: Problem) -> Randomness:
        return Randomness({k: Leaf(tuple(p.shape), self.law) for k, p in problem.params.items()})

    def estimate(self, problem: Problem, noise: Any) -> Estimate:
        c = torch.func.jvp(problem.loss, (problem.params,), (dict(noise),))[1]
        return Estimate(times(c, noise))

    def target(self, problem: Problem) -> Gradients:
        return problem.backprop()


def constant_seed(constant: bool) -> Any:
    """Weight perturbation; wrong: a seed that is always 0."""

    def forward(problem: Problem, generator: torch.Generator) -> Gradients:
        u = normal(problem, torch.Generator().manual_seed(0) if constant else generator)
        return times(along(problem, u), u)

    return from_function(forward, step=1e-4)


def mezo(in_place: bool) -> Any:
    """Two evaluations from one seed; wrong: weights are moved, and moved back by arithmetic."""

    def estimate(problem: Problem, generator: torch.Generator, step: float = 1e-3) -> Gradients:
        u = normal(problem, generator)
        if not in_place:
            return times(along(problem, u, step), u)

        def moved(by: float) -> Tensor:
            for k, p in problem.params.items():
                p.add_(u[k], alpha=by * step)
            return problem.loss()

        ahead, behind = moved(1), moved(-2)
        moved(1)
        return times((ahead - behind) / (2 * step), u)

    return from_function(estimate, step=1e-3)


def ranked(permuted: bool) -> Any:
    """An evolution strategy whose candidates have the leave-one-out loss; wrong: in another's place."""

    def strategy(problem: Problem, generator: torch.Generator, n: int = 4, sigma: float = 1e-3) -> Gradients:
        u = [normal(problem, generator) for _ in range(n)]
        f = torch.stack([problem.loss({k: p + sigma * v[k] for k, p in problem.params.items()}) for v in u])
        weights = (f - f.mean()) * n / (n - 1) / sigma
        weights = weights[f.argsort()] if permuted else weights
        return mean([times(w, v) for w, v in zip(weights, u, strict=True)])

    return from_function(strategy, step=1e-3)


# ---- what is done to gradients ---------------------------------------------------------------------------------


def rounded(bits: int | None) -> Any:
    """Stochastic rounding to an eighth of the largest entry, by a continuous threshold or by so many random bits."""

    def rounding(problem: Problem, generator: torch.Generator) -> Gradients:
        out = {}
        for k, g in problem.backprop().items():
            step = max(float(g.abs().max()), 1e-9) / 8
            low = (g.abs() / step).floor()
            threshold = torch.rand(g.shape, generator=generator, dtype=g.dtype)
            if bits is not None:
                threshold = (threshold * 2**bits).floor() / 2**bits
            out[k] = g.sign() * (low + (g.abs() / step - low > threshold)) * step
        return out

    return from_function(rounding)


def random_k(scaled: bool) -> Any:
    """Half of the entries, twice as large; wrong: as they are."""

    def sparse(problem: Problem, generator: torch.Generator) -> Gradients:
        out = {}
        for k, g in problem.backprop().items():
            kept = torch.randperm(g.numel(), generator=generator).reshape(g.shape) < g.numel() // 2
            out[k] = g * kept * (2 if scaled else 1)
        return out

    return from_function(sparse)


@dataclass(frozen=True)
class Private:
    """The mean gradient with noise of σ on the sum of examples; wrong: on the mean."""

    at_mean: bool = False
    sigma: float = 0.1

    def randomness(self, problem: Problem) -> Randomness:
        return Randomness({k: Leaf(tuple(p.shape), Gaussian()) for k, p in problem.params.items()})

    def estimate(self, problem: Problem, noise: Any) -> Estimate:
        size = self.sigma / (1 if self.at_mean else problem.batch_size)
        return Estimate({k: g + size * noise[k] for k, g in problem.backprop().items()})

    def variance(self, problem: Problem) -> Gradients:
        return {k: torch.full_like(p, (self.sigma / problem.batch_size) ** 2) for k, p in problem.params.items()}

    def target(self, problem: Problem) -> Gradients:
        return problem.backprop()
