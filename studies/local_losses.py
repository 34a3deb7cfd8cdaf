"""Local losses: at blocks, for patches, for channel groups, and all combinations (Fig. 6 of Ren et al. 2023).

Question   Which local losses make activity perturbation learn, and what does each do to the noise of its gradient?
Claim      Every kind lowers the error of LG-FG-A, and all together most; what a kind buys is noise, for replicating a
           loss over patches or groups leaves its exact gradient, and with it LG-BP, as it is.
Shown      A small proxy of the paper's figure: a LocalMixer of two blocks on digits, a few hundred steps. Test error
           at the end, a mean over seeds, each scheme at the rate (of --lr) with the lowest final training loss,
           beside a frozen trunk. At the same initialisations, given one batch: relative noise variance, exact;
           cosines of LG-FG-A, drawn (replayed).
Cost       About ten minutes on one core, five on two (--workers 2); --smoke: seconds.
Run        python studies/local_losses.py            writes results/local_losses.nc, .pdf and .png
Full size  python studies/local_losses.py --data cifar10 --blocks 4 --patches 8 --channels 512 --groups 16 \
               --epochs 200 --batch 128 --lr 0.025 0.1 --probe-batch 8      (a GPU's work, not done here)
"""

import itertools
from dataclasses import asdict, dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

LOSSES = (
    "none", "group", "patch", "patch + group", "block", "block + group", "block + patch", "block + patch + group",
)  # fmt: skip
SETTINGS = ("data", "lr", "blocks", "patches", "channels", "epochs", "batch", "draws", "probe_batch")


@dataclass(frozen=True)
class Config:
    """Train by, and measure, LG-FG-A and LG-BP with every combination of local losses."""

    losses: tuple[str, ...] = LOSSES
    data: str = "digits"
    """Data set: "digits", a directory, or a name on the Hugging Face hub."""
    lr: tuple[float, ...] = (0.02, 0.1)
    """Rates to choose from, by the training loss at the end."""
    blocks: int = 2
    patches: int = 2
    channels: int = 64
    groups: int = 8
    epochs: int = 15
    batch: int = 64
    draws: int = 256
    """Of the cosines."""
    probe_batch: int = 32
    """Examples that gradients are measured on."""
    run: Run = Options(RESULTS / "local_losses.nc", seed=(0, 1, 2))


def main(config: Config) -> None:
    from figures import local_losses

    if config.run.smoke:
        config = smoke(config, losses=("none", "block + patch + group"))
    settings = {name: asdict(config)[name] for name in SETTINGS}
    axes = {"losses": config.losses, "groups": (config.groups,)}
    dataset = chosen(common.sweep(cell, axes, settings, config.run))
    common.publish(dataset, config, local_losses, report(dataset))


def smoke(config: Any, **axes: Any) -> Any:
    """The configuration with these axes, one seed, and little of everything else."""
    little = {"blocks": 1, "channels": 16, "lr": (0.1,), "epochs": 1, "batch": 256, "draws": 32, "probe_batch": 8}
    return replace(config, run=replace(config.run, seed=config.run.seed[:1]), **little, **axes)


def cell(
    *, losses: str, groups: int, seed: int, data: str, lr: list[float], blocks: int, patches: int, channels: int,
    epochs: int, batch: int, draws: int, probe_batch: int,
) -> Any:  # fmt: skip
    """One network: its gradients at initialisation, and its curves under every scheme and rate.

    What is exact does not know whether a loss is replicated, and is trained where it is not.
    """
    import xarray as xr

    import fgvar

    images, test = (fgvar.data.load(data, split) for split in ("train", "test"))
    model = fgvar.networks.LocalMixer(
        images.image_shape,
        images.classes,
        blocks=blocks,
        patches=patches,
        channels=channels,
        groups=groups,
        seed=seed,
    )
    estimators = estimators_of(losses)
    problem = fgvar.Problem(model, "cross_entropy", images.sample(probe_batch, seed=seed + 1))
    found = measured({k: e for k, e in estimators.items() if k != "frozen"}, problem, draws, seed)
    curves = {
        name: [
            fgvar.train(model, estimator, (images, test), fgvar.Schedule(epochs, batch, rate), seed=seed).dataset[
                ["loss", "train_error", "test_error"]
            ]
            for rate in lr
        ]
        for name, estimator in estimators.items()
    }
    trained = xr.concat(
        [
            xr.concat(runs, xr.IndexVariable("lr", list(lr)), combine_attrs="drop_conflicts")
            for runs in curves.values()
        ],
        xr.IndexVariable("scheme", list(curves)),
        combine_attrs="drop_conflicts",
    )
    return trained.merge(found, join="outer", combine_attrs="drop_conflicts")


