"""Calibration: do the verdicts of fgvar.testing and the intervals of fgvar.measure hold what they promise?

Question   A verdict promises a rate of false alarms and a smallest error that it catches; a measured number
           promises that its interval covers the truth in 95 of 100 runs, and a p-value its rate of rejections.
           Do they?
Claim      On correct estimators alarms come at most at the nominal rate, from 1e-1 to 1e-4: of perturbations,
           as skewed as they get, of heavy tails (t with 3 degrees of freedom, lognormal to σ = 1.5, their
           products with u² and u v), of coordinate noise in 10⁴ numbers; of events with probability q to 8e-8,
           where no verdict is given if fewer than 30 draws moved the mean (q = 0.003: in 84 of 100 runs; 0.001
           and less: in all). Not of lognormal σ = 2: 1.2 times at 1e-2, 2.0 at 1e-3, 3.0 at 1e-4, all by means
           below the truth. An error of the printed detectable size is caught in 95 of 100 runs (biases along a
           projection), or 96 (estimates that are too large, of one Gaussian weight). From 32 draws on every run
           shows its intervals, and within the binomial error of a cell 93 to 97.5 % of them cover; fewer where
           large values are rare (1 % of draws 100 times as large: 0.51 to 0.82 up to 256 draws; 10 % 10 times:
           0.91 at 32), of differences of variances of 4 numbers (0.91 at 32, 0.92 at 64), and of efficiencies with a
           bias in 4 dimensions (0.92 at 32); more of signal-to-noise ratios at 32 and 64 (up to 0.99). The limit of
           the squared bias holds in 98 to 100 %. p-values reject at most at their level from 64 draws on, within the
           binomial error of a cell (rare events, coordinate noise in 20 dimensions: 0.023 at 64 draws for 0.05).
Shown      Drawn values: shares of simulated runs, with their binomial errors; alarms of rare events exactly. Laws
           of per-draw scalars, (g·u)u, and layers of networks with exact statistics (`studies/calibration`), by the
           library's own code.
Cost       A few minutes on one core; --full: coverage a quarter of an hour on 3 cores, verdicts one on one.
Run        python studies/check_calibration.py            writes results/check_calibration.nc, .pdf and .png
           python studies/check_calibration.py --parts verdicts --base figures/data/calibration.nc      one part anew
"""

from collections.abc import Callable
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from studies import common
from studies.common import RESULTS

LEVEL = 1e-6
EFFECTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # in units of the size that the verdict calls detectable
# part → its variables and attributes
VARIABLES = {
    "verdicts": ("alarm_rate", "undecided", "verdict_p", "coordinate_p", "coordinate_undecided", "caught"),
    "coverage": ("below", "above", "shown", "rejected", "runs"),
}
ATTRIBUTES = {"verdicts": ("alarm_runs", "verdict_draws", "level"), "coverage": ("coverage_scale",)}
Part = Literal["verdicts", "coverage"]
Array = Any


@dataclass(frozen=True)
class Config:
    """Simulate false alarms, power and coverage, quickly; --full for the stored figure."""

    full: bool = False
    """As many runs as the stored dataset has."""
    workers: int = 1
    """Processes that simulate side by side."""
    seed: int = 0
    out: Path = field(default=RESULTS / "check_calibration.nc")
    """Where the dataset goes; the figure stands beside it."""
    parts: tuple[Part, ...] = ("verdicts", "coverage")
    """What to simulate: verdicts, coverage, or both."""
    base: Path | None = None
    """A dataset of this study from which the other part is taken."""
    smoke: bool = False
    """A few seconds: one short run of everything, whose numbers mean nothing."""


