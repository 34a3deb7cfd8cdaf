"""Noise check: holds declared noise to its moments, and to the precision of its dtype, in bounded memory.

Noise is held where it fits, and drawn again for every block of its numbers where it does not. Of the d × d
correlations a block of rows is there at a time, and those above the diagonal are computed.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from scipy import special
from torch import Tensor

from fgvar.measurement.arguments import BUDGET
from fgvar.measurement.draws import ranges
from fgvar.testing.comparisons import require_declared_noise
from fgvar.testing.frequencies import Frequencies
from fgvar.testing.mean_tests import AT_ONCE, MARGIN, MIN_MOVED, MeanTest, mean_test
from fgvar.testing.statistical import PILOT_SEED
from fgvar.testing.under_test import EstimatorUnderTest, Failure, Finding, NotApplicable, Undecided
from fgvar.testing.verdict import MAX_DRAWS, advice, rounded

NOISE_DRAWS = 8192
MANY = 1024  # random numbers, of which half as many draws are looked at
NUMBERS = 1 << 27  # of all noise that is looked at together
POOLED = 1 << 23  # numbers of a leaf, at most, that are looked at for piles of one value: sorting takes memory
SOME = 1024  # numbers of each draw, of a leaf whose numbers all have one law, that are held to its values
TOGETHER = 1024  # columns, or draws, that are worked on at once: a block of products is as fast as all of them
PILE = 10  # draws of one value, of a law of hundreds, that are no coincidence
MOMENTS = ("mean 0", "variance 1", "draws that are uncorrelated with each other")


def noise(tested: EstimatorUnderTest) -> str:
    """Every number has mean 0, variance 1 and its dtype's precision, and is uncorrelated with all others.

    Of a law that says its values, these come as often as it says, and which of them is uncorrelated with all else.
    """
    require_declared_noise(tested)
    drawn = _Drawn(tested, noise_draws(tested), seed=1)
    owners, n, level = drawn.owners, drawn.draws, tested.level / 5
    for frequencies in drawn.listed:
        _require_frequencies(drawn, frequencies, level / len(drawn.listed))
    if not owners:
        if not any(law.varies for law in drawn.finite.values()):
            raise NotApplicable("all of its noise has one value, or too many values to be listed")
        return f"{n} draws, false alarms {tested.level:.1g} (nominal): values as often as declared"
    verdicts, square = _moments(drawn, level)
    for what, verdict in zip(MOMENTS, verdicts, strict=True):
        if what != MOMENTS[-1]:  # two draws of a sparse law seldom meet, and that they do not is no fault
            _require_moves(verdict, owners)
        if not verdict.passed:
            name = owners[verdict.worst]
            size = float(square[[owner == name for owner in owners]].mean().sqrt())
            raise Failure(
                f"a number of leaf {name!r} has not {what}: {verdict} (the leaf's root mean square {size:.3g})"
            )
    again = _Drawn(tested, n, seed=2)
    if all(bool((again.sampled(window) == drawn.rows(window)).all()) for window in drawn.windows):
        raise Failure("another seed gives the same noise")
    z, i, j = _largest_correlation(drawn)
    # The tail itself, as 1 less it is 1 from some 19,000 numbers on.
    critical = -float(special.ndtri(level / max(len(owners) * (len(owners) - 1), 1)))
    if z > critical:
        raise Failure(
            f"a number of leaf {owners[i]!r} and one of {owners[j]!r} are correlated (z = {z:.1f}, "
            f"critical {critical:.1f}): E uuᵀ is not the identity"
        )
    for name, columns in drawn.leaves.items():
        if name in drawn.finite:
            continue
        few = columns[: max(1, POOLED // n)]
        _require_precision(name, drawn.columns(few).to(tested.randomness.leaves[name].dtype(tested.problem.dtype)))
    caught = (critical + 1.645) / n**0.5
    told = f"{n} draws, false alarms {tested.level:.1g} (nominal); caught at 95 %: a correlation of {caught:.2g}"
    return Finding(told, caught)


@dataclass(frozen=True)
class _Drawn:
    """Noise as a matrix of draws and numbers, of which rows or columns are asked for."""

    tested: EstimatorUnderTest
    draws: int
    seed: int

    @cached_property
    def finite(self) -> dict[str, Frequencies]:
        """The leaves that say their values, and may have any mean."""
        return {
            name: Frequencies(name, leaf, self.draws, self.tested.problem.dtype)
            for name, leaf in self.tested.randomness.leaves.items()
            if leaf.is_finite and not leaf.is_isotropic
        }

    @cached_property
    def listed(self) -> list[Frequencies]:
        """The leaves that say their values, of those with E uuᵀ = I and numbers by themselves some of the numbers."""
        leaves, draws, dtype = self.tested.randomness.leaves, self.draws, self.tested.problem.dtype
        isotropic = {name: leaf for name, leaf in leaves.items() if leaf.is_finite and leaf.is_isotropic}
        return [*self.finite.values(), *(Frequencies(name, leaf, draws, dtype) for name, leaf in isotropic.items())]

    @cached_property
    def leaves(self) -> dict[str, range]:
        """The columns of each leaf: its numbers, or which value each of its units has."""
        found, at = {}, 0
        for name, leaf in self.tested.randomness.leaves.items():
            size = self.finite[name].width if name in self.finite else leaf.size
            found[name] = range(at, at + size)
            at += size
        return found

    @cached_property
    def owners(self) -> list[str]:
        """The leaf of each column."""
        return [name for name, columns in self.leaves.items() for _ in columns]

    def raw(self, window: range) -> dict[str, Tensor]:
        """The noise itself."""
        return self.tested.noise(window, seed=self.seed)

    @cached_property
    def held(self) -> Tensor | None:
        """All of it, where that keeps to the budget."""
        size = torch.finfo(self.tested.problem.dtype).bits // 8
        if 2 * self.draws * len(self.owners) * size > BUDGET:
            return None
        problem = self.tested.problem
        held = torch.empty(self.draws, len(self.owners), dtype=problem.dtype, device=problem.device)
        for window in self.windows:
            held[window.start : window.stop] = self.sampled(window)
        return held

    @property
    def windows(self) -> list[range]:
        """All draws, as many at a time as are worked on at once."""
        return list(ranges(0, self.draws, max(1, min(TOGETHER, BUDGET // (64 * self.tested.randomness.size)))))

    def rows(self, window: range) -> Tensor:
        """All numbers of these draws."""
        return self.sampled(window) if self.held is None else self.held[window.start : window.stop]

    def columns(self, which: range) -> Tensor:
        """These numbers in all draws."""
        return torch.cat([self.rows(window)[:, which.start : which.stop].clone() for window in self.windows])

    def sampled(self, window: range) -> Tensor:
        """All numbers of these draws, drawn now."""
        drawn = self.raw(window)
        return torch.cat(
            [
                self.finite[name].scores(u) if name in self.finite else u[:, None].flatten(1)
                for name, u in drawn.items()
            ],
            dim=1,
        )


def _moments(drawn: _Drawn, level: float) -> tuple[list[MeanTest], Tensor]:
    """Tests of the `MOMENTS` of every number, and its mean square."""
    found: list[list[MeanTest]] = [[] for _ in MOMENTS]
    squares = []
    for which in ranges(0, len(drawn.owners), max(1, AT_ONCE // drawn.draws)):
        u = drawn.columns(which).double()
        _require_finite(u, drawn.owners[which.start : which.stop])
        squares.append(u.square().mean(0))
        share = level * len(which) / len(drawn.owners)
        tested = ((u, 0.0), (u.square(), 1.0), (u[0::2] * u[1::2], 0.0))
        for tests, (samples, expected) in zip(found, tested, strict=True):
            tests.append(mean_test(samples, expected, level=share))
    return [MeanTest.joined(tests) for tests in found], torch.cat(squares)


def _require_finite(u: Tensor, owners: list[str]) -> None:
    wild = ~u.isfinite()
    if bool(wild.any()):
        name = owners[int(wild.any(0).double().argmax())]
        raise Failure(f"leaf {name!r} holds NaN or infinity, in {int(wild.any(1).sum())} of {len(u)} draws")


def _require_frequencies(drawn: _Drawn, law: Frequencies, level: float) -> None:
    if not law.varies:
        return
    samples = torch.cat([law.columns(_some(law, drawn.raw(window)[law.name])) for window in drawn.windows])
    verdict = mean_test(samples, law.expected, level=level)
    if not verdict.passed:
        found, expected = float(samples[:, verdict.worst].mean()), float(law.expected[verdict.worst])
        raise Failure(
            f"leaf {law.name!r} does not draw its values as often as its law's support says: {found:.4g}, expected "
            f"{expected:.4g} ({verdict})"
        )


def _some(law: Frequencies, u: Tensor) -> Tensor:
    """All of a leaf's numbers; of a large one whose numbers are made by themselves as many as tell their law."""
    return u[:, None].flatten(1)[:, :SOME] if law.leaf.elementwise else u