def estimators_of(losses: str) -> dict[str, Any]:
    """What is trained with these losses, by name."""
    import fgvar

    kinds = set(losses.split(" + ")) - {"none"}
    if unknown := kinds - {"block", "patch", "group"}:
        raise ValueError(f"losses has {sorted(unknown)}, expected one of: {', '.join(LOSSES)}")
    words = fgvar.LocalLosses(block="block" in kinds, patch="patch" in kinds, group="group" in kinds)
    found = {"LG-FG-A": fgvar.scheme("LG-FG-A", losses=words)}
    if not kinds & {"patch", "group"}:
        found |= {"LG-BP": fgvar.scheme("LG-BP", losses=words), "frozen": fgvar.scheme("frozen")}
    return found


def measured(estimators: dict[str, Any], problem: Any, draws: int, seed: int) -> Any:
    """Relative variance, exact, and cosines to target and backprop, drawn where there is noise."""
    import torch

    import fgvar
    from fgvar.measurement import ENDS

    its = {"layer": "perturbed"}
    # In float32 the closed form takes the rounding behind narrow layer norms for credit that is missing.
    exact = fgvar.measure(estimators, problem.to(torch.float64), route="exact").sel(its, drop=True)
    replayed = {
        name: replace(one, oracle=fgvar.oracles.Replay()) if isinstance(one, fgvar.Estimator) else one
        for name, one in estimators.items()
    }
    drawn = fgvar.measure(replayed, problem, draws=draws, seed=seed).sel(its, drop=True)
    found = drawn[["cosine", *(f"cosine{end}" for end in ENDS)]].assign(relative_variance=exact["relative_variance"])
    return found.rename(estimator="scheme")


def chosen(dataset: Any) -> Any:
    """With ``error``, the test error at the end of the best rate: that of the lowest mean final training loss."""
    import numpy as np

    last = dataset.isel(epoch=-1)
    best = last["loss"].mean("seed").fillna(np.inf).argmin("lr")
    dataset["error"] = last["test_error"].isel(lr=best).drop_vars("lr").assign_attrs(units="1")
    nobody = last["loss"].isnull().all(("seed", "lr"))
    dataset["best_lr"] = dataset["lr"].isel(lr=best).drop_vars("lr").where(~nobody)
    dataset["error"].attrs["long_name"] = "test error at the end, at the rate with the lowest training loss"
    dataset["best_lr"].attrs["long_name"] = "that rate"
    return dataset


def report(dataset: Any) -> str:
    """A line for each network and scheme: means over seeds."""
    heads = f"{'test error (range)':>24}{'rate':>7}{'rel. variance':>15}{'cosine to target':>18}"
    lines = ["", f"{'losses':<22}{'groups':>6} {'':<9}{heads}"]
    means = dataset[["relative_variance", "cosine"]].mean("seed")
    for place in itertools.product(*(dataset[name].values for name in ("losses", "groups", "scheme"))):
        at = dict(zip(("losses", "groups", "scheme"), place, strict=True))
        error, rate, mean = dataset["error"].sel(at), dataset["best_lr"].sel(at).item(), means.sel(at)
        if rate != rate:  # not trained here
            continue
        low, high = error.min().item(), error.max().item()
        lines.append(
            f"{place[0]:<22}{place[1]:>6} {place[2]:<9}{error.mean().item():>9.1%} ({low:.1%} – {high:.1%}){rate:>7g}"
            f"{mean['relative_variance'].item():>15.4g}{mean['cosine'].sel(reference='target').item():>18.3f}"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
