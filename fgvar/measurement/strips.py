"""Strips: numbers that moments work on together, of small parameters side by side, of a large one piece by piece.

A small layer's kernels take no longer than their calls, so that layers and blocks of draws share them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fgvar.measurement.references import PIECE, References, padded
from fgvar.measurement.stacks import Stack


@dataclass(frozen=True)
class Strip:
    """Some of the numbers of some parameters, and estimates of them.

    Attributes:
        numbers: parameter → which of its numbers.
        rows: parameter → estimates of those [draws, numbers].
    """

    numbers: Mapping[str, slice]
    rows: Mapping[str, Tensor]

    def places(self) -> dict[str, slice]:
        """Where each parameter lies in the strip: from a multiple of 16 on, as projections ask for."""
        found, end = dict[str, slice](), 0
        for name, at in self.numbers.items():
            found[name] = slice(end, end + padded(at.stop - at.start))
            end = found[name].stop
        return found

    def lay(self, values: Callable[[str, slice], Tensor]) -> Tensor:
        """Values of the numbers in their places, in float64; 0 where a place is longer than its numbers."""
        laid = []
        for name, at in self.numbers.items():
            own = values(name, at).double()
            laid += [own, own.new_zeros(padded(len(own)) - len(own))]
        return torch.cat(laid)

    def frames(
        self, references: References, deviation: Mapping[str, Tensor], before: Sequence[int], m: int
    ) -> Iterator[tuple[slice, Tensor]]:
        """Some blocks, and their (D₁ … D_m, M, target, backprop) [blocks, m + 3, numbers]; one tensor for all.

        Adds ΣD to ``deviation``.
        """
        target, backprop, total = (
            self.lay(_part_of(values)) for values in (references.target, references.backprop, deviation)
        )
        together = min(max(PIECE // len(total), 1), len(before))  # what the cache holds
        whole = total.new_empty(together, m + 3, len(total))
        whole[:, m + 1], whole[:, m + 2] = target, backprop
        for first in range(0, len(before), together):
            draws = total.new_tensor(before[first : first + together]).clamp_min(1)
            some, frame = slice(first, first + len(draws)), whole[: len(draws)]
            self._lay_rows(frame[:, :m], some)
            # Deviations from the target, not estimates: a good estimator's are small, and their squares lose nothing.
            sums = frame[:, :m].sub_(target).sum(1)
            # M, the mean of the draws before, is independent of this block's: no draw enters its own centre.
            sums = torch.cat([total[None], sums]).cumsum(0)
            torch.div(sums[:-1], draws[:, None], out=frame[:, m])
            total = sums[-1]
            yield some, frame
        for name, place in self.places().items():
            at = self.numbers[name]
            deviation[name][at] = total[place][: at.stop - at.start]

    def _lay_rows(self, out: Tensor, blocks: slice) -> None:
        """Estimates of some blocks, [blocks, draws of each, numbers], in their places."""
        for name, place in self.places().items():
            rows = self.rows[name].unflatten(0, (-1, out.shape[1]))[blocks]
            out[:, :, place.start : place.start + rows.shape[2]].copy_(rows)  # faster than a difference that converts
            out[:, :, place.start + rows.shape[2] : place.stop] = 0


def _joined(pieces: list[Tensor]) -> Tensor:
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)


def _part_of(values: Mapping[str, Tensor]) -> Callable[[str, slice], Tensor]:
    return lambda name, at: values[name][at]


def strips(references: References, stack: Stack, draws: range) -> Iterator[Strip]:
    """All numbers of all parameters once, with the estimates of some draws."""
    for names in references.batches():
        if len(names) > 1:
            rows = {name: _joined([piece for _, piece in stack.pieces(name, draws)]) for name in names}
            yield Strip({name: slice(0, own.shape[1]) for name, own in rows.items()}, rows)
            continue
        for start, piece in stack.pieces(names[0], draws):
            for at in references.cuts(names[0], start, start + piece.shape[1]):
                yield Strip({names[0]: at}, {names[0]: piece[:, at.start - start : at.stop - start]})
