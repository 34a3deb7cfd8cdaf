"""Statistical verdicts, for what cannot be enumerated: at one nominal false-alarm rate, with the size they catch.

Every verdict is a set of tests that a mean is what it should be, over a number of draws fixed beforehand. The
rate of false alarms is split evenly over the tests (Bonferroni). It is *nominal*: the law of each statistic is
an expansion for many draws, not a finite-sample bound; `studies/check_calibration.py` shows how well it holds.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from scipy import special
from torch import Tensor

from fgvar.analysis.draws import estimates, ranges
from fgvar.analysis.moments import BUCKETS, References
from fgvar.errors import NonFiniteError
from fgvar.estimators.estimator import GradientEstimator, require_estimator
from fgvar.problem import Problem

DRAWS = 4096
CHUNK = 256
POWER = 0.95  # at which detectable sizes are told
TOTAL = "total"  # the slope over all parameters together


@dataclass(frozen=True)
class Means:
    """Tests that means are what they should be: for each component z, and the smallest error caught at 95 %.

    Attributes:
        z: standardised, corrected for skewness; infinity where a component without spread is wrong.
        detectable: in the component's own units; 0 where it has no spread.
        critical: the |z| above which a component fails.
    """

    z: Tensor
    detectable: Tensor
    critical: float

    @property
    def passed(self) -> bool:
        return not bool((self.z.abs() > self.critical).any())

    @property
    def worst(self) -> int:
        return int(self.z.abs().argmax())

    def __str__(self) -> str:
        return f"z = {float(self.z[self.worst]):.1f}, critical {self.critical:.1f}"


def means(samples: Tensor, expected: Tensor | float, *, level: float, rounding: float = 0.0) -> Means:
    """Test the mean of every column of ``samples`` [draws, components] at ``level`` over all of them together.

    The statistic is Hall's monotone transformation of Student's t, g(t) = t + γt²/3√n + γ²t³/27n + γ/6√n with
    the estimated skewness γ: without it, a skewed law such as χ² has many times its nominal false alarms in
    one tail. A column whose spread is within ``rounding`` has to equal its expectation as closely.

    Source: Hall 1992, On the removal of skewness by transformation.

    Example:
        >>> samples = torch.arange(100.0)[:, None] % 2
        >>> means(samples, 0.5, level=1e-6).passed, means(samples, 0.9, level=1e-6).passed
        (True, False)
    """
    x = samples.double() - expected
    n, components = x.shape
    mean = x.mean(0)
    centred = x - mean
    variance = centred.square().mean(0)
    rounding_of = rounding + 1e3 * torch.finfo(torch.float64).eps * samples.double().abs().amax(0)
    still = centred.abs().amax(0) <= rounding_of
    safe = variance.clamp_min(1e-300)
    skewness = centred.pow(3).mean(0) / safe.pow(1.5) / n**0.5
    t = mean / (safe / (n - 1)).sqrt()
    z = t + skewness * t.square() / 3 + skewness.square() * t.pow(3) / 27 + skewness / 6
    wrong = torch.where(mean.abs() <= rounding_of, 0.0, float("inf")).to(z)
    critical = -float(special.stdtrit(n - 1, level / 2 / components))
    detectable = (critical + float(special.ndtri(POWER))) * (variance / (n - 1)).sqrt()
    return Means(torch.where(still, wrong, z), torch.where(still, 0.0, detectable), critical)


@dataclass(frozen=True)
class Test:
    """One test of a verdict.

    Attributes:
        estimator, layer: of what; the layer "total" is all parameters together.
        kind: "bias" along a fixed random projection of the layer, or "scale", its slope.
        z, p: the statistic and its p-value, corrected for all tests of the verdict.
        detectable: the smallest error caught with probability 0.95, as a share of the norm of the layer's target
            ("bias", for a bias along this projection; of the whole target where the layer's is 0) or of the slope
            ("scale", for estimates that are too large by it); infinite where no such error can be told.
    """

    estimator: str
    layer: str
    kind: str
    z: float
    p: float
    detectable: float

    __test__ = False  # pytest would take it for a test


@dataclass(frozen=True)
class Verdict:
    """Is the mean of estimators their target, as far as the draws can tell?

    Attributes:
        tests: all tests, of all estimators, layers and projections.
        level: nominal false-alarm rate of all of them together.
        draws: of each estimator, fixed beforehand.
    """

    tests: tuple[Test, ...]
    level: float
    draws: int

    @property
    def unbiased(self) -> bool:
        """Did no test of a projection fail?"""
        return not self.failed("bias")

    @property
    def scaled(self) -> bool:
        """Did no test of a slope fail?"""
        return not self.failed("scale")

    @property
    def passed(self) -> bool:
        return self.unbiased and self.scaled

    def failed(self, kind: str) -> tuple[Test, ...]:
        return tuple(test for test in self.tests if test.kind == kind and test.p < self.level)

    def sentence(self, kind: str) -> str:
        """The worst test of a kind, in words."""
        worst = min((test for test in self.tests if test.kind == kind), key=lambda test: (test.p, -abs(test.z)))
        what = {"bias": "a projection of the mean of", "scale": "the slope of"}[kind]
        verdict = "is off its target" if worst.p < self.level else "agrees with its target"
        return f"{what} {worst.layer!r} {verdict}: z = {worst.z:.1f}, corrected p = {worst.p:.2g}; {self}"

    def __str__(self) -> str:
        sizes = {kind: [test.detectable for test in self.tests if test.kind == kind] for kind in ("bias", "scale")}
        caught = [f"a bias of {_range(sizes['bias'])} of its target"] if sizes["bias"] else []
        whole = [test.detectable for test in self.tests if test.kind == "scale" and test.layer == TOTAL]
        caught += [f"a scale error of {_range(whole)} in all or {_range(sizes['scale'])} in one"] if whole else []
        return (
            f"drawn: {self.draws} draws, {len(self.tests)} tests, false alarms {self.level:.1g} in all (nominal); "
            f"caught at 95 %: {', '.join(caught) or 'nothing'}"
        )


def unbiased(
    estimators: GradientEstimator | Mapping[str, GradientEstimator],
    problem: Problem,
    *,
    level: float = 1e-6,
    draws: int = DRAWS,
    seed: int = 0,
    chunk: int | None = None,
) -> Verdict:
    """Draw estimates, and test bias and scale of every parameter at one nominal false-alarm rate.

    Of every parameter with noise, the deviation of the estimate from the target is tested along up to 16 fixed
    random projections (which are its entries, up to sign, where it has no more), and along the target: the
    slope. What has no noise has to equal the target within rounding.

    Args:
        estimators: one estimator, or name → estimator.
        problem: any; no estimate is kept, only the numbers that are tested.
        level: rate of false alarms of the whole verdict: all estimators, layers, projections and slopes.
        draws: of each estimator, fixed before looking. Never draw again because a verdict failed.
        seed: of the noise.
        chunk: estimates computed at once; default 256, and 1 (plain calls) for what does not run under vmap.

    Raises:
        ValueError: a level outside of (0, 1), or fewer than 32 draws.
        NonFiniteError: an estimate with NaN or infinity.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> unbiased(fgvar.scheme("FG-W"), problem, draws=256).passed
        True
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}, expected a false-alarm rate between 0 and 1")
    if draws < 32:
        raise ValueError(f"draws is {draws}, expected at least 32: the verdict rests on an expansion for many draws")
    named = dict(estimators) if isinstance(estimators, Mapping) else {"estimator": estimators}
    columns, labels = [], []
    for name, estimator in named.items():
        require_estimator(name, estimator)
        samples, tested = _samples(name, estimator, problem, draws, seed, chunk)
        columns.append(samples)
        labels += [(name, *test) for test in tested]
    found = means(torch.cat(columns, dim=1), 0.0, level=level, rounding=1e3 * torch.finfo(problem.dtype).eps)
    sizes = _caught(found.detectable, torch.tensor([kind == "scale" for _, _, kind in labels]))
    corrected = (2 * special.stdtr(draws - 1, -found.z.abs().numpy()) * len(labels)).clip(max=1.0)
    tests = [
        Test(name, layer, kind, float(z), float(p), float(size))
        for (name, layer, kind), z, p, size in zip(labels, found.z, corrected, sizes, strict=True)
    ]
    return Verdict(tuple(tests), level, draws)


