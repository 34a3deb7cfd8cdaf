"""Cells on dask.distributed: threads of a worker, each with a process for its cells.

A cell that hangs, runs out of memory or crashes takes its own process along and no worker, so that no neighbour is
blamed; what dask itself loses, with a worker or its machine, is computed again.
"""

import contextlib
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import cloudpickle
from distributed import Client, as_completed
from distributed.scheduler import KilledWorker

from fgvar.sweeps.cells import Cell, Outcome
from fgvar.sweeps.keys import Function
from fgvar.sweeps.local import CellProcess

AHEAD = 1000  # cells that the scheduler knows of: enough for any cluster, and little to forget
TRIES = 10  # of cells whose workers die

_processes: dict[tuple[str, int], CellProcess] = {}  # of this worker: (sweep, thread) → process
_stopped: set[str] = set()


def run(
    function: Function, cells: Iterable[Cell], *, scheduler: str, threads: int, timeout: float | None
) -> Iterator[tuple[Cell, Outcome]]:
    """What comes of the cells, in the order in which they finish.

    Raises:
        OSError: no scheduler at the address, or it is lost on the way.
    """
    pickled, sweep, waiting = cloudpickle.dumps(function), uuid.uuid4().hex, iter(cells)
    with Client(scheduler, set_as_default=False) as client:
        asked: dict[Any, tuple[Cell, int]] = {}
        completed = as_completed(loop=client.loop)

        def ask(cell: Cell, times: int) -> None:
            future = client.submit(compute, sweep, pickled, threads, dict(cell.arguments), timeout, pure=False)
            asked[future.key] = cell, times
            completed.add(future)

        try:
            for cell in islice(waiting, AHEAD):
                ask(cell, 1)
            for future in completed:
                cell, times = asked.pop(future.key)
                if future.cancelled():
                    raise OSError("the dask scheduler is lost; all finished cells are kept: sweep again with another")
                error = future.exception()
                if isinstance(error, KilledWorker) and times < TRIES:  # no verdict on the cell
                    ask(cell, times + 1)
                    continue
                if error:
                    status = "died" if isinstance(error, KilledWorker) else "failed"
                    found = Outcome(status, float("nan"), f"{type(error).__name__}: {error}")
                else:
                    found = future.result()
                if (following := next(waiting, None)) is not None:
                    ask(following, 1)
                yield cell, found
        finally:
            client.cancel(list(completed.futures))
            with contextlib.suppress(OSError):  # the scheduler is lost
                client.run(stop, sweep)


def compute(
    sweep: str, function: bytes, threads: int, arguments: Mapping[str, Any], timeout: float | None
) -> Outcome:
    """One cell, on a worker."""
    if sweep in _stopped:
        raise RuntimeError("the sweep has been stopped")
    whose = sweep, threading.get_ident()
    if whose not in _processes:
        _processes[whose] = CellProcess(function, threads)
    return _processes[whose].run(arguments, timeout)


def stop(sweep: str) -> None:
    """End all processes of a sweep on a worker, and the cells that they run."""
    _stopped.add(sweep)
    for whose in [whose for whose in _processes if whose[0] == sweep]:
        _processes.pop(whose).close()
