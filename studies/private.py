"""Private gradients: what do projection, clip, sampling and noise each cost, and which rank is best?

Question   A private gradient is sampled, projected on r rows and columns of every weight, clipped and noised. Which
           of these does the error come from, and does a low rank repay in noise what it leaves out?
Claim      Squared biases of projection and clip add up exactly, for they are orthogonal, and so do the variances of
           sampling and noise: r(m + n − r) σ²C²/(qN)² a matrix with both carriers, r m σ²C²/(qN)² with the left ones.
           In the mean the best rank falls from 4 to 2 as σ grows from 0.5 to 2, in six of ten networks, where it has
           1.29 times the efficiency of DP-SGD with both carriers and 1.81 times with the left ones alone, which are
           biased more and take less noise. All rows share one C, though left carriers are shorter than both.
Shown      Exact parts, means over ten LocalMixers after 60 steps of SGD on digits, beside drawn totals. C is the
           median norm of the examples' gradients (Abadi et al. 2016), for all ranks; σ is the noise over C on the
           sum, for all ranks, too, so that each release gives away as much. No ε is claimed, which counts releases.
           Ito et al. 2022 keep few carrier numbers by a strategy of which we know no text: top and random ones after
           the noise (TopK, RandomK) stand in for it, and neither is theirs. Nothing is trained by these gradients.
Cost       About two minutes on one core, half of it on two (--workers 2); --smoke: seconds.
Run        python studies/private.py            writes results/private.nc, .pdf and .png
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from studies import common
from studies.common import RESULTS, Options, Run

if TYPE_CHECKING:  # which a command line need not load
    from torch import Tensor

    from fgvar import Problem, Stochastic

LAYERS = ("block0.channel.weight", "block1.channel.weight", "readout.linear.weight", "total")
PARTS = ("projection", "clip", "sampling", "noise")
CARRIERS = {"both carriers": False, "left carriers": True}
SPARSE = ("top quarter", "random quarter")
RATE, SHARE = 0.25, 0.25  # of the examples that are drawn, of the carriers' numbers that are kept
TRAINED, SIZE, LR = 60, 32, 0.2  # steps of SGD ahead of the measurement, their minibatch and size


@dataclass(frozen=True)
class Config:
    """Measure the parts of the error of private low-rank gradients against the rank."""

    rank: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    sigma: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Noise over the clip's norm, on the sum. Parts and draws are of the second."""
    examples: int = 512
    channels: int = 32
    draws: int = 32
    run: Run = Options(RESULTS / "private.nc", seed=tuple(range(10)))


def main(config: Config) -> None:
    from figures import private

    if config.run.smoke:
        run = replace(config.run, seed=config.run.seed[:1])
        config = replace(config, run=run, rank=config.rank[:2], examples=32, channels=8)
    if len(config.sigma) < 2 or not all(sigma > 0 for sigma in config.sigma):
        raise ValueError(f"sigma is {list(config.sigma)}, expected two positive ones at least")
    settings = {name: getattr(config, name) for name in ("rank", "sigma", "examples", "channels", "draws")}
    dataset = common.sweep(cell, {}, settings, config.run)
    dataset.attrs["rate"] = RATE
    common.publish(dataset, config, private, report(dataset))


def cell(*, rank: list[int], sigma: list[float], examples: int, channels: int, draws: int, seed: int) -> Any:
    """One network: parts of the error and efficiency of every rank and of DP-SGD, exact, and the totals drawn."""
    import xarray as xr

    problem = halfway(examples, channels, seed)
    clip = median_norm(problem)
    kinds = []
    for left_only in CARRIERS.values():
        each = [exact(low_rank(r, left_only), problem, clip, sigma) for r in rank]
        kinds.append(xr.concat(each, xr.IndexVariable("rank", list(rank))))
    found = xr.concat(kinds, xr.IndexVariable("kind", list(CARRIERS)))
    whole = exact((), problem, clip, sigma)
    found = found.merge(whole.rename({name: f"whole_{name}" for name in whole}))
    found["gradient_square"] = "layer", by_layer(problem.backprop())
    each = [drawn(r, problem, clip, sigma[1], draws, seed) for r in rank]
    measured = xr.concat(each, xr.IndexVariable("rank", list(rank)), combine_attrs="drop_conflicts")
    found = found.merge(measured, combine_attrs="drop_conflicts")
    return found.assign(
        clip_norm=clip, std=std_of(clip, sigma[1], problem), matrix=(("layer", "side"), sides(problem))
    )


def halfway(examples: int, channels: int, seed: int) -> "Problem":
    """A LocalMixer after some steps of SGD, without the local heads, which end-to-end gradients do not use."""
    import torch

    import fgvar

    images = fgvar.data.load("digits")
    net = fgvar.networks.LocalMixer(
        images.image_shape, images.classes, blocks=2, patches=2, channels=channels, groups=4, seed=seed
    ).double()
    for name, p in net.named_parameters():
        p.requires_grad_(".head." not in name)
    problem = fgvar.Problem(net, "cross_entropy", images.sample(examples, seed=seed, dtype=torch.float64))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(TRAINED):
        g = problem.rows(torch.randint(examples, (SIZE,), generator=generator)).backprop()
        problem = problem.at({name: p - LR * g[name] for name, p in problem.params.items()})
    return problem


def median_norm(problem: "Problem") -> float:
    """Of the examples' gradients."""
    import torch

    def norm(example: "Problem") -> "Tensor":
        return torch.stack([g.square().sum() for g in example.backprop().values()]).sum().sqrt()

    return float(problem.per_example(norm).median())


