"""Union: several draws of examples, as one batch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import unknown
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.draw import Draw
from fgvar.stochastic.inclusion import SumOfDrawn, sum_of_drawn
from fgvar.stochastic.populations import BATCH, is_even, probabilities, scores_of
from fgvar.stochastic.sampling import tells_moments


@dataclass(frozen=True)
class Union:
    """What several draws of examples chose, as one batch; an example that two of them chose counts twice.

    Unbiased, the estimate is the mean of theirs by their shares of the examples drawn: Σ_j (m_j/Σm) ĝ_j. With
    weigh="none" it is the plain mean over all examples drawn, whatever their probabilities; and with ``distinct``, as
    published for residual points of PINNs, over those that differ, s of them: (1/s) Σ g_n. Of one part drawn evenly
    and one by scores, neither put back, that has a closed form: s is hypergeometric whatever the second part is.

    Args:
        parts: draws of examples, independent of each other.
        weigh: "unbiased", or "none".
        distinct: duplicates are dropped, and computed with a weight of 0.

    Raises:
        TypeError: parts that are no tuple of `Draw`.
        ValueError: no part, one over other terms than examples, an unknown ``weigh``; distinct examples that are to
            be weighed.

    Source: Subramanian et al. 2022, and their code, which keeps each point of the two draws once.

    Example:
        >>> Union((Draw(3, replace=False), Draw(5))).weigh
        'unbiased'
    """

    parts: tuple[Draw, ...]
    weigh: str = "unbiased"
    distinct: bool = False

    WEIGHS: ClassVar[tuple[str, ...]] = ("unbiased", "none")

    def __post_init__(self) -> None:
        if not isinstance(self.parts, tuple) or not all(hasattr(part, "chosen") for part in self.parts):
            raise TypeError(f"parts are {self.parts!r}, expected a tuple of draws: (Draw(8), Draw(8, by=Losses()))")
        if not self.parts or any(part.over != BATCH for part in self.parts):
            raise ValueError(f"parts are {self.parts!r}, expected at least one draw, all of them over='batch'")
        if self.weigh not in self.WEIGHS:
            raise ValueError(unknown("weigh", self.weigh, self.WEIGHS))
        if self.distinct and self.weigh != "none":
            raise ValueError(
                "distinct is True and weigh 'unbiased', but what is dropped takes its weight along; expected "
                "weigh='none', or distinct=False"
            )

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
        if self.distinct:
            again = (numbers[:, None] == numbers).tril(-1).any(1)
            factors = ~again * (len(numbers) / (~again).sum().double())
        return here.rows(numbers).weighted(factors)

    def no_closed_form(self, problem: Problem) -> str | None:
        if silent := [part for part in self.parts if not tells_moments(part)]:
            return f"{silent[0]!r} does not say mean and spread of what it samples"
        if not self.distinct:
            return next((reason for part in self._parts if (reason := part.no_closed_form(problem))), None)
        by_scores = [part for part in self.parts if not _even(part)]
        if len(self.parts) - len(by_scores) > 1 or len(by_scores) > 1 or any(p.replace or p.top for p in self.parts):
            return f"{self!r} drops duplicates of other parts than one drawn evenly and one by scores, not put back"
        return None

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:
        if not self.distinct:
            return self._added(1, [part.mean(terms, problem) for part in self._parts], problem)
        known = self._by_scores(terms, problem)
        return _sum([case.chance * case.mean(known.mean, terms) for case in self._cases(problem)])

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:
        if not self.distinct:
            return self._added(2, [part.spread(terms, problem) for part in self._parts], problem)
        known = self._by_scores(terms, problem)
        cases = list(self._cases(problem))
        means = [case.mean(known.mean, terms) for case in cases]
        mean = _sum([case.chance * value for case, value in zip(cases, means, strict=True)])
        within = [case.chance * case.variance(known, terms) for case in cases]
        between = [c.chance * (value - mean).square() for c, value in zip(cases, means, strict=True)]
        return _sum([*within, *between])

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:
        if not self.distinct:
            return self._added(2, [part.squares(terms, problem) for part in self._parts], problem)
        known = self._by_scores(terms, problem)
        return _sum([case.chance / case.size * case.mean(known.mean, terms) for case in self._cases(problem)])

    def _by_scores(self, terms: Tensor, problem: Problem) -> SumOfDrawn:
        """Of the sum over the part that is drawn by scores."""
        for part in self.parts:
            if not _even(part):
                p = probabilities(scores_of(part.by, problem, BATCH))
                return SumOfDrawn(*(found.to(terms.dtype) for found in sum_of_drawn(p, part.size, terms)))
        nothing = torch.zeros_like(terms[0])
        return SumOfDrawn(nothing, nothing, nothing)

    def _cases(self, problem: Problem) -> Iterator["_Case"]:
        """By how many examples both parts drew."""
        even = sum(part.size for part in self.parts if _even(part))
        by_scores = sum(part.size for part in self.parts if not _even(part))
        count = problem.batch_size
        for both in range(max(0, even + by_scores - count), min(even, by_scores) + 1):
            ways = math.comb(by_scores, both) * math.comb(count - by_scores, even - both)
            yield _Case(ways / math.comb(count, even), even + by_scores - both, even - both, count - by_scores)

    @property
    def _parts(self) -> tuple[Draw, ...]:
        return self.parts if self.weigh == "unbiased" else tuple(replace(part, weigh="none") for part in self.parts)

    def _added(self, power: int, found: list[Tensor], problem: Problem) -> Tensor:
        """Σ_j (share of part j)^power · found_j."""
        shares = [part.batch_size(problem) / self.batch_size(problem) for part in self.parts]
        return _sum([share**power * value for share, value in zip(shares, found, strict=True)])


@dataclass(frozen=True)
class _Case:
    """So many distinct examples: those drawn by scores, B, and ``more`` of the ``others``, drawn evenly."""

    chance: float
    size: int
    more: int
    others: int

    def mean(self, of_drawn: Tensor, terms: Tensor) -> Tensor:
        """(1/s) E [Σ_B x + ρ Σ_{not B} x], ρ the share of the others that was drawn, given E Σ_B x."""
        return (self._share * terms.sum(0) + (1 - self._share) * of_drawn) / self.size

    def variance(self, drawn: SumOfDrawn, terms: Tensor) -> Tensor:
        """That of the mean above by B, and of a sample of the others, not put back, given them."""
        of_mean = (1 - self._share) ** 2 * drawn.variance
        squares = terms.square().sum(0) - drawn.of_squares
        square = (terms.sum(0) - drawn.mean).square() + drawn.variance
        centred = squares - square / max(self.others, 1)
        return (of_mean + self.more * (1 - self._share) * centred / max(self.others - 1, 1)) / self.size**2

    @property
    def _share(self) -> float:
        return self.more / max(self.others, 1)


def _even(part: Draw) -> bool:
    return is_even(part.by) and not part.top


def _sum(values: list[Tensor]) -> Tensor:
    return torch.stack(values).sum(0)