def _samples(
    name: str, estimator: GradientEstimator, problem: Problem, draws: int, seed: int, chunk: int | None
) -> tuple[Tensor, list[tuple[str, str]]]:
    """What is tested of one estimator, [draws, tests] on the CPU, with the layer and kind of every column."""
    randomness, target = estimator.randomness(problem), estimator.target(problem)
    columns = _Columns(References.of(target, target, problem.perturbed))
    if randomness.size == 0:
        one = {k: g[None] for k, g in estimator.estimate(problem, {}).gradient.items()}
        samples = columns.of(one).expand(draws, -1)
    else:

        def drawn(numbers: range) -> Tensor:
            noise = randomness.sample(seed, numbers, dtype=problem.dtype, device=problem.device)
            return columns.of(estimates(estimator, problem, noise))

        chunk = chunk or (CHUNK if _runs_under_vmap(drawn) else 1)
        samples = torch.cat([drawn(numbers) for numbers in ranges(0, draws, chunk)])
    if not bool(samples.isfinite().all()):
        draw = int((~samples.isfinite()).any(1).nonzero()[0])
        raise NonFiniteError(f"estimator {name!r}: the estimate of draw {draw} holds NaN or infinity")
    return samples.cpu(), columns.labels


@dataclass(frozen=True)
class _Columns:
    """What is tested of estimates: deviations along projections and along the target, as shares of its norm."""

    references: References

    @property
    def labels(self) -> list[tuple[str, str]]:
        bias = [(name, "bias") for name, t in self.references.target.items() for _ in range(min(len(t), BUCKETS))]
        return [*bias, *((name, "scale") for name in (*self._sloped, TOTAL))]

    def of(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """[draws, tests]."""
        targets = self.references.target
        deviations = {name: gradients[name].double().flatten(1) - t for name, t in targets.items()}
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
        """Norm of the whole target; 1, so that errors are absolute, where it is 0."""
        return sum(self._norm(name) ** 2 for name in self.references.target) ** 0.5 or 1.0

    def _norm(self, name: str) -> float:
        return float(self.references.target[name].norm())


def _caught(error: Tensor, scale: Tensor) -> Tensor:
    """The sizes caught at 95 %: a wrong scale 1 + δ multiplies the spread, too, so that δ = error·(1 + δ)."""
    grown = torch.where(error < 1, error / (1 - error).clamp_min(1e-300), torch.inf)
    return torch.where(scale, grown, error)


def _runs_under_vmap(drawn: Callable[[range], Tensor]) -> bool:
    drawn(range(1))  # a plain call: its errors are the estimator's own
    try:
        drawn(range(2))
    except Exception:
        return False
    return True


def _range(sizes: Sequence[float]) -> str:
    live = [size for size in sizes if size > 0]  # what has no spread is caught at any size
    if not live:
        return "any size"
    low, high = (f"{size:.2g}".replace("inf", "∞") for size in (min(live), max(live)))
    return low if low == high else f"{low} to {high}"