def main(config: Config) -> None:
    import torch

    from fgvar.measurement import provenance
    from figures import calibration

    common.place(config)
    if config.workers < 1:
        raise ValueError(f"workers is {config.workers}, expected at least 1")
    with ProcessPoolExecutor(config.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        parts = {
            "verdicts": verdicts(config, pool) if "verdicts" in config.parts else stored(config, "verdicts"),
            "coverage": coverage(config, pool) if "coverage" in config.parts else stored(config, "coverage"),
        }
    dataset = parts["verdicts"].merge(parts["coverage"], combine_attrs="no_conflicts")
    dataset.attrs |= {"route": "drawn"} | provenance(torch.device("cpu"), torch.float64)
    base = Path(config.base.name) if config.base else None  # without its folder, which is this machine's
    common.publish(dataset, replace(config, base=base), calibration, report(dataset))


def stored(config: Config, part: Part) -> Any:
    """A part of a dataset that was made before."""
    import fgvar

    if config.base is None:
        raise ValueError(f"parts are {list(config.parts)}, which lack {part!r}; name a dataset that has it by --base")
    base = fgvar.open_dataset(config.base)
    if lacks := [name for name in VARIABLES[part] if name not in base]:
        raise ValueError(f"{config.base} lacks {lacks}, which are {part!r} of this study; leave out --parts")
    found = base[list(VARIABLES[part])]
    found.attrs = {name: base.attrs[name] for name in ATTRIBUTES[part]}
    return found


def verdicts(config: Config, pool: Executor) -> Any:
    """False alarms and power of the statistical verdicts."""
    import numpy as np
    import xarray as xr

    import fgvar
    from studies.calibration import alarms as law

    laws = law.SMOKE if config.smoke else tuple(law.FAMILIES)
    alarms, whole, coordinate, runs = (100_000, 1000, 20, 2000) if config.full else (10_000, 50, 2, 200)
    if config.smoke:
        alarms, whole, coordinate, runs = 200, 3, 1, 20
    each = max(1, whole // 10)
    rates = run(pool, [(law.rates, (name, alarms, config.seed)) for name in laws])
    p = run(pool, [(verdict_job, (config.seed + start, each)) for start in range(0, whole, each)])
    rare = run(pool, [(coordinate_job, (config.seed, coordinate))])[0]
    caught = run(pool, [(power_job, (runs, config.seed))])[0]
    return xr.Dataset(
        {
            "alarm_rate": (("law", "tail", "nominal"), np.stack([rate for rate, _ in rates])),
            "undecided": ("law", [share for _, share in rates]),
            "verdict_p": ("run", np.concatenate(p)),
            "coordinate_p": ("seed", rare[0]),
            "coordinate_undecided": ("seed", rare[1]),
            "caught": (("kind", "effect"), caught),
        },
        coords={
            "law": list(laws),
            "family": ("law", [law.FAMILIES[name] for name in laws]),
            "law_route": ("law", ["exact" if name in law.RARE else "drawn" for name in laws]),
            "tail": list(law.TAILS),
            "nominal": list(law.NOMINAL),
            "seed": [config.seed + run for run in range(coordinate)],
            "kind": ["scale", "bias"],
            "effect": list(EFFECTS),
        },
        attrs={"alarm_runs": alarms, "verdict_draws": fgvar.testing.DRAWS, "level": LEVEL},
    )


def coverage(config: Config, pool: Executor) -> Any:
    """Coverage of intervals, and rejections by p-values."""
    from studies.calibration import cells

    scale = 1.0 if config.full else 0.002 if config.smoke else 0.1
    names = cells.SMOKE if config.smoke else cells.NAMES
    found = run(pool, [(cells.simulated, (name, scale, config.seed)) for name in names])
    return cells.assembled({cell: shares for one in found for cell, shares in one.items()}, scale)


def run(pool: Executor, jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]]) -> list[Any]:
    """The jobs' results, said as they come."""
    pending = [pool.submit(job, *arguments) for job, arguments in jobs]
    found = []
    for (job, arguments), future in zip(jobs, pending, strict=True):
        found.append(future.result())
        print(job.__name__, arguments[0], flush=True)
    return found


def verdict_job(seed: int, runs: int) -> Array:
    """The smallest corrected p-value of whole verdicts on one weight, d = 1: the most skewed of perturbations."""
    import numpy as np
    import torch

    import fgvar

    one = torch.ones(1, 1, dtype=torch.float64)
    problem = linear(one, 0 * one, bias=False)
    verdicts = [
        fgvar.testing.unbiased(fgvar.scheme("FG-W"), problem, seed=seed + run, chunk=4096) for run in range(runs)
    ]
    return np.array([min(test.p for test in verdict.tests) for verdict in verdicts])


