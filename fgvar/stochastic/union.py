"""Union: several draws of examples, as one batch."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import unknown
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.draw import Draw
from fgvar.stochastic.populations import BATCH


@dataclass(frozen=True)
class Union:
    """What several draws of examples chose, as one batch; an example that two of them chose counts twice.

    Unbiased, the estimate is the mean of theirs by their shares of the examples drawn: Σ_j (m_j/Σm) ĝ_j. With
    weigh="none" it is the plain mean over all examples drawn, whatever their probabilities, as published for residual
    points of PINNs (whose code drops duplicates: there the mean is over fewer).

    Args:
        parts: draws of examples, independent of each other.
        weigh: "unbiased", or "none".

    Raises:
        TypeError: parts that are no tuple of `Draw`.
        ValueError: no part, one over other terms than examples, an unknown ``weigh``.

    Source: Subramanian et al. 2022.

    Example:
        >>> Union((Draw(3, replace=False), Draw(5))).weigh
        'unbiased'
    """

    parts: tuple[Draw, ...]
    weigh: str = "unbiased"

    WEIGHS: ClassVar[tuple[str, ...]] = ("unbiased", "none")

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or not all(hasattr(part, "chosen") for part in self.parts):
            raise TypeError(f"parts are {self.parts!r}, expected a tuple of draws: (Draw(8), Draw(8, by=Losses()))")
        if not self.parts or any(part.over != BATCH for part in self.parts):
            raise ValueError(f"parts are {self.parts!r}, expected at least one draw, all of them over='batch'")
        if self.weigh not in self.WEIGHS:
            raise ValueError(unknown("weigh", self.weigh, self.WEIGHS))

    @property
    def bias_reason(self) -> str:
        return "; ".join(dict.fromkeys(part.bias_reason for part in self._parts if part.bias_reason))

    @property
    def linear(self) -> bool:
        return all(part.linear for part in self.parts)

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        return {str(index): part.leaves(problem)[""] for index, part in enumerate(self._parts)}

    def batch_size(self, problem: Problem) -> int:
        return sum(part.batch_size(problem) for part in self.parts)

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        chosen = [part.chosen(noise[str(index)], problem) for index, part in enumerate(self._parts)]
        numbers, factors = (torch.cat(pieces) for pieces in zip(*chosen, strict=True))
        return here.rows(numbers).weighted(factors.to(problem.dtype))

    def no_closed_form(self, problem: Problem) -> str | None:
        return next((reason for part in self._parts if (reason := part.no_closed_form(problem))), None)

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:
        return self._added(1, [part.mean(terms, problem) for part in self._parts], problem)

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:
        return self._added(2, [part.spread(terms, problem) for part in self._parts], problem)

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:
        return self._added(2, [part.squares(terms, problem) for part in self._parts], problem)

    @property
    def _parts(self) -> tuple[Draw, ...]:
        return self.parts if self.weigh == "unbiased" else tuple(replace(part, weigh="none") for part in self.parts)

    def _added(self, power: int, found: list[Tensor], problem: Problem) -> Tensor:
        """Σ_j (share of part j)^power · found_j."""
        shares = [part.batch_size(problem) / self.batch_size(problem) for part in self.parts]
        return torch.stack([share**power * value for share, value in zip(shares, found, strict=True)]).sum(0)
