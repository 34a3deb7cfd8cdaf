"""Cells on this machine: in this process, or each in one that can be killed.

What hangs in C code can be stopped in no other way. Such a process ends with the one that started it, however that
ends, and takes along what its cell has started.
"""

import contextlib
import ctypes
import faulthandler
import functools
import math
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import spawn
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any, NoReturn

import cloudpickle
import xarray as xr
from pebble import ProcessPool
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from fgvar.measurement.files import versions
from fgvar.storage.packing import pack
from fgvar.sweeps.cells import Cell, Outcome
from fgvar.sweeps.keys import Function

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
IDLE = 60  # seconds after which a process that nobody uses ends
START = 300.0  # seconds that the interpreter and the function's module may take to load
TRIES = 2  # a process may be killed for no fault of its cell
MOMENT = 0.2  # seconds between two looks at whether a process can still answer
PR_SET_PDEATHSIG = 1  # of Linux's prctl: a signal when the parent dies


def run(
    function: Function, cells: Iterable[Cell], *, workers: int, threads: int, timeout: float | None
) -> Generator[tuple[Cell, Outcome], None, None]:
    """What comes of the cells in so many processes, in the order in which they finish."""
    pickled, waiting = cloudpickle.dumps(function), iter(cells)
    running: dict[Future[Outcome], tuple[Cell, CellProcess]] = {}
    with ThreadPoolExecutor(workers) as pool, contextlib.ExitStack() as processes:

        def begin_next(process: CellProcess) -> None:
            if (cell := next(waiting, None)) is not None:
                running[pool.submit(process.run, cell.arguments, timeout)] = cell, process

        for _ in range(workers):
            begin_next(processes.enter_context(contextlib.closing(CellProcess(pickled, threads))))
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                cell, process = running.pop(future)
                begin_next(process)
                yield cell, future.result()


def outcome(function: Function, arguments: Mapping[str, Any]) -> Outcome:
    """Call a cell's function; whatever it raises is its own affair, but for Ctrl-C."""
    made_by = versions()  # not of the cell's time
    began = time.perf_counter()
    try:
        found = function(**arguments)
        if not isinstance(found, xr.Dataset):
            raise TypeError(f"the cell returned a {type(found).__name__}, expected an xarray.Dataset")
        _require_labels(found)
        content = pack(found.assign_attrs(made_by | found.attrs))
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit, too, ends the cell alone
        return Outcome("failed", time.perf_counter() - began, traceback.format_exc())
    return Outcome("done", time.perf_counter() - began, content=content)


def _require_labels(dataset: xr.Dataset) -> None:
    """Raise where a label is no place among those of all cells."""
    for name, index in dataset.indexes.items():
        if index.hasnans or not index.is_unique:
            labels = ", ".join(map(str, index))
            raise ValueError(f"labels of {name!r} are {labels}; expected each once, and none that is NaN")


@contextlib.contextmanager
def threads_of_cells(threads: int) -> Iterator[None]:
    """Let this process compute with so many threads, in libraries that are loaded already or within."""
    before = {name: os.environ.get(name) for name in THREADS}
    loaded = sys.modules.get("torch")
    usual = loaded.get_num_threads() if loaded else int(before["OMP_NUM_THREADS"] or os.cpu_count() or 1)
    os.environ.update(dict.fromkeys(THREADS, str(threads)))
    if loaded:
        loaded.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(usual)


# ---- a process, seen from its starter -------------------------------------------------------------------------


