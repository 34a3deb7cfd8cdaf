"""Weighing: samplers that compute every example, and weigh it, at random or not."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import require_type, require_word, unknown
from fgvar.estimators.choices import Bernoulli
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.populations import BATCH, SCORE, Score, is_even, probabilities, require_scores, scores_of


@dataclass(frozen=True)
class Poisson:
    """Poisson sampling: every example with probability ``rate``, independently; those left out have weights of 0.

    ω = b/q for b of 0 or 1 and the rate q: E ĝ is the gradient of the whole, its variance Σ (1 − q)/q ‖g_n‖²/N².

    Args:
        rate: probability of each example.
        divide: "expected", by rate · N; "sampled", by the number that was drawn: (1 − (1 − q)^N) of the gradient,
            as a batch without any example gives 0.

    Raises:
        ValueError: a rate outside of (0, 1], an unknown ``divide``.

    Source: Abadi et al. 2016 (DP-SGD).

    Example:
        >>> Poisson(0.25).bias_reason
        ''
    """

    rate: float
    divide: str = "expected"

    linear: ClassVar[bool] = True
    whole: ClassVar[bool] = True
    DIVIDES: ClassVar[tuple[str, ...]] = ("expected", "sampled")

    def __post_init__(self) -> None:
        require_type("rate", self.rate, Real, "a probability above 0 and at most 1")
        if not 0 < self.rate <= 1:
            raise ValueError(f"rate is {self.rate!r}, expected a probability above 0 and at most 1")
        if self.divide not in self.DIVIDES:
            raise ValueError(unknown("divide", self.divide, self.DIVIDES))

    @property
    def bias_reason(self) -> str:
        return "" if self.divide == "expected" else "a batch without examples gives 0"

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        return {"": Leaf((problem.batch_size,), Bernoulli(self.rate))}

    def batch_size(self, problem: Problem) -> int:
        return problem.batch_size

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:  # noqa: ARG002
        drawn = noise[""]
        if self.divide == "expected":
            return here.weighted(drawn / self.rate)
        return here.weighted(drawn * (len(drawn) / drawn.sum().clamp_min(1)))

    def largest_share(self, problem: Problem) -> float | None:
        return 1 / (self.rate * problem.batch_size) if self.divide == "expected" else 1.0

    def no_closed_form(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        some = 1.0 if self.divide == "expected" else 1 - (1 - self.rate) ** len(terms)
        return some * terms.mean(0)

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        q, count, mean = self.rate, len(terms), terms.mean(0)
        if self.divide == "expected":
            return (1 - q) / q * terms.square().sum(0) / count**2
        sizes = self._sizes(terms)
        empty = sizes[0]
        size = torch.arange(1, count + 1, dtype=sizes.dtype, device=sizes.device)
        within = (sizes[1:] * (1 - size / count) / size).sum()
        return within * (terms - mean).square().sum(0) / max(count - 1, 1) + empty * (1 - empty) * mean.square()

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        if self.divide == "expected":
            return terms.mean(0) / (self.rate * len(terms))
        sizes = self._sizes(terms)[1:]
        return terms.mean(0) * (sizes / torch.arange(1, len(sizes) + 1, dtype=sizes.dtype, device=sizes.device)).sum()

    def _sizes(self, terms: Tensor) -> Tensor:
        """Probability of each number of drawn examples, 0 to N; by logarithms, as binomial coefficients overflow."""
        count, rate = len(terms), torch.tensor(self.rate, dtype=torch.float64, device=terms.device)
        k = torch.arange(count + 1, dtype=rate.dtype, device=rate.device)
        orders = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
        return (orders + torch.xlogy(k, rate) + torch.xlogy(count - k, 1 - rate)).exp()


@dataclass(frozen=True)
class Reweighted:
    """Reweighting: every example by its share of all scores, w_n = N s_n/Σ s. No randomness, and another gradient.

    Args:
        by: scores.

    Raises:
        TypeError: scores that are none.
        ValueError: on use, scores that are negative, not finite or of another shape.

    Source: Huang et al. 2024 (SFR-on), with ``Losses(-0.5)``.

    Example:
        >>> from fgvar.stochastic.scores import Losses
        >>> Reweighted(Losses(-0.5)).bias_reason
        'examples count by their scores, not alike'
    """

    by: Score

    whole: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_word("by", self.by, SCORE, "fgvar.sampling.Losses()")

    @property
    def bias_reason(self) -> str:
        return "" if is_even(self.by) else "examples count by their scores, not alike"

    @property
    def linear(self) -> bool:
        return not self.by.of_loss

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        require_scores(self.by, scores_of(self.by, problem, BATCH))
        return {}

    def batch_size(self, problem: Problem) -> int:
        return problem.batch_size

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:  # noqa: ARG002
        return here.weighted(problem.batch_size * self._shares(problem))

    def no_closed_form(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:
        return torch.tensordot(self._shares(problem).to(terms.dtype), terms, dims=1)

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(terms[0])

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:
        return torch.tensordot(self._shares(problem).to(terms.dtype).square(), terms, dims=1)

    def _shares(self, problem: Problem) -> Tensor:
        return probabilities(scores_of(self.by, problem, BATCH))
