"""Training runs of a table as cells of sweeps: each is trained once, and goes on from its checkpoint.

Started by torchrun, all processes train every run together: the first one sweeps, and the others follow it.
"""

import functools
import itertools
import json
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from studies.common import Options

# Axes and settings of one sweep.
Grid = tuple[Mapping[str, Sequence[Any]], Mapping[str, Any]]
Cell = Callable[..., Any]


def train_all(cell: Cell, grids: Sequence[Grid], run: Options, folder: Path) -> bool:
    """Train the runs of all grids that the folder has not; those that were stopped go on.

    Returns:
        Whether this process is the first: the others only follow it.

    Raises:
        ValueError: a run that is finished with other settings, runs that fail, torchrun with workers.
    """
    import fgvar
    from fgvar.training import broadcast_bytes, join, world

    join()
    rank, processes = world()
    if processes > 1 and (run.workers or run.scheduler or run.timeout):
        raise ValueError("torchrun's processes train each run together; leave out --workers, --scheduler, --timeout")
    if rank:
        _follow(cell)
        return False
    failed: list[str] = []
    try:
        _require_same(grids, folder)
        for axes, settings in grids:
            # The table is made of all cells of the folder, and of no single sweep's file.
            with tempfile.TemporaryDirectory() as unused:
                how = run.arguments() | {"folder": folder, "out": Path(unused) / "sweep.nc", "seed": None}
                found = fgvar.sweep(cell, axes, config=settings, scratch=folder / "scratch", **how)
            failed += [text.strip().splitlines()[-1] for text in found["traceback"].values.flat if text]
    except Exception:
        broadcast_bytes(None)
        raise
    broadcast_bytes(None)  # not after Ctrl-C, by which all have ended
    if failed:
        raise ValueError(f"{len(failed)} runs failed, see above ({failed[0]}); the same command tries them again")
    return True


def by_all(cell: Cell) -> Cell:
    """Decorate a cell that all of torchrun's processes compute together."""

    @functools.wraps(cell)
    def asked(**arguments: Any) -> Any:
        from fgvar.training import broadcast_bytes

        broadcast_bytes(pickle.dumps(arguments))
        return cell(**arguments)

    return asked


@functools.cache  # for the cells of a sweep
def images(data: str, validation: int = 0) -> tuple[Any, Any]:
    """Train and test split; or, in place of the latter, so many examples held out of the former."""
    import fgvar

    train, test = (fgvar.data.load(data, split) for split in ("train", "test"))
    if not validation:
        return train, test
    kept = len(train) - validation
    return train.subset(range(kept)), train.subset(range(kept, kept + validation))


def _follow(cell: Cell) -> None:
    """Compute the cells that the first process asks for, until it has no more."""
    from fgvar.training import broadcast_bytes

    while (arguments := broadcast_bytes(None)) is not None:
        try:
            cell.__wrapped__(**pickle.loads(arguments))  # type: ignore[attr-defined]
        except Exception:  # the first process keeps what went wrong; one run's failure is none of the others'
            traceback.print_exc()


def _require_same(grids: Sequence[Grid], folder: Path) -> None:
    """Raise where a finished run has other settings than this command's: a table has one run of each."""
    runs = [json.loads(run.attrs["cell_arguments"]) for run in finished(folder)]
    for (axes, settings), stored in itertools.product(grids, runs):
        if tuple(stored.get(axis) for axis in axes) not in itertools.product(*axes.values()):
            continue
        for name, ours in settings.items():
            if (theirs := stored.get(name)) != ours:
                which = " ".join(str(stored[axis]) for axis in ("network", "algorithm", "seed"))
                raise ValueError(
                    f"{which} in {folder} is finished with {name}={theirs}, this command says {ours}; give another "
                    "--out, whose folder is its own"
                )


def finished(folder: Path) -> list[Any]:
    """The datasets of all runs that a folder has."""
    from fgvar.sweeps import finished

    return finished(folder)


def tell(dataset: Any) -> None:
    """Print a finished run in a row, by the first process."""
    from fgvar.training import world

    if world()[0] == 0:
        print(*_row(dataset), sep="\t", flush=True)


def _row(dataset: Any) -> Iterator[str]:
    last, of = dataset.isel(epoch=-1, readout_epoch=-1, missing_dims="ignore"), dataset.attrs
    yield from (of["network"], of["algorithm"], f"seed {of['train_seed']}")
    yield from (f"lr {of['train_lr']:g}", f"epochs {of['train_epochs']}", f"loss {last['loss'].item():.4f}")
    yield from (f"{split} {last[f'{split}_error'].item():.2%}" for split in ("train", "test"))