def _largest_correlation(drawn: _Drawn) -> tuple[float, int, int]:
    """The largest |z| = |Σ u_i u_j| / √(Σ u_i² u_j²) of two numbers i < j, and which they are."""
    d = len(drawn.owners)
    # Single precision: of sums of 10⁴ products it loses a few in 10⁶. Of noise that is drawn again for each block,
    # blocks are as large as four matrices [block, d] may be.
    at_once = max(1, BUDGET // (32 * d)) if drawn.held is None else TOGETHER
    largest = (0.0, 0, 0)
    for which in ranges(0, d, at_once):
        product = torch.zeros(len(which), d - which.start, device=drawn.tested.problem.device)
        square = product.clone()
        for window in drawn.windows:
            u = drawn.rows(window)[:, which.start :].float()
            for total, power in ((product, u), (square, u.square())):
                total.addmm_(power[:, : len(which)].T, power)
        z = product.div_(square.clamp_min_(torch.finfo(torch.float32).tiny).sqrt_()).abs_()
        z[:, : len(which)].fill_diagonal_(0)
        value, at = float(z.max()), int(z.argmax())
        if value > largest[0]:
            i, j = divmod(at, z.shape[1])
            largest = (value, which.start + i, which.start + j)
    return largest


def noise_draws(tested: EstimatorUnderTest) -> int:
    """So many that each number moves often enough for a verdict, by a look at other noise, if that is asked for."""
    if tested.draws != "enough":
        # Products of all pairs of so many numbers take the most of a report's time.
        return max(NOISE_DRAWS // (2 if tested.randomness.size > MANY else 1), tested.draws or 0)
    pilot = _Drawn(tested, NOISE_DRAWS, PILOT_SEED)
    fewest = NOISE_DRAWS
    for which in ranges(0, len(pilot.owners), TOGETHER):
        u = pilot.columns(which)
        fewest = min(fewest, int((u != u.median(0).values).sum(0).min()))
    most = min(MAX_DRAWS, NUMBERS // len(pilot.owners))
    return max(NOISE_DRAWS, min(most, rounded(MARGIN**2 * NOISE_DRAWS * MIN_MOVED / max(fewest, 1))))


def _require_moves(verdict: MeanTest, owners: list[str]) -> None:
    if bool(verdict.undecided.any()):
        number = int(verdict.undecided.double().argmax())
        raise Undecided(
            f"a number of leaf {owners[number]!r} moved in {int(verdict.moved[number])} of {verdict.draws} draws, "
            f"too few for a verdict on it; {advice(float(verdict.enough(torch.inf)[number]))}"
        )


def _require_precision(name: str, u: Tensor) -> None:
    if torch.finfo(u.dtype).bits < 32:
        return  # whose own values are few
    ranked = np.sort(u[u != 0].cpu().numpy())
    if bool((ranked[PILE - 1 :] == ranked[: len(ranked) - PILE + 1]).any()):  # so many neighbours are one value
        found, counts = np.unique(ranked, return_counts=True)
        if len(found) > 64:
            raise Failure(
                f"{counts.max()} numbers of noise {name!r} are {found[counts.argmax()]:.6g} of {len(found)} values: "
                "it was clipped, or drawn with less precision than its dtype's"
            )
    values = u[:, None].flatten(1)[:, 0]  # of one number: orthogonal directions share their values with each other
    values = values[values != 0]
    distinct = len(values.unique())
    # A law of a few values is discrete on purpose; one of hundreds that repeat was rounded.
    if 64 < distinct < 0.99 * len(values):
        raise Failure(
            f"{len(values)} draws of a number of noise {name!r} have only {distinct} distinct values: it was drawn "
            f"with less precision than {str(u.dtype).removeprefix('torch.')}"
        )
