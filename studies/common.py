"""What the command lines of all studies that sweep have in common."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Options:
    """Where cells are computed and kept. Of a study's configuration, a field:

    ``run: tyro.conf.OmitArgPrefixes[Options] = Options(ROOT / "results" / "study.nc")``; then
    ``fgvar.sweep(cell, axes, **config.run.arguments())``.

    Example:
        >>> Options(Path("results/depth.nc"), workers=2).arguments()["folder"].as_posix()
        'results/depth'
    """

    out: Path
    """The dataset. Its cells are kept in the folder of this name without the suffix; the same command goes on."""
    seed: tuple[int, ...] = (0,)
    """An axis: more seeds extend the cells that are there."""
    workers: int = 0
    """Processes on this machine. 0: this one."""
    scheduler: str | None = None
    """Address of a dask cluster to compute on instead."""
    shard: str = "0/1"
    """i/n: the i-th of n parts, from 0, for job arrays on a shared folder."""
    timeout: float | None = None
    """Seconds after which a cell is stopped."""
    collect: bool = False
    """Compute nothing: write the dataset of the cells that are there."""
    smoke: bool = False
    """A few seconds, whose numbers mean nothing."""

    def arguments(self) -> dict[str, Any]:
        """For `fgvar.sweep`, beside the cell and its axes. A smoke run keeps its cells apart.

        Raises:
            ValueError: an ``out`` without a suffix, which would be its own folder of cells.
        """
        if not self.out.suffix:
            raise ValueError(f"--out {self.out} has no suffix, and is its own folder of cells; give {self.out}.nc")
        out = self.out.with_stem(f"{self.out.stem}_smoke") if self.smoke else self.out
        return {
            "folder": out.with_suffix(""),
            "out": out,
            "seed": self.seed,
            "workers": self.workers,
            "scheduler": self.scheduler,
            "shard": self.shard,
            "timeout": self.timeout,
            "compute": not self.collect,
        }


def described(config: Any) -> str:
    """A study's configuration, which has `Options` as ``run``, for its dataset: without the path of a machine."""
    return repr(replace(config, run=replace(config.run, out=Path("results") / config.run.out.name)))
