"""Extrapolation: what does a gradient taken ahead of the parameters cost in bias, and can workers buy it back?

Question   A gradient taken at θ − γ̂z in place of θ is biased. How large is that bias for z a fresh minibatch
           gradient, the gradient that made the last step, random numbers (noise injection) or, uphill, the gradient
           over its norm (SAM)? And what do K workers, each with a fresh z of its own, do to it and to the variance?
Claim      To first order it is −γ̂H E z: of norm γ̂‖H∇L‖ for a fresh minibatch, γ̂‖Hz‖ for a kept gradient, ρ‖H∇L‖/‖∇L‖
           for SAM; and ½σ²‖∇tr H‖ for noise, whose first order averages out. Fitted slopes are 1.00, 1.00, 1.99 and
           1.00. K workers divide the variance by K and leave the bias as it is.
Shown      Drawn values with 95 % intervals on exact lines (all 576 fresh minibatches enumerated) and on these laws,
           of ten small networks in the middle of training. Draws have the same minibatch's gradient at θ as a control
           variate, and noise comes in pairs ±u. The estimators of Lin et al. 2020 alone: that extrapolation smooths
           the loss and lets batches grow is not tested.
Cost       About two minutes on one core, half of it on two (--workers 2); --smoke: seconds.
Run        python studies/extrapolation.py            writes results/extrapolation.nc, .pdf and .png
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from studies import common
from studies.common import RESULTS, Options, Run

if TYPE_CHECKING:  # which a command line need not load
    from torch import Tensor

    from fgvar import Estimate, Problem, Randomness, Stochastic

FRESH, KEPT, NOISE, SAM = "fresh minibatch gradient", "kept gradient", "random numbers", "SAM"
ORDERS = {FRESH: 1, KEPT: 1, NOISE: 2, SAM: 1}
EXAMPLES, SIZE = 24, 2  # of the batch, of a minibatch
TRAINED, RATE = 60, 0.3  # steps ahead of the measurement, and their size
SHORT = 0.025  # the longest step that slopes are fitted to


@dataclass(frozen=True)
class Config:
    """Measure the bias of gradients ahead of the parameters against the step, and what workers do to it."""

    steps: tuple[float, ...] = (0.00625, 0.0125, 0.025, 0.05, 0.1, 0.2, 0.4)
    """γ̂, in units of z: of a gradient; of 1 (SAM) and of standard deviations of every weight (noise)."""
    many: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Numbers of workers."""
    draws: int = 1024
    """Of every row and step; a quarter for each number of workers."""
    run: Run = Options(RESULTS / "extrapolation.nc", seed=tuple(range(10)))


def main(config: Config) -> None:
    from figures import extrapolation

    if config.run.smoke:
        run = replace(config.run, seed=config.run.seed[:2])
        config = replace(config, run=run, steps=config.steps[2:4], many=config.many[:2], draws=64)
    if not all(step > 0 for step in config.steps) or len(config.steps) < 2:
        raise ValueError(f"steps are {list(config.steps)}, expected two positive ones at least, for a slope")
    settings = {"steps": config.steps, "many": config.many, "draws": config.draws}
    dataset = common.sweep(cell, {}, settings, config.run)
    dataset["slope"] = slopes(dataset)
    dataset.attrs["short"] = SHORT
    common.publish(dataset, config, extrapolation, report(dataset))


def cell(*, steps: list[float], many: list[int], draws: int, seed: int) -> Any:
    """One network in the middle of its training: biases of all rows and steps, and of workers; drawn and exact."""
    import xarray as xr

    problem, kept = halfway(seed)
    found = [at_step(problem, kept, step, draws, seed) for step in steps]
    dataset = xr.concat(found, xr.IndexVariable("step", list(steps)), combine_attrs="drop_conflicts")
    dataset["gradient_square"] = square(problem.backprop())
    return dataset.merge(by_workers(problem, max(steps), many, draws, seed), combine_attrs="drop_conflicts")


def halfway(seed: int) -> tuple["Problem", dict[str, "Tensor"]]:
    """The problem after some steps of SGD, and the minibatch gradient that made the last of them."""
    import torch

    import fgvar

    x, y = fgvar.data.load("digits").sample(EXAMPLES, seed=seed, dtype=torch.float64)
    small = torch.nn.functional.avg_pool2d(x, 2).flatten(1)
    net = fgvar.networks.MLP(16, width=8, depth=1, classes=10, activation="tanh", seed=seed).double()
    problem = fgvar.Problem(net, "cross_entropy", (small, y))
    generator, kept = torch.Generator().manual_seed(seed), problem.backprop()
    for _ in range(TRAINED):
        kept = problem.rows(torch.randint(EXAMPLES, (SIZE,), generator=generator)).backprop()
        problem = problem.at({name: p - RATE * kept[name] for name, p in problem.params.items()})
    return problem, kept


