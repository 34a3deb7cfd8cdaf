"""Zeroth-order variance reduction by an anchor: MeZO-SVRG, and the minibatch estimate that it is held against."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import fgvar
from studies.published.directional import Moments, Tensors, gaussian, of_gaussian, squares


@dataclass(frozen=True, eq=False)
class Anchored:
    """ĝ = ⟨∇_i(θ) − ∇_i(θ̄), z⟩ z + ⟨∇(θ̄), z′⟩ z′ for one example i: SVRG, each gradient seen along normal directions.

    Unbiased; E‖ĝ_k‖² = (1/n) Σ_i E‖⟨Δ_i, z⟩z_k‖² + E‖⟨∇(θ̄), z′⟩z′_k‖² + 2⟨(∇(θ) − ∇(θ̄))_k, ∇(θ̄)_k⟩. The noise of
    z′ is that of one MeZO estimate of the whole batch: an anchor takes away what examples differ by, nothing of that.

    Args:
        anchor: θ̄, a dict like the parameters; None leaves the anchor out: MeZO of one example.

    Source: Gautam et al. 2024 (arXiv 2404.08080), held against a public summary, which leaves open whether θ and θ̄
    share z: here they do, which is the better of the two.

    Example:
        >>> Anchored(None).bias_reason
        ''
    """

    anchor: Mapping[str, Tensor] | None

    bias_reason = ""

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        n = problem.batch_size
        even = fgvar.noise.Choice(torch.full((n,), 1 / n, dtype=torch.float64), even=True)
        found = {"example": fgvar.Leaf((1,), even), **gaussian(problem)}
        if self.anchor is not None:
            found |= {f"z'.{name}": leaf for name, leaf in gaussian(problem).items()}
        return fgvar.Randomness(found)

    def estimate(self, problem: fgvar.Problem, noise: Tensors) -> fgvar.Estimate:
        each = self._differences(problem)
        z = {name: noise[name] for name in problem.params}
        # Of every example, of which one is taken: plain products, whoever draws.
        c = torch.stack([each[name].flatten(1) @ u.flatten() for name, u in z.items()]).sum(0)[noise["example"][0]]
        found = {name: c * u for name, u in z.items()}
        if self.anchor is not None:
            whole = self._moved(problem).backprop()
            other = {name: noise[f"z'.{name}"] for name in problem.params}
            c = torch.stack([torch.dot(whole[name].flatten(), u.flatten()) for name, u in other.items()]).sum()
            found = {name: found[name] + c * u for name, u in other.items()}
        return fgvar.Estimate(found)

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()

    def moments_at(self, problem: fgvar.Problem) -> Moments:
        """Mean and second moment, exactly."""
        gradient, each = problem.backprop(), self._differences(problem)
        sizes = {name: g.numel() for name, g in gradient.items()}
        second = dict.fromkeys(gradient, 0.0)
        for example in range(problem.batch_size):
            one = of_gaussian({name: d[example] for name, d in each.items()}, sizes)
            second = {name: s + one[name] / problem.batch_size for name, s in second.items()}
        if self.anchor is not None:
            whole = self._moved(problem).backprop()
            level = of_gaussian(whole, sizes)
            cross = {name: float(((g - whole[name]) * whole[name]).sum()) for name, g in gradient.items()}
            second = {name: s + level[name] + 2 * cross[name] for name, s in second.items()}
        return Moments(gradient, second)

    def _differences(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        """Gradients of each example, less those at the anchor: [examples, …]."""
        here: dict[str, Tensor] = problem.per_example(lambda example: example.backprop())
        if self.anchor is None:
            return here
        there = self._moved(problem).per_example(lambda example: example.backprop())
        return {name: g - there[name] for name, g in here.items()}

    def _moved(self, problem: fgvar.Problem) -> fgvar.Problem:
        assert self.anchor is not None
        return problem.at({name: p.to(problem.dtype) for name, p in self.anchor.items()})


def one_step_back(problem: fgvar.Problem, share: float) -> dict[str, Tensor]:
    """Where gradient descent was one step ago, if that step was this share of the parameters' length."""
    gradient = problem.backprop()
    length = sum(squares(problem.params).values()) ** 0.5 / sum(squares(gradient).values()) ** 0.5
    return {name: p.detach() + share * length * gradient[name] for name, p in problem.params.items()}
