"""The cells of the coverage study, what is simulated for each, and the dataset of them all."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from studies.calibration import coverage, laws, networks
from studies.calibration.coverage import LEVELS, RULES, STATISTICS

Array = Any
DRAWS = (32, 64, 256, 1024)
RUNS = (4000, 4000, 2000, 1000)
NETWORK_RUNS = (4096, 4096, 1024, 512)  # at least; draws are shared
LARGE, FEWER = 1000, 8  # laws of so many numbers have so many times fewer runs
RANGE = (0.93, 0.975)  # coverage that is called right
SEEN = 0.02  # share of runs with an interval from which a cell counts
DIMS = ("cell", "statistic", "reference", "draws")

WEIGHTS = {case.name: case for case in laws.WEIGHTS}
PAIRS = {case.name: case for case in laws.PAIRS}
PLANTED = {f"planted {bias:g}": laws.Weights("Gaussian", 20, bias) for bias in laws.PLANTED}
NAMES = (*laws.SCALARS, *WEIGHTS, *PAIRS, *PLANTED, *networks.NETWORKS)
SMOKE = ("χ²₁", "Gaussian, d = 4", "difference, d = 4", "planted 1", "FG-W, MLP")


def simulated(name: str, scale: float, seed: int) -> dict[str, dict[str, Array]]:
    """Of one of `NAMES`: cell → shares (`fgvar`'s own code on known laws). ``scale``: of the numbers of runs."""
    rng = coverage.generator(seed, name)
    if name in networks.NETWORKS:
        layers, draw = networks.network(name, seed)
        found = coverage.of_network(layers, draw, plan(NETWORK_RUNS, scale))
        return {f"{name}, {layer}": cell for layer, cell in found.items()}
    if name in laws.SCALARS:
        return {name: coverage.simulated(laws.scalar(name, rng), plan(RUNS, scale))}
    if name in PAIRS:
        return {name: coverage.simulated([laws.pair(PAIRS[name], rng)], plan(RUNS, scale))}
    case = (WEIGHTS | PLANTED)[name]
    scale = scale / FEWER if case.size > LARGE else scale
    return {name: coverage.simulated([laws.weights(case, rng)], plan(RUNS, scale))}


def group(cell: str) -> str:
    """Which kind of cell it is."""
    if cell in laws.SCALARS or cell in PAIRS:
        return "law" if cell in laws.SCALARS else "difference"
    return "network" if cell.startswith(tuple(networks.NETWORKS)) else "weights"


def plan(runs: tuple[int, ...], scale: float) -> dict[int, int]:
    return {n: max(4, round(number * scale)) for n, number in zip(DRAWS, runs, strict=True)}


def assembled(found: Mapping[str, Mapping[str, Array]], scale: float) -> xr.Dataset:
    """The dataset of all cells, of so many times the full numbers of runs."""
    parts = {name: np.stack([cell[name] for cell in found.values()]) for name in next(iter(found.values()))}
    dims = {"rejected": ("cell", "rule", "level", "draws"), "runs": ("cell", "draws")}
    words = {
        "below": "share of the intervals shown that lie below the truth",
        "above": "share of the intervals shown that lie above the truth",
        "shown": "share of runs with an interval",
        "rejected": "share of runs whose p-value of the bias is below the level",
        "runs": "simulated runs",
    }
    return xr.Dataset(
        {k: (dims.get(k, DIMS), v, {"long_name": words[k], "units": "1"}) for k, v in parts.items()},
        coords={
            "cell": list(found),
            "statistic": list(STATISTICS),
            "reference": ["target", "backprop"],
            "rule": list(RULES),
            "level": list(LEVELS),
            "draws": list(DRAWS),
        },
        attrs={"coverage_scale": scale},
    ).assign_coords(group=("cell", [group(cell) for cell in found]))


def report(dataset: xr.Dataset) -> str:
    """Coverage of each statistic over the cells, the cells that leave the range, and p-values."""
    covered = (1 - dataset["below"] - dataset["above"]).where(dataset["shown"] >= SEEN)
    lines = ["", "coverage of 95 % intervals, least and most over cells"]
    for name in STATISTICS:
        for n in dataset["draws"].values:
            its = covered.sel(statistic=name, draws=n).stack(at=("cell", "reference")).dropna("at")
            if not its.size:
                continue
            least, most = (RANGE[1], 1.0) if name == "sq_bias" else RANGE  # of a limit, 97.5 % and more are right
            bad = its[(its < least) | (its > most)]
            where = ", ".join(f"{c} ({r}) {v:.3f}" for (c, r), v in zip(bad["at"].values, bad.values, strict=True))
            lines.append(f"  {name:<24}{n:>5} draws: {its.min():.3f} to {its.max():.3f}, {its.size} cells; {where}")
    lines.append("p-values of the bias below 0.05, 0.01, 0.001 (by Student's t alone)")
    for cell in dataset["cell"].values:
        its = dataset["rejected"].sel(cell=cell)
        if its.notnull().any() and not str(cell).startswith(tuple(networks.NETWORKS)):
            rows = [
                " / ".join(f"{its.sel(draws=n, level=v, rule='shown').item():.4f}" for v in LEVELS)
                + f" ({its.sel(draws=n, level=LEVELS[0], rule='plain').item():.3f})"
                for n in dataset["draws"].values
            ]
            lines.append(f"  {cell:<28}" + "   ".join(rows))
    return "\n".join(lines)
