"""Sweeps: grids of cells, each computed once and kept in a file of its own."""

import contextlib
import hashlib
import os
import sys
import time
import warnings
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from tqdm.auto import tqdm

from fgvar.errors import needs_extra
from fgvar.measurement.files import save
from fgvar.storage import locks
from fgvar.storage.atomic import require_folder, require_place
from fgvar.sweeps import local
from fgvar.sweeps.arguments import check_resources, grid_and_config, part_of
from fgvar.sweeps.cells import Cell, Folder, Outcome, Scalar
from fgvar.sweeps.grid import consolidated, points
from fgvar.sweeps.keys import Function, check_call, code_of, function_name, key_of
from fgvar.sweeps.scratch import WAIT, ScratchFolders, tidy


def sweep(
    cell: Function,
    axes: Mapping[str, Sequence[Any]],
    *,
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    config: Mapping[str, Any] | None = None,
    seed: int | Sequence[int] | None = None,
    version: str = "",
    threads: int = 1,
    workers: int = 0,
    scheduler: str | None = None,
    shard: str = "0/1",
    timeout: float | None = None,
    scratch: str | os.PathLike[str] | None = None,
    compute: bool = True,
) -> xr.Dataset:
    """Compute a function on a grid: every cell once, whatever is killed, fails or is added later.

    A cell is called by keywords, ``cell(width=16, scheme="FG-W", draws=512, seed=0)``, and returns a dataset. What it
    returns is a function of them and of its defaults, ``version`` and ``threads``: their hash, with the names of the
    function and its file, is the cell's identity. A cell that the folder has is not computed again, so that values,
    axes (formerly in ``config`` or a default) and seeds that are added cost the new cells alone. Draws of different
    seeds are independent: more draws are more seeds, whose mean has the standard error √(Σ se²)/seeds.

    Args:
        cell: of a module, or of a script. It draws from no state outside of its arguments; its code is no part of
            its identity, see ``version``; where it has changed since cells were kept, a warning says so.
        axes: name → values, text or numbers.
        folder: of the cells' files. Any number of processes may share it, and sweeps over other axes. A second driver
            of the same part of the same cells waits for the first to end, or to be killed, and goes on from there.
        out: the consolidated netCDF file, of one sweep at a time. Default: ``sweep.nc`` in the folder.
        config: further arguments, the same for all cells, as JSON can hold them.
        seed: an argument ``seed`` of all cells; several are one more axis.
        version: of the cell's code: another one computes all cells again.
        threads: that a cell computes with.
        workers: processes on this machine; 0 computes in this one, or with a ``timeout`` in one beside it.
        scheduler: address of a dask cluster to compute on instead, as "tcp://node:8786".
        shard: "i/n" computes the i-th of n parts, from 0, and consolidates what all have finished.
        timeout: seconds after which a cell's process is killed.
        scratch: a folder in which every cell gets one of its own: its keyword parameter ``scratch``, a `Path` that is
            no part of its identity. What it writes there, such as ``fgvar.train(…, checkpoint=scratch / "run")``,
            outlives a cell that was killed, timed out or failed, so that it goes on where it stopped; the folder is
            removed when the cell is done, and of one driver at a time. On a cluster all workers have to see it.
        compute: False only consolidates what there is.

    Returns:
        The cells' variables over the axes and their own dimensions, which have the labels of all cells: what a cell
        lacks is NaN. ``status`` is done, failed, "timed out", died or missing, with a ``traceback``; ``cell_seconds``
        is its wall time. Cells that failed are tried again by the next sweep.

    Raises:
        ValueError: an axis or setting that the cell does not take, or lacks; a cell that uses variables of a function
            that it is defined in, or a lambda without a version; anything out of its range; an ``out`` that is the
            folder; ``scratch`` of a cell without that parameter, or the other way round; an axis with the name of a
            variable that the first cell returns.
        TypeError: values or defaults that are not text or numbers; workers or threads that are no integers.
        OSError: the folder, ``out`` or ``scratch`` cannot be written, before anything is computed, or is another
            sweep's that is going on; or it cannot be written any more, after the last cell was kept.
        ImportError: a scheduler without ``pip install fgvar[cluster]``.

    Example:
        >>> import tempfile, xarray as xr
        >>> def cell(width, seed):
        ...     return xr.Dataset({"square": ("unit", [float(width**2 + seed)] * width)})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     found = sweep(cell, {"width": (1, 2)}, seed=(0, 1), folder=folder)
        >>> found["square"].sel(seed=1).values
        array([[ 2., nan],
               [ 5.,  5.]])
    """
    part, parts = part_of(shard)
    check_resources(workers, scheduler, threads, timeout)
    grid, config = grid_and_config(axes, config, seed, scratch)
    check_call(cell, grid, config, version=version, scratch=scratch is not None)
    cells = []
    for where, at in points(grid):
        key = key_of(cell, settings := at | config, version, threads)
        cells.append(Cell(where, settings, key, None if scratch is None else Path(scratch) / key))
    mine = {each.key for each in sorted(cells, key=lambda each: each.key)[part::parts]}
    folder = Path(folder)
    out = Path(out or folder / "sweep.nc")
    if out.resolve() in (folder.resolve(), (folder / "cells").resolve()):
        raise ValueError(f"out is {out}, the folder of the cells; give it a name of its own, as {out}.nc")
    attrs = {"sweep": function_name(cell), "sweep_version": version, "threads": threads}
    attrs |= {f"config_{name}": value if isinstance(value, str) else repr(value) for name, value in config.items()}
    require_place(out)
    if scratch is not None:
        require_folder(Path(scratch))
    with Folder(folder / "cells", code_of(cell)) as kept, contextlib.ExitStack() as held:
        work = hashlib.sha256(repr((grid, attrs, [each.key for each in cells])).encode()).hexdigest()[:32]
        held.enter_context(_of_one_sweep(out, work))
        if compute:
            held.enter_context(_in_turn(kept.path / f".{work}.{part}-{parts}.lock", shard))
        found = {each: kept.read(each) for each in cells}
        _warn_of_other_code(found.values(), kept, cell)
        for each, it in found.items():
            if _is_done(it):
                tidy(each)  # its driver may have been killed before
        todo = [each for each, it in found.items() if each.key in mine and not _is_done(it)]
        if compute and todo:
            scratches = held.enter_context(ScratchFolders())
            while todo:
                running = _run(cell, _wanted(todo, kept, scratches), workers, scheduler, threads, timeout)
                found |= _kept(running, kept, scratches, len(todo), grid)
                todo = scratches.left()
        return _consolidate(grid, found, attrs, kept, out)


