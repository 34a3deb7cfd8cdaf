"""Finite differences: how does their step trade bias against cancellation?

Question   Schemes without forward-mode differentiation (SPSA, MeZO, node perturbation) take a step. How far is
           their estimate from that of the exact directional derivative, for the same noise?
Claim      On a smooth network the distance grows like step (forward) and step² (central), the bias of both like
           step²; below, cancellation grows like eps/step. So float32 leaves a narrow window around eps^(1/2)
           (forward) or eps^(1/3) (central), kinks (ReLU) take the higher order away, and a LocalMixer of few channels
           a group (kinks and narrow layer norms) narrows the window further: a step of 1e-3 is off by percents.
Shown      Drawn values with standard errors, of paired draws: every step sees the noise of the exact derivative.
Cost       About four minutes on one core, half of it on two (--workers 2); --smoke: a few seconds.
Run        python studies/finite_differences.py            writes results/finite_differences.nc, .pdf and .png
Full size  python studies/finite_differences.py --draws 32768 --width 64 --seed 0 1 2      (hours; not done here)
"""

from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

NETWORKS, DTYPES, SPACES = ("tanh", "relu", "mixer"), ("float32", "float64"), ("weights", "activities")
Array = Any


@dataclass(frozen=True)
class Config:
    """Compare finite differences with the exact derivative, step by step, on small networks on digits."""

    networks: tuple[str, ...] = NETWORKS
    """An MLP's activation (a smooth one for clean orders, one with kinks), or a LocalMixer."""
    dtypes: tuple[str, ...] = DTYPES
    powers: tuple[float, float] = (-8.0, 0.0)
    """Steps go from ten to the first to ten to the second, in units of the direction."""
    steps: int = 17
    """How many, evenly spaced in the logarithm."""
    width: int = 16
    """Units of the MLP's two hidden layers, channels of the LocalMixer."""
    epochs: int = 1
    """Of backprop before, for the LocalMixer: at first, with biases of 0, dead groups stand exactly on a kink, where
    no difference comes close to what reverse or forward mode calls the derivative, however small the step."""
    batch: int = 32
    draws: int = 1024
    """Of each estimator; a multiple of the blocks."""
    blocks: int = 32
    """Of draws: their means give the bias and, left out one by one, its error."""
    run: Run = Options(RESULTS / "finite_differences.nc")


def main(config: Config) -> None:
    if config.run.smoke:
        config = replace(
            config, networks=config.networks[:1], steps=3, width=4, epochs=0, batch=4, draws=32, blocks=8
        )
    if config.steps < 2 or config.blocks < 3 or config.draws < config.blocks or config.draws % config.blocks:
        raise ValueError(
            f"{config.steps} steps and {config.draws} draws in {config.blocks} blocks, expected 2 steps or more, "
            "3 blocks or more, and draws that are a multiple of the blocks"
        )
    if unknown := {*config.networks} - {*NETWORKS} | {*config.dtypes} - {*DTYPES}:
        raise ValueError(f"{sorted(unknown)}: networks are {', '.join(NETWORKS)}, dtypes {' and '.join(DTYPES)}")
    from figures import finite_differences

    axes = {"network": config.networks, "dtype": config.dtypes, "space": SPACES}
    settings = {
        name: getattr(config, name) for name in ("powers", "steps", "width", "epochs", "batch", "draws", "blocks")
    }
    dataset = common.sweep(cell, axes, settings, config.run)
    common.publish(dataset, config, finite_differences, report(dataset))


def cell(
    *, network: str, dtype: str, space: str, seed: int, powers: tuple[float, float], steps: int, draws: int,
    blocks: int, **made: int,
) -> Any:  # fmt: skip
    """Both differences at all steps, in one space of one network in one precision."""
    import numpy as np
    import torch

    import fgvar
    from fgvar.measurement import provenance

    at = problem(network, dtype, seed=seed, **made)
    perturbed = {"weights": fgvar.WeightSpace(), "activities": fgvar.ActivitySpace()}[space]
    found = compared(at, perturbed, np.geomspace(10.0 ** powers[0], 10.0 ** powers[1], steps), draws, blocks, seed)
    about = {"route": "drawn", "draws": draws, "batch_size": made["batch"]}
    return found.assign_attrs(about | provenance(torch.device("cpu"), at.dtype))


def problem(network: str, dtype: str, *, width: int, epochs: int, batch: int, seed: int) -> Any:
    """The same network and batch in either precision."""
    import torch

    import fgvar

    images, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    kind = getattr(torch, dtype)
    shape, classes, some = images.image_shape, images.classes, {"seed": seed}
    model: torch.nn.Module
    if network == "mixer":
        model = fgvar.networks.LocalMixer(shape, classes, blocks=2, patches=2, channels=width, groups=4, **some)
    else:
        model = fgvar.networks.MLP(shape, width=width, depth=2, classes=classes, activation=network, **some)
    at = fgvar.Problem(model.to(kind), "cross_entropy", images.sample(batch, seed=seed + 1, dtype=kind))
    if network != "mixer" or epochs == 0:
        return at
    schedule = fgvar.Schedule(epochs)
    run = fgvar.train(model.float(), fgvar.scheme("BP"), (images, test), schedule, seed=seed, device="cpu")
    return at.at({name: value.to(kind) for name, value in run.params.items()})


