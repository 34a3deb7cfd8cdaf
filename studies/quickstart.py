"""Quickstart: train LocalMixer on digits by local forward gradients, and measure the gradients on the way.

Question   How good are the gradients that LG-FG-A follows, compared with those of the other schemes, while
           a network is really trained by it, and next to backpropagation?
Claim      At the same weights, local greedy losses and activity perturbation lower the noise of the gradient
           by orders of magnitude (Ren et al. 2023, Sec. 3.4 and 4), and the noise grows relative to the
           gradient as training goes on. All forward-gradient schemes are unbiased for their own target.
Shown      Drawn values (Monte Carlo over the noise, given one fixed probe batch) with 95 % intervals.
Cost       About a minute on 2 CPU cores; --smoke: a few seconds.
Run        python studies/quickstart.py            writes results/quickstart.nc, .pdf and .png
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studies import common
from studies.common import RESULTS

PROBED = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "LG-BP")


@dataclass(frozen=True)
class Config:
    """Train LocalMixer on digits by each algorithm, probing the gradients of five schemes on the way."""

    algorithms: tuple[str, ...] = ("BP", "LG-FG-A")
    """Schemes to train by."""
    data: str = "digits"
    """Data set: "digits", a directory, or a name on the Hugging Face hub."""
    blocks: int = 2
    patches: int = 2
    channels: int = 64
    groups: int = 8
    epochs: int = 40
    batch: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    probes: int = 6
    """About how many steps to probe at, log-spaced from step 1."""
    draws: int = 192
    """Estimates of each scheme at each probe."""
    probe_batch: int = 64
    """Examples of the fixed probe batch."""
    seed: int = 0
    device: str = "auto"
    """"auto" takes CUDA where there is one."""
    out: Path = field(default=RESULTS / "quickstart.nc")
    """Where the dataset goes; the figure stands beside it."""
    smoke: bool = False
    """A few seconds: one short run of everything, whose numbers mean nothing."""


def main(config: Config) -> None:
    import xarray as xr

    import fgvar  # after the command line is parsed: --help needs no torch
    from fgvar.training import log_steps, steps_of
    from figures import quickstart

    common.place(config)
    if config.smoke:
        small: dict[str, Any] = {
            "channels": 16,
            "groups": 4,
            "epochs": 1,
            "probes": 1,
            "draws": 32,
            "probe_batch": 16,
        }
        config = replace(config, algorithms=config.algorithms[-1:], **small)
    images, test = (fgvar.data.load(config.data, split) for split in ("train", "test"))
    if config.smoke:
        images, test = images.subset(range(128)), test.subset(range(32))
    schedule = fgvar.Schedule(config.epochs, config.batch, config.lr, config.momentum, config.weight_decay)
    model = fgvar.networks.LocalMixer(
        images.image_shape,
        images.classes,
        blocks=config.blocks,
        patches=config.patches,
        channels=config.channels,
        groups=config.groups,
        head_init="zero",
        seed=config.seed,
    )
    probe = fgvar.Probe(
        estimators={name: fgvar.scheme(name) for name in PROBED},
        batch=images.sample(config.probe_batch, seed=config.seed + 1),
        steps=log_steps(config.probes, steps_of(schedule, len(images))),
        draws=config.draws,
        seed=config.seed,
    )
    # Under BP, too, local heads learn (from features behind a stop-gradient), so that local losses can be
    # probed at the weights that it finds; the network itself learns exactly as without heads.
    words = {"BP": {"losses": fgvar.GlobalLoss(heads=True)}}
    runs = [
        fgvar.train(
            model,
            fgvar.scheme(name, **words.get(name, {})),
            (images, test),
            schedule,
            seed=config.seed,
            probe=probe,
            device=config.device,
            name=name,
        ).dataset
        for name in config.algorithms
    ]
    dataset = xr.concat(runs, xr.IndexVariable("algorithm", list(config.algorithms)), combine_attrs="drop_conflicts")
    common.publish(dataset, config, quickstart, report(dataset))


def report(dataset: "xr.Dataset") -> str:  # type: ignore[name-defined]  # noqa: F821
    """Errors at the end of each run, and the gradients at its last probe."""
    import fgvar

    parts = []
    for name in dataset["algorithm"].values:
        run = dataset.sel(algorithm=name)
        last = run.isel(epoch=-1)
        parts.append(
            f"trained by {name}, {int(last['epoch'])} epochs: loss {last['loss'].item():.4f}, "
            f"train error {last['train_error'].item():.2%}, test error {last['test_error'].item():.2%}"
        )
        parts.append(fgvar.summary(run.isel(step=[-1])))
    return "\n".join(["", *parts, ""])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
