"""Statistical verdicts, for what cannot be enumerated: at one nominal false-alarm rate, with the size they catch.

Every verdict is a set of tests that a mean is what it should be, over a number of draws fixed beforehand. The
rate of false alarms is split evenly over the tests (Bonferroni). It is *nominal*: the law of each statistic is
an expansion for many draws, not a finite-sample bound; `studies/check_calibration.py` shows how well it holds.
Where a test would not have caught a turned sign there is no verdict: neither yes nor no, but undecided.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from scipy import special
from torch import Tensor

from fgvar.errors import NonFiniteError, require_integer
from fgvar.estimators.protocol import GradientEstimator, require_estimator, require_problem
from fgvar.measurement.arguments import BUDGET
from fgvar.measurement.draws import ranges
from fgvar.measurement.references import BUCKETS, References, require_layer_names
from fgvar.problem import Problem
from fgvar.testing.black_box import BlackBox, estimates
from fgvar.testing.mean_tests import MIN_MOVED, MeanTest, mean_test
from fgvar.testing.resources import CHUNK, largest_chunk
from fgvar.testing.verdict import COARSEST, MAX_DETECTABLE, MAX_DRAWS, TOTAL, Test, Verdict, rounded

Draws = int | Literal["enough"]

DRAWS = 8192  # by which a doubled tensor of a weight perturbation is caught on every default problem
FEWEST = 64  # draws of a verdict: for fewer, p-values do not hold their nominal rate
PILOT = 1024  # draws that tell how many are enough
PILOT_GROWTH = 8  # times as long a pilot
PILOT_SEED = 1 << 32  # seeds of pilots, and of verdicts, differ by so much
DOUBLED = 0.5  # of the spread of right estimates, at which a slope twice too large is just caught


def unbiased(
    estimators: GradientEstimator | Mapping[str, GradientEstimator],
    problem: Problem,
    *,
    level: float = 1e-6,
    draws: Draws = DRAWS,
    seed: int = 0,
    chunk: int | None = None,
    size: float = 1.0,
) -> Verdict:
    """Draw estimates, and test bias and scale of every parameter at one nominal false-alarm rate.

    Of every parameter with noise, the deviation of the estimate from the target is tested along up to 16 fixed
    random projections (which are its entries, up to sign, where it has no more), and along the target: the
    slope. What has no noise has to equal the target within rounding. A test that would not have caught a turned
    sign, or that fewer than 30 draws moved, is undecided.

    Args:
        estimators: one estimator, or name → estimator.
        problem: any; no estimate is kept, only the numbers that are tested.
        level: rate of false alarms of the whole verdict: all estimators, layers, projections and slopes.
        draws: of each estimator, fixed before looking. Never draw again because a verdict failed. "enough": as many
            as no test is undecided at, by a pilot of 1,024 draws or more, with noise of its own (up to 262,144).
        seed: of the noise.
        chunk: estimates computed at once; default 256, or as many as fit the budget of `fgvar.measure`, and 1 (plain
            calls) for what does not run under vmap.
        size: in units of which errors are told where the whole target is 0.

    Raises:
        TypeError: no estimator, no problem, or what is no integer for a seed or a chunk.
        ValueError: a level outside of (0, 1), fewer than 64 draws, a negative seed, or nothing to draw.
        NonFiniteError: an estimate with NaN or infinity.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> unbiased(fgvar.scheme("FG-W"), problem, draws=2048).passed
        True
        >>> print(unbiased(fgvar.scheme("FG-W"), problem, draws=64).sentence("scale").split(";")[0])
        would not have caught a turned sign in 'weight', 'bias', 'total'
    """
    require_problem(problem)
    require_layer_names(problem.params)
    check_level(level)
    check_draws(draws)
    require_integer("seed", seed, 0)
    if chunk is not None:
        require_integer("chunk", chunk, 1)
    named = dict(estimators) if isinstance(estimators, Mapping) else {"estimator": estimators}
    if not named:
        raise ValueError('no estimator to draw; give one, or name → estimator, as {"FG-W": fgvar.scheme("FG-W")}')
    for name, estimator in named.items():
        require_estimator(name, estimator)
    if draws == "enough":
        draws = _enough(lambda pilot: _verdict(named, problem, level, pilot, seed + PILOT_SEED, chunk, size))
    return _verdict(named, problem, level, draws, seed, chunk, size)


def check_level(level: object) -> None:
    """Raise a ValueError where this is no false-alarm rate."""
    if not isinstance(level, float | int) or not 0 < level < 1:
        raise ValueError(f"level is {level!r}, expected a false-alarm rate between 0 and 1")


def check_draws(draws: object) -> None:
    """Raise where this is no number of draws for a verdict.

    Raises:
        TypeError: neither an integer nor "enough".
        ValueError: fewer than 64.
    """
    if draws == "enough":
        return
    if not isinstance(draws, int) or isinstance(draws, bool):
        raise TypeError(f"draws is {draws!r}, expected an integer of at least {FEWEST}, or 'enough'")
    if draws < FEWEST:
        raise ValueError(
            f"draws is {draws}, expected at least {FEWEST}: the verdict rests on an expansion for many draws"
        )


def enough(wanted: float) -> int:
    """Draws to take where a pilot wants so many: the default, more if that helps, but no hopeless number."""
    return max(DRAWS, rounded(wanted)) if wanted <= MAX_DRAWS else DRAWS


def _enough(pilot: Callable[[int], Verdict]) -> int:
    """By a pilot, or a longer one where too few draws moved a number to tell its spread."""
    draws = PILOT
    while True:
        found = pilot(draws)
        if draws * PILOT_GROWTH > MAX_DRAWS or not any(0 < test.moved < MIN_MOVED for test in found.tests):
            return enough(max(test.enough for test in found.tests))
        draws *= PILOT_GROWTH


def _verdict(
    named: Mapping[str, GradientEstimator],
    problem: Problem,
    level: float,
    draws: int,
    seed: int,
    chunk: int | None,
    size: float,
) -> Verdict:
    samples = [_samples(name, one, problem, draws, seed, chunk, size) for name, one in named.items()]
    found = mean_test(
        torch.cat([one.columns for one in samples], dim=1), 0.0, level=level,
        rounding=min(1e3 * torch.finfo(problem.dtype).eps, COARSEST / 2),
        fixed=torch.cat([torch.full((len(one.labels),), one.fixed) for one in samples]),
    )  # fmt: skip
    labels = [(name, *label) for name, one in zip(named, samples, strict=True) for label in one.labels]
    return Verdict(tuple(_tests(found, labels)), level, draws)


def _tests(found: MeanTest, labels: list[tuple[str, str, str]]) -> list[Test]:
    scale = torch.tensor([kind == "scale" for _, _, kind in labels])
    limit = torch.where(scale, DOUBLED, MAX_DETECTABLE)
    p = (2 * special.stdtr(found.draws - 1, -found.z.abs().numpy()) * len(labels)).clip(max=1.0)
    p[found.undecided.numpy()] = 1.0
    columns = (found.z, p, _caught(found.detectable, scale), found.moved, found.enough(limit))
    return [
        Test(name, layer, kind, float(z), float(p), float(size), int(moved), float(enough))
        for (name, layer, kind), z, p, size, moved, enough in zip(labels, *columns, strict=True)
    ]


@dataclass(frozen=True)
class _Samples:
    """What is tested of one estimator: columns [draws, tests] on the CPU, and the layer and kind of each.

    ``fixed``: it has one estimate alone, so that what that is off its target it is for certain.
    """

    columns: Tensor
    labels: list[tuple[str, str]]
    fixed: bool


def _samples(
    name: str,
    estimator: GradientEstimator,
    problem: Problem,
    draws: int,
    seed: int,
    chunk: int | None,
    size: float,
) -> _Samples:
    randomness, target = estimator.randomness(problem), estimator.target(problem)
    columns = _Columns(References.of(target, target, problem.perturbed), size)
    if randomness.size == 0:
        one = {k: g[None] for k, g in estimator.estimate(problem, {}).gradient.items()}
        found = columns.of(one).expand(draws, -1)
    else:

        def drawn(numbers: range) -> dict[str, Tensor]:
            noise = randomness.sample(seed, numbers, dtype=problem.dtype, device=problem.device)
            return estimates(estimator, problem, noise)

        chunk = chunk or largest_chunk(estimator, problem, randomness)
        found = torch.cat(
            [columns.of(stacked(drawn, window, chunk)) for window in ranges(0, draws, _window(problem, chunk))]
        )
    if not bool(found.isfinite().all()):
        draw = int((~found.isfinite()).any(1).nonzero()[0])
        raise NonFiniteError(f"estimator {name!r}: the estimate of draw {draw} holds NaN or infinity")
    fixed = randomness.size == 0 or (isinstance(estimator, BlackBox) and estimator.idle(problem))
    return _Samples(found.cpu(), columns.labels, fixed)


def _window(problem: Problem, chunk: int) -> int:
    """Estimates that are projected at once: as many as a few chunks, where the budget lets them be held."""
    numbers = sum(p.numel() for p in problem.params.values())
    return max(chunk, min(CHUNK, BUDGET // (8 * 8 * numbers)))


def stacked(drawn: Callable[[range], dict[str, Tensor]], window: range, chunk: int) -> dict[str, Tensor]:
    """Estimates of a window of draws, made in chunks: projecting single draws takes longer than making them."""
    parts = [drawn(numbers) for numbers in ranges(window.start, window.stop, chunk)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@dataclass(frozen=True)
class _Columns:
    """What is tested of estimates: deviations along projections and along the target, as shares of its norm."""

    references: References
    size: float

    @property
    def labels(self) -> list[tuple[str, str]]:
        bias = [(name, "bias") for name, t in self.references.target.items() for _ in range(min(len(t), BUCKETS))]
        return [*bias, *((name, "scale") for name in (*self._sloped, TOTAL))]

    def of(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """[draws, tests]."""
        targets = {name: t.double() for name, t in self.references.target.items()}
        deviations = {name: gradients[name].double()[:, None].flatten(1) - t for name, t in targets.items()}
        columns = []
        for name, rows in deviations.items():
            norm = self._norm(name)
            projected = self.references.projected(name, rows)[:, : min(rows.shape[1], BUCKETS)]
            columns.append(projected / (norm if name in self._sloped else self._whole))
        along = {name: rows @ targets[name] for name, rows in deviations.items()}
        columns += [(along[name] / self._norm(name) ** 2)[:, None] for name in self._sloped]
        columns.append((torch.stack(list(along.values())).sum(0) / self._whole**2)[:, None])
        return torch.cat(columns, dim=1)

    @cached_property
    def _sloped(self) -> tuple[str, ...]:
        """Parameters whose target is not 0."""
        return tuple(name for name in self.references.target if self._norm(name) > 1e-6 * self._whole)

    @cached_property
    def _whole(self) -> float:
        """Norm of the whole target; ``size`` where it is 0."""
        return sum(self._norm(name) ** 2 for name in self.references.target) ** 0.5 or self.size

    def _norm(self, name: str) -> float:
        return float(self.references.target[name].double().norm())


def _caught(error: Tensor, scale: Tensor) -> Tensor:
    """The sizes caught at 95 %: a wrong scale 1 + δ multiplies the spread, too, so that δ = error·(1 + δ)."""
    grown = torch.where(error < 1, error / (1 - error).clamp_min(1e-300), torch.inf)
    return torch.where(scale, grown, error)
