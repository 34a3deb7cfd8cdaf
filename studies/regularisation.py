"""Regularisation: does noise or locality bring LG-FG-A below backprop in test error on CIFAR-10?

Question   Where backprop overfits, LG-FG-A has the lower test error (Ren et al. 2023, Table 3: 30.7 % and 33.6 % on
           CIFAR-10), which the paper lets its noise and its local losses explain together. Which of them does it?
Claim      Rules, written before any error of these runs was read (one was changed while the first ran), are computed
           from the dataset. E is the test error of LG-FG-A less that of BP, L less that of LG-BP, both paired over
           seeds. A rule holds where the 95 % t-interval of its every difference lies below 0, fails where one lies
           above, and is undecided else:
             effect       E: there is something to explain; where it does not hold, nothing else is judged
             locality     (LG-BP − BP) − E/2: exact gradients of the local losses alone bring more than half of E
             noise        L − E/2, (BP + noise − BP) − L/2 and (LG-BP + noise − LG-BP) − L/2: the perturbation
                          brings more than half of E, and isotropic noise of its variance more than half of that, on
                          both means
             weight decay (BP + decay − BP) − E/2: any regularisation brings more than half of E
           Noise and locality both fail: it is neither the amount of noise nor the losses, but where the noise points
           or how it changes with the loss. Decay holds: common regularisation does as much.
           Seen before: pilot runs on 5,000 images (seed 100, 2,000 test images; BP 57 %, LG-BP 56 %, LG-FG-A 53 %).
Shown      Test error, train error and their gap against the number of training images, and the differences of the
           rules. A small LocalMixer with the paper's 32 channels for each group loss, no augmentation, as many
           updates whatever the images. Noise is matched in every tensor at every step (`MatchedNoise`). A seed is
           another subset, network, order and noise. Rates and decay have the lowest mean error on held-out training
           images; the test split is looked at once, at the end of a run.
Cost       360 runs of one to four minutes on one core: about six hours on two (--workers 2). --smoke: seconds.
Run        python studies/regularisation.py --data DIR_OR_NAME --workers 2     goes on where it stopped
           writes results/regularisation.nc, .pdf and .png of the seeds whose cells are all done; --collect: at once;
           --images of some sizes, then --onto what is stored: in pieces.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from studies import common, training
from studies.common import RESULTS, Options, Run
from studies.regularisation_rules import DECAYED, MEASURED, RULES, VERDICTS, gathered

ROWS = ("BP", "BP + noise", "LG-BP", "LG-BP + noise", "LG-FG-A")
EVALUATIONS = 15  # about, of a run on its way
SETTINGS = (
    "data", "updates", "batch", "held_out", "blocks", "patches", "channels", "groups", "draws", "compile",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Train by backprop and LG-FG-A, and by what lies between them, on few images."""

    data: str = "cifar10"
    """Data set: "digits", a directory, or a name on the Hugging Face hub."""
    images: tuple[int, ...] = (2000, 5000, 10_000)
    """To train on."""
    lr: tuple[float, ...] = (0.02, 0.05, 0.15)
    """Rates to choose from, by the error on held-out images."""
    decay: tuple[float, ...] = (0.001, 0.003, 0.01)
    """Weight decays to choose from, of backprop with weight decay; all other rows have none."""
    updates: int = 3000
    batch: int = 50
    held_out: int = 1000
    """Training images that rates and decays are chosen on."""
    blocks: int = 3
    patches: int = 8
    channels: int = 64
    groups: int = 2
    draws: int = 32
    """Of LG-FG-A's noise, measured half-way."""
    compile: bool = True
    """torch.compile the estimate."""
    onto: Path | None = None
    """A stored dataset of this study, whose numbers of images are kept where the folder has no whole seed."""
    run: Run = Options(RESULTS / "regularisation.nc", seed=tuple(range(5)))


def main(config: Config) -> None:
    from figures import regularisation

    if config.run.smoke:
        config = smoke(config)
    if wrong := [images for images in config.images if images < 1 or config.updates * config.batch % images]:
        raise ValueError(
            f"images has {wrong}, expected divisors of {config.updates * config.batch}, the examples of "
            f"{config.updates} updates"
        )
    settings = {name: asdict(config)[name] for name in SETTINGS}
    scratch = common.place(config).with_suffix("") / "scratch"
    # Images first and seeds last, so that a size is whole as soon as it can be.
    axes = {"images": config.images, "row": ROWS, "decay": (0.0,), "lr": config.lr}
    plain = common.sweep(cell, axes, settings, config.run, "plain", scratch)
    decayed = common.sweep(
        cell, axes | {"row": ("BP",), "decay": config.decay}, settings, config.run, "decayed", scratch
    )
    found = gathered(plain, decayed.assign_coords(row=[DECAYED]))
    dataset = common.onto(config.onto, found, found["seeds_done"] > 0, images=int)
    common.publish(dataset, config, regularisation, report(dataset))


def smoke(config: Config) -> Config:
    """Two seeds, eight updates of a small network on digits."""
    return replace(
        config, data="digits", images=(200,), lr=(0.05,), decay=(0.001,), updates=8, held_out=100, blocks=1,
        patches=2, channels=16, draws=4, compile=False, run=replace(config.run, seed=config.run.seed[:2]),
    )  # fmt: skip


# ---- one run --------------------------------------------------------------------------------------------------


