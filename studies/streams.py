"""Streams: does a variant of Adam follow the gradient better, or does the stream decide?

Question   Estimates of one gradient come one after another. Which optimiser's output has the largest cosine to it
           after T of them, and does the answer hold for minibatches and for forward gradients?
Claim      Momentum comes closest on each stream: 0.901 of minibatches and 0.862 of FG-A, where Adam has 0.799 and
           0.804 and the sign of momentum 0.677 and 0.638. Without noise Adam and its kin are sign g, 0.746. AMSGrad
           is Adam to 0.0005. diffGrad has at most 0.015 more than Adam, of minibatches of ten times the loss, and
           there 0.009 less of FG-A; of FG-W 0.012 less: what it is good for depends on the loss' unit. Adam of FG-W
           is momentum, to a cosine of 0.9988, for its v̂ is flat to 4.3 %: 0.407 and 0.419. So the stream decides
           where FG-W stands, and the optimiser between minibatches and FG-A. The angle is Euclidean, which favours
           what does not rescale.
Shown      At rest, on ten MLPs of digits, after up to 2048 steps. Drawn: cosines in mean square, E⟨o, g⟩/(‖g‖ √E‖o‖²)
           of outputs o, with 95 % intervals over streams, all optimisers on the same ones. Exact: momentum's cosine,
           1/√(1 + gain V/‖g‖²); cos(sign g, g) of the exact stream; E (g·u u_i)² = ‖g‖² + 2g_i², which v̂ of weight
           perturbation comes to; the lag lr·age·Hg of momentum along a path, to first order. After many
           steps: Adam's cosine with v̂ at its mean; signs of normal numbers.
Differs    Nanni et al. 2021 (2103.14689) compare variants by the accuracy of ensembles of ResNet-50 on images of
           other kinds, which is not reproduced; here the direction is measured, and the paper's equations have not
           been seen. Their DGrad and Cos are not built: no equations of theirs could be held against the paper.
           diffGrad (Dubey et al. 2020) is that of its authors' code, version 2; AMSGrad is torch's.
Cost       About four minutes on one core, half of it on two (--workers 2); --smoke: seconds.
Run        python studies/streams.py            writes results/streams.nc, .pdf and .png
"""

from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

FEEDS = ("exact", "minibatch", "FG-A", "FG-W")


@dataclass(frozen=True)
class Config:
    """Pass streams of estimates through optimisers, and hold the last output against the gradient."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
    """Lengths T of the streams, ascending."""
    scales: tuple[float, ...] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
    """What the loss is multiplied by, for the difference of diffGrad from Adam."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
    """Step sizes of paths, for the lag of momentum."""
    draws: int = 64
    """Streams of each kind."""
    batch: int = 64
    minibatch: int = 8
    run: Run = Options(RESULTS / "streams.nc", seed=tuple(range(10)))


def main(config: Config) -> None:
    from figures import streams

    if config.run.smoke:
        config = replace(config, steps=config.steps[:4], draws=8, run=replace(config.run, seed=config.run.seed[:2]))
    if list(config.steps) != sorted({*config.steps}) or not config.steps or config.steps[0] < 1:
        raise ValueError(f"steps are {list(config.steps)}, expected ascending numbers from 1 on")
    settings = {name: list(getattr(config, name)) for name in ("steps", "scales", "rates")}
    settings |= {name: getattr(config, name) for name in ("draws", "batch", "minibatch")}
    dataset = common.sweep(cell, {}, settings, config.run)
    common.publish(dataset, config, streams, report(dataset))


def cell(
    *, steps: list[int], scales: list[float], rates: list[float], draws: int, batch: int, minibatch: int, seed: int
) -> Any:
    """One network and batch: all streams and what every optimiser makes of them, with theory; a path's lag."""
    import torch
    import xarray as xr

    from studies import stream_directions as of

    problem = problem_of(batch, seed)
    g = of.flat(problem.backprop(), problem)
    found: dict[str, list[Any]] = {}
    for number, (name, feed) in enumerate(feeds(minibatch).items()):
        variance = of.spread(feed, problem)
        stream = g.expand(2, steps[-1], len(g))
        if name != "exact":
            stream = of.estimates(feed, problem, draws * steps[-1], seed=10 * seed + number).reshape(
                draws, -1, len(g)
            )
        measured = of.at_rest(stream, g, steps) | of.theory(g, variance, steps) | of.of_scale(stream, g, scales)
        for what, values in measured.items():
            found.setdefault(what, []).append(values)
        if name == "FG-W":
            moments = of.second_moments(stream, g)
    dims = {"": ("feed", "optimiser", "steps"), "difference": ("feed", "scale"), "turned": ("feed", "steps")}
    data: dict[str, Any] = {
        what: (dims.get(what.partition("_")[0], dims[""]), torch.stack(values).numpy())
        for what, values in found.items()
    }
    data |= {
        name: ("weight", row.numpy())
        for name, row in zip(("second", "second_se", "second_theory", "square"), moments, strict=True)
    }
    off, theirs = zip(*(of.lag(problem, rate) for rate in rates), strict=True)
    data |= {"lag": ("rate", list(off)), "lag_theory": ("rate", list(theirs))}
    coords = {"feed": list(FEEDS), "optimiser": list(of.OPTIMISERS), "steps": steps, "scale": scales, "rate": rates}
    return xr.Dataset(data, coords | {"weight": range(len(g))}, {"d": len(g)})


def problem_of(batch: int, seed: int) -> Any:
    """An MLP of 4 × 4 digits in float64, whose weights have the variance 1 / fan-in, and a batch."""
    import torch

    import fgvar

    x, y = fgvar.data.load("digits").sample(batch, seed=seed, dtype=torch.float64)
    net = fgvar.networks.MLP(16, width=4, depth=2, classes=10, activation="tanh", seed=seed).double()
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 2:
                p.mul_(1 / (p.shape[1] ** 0.5 * 0.1))  # drawn with the standard deviation 0.1
    return fgvar.Problem(net, "cross_entropy", (torch.nn.functional.avg_pool2d(x, 2).flatten(1), y))


def feeds(minibatch: int) -> dict[str, Any]:
    """The gradient estimators whose streams are passed on."""
    import fgvar

    minibatches = fgvar.Stochastic(sample=fgvar.sampling.Draw(minibatch))
    return dict(
        zip(FEEDS, (fgvar.ExactGradient(), minibatches, fgvar.scheme("FG-A"), fgvar.scheme("FG-W")), strict=True)
    )


def report(dataset: Any) -> str:
    """A line for each stream and optimiser: cosines after some steps, with theory after the last."""
    from fgvar.plot import intervals

    data, last = intervals.over_seeds(dataset), int(dataset["steps"][-1])
    shown = [int(step) for step in dataset["steps"].values[::3]]
    heads = "".join(f"{f'T = {step}':>10}" for step in shown)
    lines = [f"{'':<11}{'':<18}{heads}{'':>4}T = {last:<14}{'theory':<9}over Adam"]
    for feed in FEEDS:
        for name in data["optimiser"].values:
            its = data.sel(feed=feed, optimiser=name)
            values = "".join(f"{its['cosine'].sel(steps=step).item():>10.3f}" for step in shown)
            end = its.sel(steps=last)
            value, error, exact, over = (end[key].item() for key in ("cosine", "cosine_se", "cosine_theory", "over"))
            lines.append(
                f"{feed:<11}{name:<18}{values}{value:>10.4f} ± {error:<8.2g}{exact:<9.4f}{over:+.4f} "
                f"± {end['over_se'].item():.1g}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