class CellProcess:
    """A process that runs one cell at a time, and is started again where it has died.

    It is a pool of one, and a new one after each death: what dies while it holds a pool's lock, or in the middle of a
    message, leaves neither behind.

    Args:
        function: the cells' function, pickled by value where no module has it.
        threads: that each cell computes with.
    """

    def __init__(self, function: bytes, threads: int) -> None:
        self.function, self.threads = function, threads
        self.context = _Context()
        self.pool: ProcessPool | None = None
        self.closed = False
        self.running = threading.Lock()

    def run(self, arguments: Mapping[str, Any], timeout: float | None) -> Outcome:
        """One cell. It is tried again where its process died, and not where it took too long."""
        with self.running:
            for _ in range(TRIES):
                began = time.perf_counter()
                try:
                    pool = self._started()
                    began = time.perf_counter()
                    return _answer(pool, pool.schedule(_compute, (dict(arguments),), timeout=timeout))
                except TimeoutError:
                    took = time.perf_counter() - began
                    return Outcome("timed out", took, f"still running after {timeout:g} s\n{self._end()}")
                except Exception:  # pebble's, since what a cell raises is an outcome
                    took = time.perf_counter() - began
                    how = _ending(next((process.exitcode for process in self.context.started), None))
                    found = Outcome("died", took, f"the cell's process {how}, {TRIES} times\n{self._end()}")
                    if self.closed:
                        break
            return found

    def close(self) -> None:
        """End it at once, whatever it is running in another thread."""
        self.closed = True
        while not self.running.acquire(timeout=0.05):
            if (pool := self.pool) is not None:
                pool.stop()
        self._end()
        self.running.release()

    def _started(self) -> ProcessPool:
        if self.pool is not None and self.pool.active:
            return self.pool
        self._end()
        if self.closed:
            raise BrokenProcessPool("it is not wanted any more")
        self.faults = tempfile.NamedTemporaryFile()  # noqa: SIM115
        self.context.started.clear()
        begin = self.function, self.threads, self.faults.name
        self.pool = ProcessPool(1, initializer=_begin, initargs=begin, context=self.context)
        _answer(self.pool, self.pool.schedule(os.getpid), START)
        return self.pool

    def _end(self) -> str:
        """Kill it, if it lives, and what it has started; where it hung or crashed."""
        if self.pool is None:
            return ""
        self.pool.stop()
        for process in self.context.started:
            process.kill_all()
        # Not waited for: it has no end where the process died in the middle of a message.
        threading.Thread(target=self.pool.join, daemon=True).start()
        self.pool = None
        with self.faults:
            return self.faults.read().decode(errors="replace")


def _answer(pool: ProcessPool, future: "Future[Any]", seconds: float = math.inf) -> Any:
    """What a process answers; pebble never answers what reaches a pool while it breaks or is stopped."""
    end = time.monotonic() + seconds
    while not wait([future], MOMENT).done:
        if time.monotonic() > end or not pool.active:
            raise BrokenProcessPool("no answer")
    return future.result()


def _ending(code: int | None) -> str:
    if code is None:
        return "did not start"
    if code >= 0:
        return f"ended with exit code {code % PLANNED}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")


# ---- a process, from within -----------------------------------------------------------------------------------

PLANNED = 256  # in place of exit code 0, which pebble takes for a planned end: it would wait for the cell for ever


class _Process(SpawnProcess):
    """One that dask's daemonic workers, too, may start, and that does not run the driver's script again."""

    starting = threading.Lock()

    def start(self) -> None:
        with self.starting:
            prepare, config = spawn.get_preparation_data, multiprocessing.current_process()._config  # type: ignore[attr-defined]
            daemon = config.pop("daemon", None)  # multiprocessing would refuse; this one ends with its starter anyway
            # Functions of a script are pickled by value.
            spawn.get_preparation_data = lambda name: {
                key: value for key, value in prepare(name).items() if not key.startswith("init_main")
            }
            try:
                super().start()
            finally:
                spawn.get_preparation_data = prepare
                if daemon is not None:
                    config["daemon"] = daemon

    def kill_all(self) -> None:
        """And what it has started."""
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)

    @property
    def exitcode(self) -> int | None:
        code = super().exitcode
        return PLANNED if code == 0 else code


class _Context(SpawnContext):
    """Where a pool takes its processes from, and what it took."""

    def __init__(self) -> None:
        super().__init__()
        self.started: list[_Process] = []

    def Process(self, *args: Any, **kwargs: Any) -> _Process:  # type: ignore[override]
        self.started.append(_Process(*args, **kwargs))
        return self.started[-1]


_life = contextlib.ExitStack()  # what is set up for as long as a process for cells lives
_function: Function


def _begin(function: bytes, threads: int, faults: str) -> None:
    """Set up a process for cells: it ends with its starter, says where it was, and has the function."""
    global _function
    os.setsid()  # Ctrl-C is its starter's
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    starter = multiprocessing.parent_process()
    if starter is None or os.getppid() != starter.pid:  # it had ended before
        os._exit(1)
    file = open(faults, "a")  # noqa: SIM115  for as long as it lives
    faulthandler.enable(file)
    faulthandler.register(signal.SIGTERM, file, chain=True)
    tqdm.set_lock(threading.RLock())  # its own is between processes, and a kill leaks it
    _life.enter_context(threads_of_cells(threads))
    try:
        _function = cloudpickle.loads(function)
    except Exception as error:  # a module that is not to be found here, for one
        _function = functools.partial(_fail, error)
    versions()  # not of a cell's time


def _compute(arguments: Mapping[str, Any]) -> Outcome:
    signal.alarm(0)
    try:
        return outcome(_function, arguments)
    finally:
        signal.alarm(IDLE)


def _fail(error: Exception, **_: object) -> NoReturn:
    raise error
