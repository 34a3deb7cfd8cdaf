"""Normal directions of which query or update is changed: rounded, clipped, from a pool, without a second point."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import fgvar
from studies.published.directional import Moments, Tensors, along, gaussian, of_gaussian, squares


@dataclass(frozen=True)
class Quantised:
    """q and w are one normal direction, rounded at random to a grid: twice, independently, or once for both.

    Q(u) = δ⌊u/δ + ξ⌋ with uniform ξ, without an end of the grid: E Q(u) = u, E Q(u)² = v. Twice: unbiased, and
    E‖ĝ_k‖² = v²d_k‖∇‖² + (κ − v²)‖∇_k‖² with κ = E (u² + δ²f(1 − f))², f the fraction of u/δ. Once: E ĝ = v∇.

    Args:
        step: δ, in standard deviations of the noise.
        twice: two roundings, which makes it unbiased.

    Source: Zhou et al. 2025 (arXiv 2502.12346, QuZO: two of them, independent given u), held against a public
    summary: there weights are quantised, too, and grids have ends, which are not built here.

    Example:
        >>> round(Quantised(1.0).second_moment, 6)
        1.166667
    """

    step: float
    twice: bool = True

    @property
    def bias_reason(self) -> str:
        return "" if self.twice else "rounding adds to the variance of the direction: E ĝ = v∇"

    @property
    def second_moment(self) -> float:
        """v = E Q(u)²."""
        return self._mean(lambda u, rounding: u**2 + rounding)

    def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:
        found = gaussian(problem)
        for name, p in problem.params.items():
            found[f"ξ.{name}"] = fgvar.Leaf((2 if self.twice else 1, *p.shape), fgvar.noise.Uniform())
        return found

    def directions(self, problem: fgvar.Problem, noise: Tensors) -> tuple[Tensors, Tensors]:
        def rounded(which: int) -> dict[str, Tensor]:
            # The law has mean 0 and variance 1: between −√3 and √3.
            xi = {name: noise[f"ξ.{name}"][which] / 12**0.5 + 0.5 for name in problem.params}
            return {name: self.step * torch.floor(noise[name] / self.step + x) for name, x in xi.items()}

        query = rounded(0)
        return query, rounded(1) if self.twice else query

    def moments(self, gradient: Tensors) -> Moments:
        v, each = self.second_moment, squares(gradient)
        total = sum(each.values())
        fourth = self._mean(lambda u, rounding: (u**2 + rounding) ** 2) if self.twice else self._fourth()
        second = {name: v**2 * g.numel() * total + (fourth - v**2) * each[name] for name, g in gradient.items()}
        return Moments({name: (1 if self.twice else v) * g for name, g in gradient.items()}, second)

    def _fourth(self) -> float:
        """E Q(u)⁴ of one rounding."""
        u, density = _grid()
        low = self.step * torch.floor(u / self.step)
        f = (u - low) / self.step
        return float((density * ((1 - f) * low**4 + f * (low + self.step) ** 4)).sum())

    def _mean(self, function: object) -> float:
        u, density = _grid()
        f = u / self.step - torch.floor(u / self.step)
        return float((density * function(u, self.step**2 * f * (1 - f))).sum())  # type: ignore[operator]


def _grid() -> tuple[Tensor, Tensor]:
    """Points and weights of the normal law; kinks at multiples of the grid's step leave an error of 10⁻⁹."""
    u = (torch.arange(-400_000, 400_000, dtype=torch.float64) + 0.5) * 2.5e-5
    density = torch.exp(-(u**2) / 2)
    return u, density / density.sum()


