"""Table 3 of Ren et al. 2023: test and train error of every algorithm, on MNIST and CIFAR-10.

Question   How well does each algorithm train a LocalMixer, and how much of that is owed to its gradients?
Claim      Errors as in the paper within 0.5 points; a frozen trunk bounds what untaught features reach.
Run        One run: --network S/1/1 --algorithm LG-FG-A --out run.nc. Without --algorithm: the default table, one
           file a run under --folder; runs that are finished are skipped, others go on from their checkpoints.
            torchrun --nproc-per-node N studies/table3.py … makes one run of N processes, N·batch examples a step.
Cost       MNIST with --compile, on one core: about 5 s an epoch (S/1/1), 5 to 15 s (M/1/16). --smoke: a few seconds.
"""

import sys
import traceback
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import tyro

ROOT = Path(__file__).resolve().parents[1]
# The paper's rows, the frozen trunk, and LG-FG-W with its published credit.
EXACT = ("BP", "L-BP", "LG-BP", "FA", "L-FA", "LG-FA", "DFA", "frozen")
PERTURBED = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "LG-FG-W-published")
PROBED = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A", "LG-BP", "BP")
# Chosen with --validation 10000 (never on test): one seed, S/1/1, 10 epochs, of 0.025, 0.05 and 0.1, by the error of
# BP, FA, LG-FG-A and LG-FG-W.
RATES = {"exact": 0.1, "feedback": 0.1, "activities": 0.025, "weights": 0.1}
FAMILY = {
    **dict.fromkeys(("BP", "L-BP", "LG-BP", "frozen"), "exact"),
    **dict.fromkeys(("FA", "L-FA", "LG-FA", "DFA"), "feedback"),
    **dict.fromkeys(("FG-A", "LG-FG-A"), "activities"),
    **dict.fromkeys(("FG-W", "LG-FG-W", "LG-FG-W-published"), "weights"),
}


@dataclass(frozen=True)
class Config:
    """Train LocalMixers by the algorithms of Table 3."""

    network: str = "S/1/1"
    """Preset: S/1/1, M/1/16, M/8/16, L/8/64."""
    algorithm: str | None = None
    """One run by this algorithm; without it, the default table."""
    data: str = "mnist"
    """Directory of parquet files or images, "digits", or a name on the Hugging Face hub."""
    epochs: int | None = None
    """Default: 20 for exact gradients and feedback, 100 for perturbation."""
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
    seed: int = 0
    probes: int = 12
    """About how many steps to probe six schemes at, log-spaced."""
    draws: int = 32
    probe_batch: int = 32
    validation: int = 0
    """Hold out so many training examples and report errors on them instead of on the test split."""
    compile: bool = False
    """torch.compile the estimate."""
    autocast: bool = False
    """Matrix products in bfloat16."""
    device: str = "auto"
    out: Path | None = None
    """Dataset of one run; its checkpoint stands beside it."""
    resume: bool = True
    folder: Path = field(default=ROOT / "results" / "table3")
    """Where the default table keeps its runs."""
    seeds: int = 3
    """Of the default table."""
    shard: str = "0/1"
    """i/n: every n-th run of the default table, from the i-th."""
    smoke: bool = False
    """A few seconds: one epoch on digits."""


def main(config: Config) -> None:
    import fgvar  # after the command line is parsed: --help needs no torch

    if config.smoke:
        config = replace(
            config, data="digits", algorithm=config.algorithm or "LG-FG-A", epochs=1, probes=min(config.probes, 1)
        )
    shard = _shard(config.shard)
    images, test = (fgvar.data.load(config.data, split) for split in ("train", "test"))
    if config.validation:
        kept = len(images) - config.validation
        images, test = images.subset(range(kept)), images.subset(range(kept, kept + config.validation))
    if config.algorithm is not None:
        run(config, config.out or ROOT / "results" / "table3.nc", images, test)
        return
    failed = 0
    for network, algorithm, seed in table(config)[shard]:
        path = config.folder / f"{network.replace('/', '-')}_{algorithm}_{seed}.nc"
        cell = replace(config, network=network, algorithm=algorithm, seed=seed)
        if path.exists():
            _require_same(cell, path)
            continue
        try:
            run(cell, path, images, test)
        except Exception as error:  # one run's failure is none of the others'
            failed += 1
            traceback.print_exc()
            print(network, algorithm, f"seed {seed}", f"failed: {error}", sep="\t", flush=True)
    if failed:
        raise ValueError(f"{failed} runs failed, see above; the same command tries them again")


