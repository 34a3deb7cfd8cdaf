"""Frequencies: holds noise of finitely many values to the probabilities that its law declares, in bounded memory.

What is drawn by itself is a *unit*: a number of an elementwise law, a direction or example of any other. All units
of a leaf have one law. Of units of several numbers three things are compared: their values, those of each number, and
the products of pairs of numbers; values by bins of about equal probability, of which each holds enough draws.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from fgvar.estimators.randomness import Leaf
from fgvar.testing.under_test import Failure

TAILS = 10.0  # kurtosis of scores, at most: products of longer tails look correlated where they are not
PER_BIN = 100  # draws that are expected in a bin
LISTED = 1 << 16  # values of a unit, at most, that are compared


@dataclass(frozen=True)
class Frequencies:
    """What is tested of the draws of one leaf with a finite law.

    Attributes:
        name, leaf: which.
        draws: how many there will be.
        dtype: floating-point type of the other noise.
    """

    name: str
    leaf: Leaf
    draws: int
    dtype: torch.dtype

    @property
    def varies(self) -> bool:
        """Has it more than one value, and not too many to be listed?"""
        return len(self._law[1]) > 1

    @property
    def width(self) -> int:
        """Columns of `scores`."""
        return self.leaf.size // math.prod(self._unit) // self._group

    def scores(self, u: Tensor) -> Tensor:
        """Which value each unit has, as a standardised number, of rare ones in sums of units: [draws, width]."""
        if not self.width:
            return torch.zeros(len(u), 0, dtype=self.dtype, device=u.device)
        each = self._standard[self._numbers(self._split(u))][:, : self.width * self._group]
        return (each.unflatten(1, (self.width, self._group)).sum(2) / self._group**0.5).to(u.device, self.dtype)

    def columns(self, u: Tensor) -> Tensor:
        """Shares of each draw's units in every bin, and mean products of all pairs of numbers: [draws, columns]."""
        split = self._split(u)
        index = [self._numbers(split), *(self._places(split[..., k]) for k in range(len(self._marginals)))]
        found = []
        for at, bins in zip(index, self._bins, strict=True):
            shares = torch.zeros(len(u), int(bins.max()) + 1, dtype=torch.float64)
            found.append(shares.scatter_add_(1, bins[at], torch.full(at.shape, 1 / at.shape[1], dtype=torch.float64)))
        return torch.cat([*found, self._products(split).mean(1)], dim=1)

    @cached_property
    def expected(self) -> Tensor:
        """The mean of `columns`."""
        values, p = self._law
        laws = zip((p, *self._marginals), self._bins, strict=True)
        return torch.cat([*(torch.bincount(bins, law) for law, bins in laws), p @ self._products(values)])

    @cached_property
    def _standard(self) -> Tensor:
        """The number of each value, standardised."""
        number, p = torch.arange(len(self._law[1]), dtype=torch.float64), self._law[1]
        centred = number - p @ number
        return centred / (p @ centred.square()).sqrt()

    @cached_property
    def _group(self) -> int:
        """Units that are added up, so that the sum has no longer tails than it may; all of one value are left out."""
        if not self.varies:
            return self.leaf.size + 1
        kurtosis = float(self._law[1] @ self._standard**4)
        return max(1, math.ceil((kurtosis - 3) / (TAILS - 3)))  # that of independent ones falls as 1 over how many

    @property
    def _unit(self) -> tuple[int, ...]:
        """Shape of a unit."""
        return (1,) if self.leaf.elementwise else self.leaf.shape[self.leaf.batch_dims :]

    @cached_property
    def _law(self) -> tuple[Tensor, Tensor]:
        """Values [values, numbers] of a unit, in order, and their probabilities.

        Where they are too many, of its first two numbers or of the first, as of indices that are drawn one by one.
        """
        *lead, last = self._unit
        for count in (last, 2, 1):
            one = Leaf((*lead, count), self.leaf.noise)
            if count <= last and one.values <= LISTED:
                values, p = one.support()
                flat = values.to(self.leaf.dtype(self.dtype)).double()  # as drawn: in float32 0.1 is another number
                found, which = flat.reshape(len(p), -1).unique(dim=0, return_inverse=True)
                return found, torch.zeros(len(found), dtype=p.dtype).index_add_(0, which, p)
        return torch.zeros(1, 0, dtype=torch.float64), torch.ones(1, dtype=torch.float64)

    @cached_property
    def _alphabet(self) -> Tensor:
        """All values of single numbers."""
        return self._law[0].unique()

    @cached_property
    def _marginals(self) -> list[Tensor]:
        """Probabilities of the alphabet for each number, if there are several."""
        values, p = self._law
        places = self._places(values)
        single = [torch.bincount(column, p, minlength=len(self._alphabet)) for column in places.T]
        return single if len(single) > 1 else []

    @cached_property
    def _bins(self) -> list[Tensor]:
        """The bin of each value of a unit, and of each number."""
        most = max(1, self.draws // PER_BIN)
        laws = (self._law[1], *self._marginals)
        return [((p.cumsum(0) - p / 2) * most).long().unique(return_inverse=True)[1] for p in laws]

    def _split(self, u: Tensor) -> Tensor:
        """The numbers of each unit: [draws, units, numbers], of those whose law is listed."""
        *lead, _ = self._unit
        rows = u.double().cpu().reshape(len(u), -1, *self._unit)
        return rows[..., : self._law[0].shape[1] // math.prod(lead)].flatten(2)

    def _places(self, numbers: Tensor) -> Tensor:
        """Where they stand in the alphabet; a `Failure` where one does not."""
        at = torch.searchsorted(self._alphabet, numbers.contiguous()).clamp_max(len(self._alphabet) - 1)
        return self._found(at, self._alphabet[at] == numbers, numbers)

    def _numbers(self, split: Tensor) -> Tensor:
        """Which of its values each unit has: words in the alphabet, whose order is that of the values."""
        size = len(self._alphabet) ** torch.arange(split.shape[-1] - 1, -1, -1)
        words, listed = ((self._places(part) * size).sum(-1) for part in (split, self._law[0]))
        at = torch.searchsorted(listed, words).clamp_max(len(listed) - 1)
        return self._found(at, listed[at] == words, split)

    def _found(self, at: Tensor, known: Tensor, drawn: Tensor) -> Tensor:
        if not bool(known.all()):
            raise Failure(f"leaf {self.name!r} draws {drawn[~known][0].tolist()}, which its law's support lacks")
        return at

    @staticmethod
    def _products(values: Tensor) -> Tensor:
        one, two = torch.triu_indices(values.shape[-1], values.shape[-1], 1)
        return values[..., one] * values[..., two]
