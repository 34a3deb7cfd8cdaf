"""Scores: by what a sampler prefers some terms of a sum to others."""

from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import require_type, require_word, unknown
from fgvar.estimators.lengths import length
from fgvar.nn.structures import leaves
from fgvar.problem import Problem
from fgvar.stochastic.populations import (
    BATCH,
    SCORE,
    Score,
    is_even,
    probabilities,
    sampled_terms,
    scores_of,
    terms_shape,
)


@dataclass(frozen=True)
class Uniform:
    """Uniform sampling: all terms alike.

    Example:
        >>> Uniform().adapted
        False
    """

    adapted: ClassVar[bool] = False
    of_loss: ClassVar[bool] = False
    linear: ClassVar[bool] = True
    even: ClassVar[bool] = True

    def scores(self, problem: Problem, over: str) -> Tensor:
        shape = (problem.batch_size,) if over == BATCH else terms_shape(problem, over)
        return torch.ones(shape, dtype=problem.dtype, device=problem.device)


@dataclass(frozen=True)
class Losses:
    """Examples by their loss ℓ_n to a power. By one below 0 losses of 0 take all, but for what counts nothing.

    A loss below 0 is refused.

    Args:
        power: 1 prefers large losses; −½, as in SFR-on (Huang et al. 2024), small ones.

    Raises:
        TypeError: a power that is no number.
        ValueError: on use, a loss below 0.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> Losses().scores(problem, "batch").shape
        torch.Size([4])
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        require_type("power", self.power, Real, "a number")

    adapted: ClassVar[bool] = True
    of_loss: ClassVar[bool] = True
    linear: ClassVar[bool] = False

    def scores(self, problem: Problem, over: str) -> Tensor:
        _require_batch(self, over)
        with torch.no_grad():
            losses = problem.losses(problem.run(problem.params)[0]).detach().double()
        # Over the largest of them, by a power below 0 the least: the largest score is 1, and no power overflows.
        scale = losses / losses.max().clamp_min(torch.finfo(losses.dtype).tiny)
        if self.power < 0:  # 0 is the least number above it
            positive = losses.where(losses != 0, torch.finfo(losses.dtype).tiny)
            factors = [factor for factor in (problem._weighed().weights, problem.importance) if factor is not None]
            if factors:  # an example that counts nothing has a loss of 0, which would take all
                counts = torch.stack(factors).prod(0) != 0
                positive = positive.where(counts | ~counts.any(), torch.inf)
            scale = positive / positive.min()
        return torch.where(losses < 0, losses, scale**self.power)  # what is below 0 stays so under an even power


@dataclass(frozen=True)
class Outputs:
    """By absolute outputs: an example's mean over all numbers of the network's outputs, as residuals of a PINN are.

    Or by those of one module; of a sum inside the network, that module returns a number for each term, such as the
    probabilities q_θ(z) of Σ_z q_θ(z) f_θ(z), with which ``Draw(1, by=Outputs("q"), over="latent")`` is REINFORCE.

    Args:
        module: name of a module that is called once; empty: the network.

    Raises:
        ValueError: on use, an unknown module, or one that returns no number for each term.

    Source: Subramanian et al. 2022 (residuals).

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> Outputs().scores(problem, "batch").shape
        torch.Size([4])
    """

    module: str = ""

    adapted: ClassVar[bool] = True
    of_loss: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def scores(self, problem: Problem, over: str) -> Tensor:
        modules = problem.network.modules
        if self.module and self.module not in modules:
            raise ValueError(unknown("module of Outputs", self.module, modules))
        with torch.no_grad():
            found, watched = problem.run(problem.params, watch=[self.module] if self.module else [])
        if over == BATCH:
            return self._of_examples(watched[self.module] if self.module else found, problem.batch_size)
        values, shape = watched.get(self.module), terms_shape(problem, over)
        if values is None or tuple(values.shape) != shape:
            by = "the network's outputs" if values is None else f"{self.module!r}, of shape {tuple(values.shape)}"
            raise ValueError(
                f"Outputs scores the terms {shape} of {over!r} by {by}; expected Outputs('name') of a module "
                "that returns a number for each term"
            )
        return values.detach().abs()

    def _of_examples(self, found: object, count: int) -> Tensor:
        whole = [x for x in leaves(found) if x.is_floating_point() and x.ndim and len(x) == count]
        if not whole:
            raise ValueError(f"{self!r} found no floating-point tensor with {count} examples first; name a module")
        return torch.cat([x.detach().reshape(count, -1) for x in whole], 1).abs().mean(1)


@dataclass(frozen=True)
class GradientNorms:
    """Examples by the norm of their gradient of the network's loss: put back, the least variance that there is.

    One vmap over the examples.

    Source: Needell, Srebro and Ward 2014.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> GradientNorms().scores(problem, "batch").shape
        torch.Size([4])
    """

    adapted: ClassVar[bool] = True
    of_loss: ClassVar[bool] = True
    linear: ClassVar[bool] = True

    def scores(self, problem: Problem, over: str) -> Tensor:
        _require_batch(self, over)

        def norm(example: Problem) -> Tensor:
            return length(example.backprop())

        found: Tensor = problem.per_example(norm)
        return found.detach()


@dataclass(frozen=True)
class TermSizes:
    """Terms of a sum inside the network by their size: |z|, of logarithms their softmax, as the parameters have them.

    Source: Fu et al. 2022 (proposals of randomised dynamic programming).

    Example:
        >>> TermSizes().linear
        True
    """

    adapted: ClassVar[bool] = True
    of_loss: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def scores(self, problem: Problem, over: str) -> Tensor:
        if over == BATCH:
            raise ValueError(
                "TermSizes scores terms of a sum inside the network, over is 'batch'; expected Losses(), Outputs() "
                "or GradientNorms(), or over= the name of a fgvar.Terms"
            )
        terms_shape(problem, over)
        module = sampled_terms(problem, over)[over]
        # An ω that the problem has is no part of the terms' size.
        plain = problem._with(taps={name: tap for name, tap in problem.taps.items() if name != over})
        with torch.no_grad():
            return module.sizes(plain.run(problem.params, watch=[over])[1][over]).detach()


@dataclass(frozen=True)
class Mixed:
    """A mixture: (1 − η) of other scores' probabilities and η of uniform ones.

    No ω of m examples of N that are put back is above N/(η m), 1/η of the uniform one; of those that are not
    (``replace=False``) none is above (N/η + m − 1)/m.

    Args:
        by: other scores.
        uniform: η.

    Raises:
        TypeError: other scores that are none.
        ValueError: a share outside of [0, 1].

    Source: Hesterberg 1995 (defensive mixtures).

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> Mixed(Losses(), uniform=0.5).scores(problem, "batch").sum().round(decimals=9)
        tensor(1., dtype=torch.float64)
    """

    by: Score
    uniform: float = 0.5

    def __post_init__(self) -> None:
        require_word("by", self.by, SCORE, "fgvar.sampling.Losses()")
        require_type("uniform", self.uniform, Real, "a share between 0 and 1")
        if not 0 <= self.uniform <= 1:
            raise ValueError(f"uniform is {self.uniform!r}, expected a share between 0 and 1")

    @property
    def even(self) -> bool:
        return self.uniform == 1 or is_even(self.by)

    @property
    def adapted(self) -> bool:
        return self.by.adapted and self.uniform < 1

    @property
    def of_loss(self) -> bool:
        return self.by.of_loss and self.uniform < 1

    @property
    def linear(self) -> bool:
        return not self.of_loss  # 1/p is no longer in proportion to 1 over those scores

    def scores(self, problem: Problem, over: str) -> Tensor:
        if self.even:
            return Uniform().scores(problem, over)
        p = probabilities(scores_of(self.by, problem, over))
        return (1 - self.uniform) * p + self.uniform / p.shape[-1]


def _require_batch(by: Score, over: str) -> None:
    if over != BATCH:
        raise ValueError(
            f"{by!r} scores examples, over is {over!r}; expected over='batch', or scores of terms: TermSizes(), "
            "Uniform(), Outputs('name')"
        )
