"""Sampling: which terms of a sum are looked at, and what each counts so that E ω = 1."""

import math
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

    # What theory asks, of x_n for each of the N terms, [N, …], and of X = (1/N) Σ ω_n x_n; all entry by entry.

    def no_closed_form(self, problem: Problem) -> str | None:
        """Why the following are not known; None where they are."""

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:
        """E X."""

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:
        """Var X."""

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:
        """E (1/N²) Σ ω_n² x_n, a term drawn twice counting as two: the variance of noise of their own, of variance x_n."""


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

    def no_closed_form(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        return terms.mean(0)

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        return torch.zeros_like(terms[0])

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        return terms.mean(0) / len(terms)


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

    def no_closed_form(self, problem: Problem) -> str | None:
        even = self._choice(problem)[0].even
        if even or (self.replace and self.weigh != "normalised"):
            return None
        return f"{self!r} draws by scores without putting back, or divides by the sum of what was drawn"

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:
        choice, top = self._choice(problem)
        p, sure = choice.probabilities.to(terms.dtype), terms[top].sum(0)
        if self.weigh == "none":
            return (sure + self.size * _sum(p, terms)) / (self.top + self.size)
        return (sure + _sum((p > 0).to(p.dtype), terms)) / len(terms)

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:
        choice, _ = self._choice(problem)
        p, count = choice.probabilities.to(terms.dtype), len(terms)
        if not self.replace:  # evenly
            return (1 - self.size / count) / self.size * (terms - terms.mean(0)).square().sum(0) / max(count - 1, 1)
        if self.weigh == "none":
            of_one = _sum(p, terms.square()) - _sum(p, terms).square()
            return of_one * (self.size / (self.top + self.size) ** 2)
        drawn = p > 0
        inverse = torch.where(drawn, 1 / p.where(drawn, 1), 0)
        whole = _sum(drawn.to(p.dtype), terms)
        return (_sum(inverse, terms.square()) - whole.square()) / (self.size * count**2)

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:
        choice, top = self._choice(problem)
        p, sure, count = choice.probabilities.to(terms.dtype), terms[top].sum(0), len(terms)
        if choice.even:
            return terms.mean(0) / self.size
        if self.weigh == "none":
            return (sure + self.size * _sum(p, terms)) / (self.top + self.size) ** 2
        drawn = p > 0
        return (sure + _sum(torch.where(drawn, 1 / p.where(drawn, 1), 0), terms) / self.size) / count**2

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

    def no_closed_form(self, problem: Problem) -> str | None:  # noqa: ARG002
        return None

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        some = 1.0 if self.divide == "expected" else 1 - (1 - self.rate) ** len(terms)
        return some * terms.mean(0)

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        q, count, mean = self.rate, len(terms), terms.mean(0)
        if self.divide == "expected":
            return (1 - q) / q * terms.square().sum(0) / count**2
        sizes = self._sizes(count)
        within = sum(float(chance) * (1 - k / count) / k for k, chance in enumerate(sizes) if k)
        return within * (terms - mean).square().sum(0) / max(count - 1, 1) + sizes[0] * (1 - sizes[0]) * mean.square()

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:  # noqa: ARG002
        if self.divide == "expected":
            return terms.mean(0) / (self.rate * len(terms))
        return terms.mean(0) * sum(float(chance) / k for k, chance in enumerate(self._sizes(len(terms))) if k)

    def _sizes(self, count: int) -> list[float]:
        """Probability of each number of drawn examples, 0 to N."""
        return [math.comb(count, k) * self.rate**k * (1 - self.rate) ** (count - k) for k in range(count + 1)]


def _sum(factors: Tensor, terms: Tensor) -> Tensor:
    """Σ factors_n · terms_n."""
    return torch.tensordot(factors, terms, dims=1)
