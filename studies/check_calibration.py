"""Calibration: do the verdicts of fgvar.testing and the errors of fgvar.measure hold what they promise?

Question   A verdict promises a rate of false alarms and a smallest error that it catches; a measured number
           promises that ± 1.96 of its error cover the truth in 95 of 100 runs. Do they?
Claim      On correct estimators alarms come at the nominal rate, also where the law is as skewed as
           perturbation gets; an error of the printed detectable size is caught in 95 of 100 runs; wherever a
           case is above the stated minimum of draws (95 of 100 runs give an error) 94 to 96 % of the
           intervals cover, and below it errors are NaN.
Shown      Drawn values: shares of simulated runs, with their binomial errors. (g·u)u with known moments.
Cost       About a minute on one core; --full: about half an hour on 3 cores (--workers 3).
Run        python studies/check_calibration.py            writes results/check_calibration.nc, .pdf and .png
"""

import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tyro

ROOT = Path(__file__).resolve().parents[1]
NOMINAL = (1e-1, 1e-2, 1e-3, 1e-4)
LEVEL = 1e-6
DRAWS = (16, 32, 64, 128, 256, 512, 1024)
STATISTICS = ("variance", "snr", "slope", "cosine", "sq_bias", "efficiency")
EFFECTS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0)  # in units of the size that the verdict calls detectable
LAWS = ("u² − 1", "u v", "10 × one in 10", "50 × one in 50")
Array = Any


@dataclass(frozen=True)
class Config:
    """Simulate false alarms, power and coverage, quickly; --full for the stored figure."""

    full: bool = False
    """As many runs as the stored dataset has."""
    workers: int = 1
    """Processes that simulate side by side."""
    seed: int = 0
    out: Path = field(default=ROOT / "results" / "check_calibration.nc")
    """Where the dataset goes; the figure stands beside it."""
    smoke: bool = False
    """A few seconds: one short run of everything, whose numbers mean nothing."""


@dataclass(frozen=True)
class Case:
    """Estimates (g·u)u + bias, a mean over ``examples`` independent ones, in ``size`` numbers."""

    noise: str
    size: int
    bias: float = 0.0
    examples: int = 1

    @property
    def name(self) -> str:
        words = [f"{self.noise}, d = {self.size}", *([f"{self.examples} examples"] if self.examples > 1 else [])]
        return ", ".join([*words, *(["biased"] if self.bias else [])])


CASES = (
    *(Case("Gaussian", size, bias) for size in (1, 3, 10, 30, 100) for bias in (0.0, 1.0)),
    *(Case("Rademacher", size, bias) for size in (10, 100) for bias in (0.0, 1.0)),
    Case("Gaussian", 100, 0.0, examples=8),
    Case("coordinate", 20),
)