def row(kind: str, step: float, kept: Mapping[str, "Tensor"], workers: int = 1) -> "Stochastic":
    """A minibatch gradient so far ahead."""
    import fgvar
    from fgvar import points, sampling

    draw = sampling.Draw(SIZE)
    at = {
        FRESH: points.Ahead(by=fgvar.Stochastic(sample=draw), step=step),
        KEPT: points.Ahead(by=points.Kept(kept), step=step),
        NOISE: points.Ahead(by=points.Noise(), step=step),
        SAM: points.Ahead(by=fgvar.ExactGradient(), step=-step, unit=True),
    }
    return fgvar.Stochastic(at=at[kind], sample=draw, workers=workers)


@dataclass(frozen=True)
class Controlled:
    """ĝ less the gradient at θ of the same minibatch, plus its mean ∇L: E ĝ as it is, and little variance.

    Args:
        row: whose ĝ.
        pairs: the mean of ĝ over u and −u, the noise of the point.
    """

    row: "Stochastic"
    pairs: bool = False

    def randomness(self, problem: "Problem") -> "Randomness":
        return self.row.randomness(problem)

    def target(self, problem: "Problem") -> dict[str, "Tensor"]:
        return self.row.target(problem)

    def estimate(self, problem: "Problem", noise: Mapping[str, "Tensor"]) -> "Estimate":
        import fgvar

        ahead = {name for name in noise if name.startswith("at")}
        still = replace(self.row, at=fgvar.points.Here())
        here = still.estimate(problem, {name: u for name, u in noise.items() if name not in ahead}).gradient
        there = self.row.estimate(problem, noise).gradient
        if self.pairs:
            turned = {name: -u if name in ahead else u for name, u in noise.items()}
            other = self.row.estimate(problem, turned).gradient
            there = {name: (g + other[name]) / 2 for name, g in there.items()}
        mean = problem.backprop()
        return fgvar.Estimate({name: there[name] - here[name] + g for name, g in mean.items()})


def at_step(problem: "Problem", kept: Mapping[str, "Tensor"], step: float, draws: int, seed: int) -> Any:
    """Squared bias of every row: drawn, exact where its point has few values, and by its law."""
    import fgvar

    rows = {kind: row(kind, step, kept) for kind in ORDERS}
    drawn = {kind: Controlled(one, pairs=kind == NOISE) for kind, one in rows.items()}
    found = squared_bias(fgvar.measure(drawn, problem, draws=draws, seed=seed)).rename(estimator="row")
    exact = [float("nan") if kind == NOISE else square(bias(one, problem)) for kind, one in rows.items()]
    return found.assign(exact=("row", exact), law=("row", [law(kind, step, problem, kept) for kind in ORDERS]))


def squared_bias(measured: Any) -> Any:
    """What is kept of a measurement: of all parameters together."""
    return measured.sel(layer="total", reference="target", drop=True)[["sq_bias", "sq_bias_se"]]


def bias(one: "Stochastic", problem: "Problem") -> dict[str, "Tensor"]:
    """E ĝ − ∇L, exactly: the gradient of all examples, of the mean over all values of z."""
    import fgvar
    from fgvar.testing import expectation

    there = fgvar.Stochastic(at=one.at)
    certain = not there.randomness(problem).leaves
    mean = there.estimate(problem, {}).gradient if certain else expectation(there, problem, method="support")
    return {name: mean[name] - g for name, g in problem.backprop().items()}


def law(kind: str, step: float, problem: "Problem", kept: Mapping[str, "Tensor"]) -> float:
    """Its square to leading order: step² ‖Hz‖² for the mean z, ¼ step⁴ ‖∇tr H‖² for noise."""
    from torch.func import grad, jvp

    g = problem.backprop()
    if kind == NOISE:
        return step**4 / 4 * square(grad(lambda params: trace_of_hessian(problem, params))(problem.params))
    norm = square(g) ** 0.5
    z = {FRESH: g, KEPT: dict(kept), SAM: {name: value / norm for name, value in g.items()}}[kind]
    return step**2 * square(jvp(grad(problem.loss), (problem.params,), (z,))[1])


def trace_of_hessian(problem: "Problem", params: dict[str, "Tensor"]) -> Any:
    """tr H, by a product with every unit vector."""
    import torch
    from torch.func import grad, jvp, vmap

    pieces, sizes = list(params.items()), [p.numel() for p in params.values()]

    def curvature(unit: "Tensor") -> "Tensor":
        e = {name: u.reshape(p.shape) for (name, p), u in zip(pieces, unit.split(sizes), strict=True)}
        product = jvp(grad(problem.loss), (params,), (e,))[1]
        return torch.stack([(e[name] * product[name]).sum() for name in e]).sum()

    return vmap(curvature)(torch.eye(sum(sizes), dtype=problem.dtype)).sum()


