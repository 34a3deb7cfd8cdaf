"""Table 1 of Ren et al. 2023: variance of weight and activity perturbation, with shared and independent noise.

Question   How does the total variance (noise and data) of the four estimators grow with fan-in p, fan-out q and
           batch size N?
Claim      As the table says, per weight, with V the mean data variance of an example's gradient and S the mean
           square of the expected gradient:
               weight, shared        (pq + 2)/N · V + (pq + 1) · S
               weight, independent   (pq + 2)/N · V + (pq + 1)/N · S
               activity, shared      (q + 2)/N · V + (q + 1) · S
               activity, independent (q + 2)/N · V + (q + 1)/N · S
Shown      One linear layer with per-example losses; batches of N examples, independently drawn with replacement from
           three, so that V, S and the law over batches are exact, too. Three routes to every number: closed form (one
           row of `fgvar.theory`, noise and batches together), enumerated (`fgvar.testing.covariance` on every batch)
           and drawn (batches and noise), with its standard error.
Cost       About a minute on one core, half of it on two (--workers 2); --smoke: seconds.
Run        python studies/table1.py            writes results/table1.nc, .pdf and .png
Full size  python studies/table1.py --size 2 4 8 12 16 --draws 1000000          (some hours; not done here)
"""

import itertools
import math
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

POPULATION = 3  # examples that batches are drawn from
SPACES = ("weight", "activity")
NOISE = ("shared", "independent")
ROUTES = ("table", "closed form", "enumerated")


@dataclass(frozen=True)
class Config:
    """Total variance of the four estimators of Table 1, by four routes."""

    size: tuple[int, ...] = (2, 3, 4, 6, 8)
    """Fan-in and fan-out, at the second batch size."""
    batch: tuple[int, ...] = (1, 2, 4, 8)
    """At the middle size."""
    draws: int = 20_000
    """Pairs of a batch and its noise."""
    run: Run = Options(RESULTS / "table1.nc")


def main(config: Config) -> None:
    from figures import table1

    if min(*config.size, *config.batch, config.draws - 1) < 1:
        raise ValueError("sizes and batches are at least 1, draws at least 2")
    if config.run.smoke:
        config = replace(config, size=config.size[:2], batch=config.batch[:2], draws=200)
    middle = config.size[len(config.size) // 2], config.batch[min(1, len(config.batch) - 1)]
    places = [(size, middle[1]) for size in config.size] + [(middle[0], batch) for batch in config.batch]
    places = list(dict.fromkeys(places))
    axes = {"cell": [f"{size} × {batch}" for size, batch in places], "space": SPACES, "noise": NOISE}
    dataset = common.sweep(cell, axes, {"draws": config.draws}, config.run)
    dataset = dataset.drop_vars("cell").assign_coords(
        size=("cell", [size for size, _ in places]), batch=("cell", [batch for _, batch in places])
    )
    common.publish(dataset, config, table1)


def cell(*, cell: str, space: str, noise: str, draws: int, seed: int) -> Any:
    """One estimator on layers of one size (fan-in and fan-out) and batches of one size: "size × batch".

    Variance per weight by the table, in closed form and enumerated; drawn, with its standard error; V and S.
    """
    import torch
    import xarray as xr

    import fgvar
    from fgvar.measurement import provenance
    from fgvar.testing import covariance

    size, batch = (int(number) for number in cell.split(" × "))
    population = _population(size, seed)
    gradients = _gradients(population)
    expected = gradients.mean(0)
    v, s = float((gradients - expected).square().mean()), float(expected.square().mean())
    estimator = fgvar.scheme("FG-W" if space == "weight" else "FG-A", shared=noise == "shared", **_words(space))
    entries = size * size
    d = entries if space == "weight" else size
    table = (d + 2) / batch * v + (d + 1) * s / (1 if noise == "shared" else batch)
    row = fgvar.Stochastic(of=estimator, sample=fgvar.sampling.Draw(batch))
    closed = float(fgvar.theory.trace(row, _batch(population, tuple(range(POPULATION))))["weight"]) / entries
    enumerated = v / batch  # the variance of batch means; noise variances come on top
    for members, probability in _batches(batch):
        problem = _batch(population, members)
        enumerated += probability * float(covariance(estimator, problem)["weight"].trace()) / entries
    drawn, error = _drawn(draws, seed, estimator, population, expected, batch)
    square = {"units": "gradient²"}
    return xr.Dataset(
        {
            "variance": ("route", [table, closed, enumerated], {"long_name": "total variance per weight"} | square),
            "drawn": ((), drawn, {"long_name": "the same, drawn"} | square),
            "drawn_se": ((), error, {"long_name": "its standard error"} | square),
            "v": ((), v, {"long_name": "mean data variance V of an example"} | square),
            "s": ((), s, {"long_name": "mean square S of the expectation"} | square),
        },
        coords={"route": list(ROUTES)},
        attrs={"draws": draws, "population": POPULATION} | provenance(torch.device("cpu"), torch.float64),
    )


def _words(space: str) -> dict[str, Any]:
    import fgvar

    return {"space": fgvar.ActivitySpace(mask_inactive=False)} if space == "activity" else {}


def _population(size: int, seed: int) -> Any:
    """A linear layer without bias, and the examples that batches are drawn from."""
    import torch

    import fgvar

    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(POPULATION, size, generator=generator, dtype=torch.float64)
    y = torch.randint(size, (POPULATION,), generator=generator)
    layer = torch.nn.Linear(size, size, bias=False, dtype=torch.float64)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(size, size, generator=generator, dtype=torch.float64) / size**0.5)
    return fgvar.with_sites(layer), x, y


def _gradients(population: Any) -> Any:
    """Of each example alone, [examples, size, size]."""
    import torch

    return torch.stack([_batch(population, (i,)).backprop()["weight"] for i in range(POPULATION)])


def _batch(population: Any, members: tuple[int, ...]) -> Any:
    """These examples of it as a problem."""
    import fgvar

    layer, x, y = population
    return fgvar.Problem(layer, "cross_entropy", (x[list(members)], y[list(members)]))


def _batches(batch: int) -> list[tuple[tuple[int, ...], float]]:
    """All batches, but for the order of their examples, and their probabilities."""
    whole = math.factorial(batch) / POPULATION**batch
    return [
        (members, whole / math.prod(math.factorial(times) for times in Counter(members).values()))
        for members in itertools.combinations_with_replacement(range(POPULATION), batch)
    ]


def _drawn(draws: int, seed: int, estimator: Any, population: Any, expected: Any, batch: int) -> tuple[float, float]:
    """Mean squared distance of estimates from the expected gradient, per weight, over draws of batch and noise."""
    import numpy as np
    import torch

    from fgvar.measurement import estimates

    batches = _batches(batch)
    generator = np.random.default_rng([seed, batch, expected.numel()])
    counts = generator.multinomial(draws, [probability for _, probability in batches])
    squares, start = [], 0
    for (members, _), count in zip(batches, counts, strict=True):
        problem = _batch(population, members)
        for first in range(start, start + count, 1000):
            numbers = range(first, min(first + 1000, start + count))
            noise = estimator.randomness(problem).sample(seed, numbers, dtype=torch.float64)
            found = estimates(estimator, problem, noise)["weight"]
            squares.append((found - expected).square().flatten(1).mean(1))
        start += count
    each = torch.cat(squares)
    return float(each.mean()), float(each.std() / len(each) ** 0.5)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
