"""Initialisation: what does GradInit do to the noise of gradients, layer by layer?

Question   GradInit rescales a network's tensors before training. Does it lower the relative variance of minibatch
           gradients, and that of forward gradients, in each layer of a residual network?
Claim      Not here. From Kaiming's start, of 8 layers × 10 seeds, relative data variance falls in 0 without norms,
           where it rises 6.7 to 12 times by layer, and in 10 with layer norms (1.6 to 2.6 times); from weights of 0.1
           in 34 and 25. GradInit does what it is made for: losses of 10.9 and 2.88 come to 2.29 and 2.28, about that
           of chance, and gradients' norms below 1; there examples agree less: small variance before was that of a
           loss far above chance. FG-A's variance of all layers is 0.78 and 1.57 times what it was, that of single
           layers up to 302 times, where blocks are turned down to a hundredth. FG-W's is d + 1 = 1953 from any start.
Shown      All values are exact, given one batch: data variance over the squared norm of the gradient, and variance of
           FG-A over it, of each layer, before and after; geometric means of ten seeds (network and batches) with
           95 % intervals over them. The line d + 1 is FG-W's, of all layers together, whose variance is
           (d + 1)‖∇‖². Two rates of GradInit's own Adam, 0.01 and 0.003 (5 in place of 10 with layer norms), agree.
Differs    Zhu et al. 2021 (2102.08098) show a lower cross-batch variance in all layers but the last of networks with
           batch norm on CIFAR-10, and better training. Batch norm in train mode couples the examples of a batch and
           is refused by fgvar, so that layer norms stand in for it; networks have 8 layers of 16 units; nothing is
           trained afterwards. The step, γ = 1, η = 0.1, clip and floor are those of the authors' scripts.
Cost       About four minutes on one core, half of it on two (--workers 2); --smoke: seconds.
Run        python studies/initialisation.py            writes results/initialisation.nc, .pdf and .png
"""

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

NETS, WHEN = ("plain", "layer norm"), ("before", "after")
INPUTS, CLASSES = 16, 10  # 4 × 4 digits


@dataclass(frozen=True)
class Config:
    """Measure noise before and after GradInit, from two starts, without norms and with layer norms."""

    starts: tuple[str, ...] = ("constant", "Kaiming")
    """Standard deviations of weights: 0.1 everywhere, or √(2 / fan-in)."""
    lr: tuple[float, ...] = (0.01, 0.003)
    """Of GradInit's Adam."""
    steps: int = 300
    eta: float = 0.1
    gamma: float = 1.0
    blocks: int = 3
    width: int = 16
    batch: int = 64
    batches: int = 10
    """That GradInit sees over and over."""
    run: Run = Options(RESULTS / "initialisation.nc", seed=tuple(range(10)))


def main(config: Config) -> None:
    from figures import initialisation

    if config.run.smoke:
        config = replace(
            config, steps=4, blocks=1, batches=2, lr=config.lr[:1], run=replace(config.run, seed=config.run.seed[:2])
        )
    if unknown := set(config.starts) - {"constant", "Kaiming"}:
        raise ValueError(f"starts has {sorted(unknown)}, expected constant, Kaiming or both")
    names = ("steps", "eta", "gamma", "blocks", "width", "batch", "batches")
    settings = {name: getattr(config, name) for name in names}
    axes = {"net": NETS, "start": config.starts, "lr": config.lr}
    dataset = common.sweep(cell, axes, settings, config.run)
    common.publish(dataset, config, initialisation, report(dataset))


def cell(
    *, net: str, start: str, lr: float, steps: int, eta: float, gamma: float, blocks: int, width: int, batch: int,
    batches: int, seed: int,
) -> Any:  # fmt: skip
    """One network: its noise at the start and after GradInit, by layer."""
    import xarray as xr

    import fgvar
    from studies.residual_network import Residual

    model = Residual(INPUTS, width, blocks, CLASSES, norm=net == "layer norm", start=start, seed=seed).double()
    probe, *others = (digits(batch, 1000 * seed + number) for number in range(batches + 1))
    problem = fgvar.Problem(fgvar.with_sites(model), "cross_entropy", probe)
    params = fgvar.networks.gradinit(problem, others, eta=eta, gamma=gamma, steps=steps, lr=lr)
    found = [noise(problem), noise(problem.at(params))]
    factors = [float((params[name] * p).sum() / p.square().sum()) for name, p in problem.params.items()]
    both = xr.concat(found, xr.IndexVariable("when", list(WHEN)))
    sizes = {"d": sum(p.numel() for p in problem.params.values())}
    return both.assign(factor=("layer", [*factors, float("nan")])).assign_attrs(sizes)


def digits(batch: int, seed: int) -> Any:
    """A batch of 4 × 4 digits."""
    import torch

    import fgvar

    x, y = fgvar.data.load("digits").sample(batch, seed=seed, dtype=torch.float64)
    return torch.nn.functional.avg_pool2d(x, 2).flatten(1), y


def noise(problem: Any) -> Any:
    """Relative data variance and FG-A's and FG-W's relative variance, by layer and of all; loss, gradient's norm."""
    import fgvar

    schemes = {name: fgvar.scheme(name) for name in ("FG-A", "FG-W")}
    measured = fgvar.measure(schemes, problem, route="exact").sel(reference="target", drop=True)
    measured = measured.drop_sel(layer="total")  # the same as perturbed: nothing learns exactly here
    names = ["embedding", *(f"{n + 1}{half}" for n in range((len(problem.params) - 2) // 2) for half in "ab"), "head"]
    measured = measured.assign_coords(layer=[*names, "all"])
    size = measured["gradient_norm"].sel(estimator="FG-A", drop=True)
    return measured[["relative_variance"]].assign(
        data_variance=measured["data_variance"].sel(estimator="FG-A", drop=True) / size**2,
        loss=float(problem.loss()),
        norm=float(size.sel(layer="all")),
    )


def report(dataset: Any) -> str:
    """A line for each network and start: after / before by layer, and the count of layers improved."""
    from figures import initialisation as figure

    heads = "".join(f"{name:>10}" for name in dataset["layer"].values)
    lines = ["after / before, geometric means over seeds", f"{'':<44}{heads}  lower"]
    for name in figure.QUANTITIES:
        values, _, _ = figure.mean(figure.quantity(dataset, name))
        ratio = values.sel(when="after") / values.sel(when="before")
        lower = figure.improved(dataset, name)
        for net, start, lr in product(*(dataset[axis].values for axis in ("net", "start", "lr"))):
            at = {"net": net, "start": start, "lr": lr}
            row = "".join(f"{value:>10.3g}" for value in ratio.sel(at).values)
            count = lower.sel(at)
            lines.append(f"{name:<15}{net:<12}{start:<10}{lr:<7g}{row}  {int(count.sum())} of {count.size}")
    return "\n".join(lines)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
