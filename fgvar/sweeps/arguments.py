"""Arguments of a sweep: its axes and settings, its part and what it computes with, before anything is computed."""

import os
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from fgvar.errors import require_type
from fgvar.sweeps.cells import Scalar
from fgvar.sweeps.grid import checked_axes
from fgvar.sweeps.keys import SCRATCH


def check_resources(workers: int, scheduler: str | None, threads: int, timeout: float | None) -> None:
    """Raise where nothing could compute like this."""
    for what, number in (("workers", workers), ("threads", threads)):
        require_type(what, number, Integral, "an integer")
    if workers < 0 or (workers and scheduler is not None):
        raise ValueError(
            f"workers is {workers} and scheduler {scheduler!r}, expected workers of at least 0, or a scheduler alone"
        )
    if threads < 1 or (timeout is not None and not timeout > 0):
        raise ValueError(f"threads is {threads} and timeout {timeout}, expected at least 1, and seconds above 0")


def grid_and_config(
    axes: Mapping[str, Sequence[Any]],
    config: Mapping[str, Any] | None,
    seed: int | Sequence[int] | None,
    scratch: str | os.PathLike[str] | None,
) -> tuple[dict[str, tuple[Scalar, ...]], dict[str, Any]]:
    """The grid's axes and what all cells are called with, the seed among either."""
    axes, config = dict(axes), dict(config or {})
    given = [*axes, *config, *(() if seed is None else ("seed",)), *(() if scratch is None else (SCRATCH,))]
    if twice := {name for name in given if given.count(name) > 1}:
        raise ValueError(
            f"{', '.join(sorted(twice))} given twice, as an axis, in config=, by seed= or scratch=; give each once"
        )
    if isinstance(seed, int):
        config["seed"] = seed
    elif seed is not None:
        axes["seed"] = seed
    return checked_axes(axes), config


def part_of(text: str) -> tuple[int, int]:
    """The i and n of "i/n"."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"shard is {text!r}, expected i/n with 0 ≤ i < n, as 0/4, 1/4, 2/4 and 3/4 of four jobs")
    return int(index), int(count)
