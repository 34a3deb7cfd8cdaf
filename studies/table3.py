"""Table 3 of Ren et al. 2023: test and train error of every algorithm, on MNIST and CIFAR-10.

Question   How well does each algorithm train a LocalMixer, and how much of that is owed to its gradients?
Claim      Errors as in the paper within 0.5 points; a frozen trunk bounds what untaught features reach.
Found      Not so: on MNIST 17 of 22 cells are lower by more, on CIFAR-10 all are higher after 3 epochs; and the
           frozen trunk, of 20 epochs, bounds rows of 20 alone.
Run        --data mnist (or cifar10, or a directory) trains the table of that data, each run a cell in the folder of
           --out; --network, --algorithm and --seed choose among its runs. Runs that are finished are skipped, others
           go on from their checkpoints. What is there becomes one dataset, its figures, and the table in words;
           --collect trains nothing. --rates makes the runs by which the learning rates were chosen.
            torchrun --nproc-per-node N studies/table3.py … trains each run by N processes, N·batch examples a step.
Cost       With --compile, on one core: MNIST 5 s an epoch (S/1/1), 5 to 15 s (M/1/16); CIFAR-10, M/8/16, 5 to 15
           minutes on two. --smoke: a few seconds.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from studies import common, training
from studies.common import RESULTS, Options, Run

# The paper's rows, the frozen trunk, and LG-FG-W with its published credit.
EXACT = ("BP", "L-BP", "LG-BP", "FA", "L-FA", "LG-FA", "DFA", "frozen")
PERTURBED = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "LG-FG-W-published")
PROBED = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "LG-BP", "BP")
# Chosen by --rates on MNIST, S/1/1: 10 epochs of one seed with each of TRIED, errors on 10,000 examples held out of
# the train split. One algorithm stands for its family.
RATES = {"exact": 0.1, "feedback": 0.1, "activities": 0.025, "weights": 0.1}
TRIED = (0.025, 0.05, 0.1)
STANDS_FOR = {"BP": "exact", "FA": "feedback", "LG-FG-A": "activities", "LG-FG-W": "weights"}
FAMILY = {
    **dict.fromkeys(("BP", "L-BP", "LG-BP", "frozen"), "exact"),
    **dict.fromkeys(("FA", "L-FA", "LG-FA", "DFA"), "feedback"),
    **dict.fromkeys(("FG-A", "LG-FG-A"), "activities"),
    **dict.fromkeys(("FG-W", "LG-FG-W", "LG-FG-W-published"), "weights"),
}


class Table(NamedTuple):
    """What the table of some data holds: networks, and epochs of exact gradients and of perturbation."""

    networks: tuple[str, ...]
    exact: int
    perturbed: int


# The paper does not give its schedules for these.
TABLES = {"mnist": Table(("S/1/1", "M/1/16"), 20, 100), "cifar10": Table(("M/8/16",), 200, 400)}
OTHER = Table(("S/1/1",), 20, 100)
# The paper's test and train errors, per cent.
PAPER = {
    "S/1/1": {
        "BP": (2.66, 0.00), "L-BP": (2.38, 0.00), "LG-BP": (2.43, 0.00), "FA": (2.82, 0.00), "L-FA": (3.21, 0.00),
        "LG-FA": (3.11, 0.00), "DFA": (3.31, 0.00), "FG-W": (9.25, 8.93), "FG-A": (3.24, 1.53),
        "LG-FG-W": (9.25, 8.93), "LG-FG-A": (3.24, 1.53),
    },
    "M/1/16": {
        "BP": (2.41, 0.00), "L-BP": (2.16, 0.00), "LG-BP": (2.81, 0.00), "FA": (2.90, 0.00), "L-FA": (2.90, 0.00),
        "LG-FA": (2.50, 0.00), "DFA": (3.17, 0.00), "FG-W": (8.56, 8.64), "FG-A": (3.76, 1.75),
        "LG-FG-W": (5.66, 4.59), "LG-FG-A": (2.55, 0.00),
    },
    "M/8/16": {
        "BP": (33.62, 0.00), "L-BP": (30.75, 0.00), "LG-BP": (33.84, 0.05), "FA": (39.94, 28.44),
        "L-FA": (39.74, 28.98), "LG-FA": (39.73, 32.32), "DFA": (38.80, 33.69), "FG-W": (55.95, 54.28),
        "FG-A": (59.72, 41.29), "LG-FG-W": (52.70, 51.71), "LG-FG-A": (30.68, 19.39),
    },
}  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Train LocalMixers by the algorithms of Table 3."""

    data: str = "mnist"
    """Directory of parquet files or images, "digits", or a name on the Hugging Face hub."""
    network: tuple[str, ...] = ()
    """Presets: S/1/1, M/1/16, M/8/16, L/8/64. Default: those that the paper trains on this data."""
    algorithm: tuple[str, ...] = ()
    """Rows of the table, "frozen" and "LG-FG-W-published" among them. Default: all."""
    epochs: int | None = None
    """Default, exact gradients and perturbation: 20 and 100 on MNIST, 200 and 400 on CIFAR-10."""
    batch: int = 128
    lr: float | None = None
    """Default: the rate chosen for the algorithm's family."""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay: Literal["linear", "cosine", "constant"] = "linear"
    warmup: int = 0
    """Epochs."""
    optimiser: Literal["sgd", "adam"] = "sgd"
    head_factor: float = 1.0
    """Of the learning rate of local heads."""
    readout_factor: float = 1.0
    """Of the learning rate of the read-out."""
    probes: int = 12
    """About how many steps to probe six schemes at, log-spaced; it takes seconds each. 0: none."""
    draws: int = 32
    probe_batch: int = 32
    validation: int = 0
    """Hold out so many training examples and report errors on them instead of on the test split."""
    evaluate_every: int = 1
    """Epochs between errors on whole splits; the last epoch always has them."""
    compile: bool = False
    """torch.compile the estimate."""
    autocast: bool = False
    """Matrix products in bfloat16."""
    device: str = "auto"
    threads: int = 1
    """That a run computes with, on a CPU."""
    onto: Path | None = None
    """A stored dataset of this study, its probes beside it, whose runs are kept where the folder has none."""
    rates: bool = False
    """Instead of the table, the runs by which the learning rates were chosen."""
    run: Run = Options(RESULTS / "table3.nc", seed=(0, 1, 2))