def _shard(text: str) -> slice:
    """The runs i, i + n, i + 2n, … of "i/n"."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"--shard is {text!r}, expected i/n with 0 ≤ i < n, as 0/4, 1/4, 2/4 and 3/4 of four jobs")
    return slice(int(index), None, int(count))


def _require_same(config: Config, path: Path) -> None:
    """Raise where a finished run had other settings than this command's."""
    import fgvar

    stored = fgvar.open_dataset(path).attrs
    for name, ours in {**asdict(schedule_of(config)), "seed": config.seed}.items():
        if (theirs := stored.get(f"train_{name}", ours)) != ours:
            raise ValueError(
                f"{path} is finished with {name}={theirs}, this command says {ours}; give another --folder"
            )


def table(config: Config) -> list[tuple[str, str, int]]:
    """The runs of the default table: the cheap ones first, a seed at a time."""
    return [
        (network, algorithm, seed)
        for algorithms in (EXACT, PERTURBED)
        for seed in range(config.seeds)
        for network in ("S/1/1", "M/1/16")
        for algorithm in algorithms
    ]


def schedule_of(config: Config) -> Any:
    """The schedule of one run: its own settings, or those of its algorithm's family."""
    import fgvar

    name = config.algorithm or ""
    return fgvar.Schedule(
        config.epochs or (100 if name in PERTURBED else 20),
        config.batch,
        config.lr or RATES[FAMILY.get(name, "exact")],
        config.momentum,
        config.weight_decay,
        optimiser=config.optimiser,
        decay=config.decay,
        warmup=config.warmup,
        head_factor=config.head_factor,
        readout_factor=config.readout_factor,
    )


def run(config: Config, out: Path, images: Any, test: Any) -> None:
    """One run, from its checkpoint if there is one; writes its dataset and prints a row."""
    import fgvar
    from fgvar.experiments.distributed import join, world
    from fgvar.experiments.training import log_steps, steps_of

    join()
    assert config.algorithm is not None
    name = config.algorithm
    credit = {"credit": "published"} if name.endswith("-published") else {}
    estimator = fgvar.scheme(name.removesuffix("-published"), **credit)
    schedule = schedule_of(config)
    model = fgvar.networks.LocalMixer.preset(
        config.network, image_shape=images.image_shape, classes=images.classes, head_init="zero", seed=config.seed
    )
    probe = None
    if config.probes:
        probe = fgvar.Probe(
            {scheme: fgvar.scheme(scheme, **_replayed(scheme)) for scheme in PROBED},
            images.sample(config.probe_batch, seed=config.seed + 1),
            log_steps(config.probes, steps_of(schedule, len(images))),
            draws=config.draws,
            route="both",
        )
    dataset = fgvar.train(
        model,
        estimator,
        (images, test),
        schedule,
        seed=config.seed,
        probe=probe,
        device=config.device,
        name=f"{config.network} {name} {config.seed}",
        checkpoint=out.with_suffix(".checkpoint"),
        resume=config.resume,
        compile=config.compile,
        autocast=config.autocast,
    ).dataset
    if world()[0]:  # the first process writes and prints
        return
    dataset.attrs |= {
        "study": "table3",
        "network": config.network,
        "algorithm": name,
        "validation": config.validation,
        "configuration": repr(replace(config, out=None, folder=Path("results/table3"))),
    }
    fgvar.save(dataset, out)
    last = dataset.isel(epoch=-1)
    settings = (config.network, name, f"seed {config.seed}", f"lr {schedule.lr:g}", f"epochs {schedule.epochs}")
    errors = (f"loss {last['loss'].item():.4f}", *(f"{k} {last[f'{k}_error'].item():.2%}" for k in ("train", "test")))
    print(*settings, *errors, sep="\t", flush=True)


def _replayed(scheme: str) -> dict[str, Any]:
    """Draws for the probe cost inner products alone, where a scheme draws at all."""
    import fgvar

    return {"oracle": fgvar.Replay()} if "FG" in scheme else {}


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError) as error:  # what the user can mend, in one line
        sys.exit(f"table3: {error}")
    except KeyboardInterrupt:
        sys.exit("table3: stopped; the same command goes on from here")