def low_rank(rank: int, left_only: bool = False) -> tuple[Any, ...]:
    """The way to the carriers."""
    from fgvar import transforms

    return (transforms.Carriers(rank, left_only),)


def private(there: tuple[Any, ...], clip: float, std: float, *sparse: Any) -> "Stochastic":
    """Sampled, carried there, clipped and noised, and brought back; without a way there, DP-SGD."""
    import fgvar
    from fgvar import sampling, transforms

    back = tuple(word.back for word in there)
    return fgvar.Stochastic(
        sample=sampling.Poisson(RATE),
        each=(*there, transforms.Clip(clip)),
        then=(transforms.AddNoise(std), *sparse, *back),
    )


def std_of(clip: float, sigma: float, problem: "Problem") -> float:
    """σC/(qN): of the sum's noise, in the mean."""
    return sigma * clip / (RATE * problem.batch_size)


def exact(there: tuple[Any, ...], problem: "Problem", clip: float, sigma: list[float]) -> Any:
    """Parts of the squared error by layer, at the second σ, its squared bias, and the total's efficiency by σ."""
    import xarray as xr

    from fgvar import theory

    g = problem.backprop()
    silent, noisy = (private(there, clip, std) for std in (0.0, std_of(clip, sigma[1], problem)))
    seen = theory.mean(private(there, float("inf"), 0.0), problem)
    mean, sampling = theory.mean(silent, problem), theory.variance(silent, problem)
    noise = by_layer(difference(theory.variance(noisy, problem), sampling), sums=True)
    parts = [by_layer(difference(seen, g)), by_layer(difference(mean, seen)), by_layer(sampling, sums=True), noise]
    inner, squares = sum(float((mean[k] * g[k]).sum()) for k in g), (by_layer(one)[-1] for one in (mean, g))
    signal, square = squares
    spread = [parts[2][-1] + (s / sigma[1]) ** 2 * noise[-1] for s in sigma]
    return xr.Dataset(
        {
            "energy": (("part", "layer"), parts),
            "sq_bias": ("layer", by_layer(difference(mean, g))),
            "efficiency": ("sigma", [inner**2 / (square * (signal + v)) for v in spread]),
        },
        coords={"part": list(PARTS), "layer": list(LAYERS), "sigma": list(sigma)},
    )


def drawn(rank: int, problem: "Problem", clip: float, sigma: float, draws: int, seed: int) -> Any:
    """Squared error by layer with both carriers, and efficiency of these, of the left and of sparse ones."""
    import fgvar
    from fgvar import transforms
    from fgvar.measurement import ENDS

    std, there = std_of(clip, sigma, problem), low_rank(rank)
    rows = {kind: private(low_rank(rank, left), clip, std) for kind, left in CARRIERS.items()}
    for name, word in zip(SPARSE, (transforms.TopK(SHARE), transforms.RandomK(SHARE)), strict=True):
        rows[name] = private(there, clip, std, word)
    measured = fgvar.measure(rows, problem, draws=draws, seed=seed).sel(reference="target", drop=True)
    both = measured.sel(estimator="both carriers", layer=list(LAYERS), drop=True)
    # Both estimates are of squares of the same draws; their errors are added as if they were independent.
    error = both["sq_bias"] + both["variance"]
    names = [f"efficiency{end}" for end in ("", *ENDS)]
    total = measured[names].sel(layer="total", drop=True).rename({name: f"drawn_{name}" for name in names})
    spread = (both["sq_bias_se"] ** 2 + both["variance_se"] ** 2) ** 0.5
    return total.rename(estimator="row").assign(drawn_error=error, drawn_error_se=spread)


def sides(problem: "Problem") -> list[tuple[float, float]]:
    """Rows and columns of the matrix of each layer."""
    none = float("nan"), float("nan")
    return [tuple(problem.params[name].shape) if name in problem.params else none for name in LAYERS]


def difference(one: Mapping[str, "Tensor"], other: Mapping[str, "Tensor"]) -> dict[str, "Tensor"]:
    return {name: value - other[name] for name, value in one.items()}


def by_layer(gradient: Mapping[str, "Tensor"], *, sums: bool = False) -> list[float]:
    """Squares, or sums of variances, of each of the LAYERS."""
    each = {name: float((g if sums else g.square()).sum()) for name, g in gradient.items()}
    return [each.get(name, sum(each.values())) for name in LAYERS]


def relative(dataset: Any, name: str) -> Any:
    """The mean over seeds, over that of ‖∇L‖², layer by layer."""
    return dataset[name].mean("seed") / dataset["gradient_square"].mean("seed")


def report(dataset: Any) -> str:
    """A line for each kind and rank: parts of the total error, and efficiency at each σ."""
    heads = "".join(f"{part:>12}" for part in PARTS) + "".join(f"{f'σ = {s:g}':>10}" for s in dataset["sigma"].values)
    lines = [f"{'of the total; efficiency':<24}{heads}"]
    energy, efficiency = relative(dataset, "energy").sel(layer="total"), dataset["efficiency"].mean("seed")
    places = [(kind, int(r)) for kind in CARRIERS for r in dataset["rank"].values]
    rows = {
        f"{kind}, rank {r}": (energy.sel(kind=kind, rank=r), efficiency.sel(kind=kind, rank=r)) for kind, r in places
    }
    whole = relative(dataset, "whole_energy").sel(layer="total")
    rows["DP-SGD"] = whole, dataset["whole_efficiency"].mean("seed")
    for name, (parts, shares) in rows.items():
        told = "".join(f"{value:>12.4f}" for value in parts.values) + "".join(f"{v:>10.4f}" for v in shares.values)
        lines.append(f"{name:<24}{told}")
    return "\n".join(lines)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
