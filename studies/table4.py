"""Table 4 and Fig. 4 of Ren et al. 2023: contrastive learning, read out by a linear classifier.

Question   Do perturbations learn features without labels, and what is the stop-gradient of InfoNCE for?
Claim      With the gradient stopped on the second view the loss of LG-FG-A goes down, and its read-out comes between
           BP's and a random trunk's; without the stop the loss does not go down (the paper's Fig. 4). Here credit is
           then summed over the batch, which is unbiased: the loss goes down more slowly, by noise that grows with it.
Run        The rows frozen (a random trunk), BP, LG-BP, LG-FG-A and LG-FG-A-no-stop (without the stop), a file a run
           under --folder. --network, --algorithm and --seed choose others, --no-stop takes the stop from all of them,
           and --out names the file of a single run. Runs that are finished are skipped, others go on from their
           checkpoints: repeat the command. --collect makes one dataset of all finished runs, its figure, and the
           table in words.
Cost       Shortened: with --compile, on two cores, two hours for the five rows (3 to 6 seconds a step of CIFAR-10,
           M/8/16). --smoke: a few seconds.
"""

import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from fgvar.storage.atomic import require_place

ROOT = Path(__file__).resolve().parents[1]
NO_STOP = "-no-stop"
ROWS = ("frozen", "BP", "LG-BP", "LG-FG-A", f"LG-FG-A{NO_STOP}")
# The paper's test errors, per cent; it gives no train errors.
PAPER = {
    network: {name: (error, float("nan")) for name, error in rows.items()}
    for network, rows in {
        "M/8/16": {
            "BP": 24.11, "L-BP": 24.69, "LG-BP": 29.63, "FA": 45.87, "L-FA": 37.73, "LG-FA": 36.72, "DFA": 46.09,
            "FG-W": 53.37, "FG-A": 54.59, "LG-FG-W": 52.66, "LG-FG-A": 32.88,
        },
        "L/8/64": {
            "BP": 17.53, "L-BP": 19.13, "LG-BP": 23.62, "FA": 67.93, "L-FA": 31.05, "LG-FA": 30.49, "DFA": 39.26,
            "FG-W": 50.45, "FG-A": 56.63, "LG-FG-W": 52.27, "LG-FG-A": 26.81,
        },
    }.items()
}  # fmt: skip
SMOKE = {"blocks": 2, "patches": 2, "channels": 32, "groups": 4}  # too small to mean anything, and fast


@dataclass(frozen=True)
class Config:
    """Train LocalMixers by InfoNCE, and read them out."""

    data: str = "cifar10"
    """Directory of parquet files or images, "digits", or a name on the Hugging Face hub."""
    network: tuple[str, ...] = ("M/8/16",)
    """Presets: S/1/1, M/1/16, M/8/16, L/8/64."""
    algorithm: tuple[str, ...] = ()
    """Any scheme. Default: frozen, BP, LG-BP and LG-FG-A, and LG-FG-A without the stop."""
    seed: tuple[int, ...] = (0,)
    stop: bool = True
    """Stop the gradient on the second view."""
    examples: int = 6400
    """Images to learn from, evenly spaced in the train split; 0: all."""
    epochs: int = 8
    batch: int = 128
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay: Literal["linear", "cosine", "constant"] = "linear"
    warmup: int = 0
    """Epochs."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    temperature: float = 0.1
    crop: float = 0.2
    """Least share of an image's area in a view."""
    flip: float = 0.5
    """Probability of a mirror image."""
    colour: float = 0.4
    """Strength of changes of brightness, contrast and saturation."""
    readout_examples: int = 10_000
    """Train images of the read-out, evenly spaced; 0: all. Its errors are of the whole test split."""
    readout_epochs: int = 30
    readout_lr: float = 1e-3
    """Of Adam."""
    probes: int = 3
    """About how many steps to probe six schemes at, log-spaced; it takes seconds each. 0: none."""
    draws: int = 16
    probe_batch: int = 8
    compile: bool = False
    """torch.compile the estimate."""
    autocast: bool = False
    """Matrix products in bfloat16."""
    device: str = "auto"
    folder: Path = field(default=ROOT / "results" / "table4")
    """Where runs are kept, each with its checkpoint beside it."""
    out: Path | None = None
    """The file of a single run; of --collect, the dataset."""
    resume: bool = True
    shard: str = "0/1"
    """i/n: every n-th of the runs, from the i-th."""
    collect: bool = False
    """Train nothing: gather the finished runs of --folder."""
    smoke: bool = False
    """A few seconds: one small run of one epoch on digits."""


