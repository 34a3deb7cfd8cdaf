"""Table 3 of Ren et al. 2023: test and train error of every algorithm, on MNIST and CIFAR-10.

Question   How well does each algorithm train a LocalMixer, and how much of that is owed to its gradients?
Claim      Errors as in the paper within 0.5 points; a frozen trunk bounds what untaught features reach.
Run        --data mnist (or cifar10, or a directory) makes the table of that data, a file a run under --folder;
           --network, --algorithm and --seed choose among its runs, and --out names the file of a single one. Runs
           that are finished are skipped, others go on from their checkpoints. --collect makes one dataset of all
           finished runs, its figures, and the table in words.
            torchrun --nproc-per-node N studies/table3.py … makes one run of N processes, N·batch examples a step.
Cost       With --compile, on one core: MNIST 5 s an epoch (S/1/1), 5 to 15 s (M/1/16); CIFAR-10, M/8/16, 5 to 15
           minutes on two. --smoke: a few seconds.
"""

import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tyro

from fgvar.storage.atomic import require_place

ROOT = Path(__file__).resolve().parents[1]
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
    seed: tuple[int, ...] = (0, 1, 2)
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
    compile: bool = False
    """torch.compile the estimate."""
    autocast: bool = False
    """Matrix products in bfloat16."""
    device: str = "auto"
    folder: Path = field(default=ROOT / "results" / "table3")
    """Where runs are kept, each with its checkpoint beside it."""
    out: Path | None = None
    """The file of a single run; of --collect, the dataset."""
    resume: bool = True
    shard: str = "0/1"
    """i/n: every n-th of the runs, from the i-th."""
    rates: bool = False
    """Instead of the table, the runs by which the learning rates were chosen."""
    collect: bool = False
    """Train nothing: gather the finished runs of --folder."""
    smoke: bool = False
    """A few seconds: one run of one epoch on digits."""


class Cell(NamedTuple):
    """One run of a table."""

    network: str
    algorithm: str
    seed: int


def main(config: Config) -> None:
    import fgvar  # after the command line is parsed: --help needs no torch

    if config.collect:
        gather(config.folder, config.out or ROOT / "results" / "table3.nc")
        return
    if config.smoke:
        config = smoke(config)
    shard = shard_of(config.shard)
    images, test = (fgvar.data.load(config.data, split) for split in ("train", "test"))
    if config.rates:
        config = replace(config, network=("S/1/1",), algorithm=tuple(STANDS_FOR), seed=(0,), epochs=10, probes=0)
        config = replace(config, validation=10_000, folder=config.folder / "rates")
    if config.validation:
        kept = len(images) - config.validation
        images, test = images.subset(range(kept)), images.subset(range(kept, kept + config.validation))
    cells = table(config, images.name)
    if config.rates:
        for lr in TRIED:
            tried = replace(config, lr=lr, folder=config.folder / f"{lr}")
            every(cells[shard], *ways(tried, images, test))
        return
    cells = cells[shard]
    if config.out is not None and len(cells) != 1:
        raise ValueError(
            f"--out is the file of one run, and this command makes {len(cells)}; give --network, --algorithm and "
            "--seed one value each, or --folder instead"
        )
    every(cells, *ways(config, images, test))


def smoke(config: Config) -> Config:
    """One run of one epoch on digits."""
    return replace(
        config,
        data="digits",
        network=config.network[:1] or ("S/1/1",),
        algorithm=config.algorithm[:1] or ("LG-FG-A",),
        seed=config.seed[:1],
        epochs=1,
        probes=min(config.probes, 1),
        out=config.out or ROOT / "results" / "table3_smoke.nc",
    )


def table(config: Config, data: str) -> list[Cell]:
    """The runs that the command asks for: the cheap ones first, a seed at a time."""
    networks = config.network or TABLES.get(data, OTHER).networks
    rows = config.algorithm or EXACT + PERTURBED
    return [
        Cell(network, algorithm, seed)
        for algorithms in (EXACT, PERTURBED, sorted(set(rows) - {*EXACT, *PERTURBED}))
        for seed in config.seed
        for network in networks
        for algorithm in algorithms
        if algorithm in rows
    ]


def path(folder: Path, out: Path | None, data: str, cell: Cell) -> Path:
    """Where a run is kept."""
    return out or folder / f"{data}_{cell.network.replace('/', '-')}_{cell.algorithm}_{cell.seed}.nc"


def ways(
    config: Config, images: Any, test: Any
) -> tuple[partial[Path], Callable[[Cell], dict[str, Any]], partial[None], bool]:
    """What `every` needs to know beside the runs."""
    return (
        partial(path, config.folder, config.out, images.name),
        lambda cell: settings(cell, schedule_of(config, cell.algorithm, images.name)),
        partial(run, config, images=images, test=test),
        config.resume,
    )


def every(
    cells: list[Cell],
    where: Callable[[Cell], Path],
    asked: Callable[[Cell], Mapping[str, Any]],
    make: Callable[[Cell, Path], None],
    resume: bool,
) -> None:
    """All runs, one after another: what is finished is skipped, what fails stops no other."""
    for cell in cells:
        require_place(where(cell))
    failed = 0
    for cell in cells:
        out = where(cell)
        if out.exists() and resume:
            _require_same(asked(cell), out)
            print(*row(out), "finished before", sep="\t", flush=True)
            continue
        if len(cells) == 1:
            make(cell, out)
            continue
        try:
            make(cell, out)
        except Exception as error:  # one run's failure is none of the others'
            failed += 1
            traceback.print_exc()
            print(cell.network, cell.algorithm, f"seed {cell.seed}", f"failed: {error}", sep="\t", flush=True)
    if failed:
        raise ValueError(f"{failed} runs failed, see above; the same command tries them again")