def coordinate_job(seed: int, runs: int) -> tuple[Array, Array]:
    """Of whole verdicts on coordinate noise in 10⁴ numbers: smallest corrected p-value, share of tests undecided."""
    import numpy as np
    import torch

    import fgvar

    estimator = fgvar.scheme("FG-W", noise=fgvar.noise.Coordinate())
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(4, size, dtype=torch.float64, generator=generator) for size in (99, 100))
    verdicts = [fgvar.testing.unbiased(estimator, linear(x, y), seed=seed + run) for run in range(runs)]
    undecided = [sum(len(one.undecided(kind)) for kind in ("bias", "scale")) / len(one.tests) for one in verdicts]
    return np.array([min(test.p for test in one.tests) for one in verdicts]), np.array(undecided)


def linear(x: Any, y: Any, *, bias: bool = True) -> Any:
    """A linear layer, all weights 0.5, between these."""
    import torch

    import fgvar

    net = torch.nn.utils.skip_init(torch.nn.Linear, x.shape[1], y.shape[1], bias=bias).double()
    for parameter in net.parameters():
        torch.nn.init.constant_(parameter, 0.5)
    return fgvar.Problem(net, "mse", (x, y))


def power_job(runs: int, seed: int) -> Array:
    """How often an error of each size is caught at the default level: of scale, and along a projection."""
    import numpy as np
    import torch

    from fgvar.testing import DRAWS as n
    from fgvar.testing import mean_test

    rng = np.random.Generator(np.random.SFC64([seed, 77]))
    caught = np.zeros((2, len(EFFECTS)))
    for _ in range(0, runs, 200):
        u, v = rng.standard_normal((2, n, 200))
        for kind, columns in enumerate((u**2 - 1, u * v)):
            # The size that the verdict prints: from the spread of correct draws.
            size = mean_test(torch.from_numpy(columns), 0.0, level=LEVEL * 200).detectable
            for index, effect in enumerate(EFFECTS):
                error = size.mean().item()
                # A wrong scale multiplies the draws, spread included; a bias moves them.
                error = effect * (error / (1 - error) if kind == 0 else error)
                wrong = (columns + 1) * (1 + error) - 1 if kind == 0 else columns + error
                found = mean_test(torch.from_numpy(wrong), 0.0, level=LEVEL * 200)
                caught[kind, index] += int((found.z.abs() > found.critical).sum())
    return caught / (-(-runs // 200) * 200)


def report(dataset: Any) -> str:
    """Alarm rates over their nominal ones, power, and the coverage of intervals."""
    from scipy import stats

    from studies.calibration import cells

    runs, whole, rare = dataset.attrs["alarm_runs"], dataset["verdict_p"].values, dataset["coordinate_p"].values
    lines = ["", f"alarms over expected ones below + above, {runs} runs a law (* exact), and the share undecided"]
    for name in dataset["law"].values:
        law = dataset.sel(law=name)
        ratios = (law["alarm_rate"] / law["nominal"]).transpose("nominal", "tail").values
        rates = [f"{n:g}: {a:.2f} + {b:.2f}" for n, (a, b) in zip(law["nominal"].values, ratios, strict=True)]
        star = "*" if law["law_route"] == "exact" else " "
        lines.append(f"  {name:<24}{star}{'  '.join(rates)}  undecided {float(law['undecided']):.2g}")
    alarms = int((whole < LEVEL).sum())
    bound = stats.beta.ppf(0.95, alarms + 1, len(whole) - alarms)
    lines.append(
        f"verdicts at the default level {LEVEL:g}: {alarms} alarms in {len(whole)} runs, rate < {bound:.2g} (95 %)"
    )
    lines.append(
        f"coordinate noise in 10⁴ numbers: {int((rare < LEVEL).sum())} alarms in {len(rare)} runs, "
        f"{float(dataset['coordinate_undecided'].mean()):.2g} of the tests undecided"
    )
    lines.append(
        f"caught at the detectable size: {dataset['caught'].sel(effect=1.0).to_dict()['data']} (scale, bias)"
    )
    return "\n".join(lines) + cells.report(dataset)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