def _wanted(cells: Iterable[Cell], kept: Folder, scratches: ScratchFolders) -> Iterator[Cell]:
    """The cells that nobody has computed meanwhile, or is computing in their scratch folders."""
    for cell in cells:
        if kept.has(cell) or not scratches.take(cell):
            continue
        if kept.has(cell):  # by a driver that had its folder until now
            tidy(cell)
            scratches.release(cell)
            continue
        yield cell


def _kept(
    running: Generator[tuple[Cell, Outcome], None, None],
    kept: Folder,
    scratches: ScratchFolders,
    total: int,
    grid: Mapping[str, Sequence[Scalar]],
) -> dict[Cell, Outcome]:
    """Keep what comes of the cells as it comes, and tell of what does not end well."""
    found: dict[Cell, Outcome] = {}
    with contextlib.closing(running), tqdm(total=total, desc="cells", unit="cell") as bar:
        for cell, it in running:
            if _is_done(it) and not any(map(_is_done, found.values())):
                _require_place(cell, it, grid)
            kept.write(cell, it)
            found[cell] = it
            bar.update()
            if _is_done(it):
                tidy(cell)
            scratches.release(cell)
            if not _is_done(it):
                bar.write(f"{cell}: {it.status}: {_line(it)}", file=sys.stderr)
    return found


