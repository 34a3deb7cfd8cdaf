"""Draws: some of the terms of a sum, by their scores, weighed so that E ω = 1."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from fgvar.errors import require_integer, require_word, unknown
from fgvar.estimators.choices import Choice
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.populations import (
    BATCH,
    SCORE,
    Score,
    is_even,
    probabilities,
    require_scores,
    sampled_terms,
    scores_of,
    terms_shape,
)
from fgvar.stochastic.scores import Uniform


class Chosen(NamedTuple):
    """Examples that were drawn, by number [drawn], and factors [drawn]: the estimate is (1/drawn) Σ factor · term."""

    numbers: Tensor
    factors: Tensor


class DrawLaw(NamedTuple):
    """The law of what is drawn of each population, the terms taken for certain [..., top], 1 for others [..., N]."""

    choice: Choice
    top: Tensor
    others: Tensor


@dataclass(frozen=True)
class Draw:
    """A minibatch: ``size`` terms drawn, with p in proportion to scores, the ``top`` highest for certain.

    Put back (importance sampling), ω = 1/(m p): E ĝ is the gradient of the whole, its variance, of gradients g_n of N
    examples, (1/m)[Σ‖g_n‖²/(N² p_n) − ‖ḡ‖²], least for p ∝ ‖g_n‖. Not put back, uniformly:
    (1/m)(1 − m/N) Σ‖g_n − ḡ‖²/(N − 1). A term of score 0 outside of the top is never drawn; `Mixed` is the remedy.

    Args:
        size: terms drawn, m.
        top: terms of highest score that count once, ω = 1; the others are drawn from the rest. All of them: exact.
        by: scores.
        replace: put back.
        weigh: "unbiased"; "none": all drawn count the same (their mean), whatever their probabilities; "normalised":
            ω over the mean of ω.
        over: "batch": examples, of which none but the drawn are computed; "terms": the terms of every `fgvar.Terms`
            inside the network, each row drawn by itself, computed whole with ω = 0 for those left out; or the name of
            one such module. E ĝ is then the whole gradient where the loss is linear in the sum: not in log Ẑ.

    Raises:
        TypeError: a size or a top that is no integer, scores that are none.
        ValueError: a size below 1, a top below 0, an unknown ``weigh``; on use, more terms than there are, a network
            without terms to sample; scores of another shape, negative or not finite: these NaN but on the CPU.

    Source: Des Raj 1956 (not put back; see `fgvar.noise.Choice`); Fu et al. 2022 (terms, top); over a latent
    variable, REINFORCE (Williams 1992) and its sum-and-sample form (Liu et al. 2019).

    Example:
        >>> Draw(8).replace
        True
    """

    size: int
    top: int = 0
    by: Score = Uniform()
    replace: bool = True
    weigh: str = "unbiased"
    over: str = BATCH

    WEIGHS: ClassVar[tuple[str, ...]] = ("unbiased", "none", "normalised")

    def __post_init__(self) -> None:
        require_word("by", self.by, SCORE, "fgvar.sampling.Losses()")
        require_integer("size", self.size, 1)
        require_integer("top", self.top, 0)
        if self.weigh not in self.WEIGHS:
            raise ValueError(unknown("weigh", self.weigh, self.WEIGHS))

    @property
    def bias_reason(self) -> str:
        if self._even or self.weigh == "unbiased":  # uniform ω are all the same
            return ""
        drawn = "terms are drawn by their scores and all count the same"
        return drawn if self.weigh == "none" else "ω over its sum is not ω"

    @property
    def _even(self) -> bool:
        return is_even(self.by) and not self.top

    @property
    def whole(self) -> bool:
        return self.over != BATCH

    @property
    def linear(self) -> bool:
        by_size = self.by.linear and self.weigh == "unbiased" and not self.top  # another loss has another top
        return not self.by.of_loss or by_size

    def leaves(self, problem: Problem) -> dict[str, Leaf]:
        if self.over == BATCH:
            return {"": Leaf((self.size,), self.law(problem, BATCH, check=True).choice)}
        shapes = {name: terms_shape(problem, name)[:-1] for name in sampled_terms(problem, self.over)}
        return {
            name: Leaf((*rows, self.size), self.law(problem, name, check=True).choice)
            for name, rows in shapes.items()
        }

    def batch_size(self, problem: Problem) -> int:
        return self.top + self.size if self.over == BATCH else problem.batch_size

    def chosen(self, drawn: Tensor, problem: Problem) -> Chosen:
        """The examples looked at, given the numbers drawn."""
        numbers, omega = self._weighed(drawn, self.law(problem, BATCH))
        return Chosen(numbers, omega * (len(numbers) / problem.batch_size))

    def view(self, here: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Problem:
        if self.over == BATCH and self._even:  # every factor is 1: a product less of every loss and its tangent
            return here.rows(noise[""])
        if self.over == BATCH:
            numbers, factors = self.chosen(noise[""], problem)
            return here.rows(numbers).weighted(factors)
        for name, module in sampled_terms(problem, self.over).items():
            law = self.law(problem, name)
            numbers, omega = self._weighed(noise[name], law)
            whole = torch.zeros_like(law.others).scatter_add(-1, numbers, omega).to(problem.dtype)
            here = here.tapped(name, module.tap_of(whole, here.taps.get(name)))
        return here

    def largest_share(self, problem: Problem) -> float | None:  # noqa: ARG002
        if self.over != BATCH or not self._even:  # shares that depend on the examples
            return None
        return 1.0 if self.replace else 1 / self.size  # put back, one example can be drawn every time

    def no_closed_form(self, problem: Problem) -> str | None:  # noqa: ARG002
        if self.over != BATCH:
            return f"{self!r} samples sums inside the network, in which a gradient need not be linear"
        if self._even or (self.replace and self.weigh != "normalised"):
            return None
        return f"{self!r} draws by scores without putting back, or divides by the sum of what was drawn"

    def mean(self, terms: Tensor, problem: Problem) -> Tensor:
        p, sure = self._for(terms, problem)
        if self.weigh == "none":
            return (sure + self.size * _sum(p, terms)) / (self.top + self.size)
        return (sure + _sum(torch.where(p > 0, 1, p), terms)) / len(terms)

    def spread(self, terms: Tensor, problem: Problem) -> Tensor:
        (p, _), count = self._for(terms, problem), len(terms)
        if not self.replace:  # evenly
            share = (1 - self.size / count) / self.size
            return share * _of_one(p, terms) * (count / max(count - 1, 1))
        if self.weigh == "none":
            return _of_one(p, terms) * (self.size / (self.top + self.size) ** 2)
        return _of_one(p, terms * _inverse(p).reshape(-1, *[1] * (terms.ndim - 1))) / (self.size * count**2)

    def squares(self, terms: Tensor, problem: Problem) -> Tensor:
        (p, sure), count = self._for(terms, problem), len(terms)
        if self.weigh == "none":
            return (sure + self.size * _sum(p, terms)) / (self.top + self.size) ** 2
        if not self.replace:  # evenly
            return terms.mean(0) / self.size
        return (sure + _sum(_inverse(p), terms) / self.size) / count**2

    def products(self, problem: Problem, name: str) -> Tensor:
        """E[ω_i ω_j] of the terms of the `fgvar.Terms` of this name, put back: [batch, …, terms, terms].

        1 − 1/m + δ_ij/(m p_i) of two terms that are drawn, 1 where one of them is taken for certain, 0 where one of
        them is never drawn. See `fgvar.theory.log_second_moment`, which makes Var Ẑ of it.

        Raises:
            ValueError: terms that are not put back, or weighed otherwise: there is no closed form.
        """
        if not self.replace or self.weigh != "unbiased":
            raise ValueError(
                f"{self!r} has no closed form of E[ω_i ω_j]; expected replace=True and weigh='unbiased', or the sum "
                "over the values of a small law (support)"
            )
        choice, _, others = self.law(problem, name)
        own = torch.diag_embed(others * _inverse(choice.probabilities)) / self.size
        drawn = others * (choice.probabilities > 0)
        mean = 1 - others + drawn  # E ω
        return _outer(mean) - _outer(drawn) / self.size + own

    def _for(self, terms: Tensor, problem: Problem) -> tuple[Tensor, Tensor]:
        """Probabilities of one draw that counts, and the sum of what is taken for certain."""
        choice, top, others = self.law(problem, BATCH)
        p = choice.probabilities if self.weigh == "none" else choice.probabilities * others
        return p.to(terms.dtype), terms[top].sum(0)

    def _weighed(self, drawn: Tensor, law: DrawLaw) -> tuple[Tensor, Tensor]:
        """Numbers of all terms looked at, and their ω, by which E Σ ω x is the sum of all x: [..., top + size]."""
        choice, top, others = law
        numbers, population = torch.cat([top, drawn], -1), others.shape[-1]
        # Where all terms are taken for certain, what is drawn is one of them again, and counts nothing.
        of_drawn = choice.weights(drawn) * others.gather(-1, drawn)
        omega = torch.cat([torch.ones_like(top, dtype=of_drawn.dtype), of_drawn], -1)
        if self.weigh == "none":
            return numbers, omega.where(omega.isnan(), population / numbers.shape[-1])
        if self.weigh == "normalised":
            return numbers, omega * (population / omega.sum(-1, keepdim=True))
        return numbers, omega

    def law(self, problem: Problem, name: str, *, check: bool = False) -> DrawLaw:
        """The law of draws from the batch, or from the terms of this name; ``check`` reads the scores' values.

        Raises:
            ValueError: more terms than there are; scores that are no numbers from 0 on, where they are read.
        """
        scores = scores_of(self.by, problem, name).double()
        population = scores.shape[-1]
        if self.top > population or (not self.replace and self.top + self.size > population):
            raise ValueError(
                f"top={self.top} and size={self.size} of {population} terms; expected a top of {population} at most, "
                "and no more in all where terms are not put back (replace=False)"
            )
        if check:
            require_scores(self.by, scores)
        top = scores.topk(self.top).indices
        others = torch.ones_like(scores).scatter(-1, top, 0)
        p = probabilities(scores, others if self.top < population else None)
        return DrawLaw(Choice(p, self.replace, self._even, self.by.adapted), top, others)


def _sum(factors: Tensor, terms: Tensor) -> Tensor:
    """Σ factors_n · terms_n."""
    return torch.tensordot(factors, terms, dims=1)


def _of_one(p: Tensor, terms: Tensor) -> Tensor:
    """Variance of one term that is drawn: 0 of those that are alike, where Σ p x² − (Σ p x)² would leave rounding."""
    apart = terms - terms[p.argmax()[None]]
    return _sum(p, (apart - _sum(p, apart)).square())


def _outer(row: Tensor) -> Tensor:
    return row[..., :, None] * row[..., None, :]


def _inverse(p: Tensor) -> Tensor:
    """1/p, of what is never drawn 0."""
    drawn = p != 0
    return torch.where(drawn, 1 / p.where(drawn, 1), 0)
