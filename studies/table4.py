"""Table 4 and Fig. 4 of Ren et al. 2023: contrastive learning, read out by a linear classifier.

Question   Do perturbations learn features without labels, and what is the stop-gradient of InfoNCE for?
Claim      With the gradient stopped on the second view the loss of LG-FG-A goes down, and its read-out comes between
           BP's and a random trunk's; without the stop the loss does not go down (the paper's Fig. 4). Here credit is
           then summed over the batch, which is unbiased: the loss goes down more slowly, by noise that grows with it.
Run        The rows frozen (a random trunk), BP, LG-BP, LG-FG-A and LG-FG-A-no-stop (without the stop), each run a
           cell in the folder of --out. --network, --algorithm and --seed choose others, and --no-stop takes the stop
           from all of them. Runs that are finished are skipped, others go on from their checkpoints: repeat the
           command. What is there becomes one dataset, its figure, and the table in words; --collect trains nothing,
           --onto puts it into a stored table.
Cost       Shortened: with --compile, half an hour a row of M/8/16 on one core. --smoke: a few seconds.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from studies import common, training
from studies.common import RESULTS, Options, Run

NO_STOP = "-no-stop"
ROWS = ("frozen", "BP", "LG-BP", "LG-FG-A", f"LG-FG-A{NO_STOP}")
SOURCE = "Ren et al. 2023, Table 4"
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
    stop: bool = True
    """Stop the gradient on the second view."""
    examples: int = 6400
    """Images to learn from, evenly spaced in the train split; 0: all."""
    epochs: int = 4
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
    probes: int = 0
    """About how many steps to probe six schemes at, log-spaced, for the run's cell; no figure shows them."""
    draws: int = 16
    probe_batch: int = 8
    compile: bool = False
    """torch.compile the estimate."""
    autocast: bool = False
    """Matrix products in bfloat16."""
    device: str = "auto"
    threads: int = 1
    """That a run computes with, on a CPU."""
    onto: Path | None = None
    """A stored dataset of this study, whose runs are kept where the folder has none."""
    run: Run = Options(RESULTS / "table4.nc")


# Settings of every cell, by the names of `Config`.
SCHEDULE = ("epochs", "batch", "lr", "momentum", "weight_decay", "decay", "warmup", "optimiser")
LEARNING = ("data", "examples", "temperature", "crop", "flip", "colour", "compile", "autocast", "device", "threads")
MEASURED = ("readout_examples", "readout_epochs", "readout_lr", "probes", "draws", "probe_batch")


def main(config: Config) -> None:
    if config.run.smoke:
        config = smoke(config)
    folder = common.place(config).with_suffix("")
    if config.run.collect or training.train_all(cell, [table(config)], config.run, folder):
        gather(config, folder)


def smoke(config: Config) -> Config:
    """One run of one epoch on digits."""
    return replace(
        config,
        data="digits",
        algorithm=config.algorithm[:1] or ("LG-FG-A",),
        examples=256,
        epochs=1,
        flip=0.0,
        readout_examples=256,
        readout_epochs=2,
        probes=min(config.probes, 1),
        run=replace(config.run, seed=config.run.seed[:1]),
    )


def table(config: Config) -> training.Grid:
    """The runs that the command asks for."""
    rows = config.algorithm or (ROWS if config.stop else ("LG-FG-A",))
    names = rows if config.stop else tuple(f"{name}{NO_STOP}" for name in rows)
    settings = {name: getattr(config, name) for name in SCHEDULE + LEARNING + MEASURED}
    axes = {"seed": config.run.seed, "network": config.network, "algorithm": tuple(dict.fromkeys(names))}
    return axes, settings | {"small": config.run.smoke}


