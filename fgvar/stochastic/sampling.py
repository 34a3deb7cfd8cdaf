"""Sampling: which terms of a sum are looked at, and what each counts so that E ω = 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from fgvar.errors import unknown
from fgvar.estimators.choices import Bernoulli, Choice
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.scores import Score, Uniform, probabilities

BATCH = "batch"


class Sample(Protocol):
    """Which terms of a sum are looked at.

    ``bias_reason`` says why E ω is not 1; empty where it is.
    """

    @property
    def bias_reason(self) -> str: ...

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        """The noise that it needs. Probabilities are those at ``problem``, constant."""

    def batch_size(self, problem: Problem) -> int:
        """Examples of the problem that `view` returns."""

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        """The sampled problem at ``here``, its terms `weighted`; probabilities are those of ``problem``."""


@dataclass(frozen=True)
class Everything:
    """All terms, each once.

    Example:
        >>> Everything().bias_reason
        ''
    """

    @property
    def bias_reason(self) -> str:
        return ""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:  # noqa: ARG002
        return {}

    def batch_size(self, problem: Problem) -> int:
        return problem.batch_size

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:  # noqa: ARG002
        return here


@dataclass(frozen=True)
class Draw:
    """``size`` terms drawn with probabilities p in proportion to scores; ``top`` terms of highest score for certain.

    Put back, ω = 1/(m p): E ĝ is the gradient of the whole, and its variance, for per-example gradients g_n of N
    examples, (1/m)[Σ‖g_n‖²/(N² p_n) − ‖ḡ‖²], least for p ∝ ‖g_n‖. Not put back, uniformly:
    (1/m)(1 − m/N) Σ‖g_n − ḡ‖²/(N − 1).

    Args:
        size: terms drawn, m.
        top: terms of highest score that count once, ω = 1; the others are drawn from the rest.
        by: scores.
        replace: put back.
        weigh: "unbiased"; "none": all drawn count the same (their mean), whatever their probabilities; "normalised":
            ω over the mean of ω.
        over: "batch", or "terms" of a sum inside the network (`fgvar.Terms`), or the name of one such module.

    Raises:
        ValueError: a size below 1, a top below 0, an unknown ``weigh``.

    Source: Des Raj 1956 (not put back); `fgvar.noise.Choice`.

    Example:
        >>> Draw(8).replace
        True
    """

    size: int
    top: int = 0
    by: Score = Uniform()  # noqa: RUF009 (frozen)
    replace: bool = True
    weigh: str = "unbiased"
    over: str = BATCH

    WEIGHS: ClassVar[tuple[str, ...]] = ("unbiased", "none", "normalised")

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected at least 1 example")
        if self.top < 0:
            raise ValueError(f"top is {self.top}, expected a number of terms from 0 on")
        if self.weigh not in self.WEIGHS:
            raise ValueError(unknown("weigh", self.weigh, self.WEIGHS))

    @property
    def bias_reason(self) -> str:
        if self.weigh == "none" and (self.by.adapted or self.top):
            return "terms are drawn by their scores and all count the same"
        return "ω over its sum is not ω" if self.weigh == "normalised" else ""

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        return {"": Leaf((self.size,), self._choice(problem)[0])}

    def batch_size(self, problem: Problem) -> int:  # noqa: ARG002
        return self.top + self.size

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        choice, top = self._choice(problem)
        drawn = noise[""]
        chosen, omega = torch.cat([top, drawn]), torch.cat([torch.ones_like(top, dtype=torch.double), choice.weights(drawn)])
        count, population = len(chosen), problem.batch_size
        factors = {
            "unbiased": omega * (count / population),
            "none": torch.ones_like(omega),
            "normalised": omega / omega.mean(),
        }[self.weigh]
        return here.rows(chosen).weighted(factors.to(problem.dtype))

    def _choice(self, problem: Problem) -> tuple[Choice, Tensor]:
        """The law of what is drawn, and the terms that are taken for certain."""
        scores = self.by.scores(problem, self.over)
        top = scores.topk(self.top).indices
        rest = scores.index_fill(0, top, 0) if self.top else scores
        return Choice(probabilities(rest), self.replace, not (self.by.adapted or self.top), self.by.adapted), top


@dataclass(frozen=True)
class Poisson:
    """Every example with probability ``rate``, independently; computed whole, those left out by weights of 0.

    ω = b/rate for b of 0 or 1: E ĝ is the gradient of the whole, and its variance Σ (1 − q)/q ‖g_n‖²/N² for the rate q.

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

    DIVIDES: ClassVar[tuple[str, ...]] = ("expected", "sampled")

    def __post_init__(self) -> None:
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
        kept = noise[""]
        if self.divide == "expected":
            return here.weighted(kept / self.rate)
        return here.weighted(kept * (len(kept) / kept.sum().clamp_min(1)))