def cell(
    *, row: str, images: int, lr: float, decay: float, seed: int, data: str, updates: int, batch: int, held_out: int,
    blocks: int, patches: int, channels: int, groups: int, draws: int, compile: bool, scratch: Path,
) -> Any:  # fmt: skip
    """One run, from its checkpoint if there is one; of a run that diverges the errors are NaN."""
    import numpy as np
    import xarray as xr

    import fgvar

    rest, held = training.images(data, held_out)
    chosen = rest.subset(np.random.default_rng(seed).permutation(len(rest))[:images])
    model = fgvar.networks.LocalMixer(
        rest.image_shape,
        rest.classes,
        blocks=blocks,
        patches=patches,
        channels=channels,
        groups=groups,
        head_init="zero",
        seed=seed,
    )
    probe = fgvar.Probe(
        {"LG-FG-A": fgvar.scheme("LG-FG-A")}, chosen.sample(batch, seed=seed + 1), (updates // 2,), draws=draws
    )
    schedule = fgvar.Schedule(epochs := updates * batch // images, batch, lr, weight_decay=decay)
    found = dict.fromkeys((*MEASURED, "loss"), float("nan")) | {"diverged": 1.0}
    try:
        run = fgvar.train(
            model,
            estimator_of(row),
            (chosen, held),
            schedule,
            seed=seed,
            probe=probe,
            evaluate_every=max(1, epochs // EVALUATIONS),
            name=f"{row}, {images} images, rate {lr:g}, decay {decay:g}, seed {seed}",
            checkpoint=scratch / "run.checkpoint",
            compile=compile,
        )
    except fgvar.NonFiniteError:
        pass
    else:
        model.load_state_dict(run.params)
        curves = run.dataset
        last, noise = curves.isel(epoch=-1), curves["variance"].sel(layer="perturbed", estimator="LG-FG-A")
        found = {"test_error": error_of(model, training.images(data)[1]), "diverged": 0.0, "noise": noise.item()}
        found |= {name: last[name].item() for name in ("loss", "train_error")}
        found |= {"gap": found["test_error"] - found["train_error"], "held_out_error": last["test_error"].item()}
        found["held_out_lowest"] = curves["test_error"].min().item()
    return xr.Dataset({name: ((), value, LABELS[name]) for name, value in found.items()})


LABELS = {
    "test_error": {"long_name": "test error at the end", "units": "1"},
    "train_error": {"long_name": "train error at the end", "units": "1"},
    "gap": {"long_name": "test error less train error, at the end", "units": "1"},
    "held_out_error": {"long_name": "error on held-out training images, at the end", "units": "1"},
    "held_out_lowest": {"long_name": "lowest error on held-out training images on the way", "units": "1"},
    "noise": {"long_name": "total noise variance of LG-FG-A at this run's weights, half-way", "units": "1"},
    "loss": {"long_name": "mean loss on the train split, at the end", "units": "loss"},
    "diverged": {"long_name": "did the run end in NaN or infinity?", "units": "1"},
}


def estimator_of(row: str) -> Any:
    """The row's estimator. Heads learn in all of them, behind a stop-gradient where the loss is global.

    Raises:
        ValueError: another row.
    """
    import fgvar

    # Without heads that learn, local losses would have no noise to be matched.
    backprop, perturbed = fgvar.scheme("BP", losses=fgvar.GlobalLoss(heads=True)), fgvar.scheme("LG-FG-A")
    found = {
        "BP": backprop,
        "BP + noise": fgvar.controls.MatchedNoise(perturbed, mean=backprop),
        "LG-BP": fgvar.scheme("LG-BP"),
        "LG-BP + noise": fgvar.controls.MatchedNoise(perturbed),
        "LG-FG-A": perturbed,
    }
    if row not in found:
        raise ValueError(f"row is {row!r}, expected one of: {', '.join(ROWS)}")
    return found[row]


def error_of(model: Any, split: Any) -> float:
    """Share of wrong answers."""
    import torch

    with torch.no_grad():
        batches = split.batches(min(1000, len(split)), seed=0, epoch=0, drop_last=False)
        return sum(int((model(x).argmax(1) != y).sum()) for x, y in batches) / len(split)


# ---- all runs together ---------------------------------------------------------------------------------------


def report(dataset: Any) -> str:
    """A line for each row and number of images, means over seeds; then the verdicts."""
    seeds = [int(count) for count in dataset["seeds_done"]]
    missing, cells = (int(dataset[name].sum()) for name in ("missing", "cells"))
    lines = ["", f"seeds that count: {seeds}; {missing} of {cells} cells missing"]
    lines.append(f"{'row':<15}{'images':>7}{'rate':>7}{'decay':>7}{'test error (range)':>24}{'train error':>13}")
    for images in dataset["images"].values:
        for row in dataset["row"].values:
            its = dataset.sel(row=row, images=images)
            error = its["test_error"]
            lines.append(
                f"{row:<15}{images:>7}{its['best_lr'].item():>7g}{its['best_decay'].item():>7g}"
                f"{error.mean().item():>9.1%} ({error.min().item():.1%} – {error.max().item():.1%})"
                f"{its['train_error'].mean().item():>10.1%}"
            )
    for images in dataset["images"].values:
        its = dataset["verdict"].sel(images=images)
        verdicts = ", ".join(f"{rule} {VERDICTS[its.sel(rule=rule).item()]}" for rule in RULES)
        lines.append(f"{images} images: {verdicts}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
