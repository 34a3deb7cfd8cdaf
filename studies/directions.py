"""Directions: what do K derivatives buy, averaged or as an orthogonal projection?

Question   How do the variance of an estimate and its cosine to the gradient depend on the number K of directions?
Claim      For one loss over d numbers, relative to the gradient's squared norm: the mean of K Gaussian directions
           has variance (d + 1)/K, that of K orthogonal ones d/K − 1; the projection on their span K/d (1 − K/d), at
           a slope of K/d, and 1 − K/d where its length is corrected by √(d/K). All but the first lie along the
           projection of the gradient on a random K-dimensional subspace: a mean cosine of E χ_K / E χ_d ≈ √(K/d).
Shown      Drawn values with 95 % intervals, given one batch; the closed forms as lines. Derivatives are inner
           products with the known gradient (`Replay`).
Cost       About a minute on one core, half of it on two (--workers 2); --smoke: seconds.
Run        python studies/directions.py            writes results/directions.nc, .pdf and .png
Full size  python studies/directions.py --draws 100000 --seed 0 1 2 3      (some hours; not done here)
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

D = 160  # weights
KINDS = ("mean", "orthogonal mean", "projection", "projection, length corrected")


@dataclass(frozen=True)
class Config:
    """Measure weight perturbation of a linear classifier of 4 × 4 digits with more and more directions."""

    directions: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 160)
    """At most 160, the number of weights."""
    draws: int = 256
    batch: int = 32
    run: Run = Options(RESULTS / "directions.nc")


def main(config: Config) -> None:
    from figures import directions

    if config.run.smoke:
        config = replace(config, directions=config.directions[:3], draws=16)
    if not all(1 <= count <= D for count in config.directions) or not config.directions:
        raise ValueError(f"directions are {list(config.directions)}, expected numbers from 1 to {D}, the weights")
    settings = {"draws": config.draws, "batch": config.batch}
    dataset = common.sweep(cell, {"directions": config.directions}, settings, config.run)
    dataset.attrs["d"] = D
    common.publish(dataset, config, directions, report(dataset))


def cell(*, directions: int, draws: int, batch: int, seed: int) -> Any:
    """All kinds with so many directions: drawn, and their theory."""
    import torch

    import fgvar
    from fgvar.measurement import ENDS

    layer = torch.nn.Linear(16, 10, bias=False, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(10, 16, generator=generator, dtype=torch.float64) / 4)
    x, y = fgvar.data.load("digits").sample(batch, seed=seed, dtype=torch.float64)
    small = torch.nn.functional.avg_pool2d(x, 2).flatten(1)
    problem = fgvar.Problem(layer, "cross_entropy", (small, y))
    measured = fgvar.measure(estimators(directions), problem, draws=draws, seed=seed)
    names = ("cosine", "relative_variance", "slope")
    found = measured.sel(layer="perturbed", reference="target", drop=True)[
        [*names, *(f"{name}{end}" for name in names for end in ENDS)]
    ]
    for name, values in zip(names, zip(*(theory(kind, directions, D) for kind in KINDS), strict=True), strict=True):
        found[f"{name}_theory"] = "estimator", list(values)
    return found


def estimators(count: int) -> dict[str, Any]:
    """The kinds with K directions."""
    import fgvar

    gaussian, orthogonal = fgvar.Gaussian(), fgvar.noise.Orthogonal()
    words = {
        "mean": (gaussian, fgvar.combine.Mean()),
        "orthogonal mean": (orthogonal, fgvar.combine.Mean()),
        "projection": (gaussian, fgvar.combine.Projection()),
        "projection, length corrected": (gaussian, fgvar.combine.Projection("norm")),
    }
    return {
        kind: fgvar.scheme("FG-W", noise=noise, combine=combine, oracle=fgvar.oracles.Replay(), directions=count)
        for kind, (noise, combine) in words.items()
    }


def theory(kind: str, count: int, d: int) -> tuple[float, float, float]:
    """Cosine, relative variance and slope. (Of the mean's cosine, the root of its efficiency: good for large K.)"""
    share = count / d
    # E χ_K / E χ_d, E χ_n = √2 Γ((n + 1)/2) / Γ(n/2)
    cosine = math.exp(
        math.lgamma((count + 1) / 2) - math.lgamma(count / 2) - math.lgamma((d + 1) / 2) + math.lgamma(d / 2)
    )
    return {
        "mean": (math.sqrt(count / (count + d + 1)), (d + 1) / count, 1.0),
        "orthogonal mean": (cosine, 1 / share - 1, 1.0),
        "projection": (cosine, share * (1 - share), share),
        "projection, length corrected": (cosine, 1 - share, math.sqrt(share)),
    }[kind]


def report(dataset: Any) -> str:
    """A line for each kind and K: drawn and theory."""
    from fgvar.plot import intervals

    lines = [f"{'':<30}{'K':>5}{'cosine':>20}{'theory':>9}{'relative variance':>24}{'theory':>10}"]
    data = intervals.over_seeds(dataset)
    for kind in KINDS:
        for count in dataset["directions"].values:
            its = data.sel(estimator=kind, directions=count)
            cells = []
            for name, width, w in (("cosine", 9, 9), ("relative_variance", 13, 10)):
                value, error, exact = (its[f"{name}{end}"].item() for end in ("", "_se", "_theory"))
                cells.append(f"{value:>{width}.4g} ± {error:<8.2g}{exact:>{w}.4g}")
            lines.append(f"{kind:<30}{count:>5}{''.join(cells)}")
    return "\n".join(lines)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