def main(config: Config) -> None:
    import torch

    import fgvar
    from fgvar.analysis.atomic import require_place
    from fgvar.analysis.dataset import provenance

    require_place(config.out)
    if config.workers < 1:
        raise ValueError(f"workers is {config.workers}, expected at least 1")
    runs, verdicts, alarms = (10_000, 10_000, 400_000) if config.full else (200, 50, 20_000)
    some: dict[str, Any] = {"cases": CASES, "draws": DRAWS, "laws": LAWS}
    if config.smoke:
        runs, verdicts, alarms = 20, 3, 200
        some = {"cases": CASES[::9], "draws": DRAWS[:3], "laws": LAWS[:1]}
    cases, draws, laws = some["cases"], some["draws"], some["laws"]
    parts = 1 if config.smoke or not config.full else 10
    jobs: list[tuple[Callable[..., Any], tuple[Any, ...]]] = [
        *((alarm_job, (law, alarms, config.seed)) for law in laws),
        *((verdict_job, (verdicts // parts, config.seed + part * verdicts // parts)) for part in range(parts)),
        (power_job, (min(runs, 2000), config.seed)),
        *((coverage_job, (case, runs, draws, config.seed)) for case in cases),
    ]
    with ProcessPoolExecutor(config.workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pending = [pool.submit(job, *arguments) for job, arguments in jobs]
        found = []
        for (job, arguments), future in zip(jobs, pending, strict=True):
            found.append(future.result())
            print(job.__name__, arguments[0], flush=True)
    dataset = _assembled(found, laws, cases, draws, parts)
    dataset.attrs = {
        "study": "check_calibration",
        "configuration": repr(replace(config, out=Path("results") / config.out.name)),
        "route": "drawn",
        "runs": runs,
        "alarm_runs": alarms,
        "verdict_runs": verdicts // parts * parts,
        "verdict_draws": fgvar.testing.DRAWS,
        "level": LEVEL,
    } | provenance(torch.device("cpu"), torch.float64)
    print(report(dataset))
    print(fgvar.save(dataset, config.out))
    sys.path.insert(0, str(ROOT))
    from figures import calibration, command

    command.write(command.Config(config.out), calibration.FIGURES)


def alarm_job(law: str, runs: int, seed: int) -> Array:
    """Alarms at each nominal rate, of one test of a mean over the verdicts' draws."""
    import numpy as np
    import torch

    from fgvar.testing.statistical import DRAWS as n
    from fgvar.testing.statistical import means

    rng = np.random.Generator(np.random.SFC64([seed, LAWS.index(law)]))
    laws = {
        "u² − 1": lambda shape: rng.standard_normal(shape) ** 2 - 1,
        "u v": lambda shape: rng.standard_normal(shape) * rng.standard_normal(shape),
        "10 × one in 10": lambda shape: 10.0 * (rng.random(shape) < 1 / 10) - 1,
        "50 × one in 50": lambda shape: 50.0 * (rng.random(shape) < 1 / 50) - 1,
    }
    found = np.zeros(len(NOMINAL))
    for _ in range(0, runs, 1000):
        columns = torch.from_numpy(laws[law]((n, min(1000, runs))))
        z = means(columns, 0.0, level=LEVEL).z.abs()
        # The critical value of a verdict of one test, as each column is one here.
        found += [int((z > means(columns[:, :1], 0.0, level=rate).critical).sum()) for rate in NOMINAL]
    return found


def verdict_job(runs: int, seed: int) -> Array:
    """The smallest corrected p-value of whole verdicts on one weight, d = 1: the most skewed of perturbations."""
    import numpy as np
    import torch

    import fgvar
    from fgvar.testing import unbiased

    net = torch.nn.utils.skip_init(torch.nn.Linear, 1, 1, bias=False).double()
    torch.nn.init.constant_(net.weight, 0.5)
    one = torch.ones(1, 1, dtype=torch.float64)
    problem, estimator = fgvar.Problem(net, "mse", (one, 0 * one)), fgvar.scheme("FG-W")
    verdicts = [unbiased(estimator, problem, seed=seed + run, chunk=4096) for run in range(runs)]
    return np.array([min(test.p for test in verdict.tests) for verdict in verdicts])


def power_job(runs: int, seed: int) -> Array:
    """How often an error of each size is caught at the default level: of scale, and along a projection."""
    import numpy as np
    import torch

    from fgvar.testing.statistical import DRAWS as n
    from fgvar.testing.statistical import means

    rng = np.random.Generator(np.random.SFC64([seed, 77]))
    caught = np.zeros((2, len(EFFECTS)))
    for _ in range(0, runs, 200):
        u, v = rng.standard_normal((2, n, 200))
        for kind, columns in enumerate((u**2 - 1, u * v)):
            # The size that the verdict prints: from the spread of correct draws.
            size = means(torch.from_numpy(columns), 0.0, level=LEVEL * 200).detectable
            for index, effect in enumerate(EFFECTS):
                error = size.mean().item()
                # A wrong scale multiplies the draws, spread included; a bias moves them.
                error = effect * (error / (1 - error) if kind == 0 else error)
                wrong = (columns + 1) * (1 + error) - 1 if kind == 0 else columns + error
                found = means(torch.from_numpy(wrong), 0.0, level=LEVEL * 200)
                caught[kind, index] += int((found.z.abs() > found.critical).sum())
    return caught / (-(-runs // 200) * 200)


def coverage_job(case: Case, runs: int, draws: tuple[int, ...], seed: int) -> dict[str, Array]:
    """Shares [statistics, references, draws] of runs with an error, and of intervals among them that cover."""
    import numpy as np
    import torch

    from fgvar.analysis.moments import BLOCK, References, init, update
    from fgvar.analysis.statistics import statistics

    rng = np.random.Generator(np.random.SFC64([seed, CASES.index(case)]))
    target, shift, other = rng.standard_normal((3, case.size)) / case.size**0.5
    estimates, covariance = _law(case, target, rng)
    mean = target + case.bias * shift
    parts = max(2, min(100, runs // 100))
    truth = _truth(mean, covariance, (target, other), lambda m: estimates(m) + case.bias * shift, parts)
    # Runs are layers: each is a parameter of its own, and all are measured at once.
    ours, theirs = ({f"{run}": torch.from_numpy(vector) for run in range(runs)} for vector in (target, other))
    references = References.of(ours, theirs, ())
    moments, reported, covered = init(references), [], []
    for n in range(BLOCK, max(draws) + 1, BLOCK):
        block = torch.from_numpy(estimates(runs * BLOCK).reshape(runs, BLOCK, -1) + case.bias * shift)
        moments, _ = update(moments, references, {f"{run}": block[run] for run in range(runs)})
        if n in draws:
            found = statistics(moments, references)
            values = {k: [np.broadcast_to(x[..., :runs], (2, runs)) for x in found[k]] for k in STATISTICS}
            off = np.stack([np.abs(values[k][0] - truth[k][:, None]) for k in STATISTICS])
            error = np.stack([values[k][1] for k in STATISTICS])
            given = np.isfinite(error)
            reported.append(given.mean(-1))
            with np.errstate(invalid="ignore", divide="ignore"):
                inside = (off <= 1.96 * error + 1e-12 * np.abs(off + 1)) & given
                covered.append(inside.sum(-1) / given.sum(-1))
    return {"reported": np.stack(reported, -1), "coverage": np.stack(covered, -1)}


def _law(case: Case, g: Array, rng: Any) -> tuple[Callable[[int], Array], Array]:
    """A sampler of unbiased estimates [draws, size], and their covariance."""
    import numpy as np

    d = case.size

    def one(m: int) -> Array:
        if case.noise == "coordinate":
            index = rng.integers(d, size=m)
            rows = np.zeros((m, d))
            rows[np.arange(m), index] = d * g[index]
            return rows
        u = rng.standard_normal((m, d)) if case.noise == "Gaussian" else rng.integers(0, 2, (m, d)) * 2.0 - 1
        return (u @ g)[:, None] * u

    excess = {"Gaussian": 1.0, "Rademacher": -1.0}.get(case.noise, 0.0)
    covariance = g @ g * np.eye(d) + np.outer(g, g) + (excess - 1) * np.diag(g**2)
    if case.noise == "coordinate":
        covariance = d * np.diag(g**2) - np.outer(g, g)
    return lambda m: sum(one(m) for _ in range(case.examples)) / case.examples, covariance / case.examples


def _truth(
    mean: Array, covariance: Array, references: tuple[Array, Array], estimates: Callable[[int], Array], parts: int
) -> dict[str, Array]:
    """The true value of every statistic for both references; the cosine's from 20,000 further draws a part."""
    import numpy as np

    trace = np.trace(covariance)
    cosines = np.zeros(2)
    for _ in range(parts):
        rows = estimates(20_000)
        norms = np.linalg.norm(rows, axis=1)
        for index, r in enumerate(references):
            inner = np.divide(rows @ r, norms * np.linalg.norm(r), out=np.zeros(len(rows)), where=norms > 0)
            cosines[index] += inner.mean() / parts
    along = np.array([mean @ r for r in references])
    lengths = np.array([r @ r for r in references])
    return {
        "variance": np.full(2, trace),
        "snr": np.full(2, mean @ mean / trace if trace else np.nan),
        "sq_bias": np.array([(mean - r) @ (mean - r) for r in references]),
        "slope": along / lengths,
        "cosine": cosines,
        "efficiency": along**2 / lengths / (trace + mean @ mean),
    }


def _assembled(
    found: list[Any], laws: tuple[str, ...], cases: tuple[Case, ...], draws: tuple[int, ...], parts: int
) -> Any:
    import numpy as np
    import xarray as xr

    verdicts = np.concatenate(found[len(laws) : len(laws) + parts])
    coverage = found[len(laws) + parts + 1 :]
    dims = ("case", "statistic", "reference", "draws")
    return xr.Dataset(
        {
            "alarms": (("law", "nominal"), np.stack(found[: len(laws)])),
            "verdict_p": ("run", verdicts),
            "caught": (("kind", "effect"), found[len(laws) + parts]),
            "coverage": (dims, np.stack([one["coverage"] for one in coverage])),
            "reported": (dims, np.stack([one["reported"] for one in coverage])),
        },
        coords={
            "law": list(laws),
            "nominal": list(NOMINAL),
            "kind": ["scale", "bias"],
            "effect": list(EFFECTS),
            "case": [case.name for case in cases],
            "statistic": list(STATISTICS),
            "reference": ["target", "backprop"],
            "draws": list(draws),
        },
    )


def report(dataset: Any) -> str:
    """Alarm rates over their nominal ones, power, and the coverage where errors are given."""
    import numpy as np
    from scipy import stats

    runs, whole = dataset.attrs["alarm_runs"], dataset["verdict_p"].values
    lines = ["", f"alarms over expected ones, {runs} runs a law"]
    for law in dataset["law"].values:
        rates = dataset["alarms"].sel(law=law).values / runs / dataset["nominal"].values
        lines.append(f"  {law:<16}" + "  ".join(f"{n:g}: {r:.2f}" for n, r in zip(NOMINAL, rates, strict=True)))
    alarms = int((whole < LEVEL).sum())
    bound = stats.beta.ppf(0.95, alarms + 1, len(whole) - alarms)
    lines.append(
        f"verdicts at the default level {LEVEL:g}: {alarms} alarms in {len(whole)} runs, rate < {bound:.2g} (95 %)"
    )
    lines.append(
        f"caught at the detectable size: {dataset['caught'].sel(effect=1.0).to_dict()['data']} (scale, bias)"
    )
    lines.append(
        "coverage of 95 % intervals (share of runs with an error), least and most over cases with 95 % of them"
    )
    sure = dataset["coverage"].where(dataset["reported"] >= 0.95)
    for name in STATISTICS:
        values = sure.sel(statistic=name).values
        cells = int(np.isfinite(values).sum())
        span = f"{np.nanmin(values):.3f} to {np.nanmax(values):.3f}" if cells else "none"
        lines.append(f"  {name:<12}{span}  ({cells} cells)")
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:  # what the user can mend, in one line
        sys.exit(f"check_calibration: {error}")