def main(config: Config) -> None:
    import fgvar  # after the command line is parsed: --help needs no torch
    from studies import table3

    if config.collect:
        gather(config.folder, config.out or ROOT / "results" / "table4.nc")
        return
    if config.smoke:
        config = smoke(config)
    shard = table3.shard_of(config.shard)
    images, test = (fgvar.data.load(config.data, split) for split in ("train", "test"))
    cells = table(config)[shard]
    if config.out is not None and len(cells) != 1:
        raise ValueError(
            f"--out is the file of one run, and this command makes {len(cells)}; give --network, --algorithm and "
            "--seed one value each, or --folder instead"
        )
    table3.every(
        cells,
        partial(table3.path, config.folder, config.out, images.name),
        partial(settings, config, images=images),
        partial(run, config, images=images, test=test),
        config.resume,
    )


def smoke(config: Config) -> Config:
    """One run of one epoch on digits."""
    return replace(
        config,
        data="digits",
        algorithm=config.algorithm[:1] or ("LG-FG-A",),
        seed=config.seed[:1],
        examples=256,
        epochs=1,
        flip=0.0,
        readout_examples=256,
        readout_epochs=2,
        probes=min(config.probes, 1),
        out=config.out or ROOT / "results" / "table4_smoke.nc",
    )


def table(config: Config) -> list[Any]:
    """The runs that the command asks for."""
    from studies.table3 import Cell

    rows = config.algorithm or (ROWS if config.stop else ("LG-FG-A",))
    names = rows if config.stop else tuple(f"{name}{NO_STOP}" for name in rows)
    return [
        Cell(network, name, seed)
        for seed in config.seed
        for network in config.network
        for name in dict.fromkeys(names)
    ]


def schedule_of(config: Config) -> Any:
    """The schedule of every run."""
    import fgvar

    return fgvar.Schedule(
        config.epochs,
        config.batch,
        config.lr,
        config.momentum,
        config.weight_decay,
        optimiser=config.optimiser,
        decay=config.decay,
        warmup=config.warmup,
    )


def loss_of(config: Config, algorithm: str) -> Any:
    """The row's InfoNCE."""
    import fgvar

    return fgvar.contrastive.InfoNCE(config.temperature, stop_gradient=not algorithm.endswith(NO_STOP))


def views_of(config: Config, images: Any) -> Any:
    """The views of every run."""
    import fgvar

    return fgvar.data.Views((config.crop, 1.0), config.flip, config.colour, images.mean, images.std)


def settings(config: Config, cell: Any, *, images: Any) -> dict[str, Any]:
    """What tells a finished run from others: attributes of its dataset."""
    from studies import table3

    return table3.settings(cell, schedule_of(config)) | {
        "train_loss": repr(loss_of(config, cell.algorithm)),
        "train_views": repr(views_of(config, images)),
        "examples": len(part(images, config.examples)),
        "readout_examples": len(part(images, config.readout_examples)),
        "readout_epochs": config.readout_epochs,
        "readout_lr": config.readout_lr,
    }


