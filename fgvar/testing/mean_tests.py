"""Mean tests: test that means are what they should be, and tell the smallest error that they would have caught."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special
from torch import Tensor

from fgvar.measurement.draws import ranges
from fgvar.measurement.intervals import standardised

POWER = 0.95  # at which detectable sizes are told
MIN_MOVED = 30  # draws that have to move a number before its mean is judged
MOVE_THRESHOLD = 0.1  # standard deviations from the median at which a draw has moved it
AT_ONCE = 1 << 21  # numbers, of which a test makes some eight copies in double precision
MARGIN = 1.2  # times the draws that would just do


@dataclass(frozen=True)
class MeanTest:
    """Tests that means are what they should be: for each component z, and the smallest error caught at 95 %.

    Attributes:
        z: standardised, corrected for skewness; infinity where a component that is known not to vary is wrong, or
            holds NaN or infinity.
        error: the smallest one caught, in the component's own units, by the spread of its draws; 0 where none varies.
        moved: draws that moved each component off its median.
        critical: the |z| above which a component fails.
        draws: how many there were.

    Example:
        >>> samples = torch.randn(4096, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0.5])
        >>> found = mean_test(samples, torch.zeros(2), level=1e-6)
        >>> (found.z.abs() > found.critical).tolist(), bool((found.error < 0.2).all())
        ([False, True], True)
    """

    z: Tensor
    error: Tensor
    moved: Tensor
    critical: float
    draws: int

    @staticmethod
    def joined(tests: Sequence["MeanTest"]) -> "MeanTest":
        """The tests of several groups of components, of one number of draws and one ``critical``."""
        z, error, moved = (torch.cat([getattr(test, name) for test in tests]) for name in ("z", "error", "moved"))
        return MeanTest(z, error, moved, tests[0].critical, tests[0].draws)

    @property
    def undecided(self) -> Tensor:
        """Which components too few draws moved for a verdict."""
        return (self.moved < MIN_MOVED) & (self.error > 0)

    @property
    def detectable(self) -> Tensor:
        """The smallest error caught of each component; infinity where there is no verdict."""
        return torch.where(self.undecided, torch.inf, self.error)

    def enough(self, limit: Tensor | float) -> Tensor:
        """Draws of each component by which an error of ``limit`` would be caught; infinite where none moved it."""
        by_spread = self.draws * (self.error / limit).square()
        by_moves = torch.where(self.undecided, MARGIN * self.draws * MIN_MOVED / self.moved, 0.0)
        return MARGIN * torch.maximum(by_spread, by_moves)

    @property
    def passed(self) -> bool:
        """Did no component fail? One without a verdict (`undecided`) has not."""
        return not bool(((self.z.abs() > self.critical) & ~self.undecided).any())

    @property
    def worst(self) -> int:
        return int(self.z.abs().masked_fill(self.undecided, -1.0).argmax())

    def __str__(self) -> str:
        return f"z = {float(self.z[self.worst]):.1f}, critical {self.critical:.1f}"


def mean_test(
    samples: Tensor, expected: Tensor | float, *, level: float, rounding: float = 0.0, fixed: Tensor | None = None
) -> MeanTest:
    """Test the mean of every column of ``samples`` [draws, components] at ``level`` over all of them together.

    The statistic is that of `fgvar.measurement.intervals.standardised`, which keeps its rate of false alarms for
    skewed laws, such as χ², and for symmetric ones with heavy tails. Of lognormal σ = 2 it refuses a right mean 2 to
    3 times too often at 1e-3 to 1e-4.

    A column that fewer than `MIN_MOVED` draws moved has no verdict: rare events that a sample holds few of, or none,
    can carry any mean (1/q with probability q in a sample of 1/q draws). One that no draw moved, and that equals its
    expectation within ``rounding``, is right.

    Args:
        samples: draws of every component.
        expected: what their means should be.
        level: nominal rate of false alarms, over all components together.
        rounding: spread that counts as none.
        fixed: which components are known not to vary, so that a wrong one is wrong for certain.

    Example:
        >>> samples = torch.arange(100.0)[:, None] % 2
        >>> mean_test(samples, 0.5, level=1e-6).passed, mean_test(samples, 0.9, level=1e-6).passed
        (True, False)
    """
    n, components = samples.shape
    critical = -float(special.stdtrit(n - 1, level / 2 / components))
    known = torch.zeros(components, dtype=torch.bool, device=samples.device) if fixed is None else fixed
    wanted = torch.as_tensor(expected, dtype=torch.float64, device=samples.device).expand(components)
    blocks = [slice(one.start, one.stop) for one in ranges(0, components, max(1, AT_ONCE // n))]
    return MeanTest.joined([_tested(samples[:, at], wanted[at], known[at], critical, rounding) for at in blocks])


def _tested(samples: Tensor, expected: Tensor, fixed: Tensor, critical: float, rounding: float) -> MeanTest:
    """The test of some of the columns."""
    x = samples.double() - expected
    n = len(x)
    mean = x.mean(0)
    centred = x - mean
    variance = centred.square().mean(0)
    allowed = rounding + 1e3 * torch.finfo(torch.float64).eps * samples.double().abs().amax(0)
    still = centred.abs().amax(0) <= allowed
    right = still & (mean.abs() <= allowed)
    off = torch.maximum(MOVE_THRESHOLD * variance.sqrt(), allowed)
    moved = ((x - x.median(0).values).abs() > off).sum(0)
    spread = variance.clamp_min(1e-300)
    skewness = (centred.pow(3).mean(0) / spread.pow(1.5)).cpu().numpy()
    error_of_mean = (spread / (n - 1)).sqrt().cpu().numpy()
    with np.errstate(over="ignore", invalid="ignore"):  # of what has no spread
        z = torch.from_numpy(standardised(n, mean.cpu().numpy(), error_of_mean, skewness)).to(mean.device)
    certain = still & fixed.to(still.device)
    z = torch.where(right, 0.0, torch.where(still, torch.inf, z))
    error = (critical + float(special.ndtri(POWER))) * (variance / (n - 1)).sqrt()
    # What never varied, and is off, has no spread to tell a size by: any error at all.
    error = torch.where(right | certain, 0.0, torch.where(still, mean.abs(), error))
    wild = ~mean.isfinite()  # NaN and infinity have no mean, and no comparison with a critical value says so
    z, error = (torch.where(wild, torch.inf, one) for one in (z, error))
    return MeanTest(z, error, torch.where(wild, n, moved), critical, n)
