"""Ratios of times, from interleaved repeats in one process: what else the machine does meets both sides."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]


def seconds(work: Work) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def interleaved(works: Mapping[str, Work], repeats: int) -> dict[str, list[float]]:
    """Seconds of each, once around in every repeat; the first two rounds load and compile."""
    for _ in range(2):
        for work in works.values():
            work()
    rounds = [{name: seconds(work) for name, work in works.items()} for _ in range(repeats)]
    return {name: [each[name] for each in rounds] for name in works}


@dataclass(frozen=True)
class Row:
    """One line of the report.

    Attributes:
        what: was measured.
        values: a ratio or number for each repeat; none where what it takes is not installed.
        goal: bound on the median, at most (True) or at least; None: reported beside others.
    """

    what: str
    values: Sequence[float]
    goal: float | None = None
    at_most: bool = True
    unit: str = "×"

    @property
    def cells(self) -> tuple[str, str, str, str]:
        """Median, quartiles, goal and verdict."""
        goal = "" if self.goal is None else f"{'≤' if self.at_most else '≥'} {self.goal:g}"
        if not self.values:
            return "–", "", goal, "not installed"
        middle = statistics.median(self.values)
        low, _, high = statistics.quantiles(self.values, n=4) if len(self.values) > 1 else [middle] * 3
        spread = f"{low:.3g} to {high:.3g}" if len(self.values) > 1 else ""
        met = self.goal is None or (middle <= self.goal if self.at_most else middle >= self.goal)
        verdict = "" if self.goal is None else "met" if met else "missed"
        return f"{middle:.3g} {self.unit}", spread, goal, verdict

    def __str__(self) -> str:
        middle, spread, goal, verdict = self.cells
        return f"{self.what:<74}{middle:>14}{spread:>18}{goal:>9}  {verdict}"

    def to_markdown(self) -> str:
        """The line of a table `HEAD`."""
        return f"| {' | '.join((self.what, *self.cells))} |"


HEAD = "| | median | quartiles | goal | |\n|---|---|---|---|---|"


def ratio(times: Mapping[str, Sequence[float]], one: str, other: str, scale: float = 1) -> list[float]:
    """Of the times of ``one`` to those of ``other`` in the same round."""
    return [scale * a / b for a, b in zip(times[one], times[other], strict=True)]


def product_rate(shapes: Sequence[tuple[int, int, int]], repeats: int = 5) -> float:
    """FLOP/s of float32 matrix products of these shapes, one after another: what the machine can do on them."""
    pairs = [(torch.randn(m, k), torch.randn(k, n)) for m, k, n in shapes]
    outs = [a @ b for a, b in pairs]

    def work() -> None:
        for (a, b), out in zip(pairs, outs, strict=True):
            torch.mm(a, b, out=out)

    best = min(interleaved({"products": work}, repeats)["products"])
    return sum(2.0 * m * k * n for m, k, n in shapes) / best


def in_a_process(command: Sequence[str]) -> float:
    """Seconds of a Python command in an interpreter of its own, less those of an empty one."""

    def run(arguments: Sequence[str]) -> None:
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True)

    return seconds(lambda: run(command)) - seconds(lambda: run(["-c", "pass"]))