def _require_place(cell: Cell, it: Outcome, grid: Mapping[str, Sequence[Scalar]]) -> None:
    """Raise where a cell's dataset does not fit into the grid: others would not, either, after hours of computing."""
    alone = consolidated(grid, {cell: it}, {})
    if why := alone["traceback"].values[cell.place]:
        raise ValueError(f"{cell}: {str(why).removeprefix('ValueError: ')}, or the axis; no other cell is computed")


def _warn_of_other_code(found: Collection[Outcome | None], kept: Folder, function: Function) -> None:
    """Say how many cells are of a function that has been changed since, or of another one of its name."""
    python = kept.code.partition(" ")[0] + " "  # in another one all code is other code
    older = sum(_is_done(it) and it.code.startswith(python) and it.code != kept.code for it in found if it)
    if older:
        warnings.warn(
            f"{older} of {len(found)} cells in {kept.path.parent} were computed by other code of "
            f"{function_name(function)}, or of what it uses of its module, and are kept as they are; give a version= "
            "to compute all of them anew, or another folder=",
            stacklevel=3,
        )


def _consolidate(
    grid: Mapping[str, Sequence[Scalar]],
    found: dict[Cell, Outcome | None],
    attrs: Mapping[str, Any],
    kept: Folder,
    out: Path,
) -> xr.Dataset:
    """Write the file of all cells; again if other drivers finished some meanwhile: who ends last has seen all."""
    while True:
        dataset = consolidated(grid, found, attrs)
        _save(dataset, out)
        open_ones = [each for each, it in found.items() if not _is_done(it)]
        new = {each: kept.read(each) for each in open_ones if kept.has(each)}
        if not any(new.values()):
            return dataset
        found |= new


def _is_done(it: Outcome | None) -> bool:
    return it is not None and it.status == "done"


def _run(
    function: Function,
    cells: Iterable[Cell],
    workers: int,
    scheduler: str | None,
    threads: int,
    timeout: float | None,
) -> Generator[tuple[Cell, Outcome], None, None]:
    """What comes of the cells: in this process, in others of this machine, or on a cluster."""
    if scheduler is not None:
        with needs_extra("a scheduler", "cluster"):
            from fgvar.sweeps import cluster
        yield from cluster.run(function, cells, scheduler=scheduler, threads=threads, timeout=timeout)
    elif workers or timeout is not None:
        yield from local.run(function, cells, workers=max(1, workers), threads=threads, timeout=timeout)
    else:
        with local.threads_of_cells(threads):
            for cell in cells:
                yield cell, local.outcome(function, cell.arguments)


@contextlib.contextmanager
def _of_one_sweep(out: Path, work: str) -> Iterator[None]:
    """Share the consolidated file with other drivers of this sweep, and with no other sweep."""
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locks.shared(locks.lock_path(out), work))
        except locks.LockHeld as holder:
            raise BlockingIOError(
                f"{out} is being written by a sweep of other cells, begun by {holder}; wait for its end, or give "
                "another out="
            ) from None
        yield


@contextlib.contextmanager
def _in_turn(lock: Path, shard: str) -> Iterator[None]:
    """Wait until no other driver computes this part of the cells, however it ends."""
    with contextlib.ExitStack() as held:
        told = False
        while True:
            try:
                held.enter_context(locks.exclusive(lock))
                break
            except locks.LockHeld as holder:
                if str(holder) == locks.this_process():
                    raise BlockingIOError(
                        f"this process computes these cells already (shard {shard}); give each sweep a shard of its "
                        "own, as 0/2 and 1/2, or begin one after the other"
                    ) from None
                if not told:
                    print(f"{holder} computes these cells (shard {shard}): waiting for its end", file=sys.stderr)
                told = True
                time.sleep(WAIT)
        yield


def _save(dataset: xr.Dataset, out: Path) -> None:
    try:
        save(dataset, out)
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror or error}; all cells are kept: make room and sweep again"
        ) from error


def _line(told: Outcome) -> str:
    """An exception stands below its traceback, other ends above."""
    lines = told.traceback.strip().splitlines()
    return lines[-1 if told.status == "failed" else 0]