# Settings of every cell, by the names of `Config`.
SCHEDULE = ("batch", "momentum", "weight_decay", "decay", "warmup", "optimiser", "head_factor", "readout_factor")
SETTINGS = (
    "data", "probes", "draws", "probe_batch", "validation", "evaluate_every", "compile", "autocast", "device",
    "threads",
)  # fmt: skip


def main(config: Config) -> None:
    if config.run.smoke:
        config = smoke(config)
    folder, out = common.place(config).with_suffix(""), config.run.out
    beside = replace(config, run=replace(config.run, out=out.with_stem(f"{out.stem}_probes")))  # for the probes
    common.place(beside)
    if not config.run.collect:
        where, grids = (folder / "rates", rates(config)) if config.rates else (folder, table(config))
        if not training.train_all(cell, grids, config.run, where) or config.rates:
            return
    gather(config, beside, folder)


def smoke(config: Config) -> Config:
    """One run of one epoch on digits."""
    return replace(
        config,
        data="digits",
        network=config.network[:1] or ("S/1/1",),
        algorithm=config.algorithm[:1] or ("LG-FG-A",),
        epochs=1,
        probes=min(config.probes, 1),
        run=replace(config.run, seed=config.run.seed[:1]),
    )


def table(config: Config) -> list[training.Grid]:
    """The runs that the command asks for, a sweep for each schedule: the cheap ones first, a seed at a time."""
    networks, exact, perturbed = TABLES.get(training.images(config.data)[0].name, OTHER)
    rows = dict.fromkeys(config.algorithm or EXACT + PERTURBED)
    schedules: dict[tuple[int, float], list[str]] = {}
    for name in sorted(rows, key=lambda name: name in PERTURBED):
        epochs = config.epochs or (perturbed if name in PERTURBED else exact)
        schedules.setdefault((epochs, config.lr or RATES[FAMILY.get(name, "exact")]), []).append(name)
    settings = {name: getattr(config, name) for name in SETTINGS + SCHEDULE}
    return [
        (
            {"seed": config.run.seed, "network": config.network or networks, "algorithm": names},
            settings | {"epochs": epochs, "lr": lr},
        )
        for (epochs, lr), names in schedules.items()
    ]