def run(config: Config, cell: Any, out: Path, *, images: Any, test: Any) -> None:
    """One run and its read-out, from its checkpoint if there is one; writes its dataset and prints a row."""
    import fgvar
    from fgvar.training.distributed import join, world
    from fgvar.training.train import log_steps, steps_of
    from studies import table3

    join()
    learned, read = part(images, config.examples), part(images, config.readout_examples)
    schedule = schedule_of(config)
    # Heads, whose linear layers InfoNCE has no use for, are drawn: features of length 0 would have no direction.
    shape: dict[str, Any] = {"image_shape": images.image_shape, "classes": images.classes, "seed": cell.seed}
    model = fgvar.networks.LocalMixer.preset(cell.network, **shape, **(SMOKE if config.smoke else {}))
    probe = None
    if config.probes:
        steps = log_steps(config.probes, steps_of(schedule, len(learned)))
        batch = images.sample(config.probe_batch, seed=cell.seed + 1)
        probe = fgvar.Probe(table3.probed(), batch, steps, draws=config.draws)
    name = f"{cell.network} {cell.algorithm} {cell.seed}"
    found = fgvar.train(
        model,
        fgvar.scheme(cell.algorithm.removesuffix(NO_STOP)),
        (learned, test),
        schedule,
        loss=loss_of(config, cell.algorithm),
        views=views_of(config, images),
        seed=cell.seed,
        probe=probe,
        device=config.device,
        name=name,
        checkpoint=out.with_suffix(".checkpoint"),
        resume=config.resume,
        compile=config.compile,
        autocast=config.autocast,
    )
    linear = fgvar.Schedule(
        config.readout_epochs, config.batch, config.readout_lr, optimiser="adam", weight_decay=0.0
    )
    after = fgvar.read_out(
        model, found.params, (read, test), linear, seed=cell.seed, device=config.device, name=f"{name}, read-out"
    ).dataset
    if world()[0]:  # the first process writes and prints
        return
    dataset = found.dataset.merge(after[["train_error", "test_error"]].rename(epoch="readout_epoch"))
    for split in ("train", "test"):
        dataset[f"{split}_error"].attrs["long_name"] = f"error of the linear read-out on the {split} split"
    dataset.attrs |= {
        "study": "table4",
        **settings(config, cell, images=images),
        "readout_batch": config.batch,
        "readout_optimiser": linear.optimiser,
        "configuration": repr(replace(config, data=images.name, out=None, folder=Path("results/table4"))),
    }
    fgvar.save(dataset, out)
    print(*table3.row(out), sep="\t", flush=True)


def part(images: Any, number: int) -> Any:
    """So many images, evenly spaced; 0: all."""
    if not number or number >= len(images):
        return images
    every = len(images) // number
    return images.subset(range(0, every * number, every))


# ---- all runs together ---------------------------------------------------------------------------------------

CURVES = ("loss", "test_loss", "test_retrieval_error", "batch_loss", "train_error", "test_error")
SETTINGS = ("examples", "readout_examples", "readout_epochs", "readout_lr", "readout_optimiser", "train_views")


def gather(folder: Path, out: Path) -> None:
    """One dataset of all finished runs, its figure, and the table in words."""
    import fgvar
    from studies import runs as tables

    require_place(out)
    runs = [fgvar.open_dataset(found) for found in sorted(folder.glob("*.nc"))]
    runs = [one for one in runs if one.attrs.get("study") == "table4"]
    if not runs:
        raise ValueError(f"no finished run of this study in {folder}")
    from figures import command, table4

    dataset = tables.errors(
        runs, ROWS, PAPER, curves=CURVES, source="Ren et al. 2023, Table 4", settings=SETTINGS
    ).drop_vars("paper_train_error")
    print(fgvar.save(dataset, out))
    command.write(command.Config(out), table4.FIGURES, table4.table)
    print(table4.table(dataset).to_string())


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:  # what the user can mend, in one line
        sys.exit(f"table4: {error}")
    except KeyboardInterrupt:
        sys.exit("table4: stopped; the same command goes on from here")
