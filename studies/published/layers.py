"""Estimates of one block of layers at a time: MeZO-BCD and AdaLeZO."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

import fgvar
from studies.published.directional import Moments, Tensors, gaussian, squares


@dataclass(frozen=True)
class Layers:
    """One block of tensors is drawn with probability p_b, and normal noise moves that block alone.

    Weighed by 1/p_b the estimate is unbiased, with E‖ĝ_b‖² = (d_b + 2)‖∇_b‖²/p_b, which is least in sum for
    p ∝ ‖∇_b‖√(d_b + 2). Not weighed, as blocks are taken in turn or at random, E ĝ_b = p_b ∇_b.

    Args:
        blocks: tensor → number of its block.
        probabilities: of the blocks.
        weigh: by the inverse of the probability.

    Source: Park et al. 2025 (arXiv 2501.19099, MeZO-BCD, not weighed); Wang et al. 2026 (arXiv 2604.18264, AdaLeZO,
    drawn with replacement and weighed by the inverse probability). Their abstracts were read, not their code:
    AdaLeZO's bandit, from which its probabilities come, is not built.

    Example:
        >>> Layers({"weight": 0, "bias": 1}, (0.5, 0.5), weigh=False).bias_reason
        'each block is estimated in its turn, and not weighed'
    """

    blocks: Mapping[str, int]
    probabilities: tuple[float, ...]
    weigh: bool = True

    @property
    def bias_reason(self) -> str:
        return "" if self.weigh else "each block is estimated in its turn, and not weighed"

    def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:
        law = fgvar.noise.Choice(torch.tensor(self.probabilities, dtype=torch.float64))
        return {"block": fgvar.Leaf((1,), law), **gaussian(problem)}

    def directions(self, problem: fgvar.Problem, noise: Tensors) -> tuple[Tensors, Tensors]:
        drawn = noise["block"][0]
        query = {name: noise[name] * (drawn == self.blocks[name]) for name in problem.params}
        return query, {name: u * self._weight(name) for name, u in query.items()}

    def moments(self, gradient: Tensors) -> Moments:
        each, own = squares(gradient), dict.fromkeys(self.blocks.values(), 0.0)
        for name, s in each.items():
            own[self.blocks[name]] += s
        chance = {name: self.probabilities[block] for name, block in self.blocks.items()}
        mean = {name: chance[name] * self._weight(name) * g for name, g in gradient.items()}
        second = {
            name: chance[name] * self._weight(name) ** 2 * (g.numel() * own[self.blocks[name]] + 2 * each[name])
            for name, g in gradient.items()
        }
        return Moments(mean, second)

    def _weight(self, name: str) -> float:
        return 1 / self.probabilities[self.blocks[name]] if self.weigh else 1.0


def best_probabilities(gradient: Mapping[str, Tensor], blocks: Mapping[str, int]) -> tuple[float, ...]:
    """p ∝ ‖∇_b‖√(d_b + 2), of least variance: what no bandit can know better. Blocks without a gradient keep 10⁻⁶."""
    numbers = sorted(set(blocks.values()))
    own, sizes = dict.fromkeys(numbers, 0.0), dict.fromkeys(numbers, 0)
    for name, s in squares(gradient).items():
        own[blocks[name]] += s
        sizes[blocks[name]] += gradient[name].numel()
    sizes_of_weights = [(own[block] * (sizes[block] + 2)) ** 0.5 for block in numbers]
    floor = 1e-6 * sum(sizes_of_weights)
    total = sum(max(w, floor) for w in sizes_of_weights)
    return tuple(max(w, floor) / total for w in sizes_of_weights)