@dataclass(frozen=True)
class SeedPool:
    """The direction is one of S normal ones, whose numbers follow from the pool's key and the drawn index.

    Given the pool E ĝ = (1/S) Σ_s u_s u_sᵀ∇: biased, by ‖E ĝ − ∇‖² = (d + 1)/S · ‖∇‖² in the mean over pools. The
    moments here are those over pools.

    Args:
        size: S.
        key: of the pool.

    Source: Qin et al. 2023 (arXiv 2312.06353, FedKSeed), its abstract; seeds are drawn evenly, as before its later
    sampling by importance.

    Example:
        >>> problem = fgvar.Problem(torch.nn.Linear(2, 1), "mse", (torch.ones(1, 2), torch.ones(1, 1)))
        >>> pool = SeedPool(4)
        >>> pool.pool(problem)["weight"].shape
        torch.Size([4, 1, 2])
    """

    size: int
    key: int = 0

    bias_reason = "a pool of directions spans a subspace"

    def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:  # noqa: ARG002
        even = torch.full((self.size,), 1 / self.size, dtype=torch.float64)
        return {"seed": fgvar.Leaf((1,), fgvar.noise.Choice(even, even=True))}

    def directions(self, problem: fgvar.Problem, noise: Tensors) -> tuple[Tensors, Tensors]:
        query = self._directions(problem, noise["seed"])
        return query, query

    def pool(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        """All of its directions, stacked."""
        every = [self._directions(problem, torch.tensor([index])) for index in range(self.size)]
        return {name: torch.stack([one[name] for one in every]) for name in problem.params}

    def moments(self, gradient: Tensors) -> Moments:
        each = squares(gradient)
        total = sum(each.values())
        kept = {name: (g.numel() * total + each[name]) / self.size for name, g in gradient.items()}
        second = of_gaussian(gradient, {name: g.numel() for name, g in gradient.items()})
        return Moments(dict(gradient), second, kept)

    def _directions(self, problem: fgvar.Problem, index: Tensor) -> dict[str, Tensor]:
        found, first = {}, 0
        own = _mixed(index + (self.key << 20))
        for name, p in problem.params.items():
            places = torch.arange(first, first + p.numel(), device=p.device)
            mixed = _mixed(_mixed(places) + own)
            radius = torch.sqrt(-2 * torch.log((mixed + 0.5) / 2**32))
            found[name] = (radius * torch.cos(_mixed(mixed ^ own) * (2 * math.pi / 2**32))).reshape(p.shape).to(p)
            first += p.numel()
        return found


def _mixed(x: Tensor) -> Tensor:
    """MurmurHash3's finaliser of 32 bits: each bit of x decides about half of the bits."""
    low = 0xFFFFFFFF
    x = (x + 0x9E3779B9) & low
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & low
    return x ^ (x >> 16)


@dataclass(frozen=True)
class ClippedDerivative:
    """ĝ = clip(⟨∇, u⟩, ±C) u with normal u: E ĝ = erf(κ/√2) ∇ for κ = C/‖∇‖.

    Args:
        bound: C.

    Source: Shang et al. 2025 (arXiv 2505.13430, QZO), held against a public summary: there the derivative is that by
    the scales of quantised weights.

    Example:
        >>> ClippedDerivative(1.0).bias_reason
        'clipped derivatives shrink'
    """

    bound: float

    bias_reason = "clipped derivatives shrink"

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness(gaussian(problem))

    def estimate(self, problem: fgvar.Problem, noise: Tensors) -> fgvar.Estimate:
        c = along(problem.backprop(), {name: noise[name] for name in problem.params}).clamp(-self.bound, self.bound)
        return fgvar.Estimate({name: c * noise[name] for name in problem.params})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()

    def moments(self, gradient: Tensors) -> Moments:
        each = squares(gradient)
        total = sum(each.values())
        k = self.bound / total**0.5
        inside, edge = math.erf(k / 2**0.5), k * math.exp(-(k**2) / 2) * (2 / math.pi) ** 0.5
        # E clip² and E n² clip² of a normal n, clipped at ±k.
        clip = inside - edge + k**2 * (1 - inside)
        along_it = 3 * inside - edge * (k**2 + 3) + k**2 * (1 - inside + edge)
        second = {name: g.numel() * total * clip + each[name] * (along_it - clip) for name, g in gradient.items()}
        return Moments({name: inside * g for name, g in gradient.items()}, second)


@dataclass(frozen=True)
class OnePoint:
    """ĝ = L(θ + σu)u/σ, to first order (L(θ)/σ + ⟨∇, u⟩)u: unbiased, and E‖ĝ_k‖² grows by d_k(L/σ)².

    Args:
        step: σ.

    Source: Flaxman et al. 2005; evolution strategies before antithetic pairs (Salimans et al. 2017).

    Example:
        >>> OnePoint(1e-3).bias_reason
        ''
    """

    step: float

    bias_reason = ""

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness(gaussian(problem))

    def estimate(self, problem: fgvar.Problem, noise: Tensors) -> fgvar.Estimate:
        c = along(problem.backprop(), {name: noise[name] for name in problem.params})
        c = c + problem.loss() / self.step
        return fgvar.Estimate({name: c * noise[name] for name in problem.params})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()

    def moments_at(self, gradient: Tensors, loss: float) -> Moments:
        """The same as a law's moments, which need the loss, too."""
        plain = of_gaussian(gradient, {name: g.numel() for name, g in gradient.items()})
        level = (loss / self.step) ** 2
        return Moments(dict(gradient), {name: s + gradient[name].numel() * level for name, s in plain.items()})


@dataclass(frozen=True)
class SignBatch:
    """FZOO's step: the mean of N one-sided derivatives along sign vectors, over their standard deviation.

    ĝ = (1/N) Σ c_i u_i / s, s² = Σ (c_i − c̄)²/(N − 1): the step of a difference falls out. Its length does not follow
    the gradient's, so that it is biased by intent.

    Args:
        size: N, at least 2.

    Source: Dang et al. 2025 (arXiv 2506.09034, FZOO), held against a public summary; whether its standard deviation
    is divided by N or N − 1 could not be held against it.

    Example:
        >>> SignBatch(8).bias_reason
        'over the standard deviation of its derivatives'
    """

    size: int

    bias_reason = "over the standard deviation of its derivatives"

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness(
            {name: fgvar.Leaf((self.size, *p.shape), fgvar.Rademacher()) for name, p in problem.params.items()}
        )

    def estimate(self, problem: fgvar.Problem, noise: Tensors) -> fgvar.Estimate:
        gradient = problem.backprop()
        c = torch.stack([noise[name].flatten(1) @ g.flatten() for name, g in gradient.items()]).sum(0)
        weights = c / self.size / c.std().clamp_min(torch.finfo(c.dtype).tiny)
        return fgvar.Estimate({name: torch.tensordot(weights, noise[name], 1) for name in gradient})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()