@training.by_all
def cell(
    *, data: str, network: str, algorithm: str, seed: int, examples: int, temperature: float, crop: float,
    flip: float, colour: float, compile: bool, autocast: bool, device: str, threads: int, readout_examples: int,
    readout_epochs: int, readout_lr: float, probes: int, draws: int, probe_batch: int, small: bool, scratch: Path,
    **schedule: Any,
) -> Any:  # fmt: skip
    """One run, from its checkpoint if there is one, and its read-out."""
    import torch

    import fgvar
    from fgvar.training import log_steps, steps_of
    from studies import table3

    torch.set_num_threads(threads)
    train, test = training.images(data)
    learned, read = part(train, examples), part(train, readout_examples)
    its = fgvar.Schedule(**schedule)
    # Heads, whose linear layers InfoNCE has no use for, are drawn: features of length 0 would have no direction.
    shape: dict[str, Any] = {"image_shape": train.image_shape, "classes": train.classes, "seed": seed}
    model = fgvar.networks.LocalMixer.preset(network, **shape, **(SMOKE if small else {}))
    probe = None
    if probes:
        steps, batch = log_steps(probes, steps_of(its, len(learned))), train.sample(probe_batch, seed=seed + 1)
        probe = fgvar.Probe(table3.probed(), batch, steps, draws=draws)
    found = fgvar.train(
        model,
        fgvar.scheme(algorithm.removesuffix(NO_STOP)),
        (learned, test),
        its,
        loss=fgvar.contrastive.InfoNCE(temperature, stop_gradient=not algorithm.endswith(NO_STOP)),
        views=fgvar.data.Views((crop, 1.0), flip, colour, train.mean, train.std),
        seed=seed,
        probe=probe,
        device=device,
        name=f"{network} {algorithm} {seed}",
        checkpoint=scratch / "run.checkpoint",
        compile=compile,
        autocast=autocast,
    )
    linear = fgvar.Schedule(readout_epochs, its.batch, readout_lr, optimiser="adam", weight_decay=0.0)
    name = f"{network} {algorithm} {seed}, read-out"
    after = fgvar.read_out(model, found.params, (read, test), linear, seed=seed, device=device, name=name).dataset
    dataset = found.dataset.merge(after[["train_error", "test_error"]].rename(epoch="readout_epoch"))
    for split in ("train", "test"):
        dataset[f"{split}_error"].attrs["long_name"] = f"error of the linear read-out on the {split} split"
    dataset.attrs |= {
        "study": "table4",
        "network": network,
        "algorithm": algorithm,
        "examples": len(learned),
        "readout_examples": len(read),
        "readout_epochs": readout_epochs,
        "readout_lr": readout_lr,
        "readout_batch": linear.batch,
        "readout_optimiser": linear.optimiser,
    }
    training.tell(dataset)
    return dataset


def part(images: Any, number: int) -> Any:
    """So many images, evenly spaced; 0: all."""
    if not number or number >= len(images):
        return images
    every = len(images) // number
    return images.subset(range(0, every * number, every))


# ---- all runs together ---------------------------------------------------------------------------------------

CURVES = ("loss", "test_loss", "test_retrieval_error", "batch_loss", "train_error", "test_error")
SETTINGS = ("examples", "readout_examples", "readout_epochs", "readout_lr", "readout_optimiser", "train_views")
GATHERED: dict[str, Any] = {"curves": CURVES, "source": SOURCE, "settings": SETTINGS}


def gather(config: Config, folder: Path) -> None:
    """One dataset of all finished runs, its figure, and the table in words."""
    from figures import table4
    from studies import runs as tables

    runs = training.finished(folder)
    if not runs:
        raise ValueError(f"no finished run of this study in {folder}")
    dataset = tables.errors(runs, ROWS, PAPER, **GATHERED)
    dataset = common.onto(config.onto, dataset, dataset["epochs"] > 0, network=tables.size_of)
    paper = tables.published(dataset["network"].values, dataset["algorithm"].values, PAPER, SOURCE)
    common.publish(dataset.assign(paper).drop_vars("paper_train_error"), config, table4)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
