"""Verdict: says whether the mean of estimators is their target, as far as draws can tell: yes, no, undecided."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

TOTAL = "total"  # the slope over all parameters together
MAX_DETECTABLE = 1.0  # detectable error from which a test would not have caught a turned sign, and has no verdict
MAX_DRAWS = 1 << 18  # draws that are taken, or advised, at most
COARSEST = 0.125  # what rounding is let off, of the target, in any precision: 16 roundings of bfloat16
KINDS = {"bias": "a projection of the mean of", "scale": "the slope of"}


@dataclass(frozen=True)
class Test:
    """One test of a verdict.

    Attributes:
        estimator, layer: of what; the layer "total" is all parameters together.
        kind: "bias" along a fixed random projection of the layer, or "scale", its slope.
        z, p: the statistic and its p-value, corrected for all tests of the verdict; 1 where too few draws moved it.
        detectable: the smallest error caught with probability 0.95, as a share of the norm of the layer's target
            ("bias", for a bias along this projection; of the whole target where the layer's is 0) or of the slope
            ("scale", for estimates that are too large by it); infinite where no such error can be told.
        moved: draws that moved the number that is tested.
        enough: draws with which a detectable error would be below 1; infinite where that cannot be told.
    """

    estimator: str
    layer: str
    kind: str
    z: float
    p: float
    detectable: float
    moved: int
    enough: float

    __test__ = False  # pytest would take it for a test


@dataclass(frozen=True)
class Verdict:
    """Is the mean of estimators their target, as far as the draws can tell? Yes, no, or undecided.

    Attributes:
        tests: all tests, of all estimators, layers and projections.
        level: nominal false-alarm rate of all of them together.
        draws: of each estimator, fixed beforehand.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> found = fgvar.testing.unbiased(fgvar.scheme("FG-W"), problem, draws=2048)
        >>> found.unbiased, found.draws, found.level
        (True, 2048, 1e-06)
    """

    tests: tuple[Test, ...]
    level: float
    draws: int

    @property
    def unbiased(self) -> bool:
        """Did no test of a projection fail, and could each have failed?"""
        return not self.failed("bias") and not self.undecided("bias")

    @property
    def scaled(self) -> bool:
        """Did no test of a slope fail, and could each have failed?"""
        return not self.failed("scale") and not self.undecided("scale")

    @property
    def passed(self) -> bool:
        return self.unbiased and self.scaled

    def failed(self, kind: str) -> tuple[Test, ...]:
        """The tests of a kind that refute it."""
        return tuple(test for test in self.tests if test.kind == kind and test.p < self.level)

    def undecided(self, kind: str) -> tuple[Test, ...]:
        """The tests of a kind that would not have caught a turned sign, nor a bias as long as the target."""
        return tuple(t for t in self.tests if t.kind == kind and t.p >= self.level and t.detectable >= MAX_DETECTABLE)

    def sentence(self, kind: str) -> str:
        """What came of a kind of tests: the worst one, or those without a verdict, in words."""
        if self.undecided(kind) and not self.failed(kind):
            return f"{self._undecided_sentence(kind)}; {self}"
        worst = min((test for test in self.tests if test.kind == kind), key=lambda test: (test.p, -abs(test.z)))
        verdict = "is off its target" if worst.p < self.level else "agrees with its target"
        return f"{KINDS[kind]} {worst.layer!r} {verdict}: z = {worst.z:.1f}, corrected p = {worst.p:.2g}; {self}"

    def sizes(self, kind: str) -> tuple[float, ...]:
        """The errors that tests of a kind would have caught at 95 %, as shares of what they are errors of."""
        return tuple(test.detectable for test in self.tests if test.kind == kind and test.detectable > 0)

    def _undecided_sentence(self, kind: str) -> str:
        undecided = self.undecided(kind)
        if unmoved := [test for test in undecided if test.moved == 0]:
            # An event that is rarer can stay away from so many draws in all but a share `level` of the runs.
            rare = int(self.draws / -math.log(self.level))
            names = _listed(list(dict.fromkeys(test.layer for test in unmoved)))
            return (
                f"never moved in {names}, and is off its target: wrong, unless fewer than 1 draw in {rare} moves it"
            )
        layers = list(dict.fromkeys(test.layer for test in undecided))
        size = {"bias": "a bias as long as the target", "scale": "a turned sign"}[kind]
        return f"would not have caught {size} in {_listed(layers)}; {advice(max(test.enough for test in undecided))}"

    def __str__(self) -> str:
        sizes = {kind: [test.detectable for test in self.tests if test.kind == kind] for kind in KINDS}
        caught = [f"a bias of {_range(sizes['bias'])} of its target"] if sizes["bias"] else []
        total = [test.detectable for test in self.tests if test.kind == "scale" and test.layer == TOTAL]
        caught += [f"a scale error of {_range(total)} in all or {_range(sizes['scale'])} in one"] if total else []
        return (
            f"drawn: {self.draws} draws, {len(self.tests)} tests, false alarms {self.level:.1g} in all (nominal); "
            f"caught at 95 %: {', '.join(caught) or 'nothing'}"
        )


def advice(enough: float) -> str:
    """What to do where so many draws would be enough."""
    if enough <= MAX_DRAWS:
        return f"{rounded(enough)} draws would (draws={rounded(enough)}, or draws='enough')"
    known = f"some {enough:.0e} draws would" if math.isfinite(enough) else "no number of draws that is known would"
    return f"{known}: what moves it is too rare, or its tails too heavy"


def rounded(draws: float) -> int:
    """So many draws, or a few more: a multiple of 256."""
    return math.ceil(draws / 256) * 256


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:3])) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _range(sizes: Sequence[float]) -> str:
    live = [size for size in sizes if size > 0]  # what has no spread is caught at any size
    if not live:
        return "any size"
    low, high = (f"{size:.2g}".replace("inf", "∞") for size in (min(live), max(live)))
    return low if low == high else f"{low} to {high}"