def shard_of(text: str) -> slice:
    """The runs i, i + n, i + 2n, … of "i/n"."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--shard is {text!r}, expected i/n with 0 ≤ i < n, as 0/4, 1/4, 2/4 and 3/4 of four jobs")
    return slice(int(index), None, int(count))


def _require_same(asked: Mapping[str, Any], out: Path) -> None:
    """Raise where a finished run has other settings than this command's."""
    import fgvar

    stored = fgvar.open_dataset(out).attrs
    for name, ours in asked.items():
        if (theirs := stored.get(name)) != ours:
            raise ValueError(
                f"{out} is finished with {name.removeprefix('train_')}={theirs}, this command says {ours}; give "
                "another --out or --folder, or --no-resume to write over it"
            )


def settings(cell: Cell, schedule: Any) -> dict[str, Any]:
    """What tells a finished run from others: attributes of its dataset."""
    asked = {f"train_{name}": value for name, value in asdict(schedule).items()}
    return asked | {"train_seed": cell.seed, "network": cell.network, "algorithm": cell.algorithm}


def schedule_of(config: Config, algorithm: str, data: str) -> Any:
    """The schedule of one run: the command's settings, or those of its algorithm's family."""
    import fgvar

    _, exact, perturbed = TABLES.get(data, OTHER)
    return fgvar.Schedule(
        config.epochs or (perturbed if algorithm in PERTURBED else exact),
        config.batch,
        config.lr or RATES[FAMILY.get(algorithm, "exact")],
        config.momentum,
        config.weight_decay,
        optimiser=config.optimiser,
        decay=config.decay,
        warmup=config.warmup,
        head_factor=config.head_factor,
        readout_factor=config.readout_factor,
    )


def run(config: Config, cell: Cell, out: Path, *, images: Any, test: Any) -> None:
    """One run, from its checkpoint if there is one; writes its dataset and prints a row."""
    import fgvar
    from fgvar.training.distributed import join, world
    from fgvar.training.train import log_steps, steps_of

    join()
    estimator = estimator_of(cell.algorithm)
    schedule = schedule_of(config, cell.algorithm, images.name)
    model = fgvar.networks.LocalMixer.preset(
        cell.network, image_shape=images.image_shape, classes=images.classes, head_init="zero", seed=cell.seed
    )
    probe = None
    if config.probes:
        probe = fgvar.Probe(
            probed(),
            images.sample(config.probe_batch, seed=cell.seed + 1),
            log_steps(config.probes, steps_of(schedule, len(images))),
            draws=config.draws,
            route="both",
        )
    dataset = fgvar.train(
        model,
        estimator,
        (images, test),
        schedule,
        seed=cell.seed,
        probe=probe,
        device=config.device,
        name=f"{cell.network} {cell.algorithm} {cell.seed}",
        checkpoint=out.with_suffix(".checkpoint"),
        resume=config.resume,
        compile=config.compile,
        autocast=config.autocast,
    ).dataset
    if world()[0]:  # the first process writes and prints
        return
    dataset.attrs |= {
        "study": "table3",
        "network": cell.network,
        "algorithm": cell.algorithm,
        "validation": config.validation,
        "configuration": repr(replace(config, data=images.name, out=None, folder=Path("results/table3"))),
    }
    fgvar.save(dataset, out)
    print(*row(out), sep="\t", flush=True)


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


def row(out: Path) -> Iterator[str]:
    """A finished run in words."""
    import fgvar

    dataset = fgvar.open_dataset(out)
    last, of = dataset.isel(epoch=-1, readout_epoch=-1, missing_dims="ignore"), dataset.attrs
    yield from (of["network"], of["algorithm"], f"seed {of['train_seed']}")
    yield from (f"lr {of['train_lr']:g}", f"epochs {of['train_epochs']}", f"loss {last['loss'].item():.4f}")
    yield from (f"{split} {last[f'{split}_error'].item():.2%}" for split in ("train", "test"))


# ---- all runs together ---------------------------------------------------------------------------------------


def gather(folder: Path, out: Path) -> None:
    """One dataset of the errors of all finished runs, and one of their probes; figures, and the table in words."""
    import fgvar
    from studies import runs as tables

    more = out.with_stem(f"{out.stem}_probes")
    require_place(out)
    require_place(more)
    runs = [fgvar.open_dataset(found) for found in sorted(folder.glob("*.nc"))]
    runs = [one for one in runs if one.attrs.get("study") == "table3" and not one.attrs.get("validation")]
    if not runs:
        raise ValueError(f"no finished run of this study in {folder}")
    from figures import command, table3, table3_probes

    tried = [fgvar.open_dataset(found) for found in sorted((folder / "rates").glob("*/*.nc"))]
    dataset = tables.errors(runs, EXACT + PERTURBED, PAPER)
    if tried:
        dataset["validation_error"] = tables.validation(tried, EXACT + PERTURBED)
    print(fgvar.save(dataset, out))
    command.write(command.Config(out), table3.FIGURES, table3.table)
    if any("step" in one.dims for one in runs):
        probes = fgvar.save(tables.probes(runs, EXACT + PERTURBED), more)
        print(probes)
        command.write(command.Config(probes), table3_probes.FIGURES)
    print(table3.table(dataset).to_string())


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:  # what the user can mend, in one line
        sys.exit(f"table3: {error}")
    except KeyboardInterrupt:
        sys.exit("table3: stopped; the same command goes on from here")