def rates(config: Config) -> list[training.Grid]:
    """The runs by which the learning rates were chosen."""
    settings = {name: getattr(config, name) for name in SETTINGS + SCHEDULE}
    axes = {"network": ("S/1/1",), "algorithm": tuple(STANDS_FOR), "lr": TRIED, "seed": (0,)}
    return [(axes, settings | {"epochs": 10, "probes": 0, "validation": 10_000})]


@training.by_all
def cell(
    *, data: str, network: str, algorithm: str, seed: int, validation: int, probes: int, draws: int, probe_batch: int,
    evaluate_every: int, compile: bool, autocast: bool, device: str, threads: int, scratch: Path, **schedule: Any,
) -> Any:  # fmt: skip
    """One run, from its checkpoint if there is one."""
    import torch

    import fgvar
    from fgvar.training import log_steps, steps_of

    torch.set_num_threads(threads)
    train, test = training.images(data, validation)
    its = fgvar.Schedule(**schedule)
    model = fgvar.networks.LocalMixer.preset(
        network, image_shape=train.image_shape, classes=train.classes, head_init="zero", seed=seed
    )
    probe = None
    if probes:
        steps = log_steps(probes, steps_of(its, len(train)))
        batch = train.sample(probe_batch, seed=seed + 1)
        probe = fgvar.Probe(probed(), batch, steps, draws=draws, route="both")
    dataset = fgvar.train(
        model,
        estimator_of(algorithm),
        (train, test),
        its,
        seed=seed,
        probe=probe,
        evaluate_every=evaluate_every,
        device=device,
        name=f"{network} {algorithm} {seed}",
        checkpoint=scratch / "run.checkpoint",
        compile=compile,
        autocast=autocast,
    ).dataset
    dataset.attrs |= {"study": "table3", "network": network, "algorithm": algorithm, "validation": validation}
    training.tell(dataset)
    return dataset


def estimator_of(algorithm: str) -> Any:
    """The row's estimator."""
    import fgvar

    if algorithm == "BP":
        # Heads learn behind a stop-gradient, as in all other rows: nothing else is changed by it, and local losses,
        # which are probed in every run, have a gradient.
        return fgvar.scheme("BP", losses=fgvar.GlobalLoss(heads=True))
    if algorithm.endswith("-published"):
        return fgvar.scheme(algorithm.removesuffix("-published"), credit="published")
    return fgvar.scheme(algorithm)


def probed() -> dict[str, Any]:
    """The schemes that every run is probed by. Draws cost them inner products alone, where they draw at all."""
    import fgvar

    return {
        name: fgvar.scheme(name, **({"oracle": fgvar.oracles.Replay()} if "FG" in name else {})) for name in PROBED
    }


# ---- all runs together ---------------------------------------------------------------------------------------


def gather(config: Config, beside: Config, folder: Path) -> None:
    """One dataset of the errors of all finished runs, and one of their probes; figures, and the table in words."""
    from figures import table3, table3_probes
    from studies import runs as tables

    runs = [one for one in training.finished(folder) if not one.attrs["validation"]]
    if not runs:
        raise ValueError(f"no finished run of this study in {folder}")
    dataset = tables.errors(runs, EXACT + PERTURBED, PAPER)
    if tried := training.finished(folder / "rates"):
        dataset["validation_error"] = tables.validation(tried, EXACT + PERTURBED)
    onto, by_size = config.onto, {"network": tables.size_of}
    dataset = common.onto(onto, dataset, dataset["epochs"] > 0, **by_size)
    # Of pairs that neither piece has, too.
    paper = tables.published(dataset["network"].values, dataset["algorithm"].values, PAPER)
    common.publish(dataset.assign(paper), config, table3)
    if any("step" in one.dims for one in runs):
        found = tables.probes(runs, EXACT + PERTURBED)
        onto = onto and onto.with_stem(f"{onto.stem}_probes")
        onto = onto if onto and onto.is_file() else None  # runs need not have been probed
        there = found["step"].notnull().any("probe")
        common.publish(common.onto(onto, found, there, **by_size), beside, table3_probes)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
