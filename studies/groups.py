"""Groups: into how many channel groups should a LocalMixer be divided? (Fig. 7 of Ren et al. 2023)

Question   How do the error of LG-FG-A and the noise of its gradient depend on the number of groups, each with a copy
           of the local loss, at a fixed number of channels?
Claim      More groups, less noise and a lower error, until groups become narrow (the paper: the gain vanishes near 8
           channels a group). Exact local gradients (LG-BP) gain nothing from groups, which only take weights away.
Shown      A small proxy of the paper's figure, by the cells of `local_losses.py`: a LocalMixer of two blocks on
           digits, a few hundred steps; with losses at every block in one copy, and replicated over patches and
           groups. Test errors at the end; relative noise variance at initialisation, exact; cosines drawn (replayed).
Cost       About fifteen minutes on one core, eight on two (--workers 2); --smoke: seconds.
Run        python studies/groups.py            writes results/groups.nc, .pdf and .png
Full size  python studies/groups.py --data cifar10 --blocks 4 --patches 8 --channels 512 --groups 1 4 16 64 128 \
               --epochs 200 --batch 128 --lr 0.025 0.1 --probe-batch 8      (a GPU's work, not done here)
"""

from dataclasses import asdict, dataclass

from studies import common
from studies.common import RESULTS, Options, Run

LOSSES = ("block", "block + patch + group")


@dataclass(frozen=True)
class Config:
    """Train by, and measure, LG-FG-A and LG-BP on networks of more and more groups."""

    groups: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Divisors of the channels. Of two channels a layer norm leaves the signs alone, and little to learn from."""
    data: str = "digits"
    """Data set: "digits", a directory, or a name on the Hugging Face hub."""
    lr: tuple[float, ...] = (0.02, 0.1)
    """Rates to choose from, by the training loss at the end."""
    blocks: int = 2
    patches: int = 2
    channels: int = 64
    epochs: int = 15
    batch: int = 64
    draws: int = 256
    """Of the cosines."""
    probe_batch: int = 32
    """Examples that gradients are measured on."""
    run: Run = Options(RESULTS / "groups.nc", seed=(0, 1, 2))


def main(config: Config) -> None:
    from figures import groups
    from studies import local_losses

    if config.run.smoke:
        config = local_losses.smoke(config, groups=config.groups[1:3])
    settings = {name: asdict(config)[name] for name in local_losses.SETTINGS}
    axes = {"losses": LOSSES, "groups": config.groups}
    dataset = local_losses.chosen(common.sweep(local_losses.cell, axes, settings, config.run))
    common.publish(dataset, config, groups, local_losses.report(dataset))


if __name__ == "__main__":
    common.main(main, Config, __doc__)