def compared(at: Any, space: Any, steps: Array, draws: int, blocks: int, seed: int) -> Any:
    """Distance and squared bias of both differences at all steps, from the exact derivative, for equal noise."""
    import numpy as np
    import torch
    import xarray as xr

    import fgvar
    from fgvar.measurement import estimates, ranges

    oracles = {"forward": fgvar.oracles.ForwardDifference, "central": fgvar.oracles.CentralDifference}
    exact = fgvar.Estimator(space)
    others = [[fgvar.Estimator(space, oracle=oracle(float(h))) for h in steps] for oracle in oracles.values()]
    randomness = exact.randomness(at)

    def flat(gradients: Any) -> Array:
        """[draws, perturbed numbers] in float64, so that the comparison adds no rounding of its own."""
        return torch.cat([gradients[name].flatten(1).double() for name in at.perturbed], 1).numpy()

    lengths, gaps, means = [], [], []
    for window in ranges(0, draws, draws // blocks):
        noise = randomness.sample(seed, window, dtype=at.dtype)
        base = flat(estimates(exact, at, noise))
        differences = [[flat(estimates(one, at, noise)) - base for one in row] for row in others]
        lengths.append((base**2).sum(1))
        gaps.append([[(gap**2).sum(1) for gap in row] for row in differences])
        means.append([[gap.mean(0) for gap in row] for row in differences])
    target = flat({name: g[None] for name, g in exact.target(at).items()})[0]
    distance, distance_se = ratio(np.concatenate(gaps, -1), np.concatenate(lengths))
    sq_bias, sq_bias_se = squared_norm(np.stack(means, -2) / np.linalg.norm(target))
    dims = ("oracle", "step")
    described = {
        "distance": ("distance √(E‖ĝ_step − ĝ‖² / E‖ĝ‖²) from the exact derivative's estimate", distance),
        "distance_se": ("its standard error", distance_se),
        "sq_bias": ("squared bias ‖E(ĝ_step − ĝ)‖² / ‖target‖², unbiased", sq_bias),
        "sq_bias_se": ("its standard error", sq_bias_se),
    }
    return xr.Dataset(
        {name: (dims, value, {"long_name": what, "units": "1"}) for name, (what, value) in described.items()}
        | {"gradient_norm": ((), np.linalg.norm(target)), "loss": ((), float(at.loss()))},
        coords={"oracle": list(oracles), "step": steps},
    )


def ratio(gaps: Array, lengths: Array) -> tuple[Array, Array]:
    """√(mean gap² / mean length²) over the last axis, with its error.

    Averaged before dividing: a weight perturbation's estimate is c·u, and 1/|c| has no mean.
    """
    import numpy as np

    square = gaps.mean(-1) / lengths.mean()
    error = (gaps - square[..., None] * lengths).std(-1, ddof=1) / np.sqrt(len(lengths)) / lengths.mean()
    found = np.sqrt(square)
    return found, np.divide(error, 2 * found, out=np.zeros_like(found), where=found > 0)


def squared_norm(means: Array) -> tuple[Array, Array]:
    """‖E d‖² from independent block means of d [..., blocks, numbers]: products of different blocks, jackknifed."""
    import numpy as np

    blocks = means.shape[-2]
    gram = means @ np.swapaxes(means, -1, -2)
    gram = gram * (1 - np.eye(blocks))
    total = gram.sum((-1, -2))
    without = (total[..., None] - 2 * gram.sum(-1)) / ((blocks - 1) * (blocks - 2))
    error = np.sqrt((blocks - 1) * without.var(-1))
    return total / (blocks * (blocks - 1)), error


def report(dataset: Any) -> str:
    """The best step of every cell, and what it leaves."""
    from fgvar.plot import intervals

    lines = ["", "network  dtype    space       oracle    best step   distance (± standard error)"]
    cells = intervals.over_seeds(dataset).stack(cell=("network", "dtype", "space", "oracle"))
    for cell in cells["cell"].values:
        its = cells.sel(cell=cell)
        best = its.isel(step=int(its["distance"].argmin("step")))
        network, dtype, space, oracle = cell
        lines.append(
            f"{network:<9}{dtype:<9}{space:<12}{oracle:<10}{best['step'].item():<12.2g}"
            f"{best['distance'].item():.2g} ± {best['distance_se'].item():.1g}"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
