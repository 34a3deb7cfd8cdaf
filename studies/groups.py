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

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import tyro

from studies.common import Options, described

ROOT = Path(__file__).resolve().parents[1]
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
    run: tyro.conf.OmitArgPrefixes[Options] = Options(ROOT / "results" / "groups.nc", seed=(0, 1, 2))  # noqa: RUF009


def main(config: Config) -> None:
    import fgvar  # after the command line is parsed: --help needs no torch
    from figures import command, groups
    from studies import local_losses

    if config.run.smoke:
        config = local_losses.smoke(config, groups=config.groups[1:3])
    settings = {name: asdict(config)[name] for name in local_losses.SETTINGS}
    axes = {"losses": LOSSES, "groups": config.groups}
    found = fgvar.sweep(local_losses.cell, axes, config=settings, **config.run.arguments())
    dataset = local_losses.chosen(found)
    dataset.attrs |= {"study": "groups", "configuration": described(config)}
    out = config.run.arguments()["out"]
    print(local_losses.report(dataset))
    print(fgvar.save(dataset, out))
    command.write(command.Config(out), groups.FIGURES)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:  # what the user can mend, in one line
        sys.exit(f"groups: {error}")
    except KeyboardInterrupt:
        sys.exit("groups: stopped; the same command goes on from here")