def by_workers(problem: "Problem", step: float, many: list[int], draws: int, seed: int) -> Any:
    """Variance and squared bias of the mean of K workers' estimates by fresh minibatches; drawn, and exact of one."""
    import xarray as xr

    import fgvar

    found = []
    for workers in many:
        one = row(FRESH, step, {}, workers)
        measured = fgvar.measure({FRESH: one}, problem, draws=draws // 4, seed=seed)
        spread = measured.sel(layer="total", estimator=FRESH, drop=True)[["variance", "variance_se"]]
        controlled = fgvar.measure({FRESH: Controlled(one)}, problem, draws=draws // 4, seed=seed)
        biases = squared_bias(controlled).sel(estimator=FRESH, drop=True)
        found.append(spread.merge(biases.rename(sq_bias="shared_bias", sq_bias_se="shared_bias_se")))
    dataset = xr.concat(found, xr.IndexVariable("workers", list(many)), combine_attrs="drop_conflicts")
    one = row(FRESH, step, {})
    dataset["variance_of_one"] = variance(one, problem)
    dataset["variance_here"] = variance(replace(one, at=fgvar.points.Here()), problem)
    return dataset.assign(bias_of_one=square(bias(one, problem)))


def variance(one: "Stochastic", problem: "Problem") -> float:
    """tr Cov ĝ of a minibatch of m, exactly: V_∞ + (V_1 − V_∞)/m, V_1 of one example and V_∞ of all, over all z."""
    from fgvar import sampling

    single = trace(replace(one, sample=sampling.Draw(1)), problem)
    whole = trace(replace(one, sample=sampling.Everything()), problem)
    return whole + (single - whole) / SIZE


def trace(one: "Stochastic", problem: "Problem") -> float:
    """tr Cov ĝ by enumeration; 0 of what needs no noise."""
    from fgvar.testing import covariance

    if not one.randomness(problem).leaves:
        return 0.0
    return sum(float(c.trace()) for c in covariance(one, problem, method="support").values())


def square(gradient: Mapping[str, "Tensor"]) -> float:
    return sum(float(g.square().sum()) for g in gradient.values())


def slopes(dataset: Any) -> Any:
    """Powers of the step that drawn biases grow with: least squares of logarithms over the SHORT steps, by seed."""
    import numpy as np

    short = dataset.sel(step=dataset["step"] <= max(SHORT, float(dataset["step"][1])))
    x, y = np.log(short["step"]), np.log(short["sq_bias"].where(short["sq_bias"] > 0)) / 2
    x = x.where(y.notnull())
    away = x - x.mean("step")
    found = (away * y).sum("step") / (away**2).sum("step")
    return found.assign_attrs(long_name="power of the step that the bias grows with", units="1")


def relative(dataset: Any, name: str) -> Any:
    """The mean over seeds of a square, over that of ‖∇L‖²."""
    return dataset[name].mean("seed") / dataset["gradient_square"].mean("seed")


def report(dataset: Any) -> str:
    """A line for each row: its slope, and its bias at the longest step; a line for each number of workers."""
    lines = [f"{'':<28}{'slope':>14}{'|bias|/‖∇L‖ at the longest step':>34}{'exact':>8}{'law':>8}"]
    last = dataset.isel(step=-1)
    for kind in ORDERS:
        slope = dataset["slope"].sel(row=kind)
        cells = (relative(last.sel(row=kind), name).item() ** 0.5 for name in ("sq_bias", "exact", "law"))
        told = f"{slope.mean().item():.3f} ± {slope.std(ddof=1).item() / dataset.sizes['seed'] ** 0.5:.3f}"
        lines.append(f"{kind:<28}{told:>14}" + "{:>34.3f}{:>8.3f}{:>8.3f}".format(*cells))
    lines.append(f"{'workers':<28}{'variance':>14}{'exact':>10}{'bias²':>10}{'exact':>10}")
    exact, squared = relative(dataset, "variance_of_one").item(), relative(dataset, "bias_of_one").item()
    for workers in dataset["workers"].values:
        its = dataset.sel(workers=workers)
        numbers = relative(its, "variance").item(), exact / workers, relative(its, "shared_bias").item(), squared
        lines.append(f"{workers:<28}" + "{:>14.4g}{:>10.4g}{:>10.4g}{:>10.4g}".format(*numbers))
    return "\n".join(lines)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
