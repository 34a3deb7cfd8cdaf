"""Choices: laws with finitely many values, indices drawn from a population and zeros and ones."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import require_type
from fgvar.estimators.random_streams import Stream
from fgvar.estimators.randomness import combinations


@dataclass(frozen=True, eq=False)
class Choice:
    """Indices i₁ … i_m of a population of N terms, put back (independent), or not (all different).

    ``weights`` gives each index the factor ω with E Σ_k ω_k x(i_k) = Σ_n x(n) for every x. Put back it is 1/(m p_i);
    not put back, of indices in the order drawn, ω_k = [(1 − Σ_{j<k} p(i_j))/p(i_k) + m − k]/m, and N/m where all p
    are equal. What has probability 0 is never drawn, and no factor can make up for that.

    Args:
        probabilities: [..., N] ≥ 0, in each row of the population's numbers in proportion where they do not sum to 1.
            Leaves have shape [..., m].
        replace: put back.
        even: all probabilities are equal; said, not looked for.
        adapted: they come from the parameters (see `fgvar.estimators.laws.Law`).

    Raises:
        TypeError: probabilities that are no tensor.
        ValueError: on use, more indices than terms of positive probability, where none is put back; elsewhere than on
            the CPU their weights are NaN.

    Source: Des Raj 1956 for the factors of what is not put back; drawn as the smallest of exponential times over p
    (Efraimidis and Spirakis 2006), which is the law of ``torch.multinomial``. Put back: the inverse of Σ_{j≤i} p_j.

    Example:
        >>> law = Choice(torch.tensor([0.5, 0.25, 0.25]), replace=False)
        >>> values, probabilities = law.support((2,))
        >>> omega = torch.zeros(6, 3).double().scatter_(1, values, law.weights(values))
        >>> [round(float(mean), 9) for mean in probabilities @ omega]
        [1.0, 1.0, 1.0]
    """

    probabilities: Tensor
    replace: bool = True
    even: bool = False
    adapted: bool = False

    dtype: ClassVar[torch.dtype] = torch.int64

    def __post_init__(self) -> None:
        require_type("probabilities", self.probabilities, Tensor, "a tensor [..., N]")

    @property
    def population(self) -> int:
        """Terms of which it chooses, N: where that is the number of examples, its indices are theirs."""
        return self.probabilities.shape[-1]

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:  # noqa: ARG002
        self._require_shape(shape)
        p, count = self.probabilities.to(device, torch.float64), shape[-1]
        if self.replace:
            below = p.cumsum(-1)
            # Over its last number, which rounding leaves beside 1. Of p = 0 the interval [below, below) is empty.
            u = stream.uniform(shape, p.dtype, device)
            found = torch.searchsorted(below / below[..., -1:], u, right=True)
            return found.clamp_max(self.population - 1)  # NaN has no place; of p = NaN, ω says so
        if not self.even and p.device.type == "cpu":  # elsewhere it would wait for the device; ω is 0/0 = NaN there
            require_enough(count, int((p > 0).sum(-1).min()))
        # An exponential time with rate p each: the first to come is a draw by p, the next ones those not put back.
        times = -torch.log1p(-stream.uniform((*shape[:-1], p.shape[-1]), p.dtype, device))
        return (times / p).topk(count, largest=False, sorted=True).indices

    def support(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        self._require_shape(shape)
        *rows, count = shape
        p = self.probabilities.detach().to("cpu", torch.float64).reshape(math.prod(rows), -1)
        each = [self._of_row(row / row.sum(), count) for row in p]
        digits = combinations([len(values) for values, _ in each])
        values = torch.stack([row[digits[:, i]] for i, (row, _) in enumerate(each)], 1)
        probabilities = torch.stack([chance[digits[:, i]] for i, (_, chance) in enumerate(each)], 1).prod(1)
        return values.reshape(-1, *shape), probabilities

    def weights(self, chosen: Tensor) -> Tensor:
        """ω of each of the indices [..., m], which lie in the order drawn."""
        count, population = chosen.shape[-1], self.probabilities.shape[-1]
        rows = self.probabilities.to(chosen.device, torch.float64)
        rows = (rows / rows.sum(-1, keepdim=True)).expand(*chosen.shape[:-1], population)
        p = rows.gather(-1, chosen)
        if self.replace:
            return 1 / (count * p)
        if self.even:
            return torch.full_like(p, population / count)
        later = torch.arange(count - 1, -1, -1, dtype=p.dtype, device=p.device)
        return (_left(rows, chosen) / p + later) / count

    def _of_row(self, p: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Index tuples of one row that can be drawn, and their probabilities."""
        possible = p.nonzero().flatten()
        if self.replace:
            values = possible[combinations([len(possible)] * count)]
            return values, p[values].prod(1)
        require_enough(count, len(possible))
        if math.perm(len(possible), count) > MOST_ORDERS:
            raise ValueError(
                f"{count} indices of {len(possible)} have too many orders to list; take a smaller problem"
            )
        values = torch.tensor(list(itertools.permutations(possible.tolist(), count)), dtype=torch.int64)
        rows = p.expand(len(values), -1)
        return values, (rows.gather(1, values) / _left(rows, values)).prod(1)

    def _require_shape(self, shape: Sequence[int]) -> None:
        rows, population = tuple(self.probabilities.shape[:-1]), self.probabilities.shape[-1]
        if tuple(shape[:-1]) != rows or (not self.replace and shape[-1] > population):
            raise ValueError(
                f"a leaf of shape {tuple(shape)} and probabilities {tuple(self.probabilities.shape)}; expected "
                f"{(*rows, 'm')}, with m at most {population} where indices are not put back"
            )


MOST_ORDERS = 1 << 20


def _left(rows: Tensor, chosen: Tensor) -> Tensor:
    """The probability that had not been drawn before each index: of all that never is, and of what is from here on.

    A sum loses no digits to cancellation, as 1 − Σ_{j<k} p(i_j) does where little is left.
    """
    never = rows.scatter(-1, chosen, 0).sum(-1, keepdim=True)
    return never + rows.gather(-1, chosen).flip(-1).cumsum(-1).flip(-1)


def require_enough(count: int, possible: int) -> None:
    if count > possible:
        raise ValueError(
            f"{count} indices of {possible} terms of positive probability, none put back; expected as many terms at "
            "least: replace=True, or Mixed(by, uniform=…), which gives every term a chance"
        )


@dataclass(frozen=True)
class Bernoulli:
    """Independent ones, with probability ``rate`` each, and zeros.

    Args:
        rate: probability of a one.

    Raises:
        ValueError: a rate outside of [0, 1].

    Example:
        >>> values, probabilities = Bernoulli(0.25).support((1,))
        >>> values.flatten().tolist(), probabilities.tolist()
        ([0.0, 1.0], [0.75, 0.25])
    """

    rate: float

    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_type("rate", self.rate, Real, "a probability between 0 and 1")
        if not 0 <= self.rate <= 1:
            raise ValueError(f"rate is {self.rate!r}, expected a probability between 0 and 1")

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return (stream.uniform(shape, torch.float64, device) < self.rate).to(dtype)

    def support(self, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        values = combinations([2] * math.prod(shape)).double()
        ones = values.sum(1)
        chance = self.rate**ones * (1 - self.rate) ** (values.shape[1] - ones)
        possible = chance > 0
        return values[possible].reshape(-1, *shape), chance[possible]
