"""A process for cells, which can be killed: a cell that hangs in C code can be stopped in no other way.

It ends with the process that started it, however that one ends.
"""

import contextlib
import faulthandler
import fcntl
import functools
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, BinaryIO, NamedTuple, NoReturn

import cloudpickle

from fgvar.measurement.files import versions
from fgvar.sweeps.cells import Outcome
from fgvar.sweeps.running import THREADS, outcome

IDLE = 60.0  # seconds after which a process that nobody uses ends
START = 300.0  # seconds that the interpreter and the function's module may take to load
TRIES = 2  # a process may be killed for no fault of its cell
TELLING = 0.5  # seconds in which a process that hangs may write where


class Started(NamedTuple):
    """A living process, the way to it, and the file where it says what it did when it hung or crashed."""

    process: "subprocess.Popen[bytes]"
    connection: Connection
    faults: BinaryIO


class CellProcess:
    """A process that runs one cell at a time, and is started again where it has died.

    Args:
        function: the cells' function, pickled by value where no module has it.
        threads: that each cell computes with.
    """

    def __init__(self, function: bytes, threads: int) -> None:
        self.function, self.threads = function, threads
        self.started: Started | None = None
        self.closed = False
        self.running = threading.Lock()

    def __enter__(self) -> "CellProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, arguments: Mapping[str, Any], timeout: float | None) -> Outcome:
        """One cell. It is tried again where its process died, and not where it took too long."""
        with self.running:
            for _ in range(TRIES):
                began = time.perf_counter()
                try:
                    started = self._start()
                    began = time.perf_counter()
                    started.connection.send(dict(arguments))
                    if started.connection.poll(timeout):
                        return started.connection.recv()
                    status, how, where = "timed out", f"still running after {timeout:g} s", self._end(ask=True)[1]
                    return Outcome(status, time.perf_counter() - began, f"{how}\n{where}")
                except (EOFError, OSError):  # it is gone
                    how, where = self._end()
                    found = Outcome("died", time.perf_counter() - began, f"{how}, {TRIES} times\n{where}")
                    if self.closed:
                        break
            return found

    def close(self) -> None:
        """End it at once, whatever it is running in another thread."""
        self.closed = True
        while not self.running.acquire(timeout=0.05):
            if self.started is not None:
                _kill(self.started.process)
        self._end()
        self.running.release()

    def _start(self) -> Started:
        if self.started is not None and self.started.process.poll() is None:
            return self.started
        self._end()
        if self.closed:
            raise EOFError
        connection, theirs = multiprocessing.Pipe()
        faults = tempfile.TemporaryFile()  # noqa: SIM115
        numbers = theirs.fileno(), faults.fileno()
        # What can be imported here can be imported there.
        path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
        process = subprocess.Popen(
            [sys.executable, "-c", f"from {__name__} import serve; serve{numbers}"],
            env=os.environ | dict.fromkeys(THREADS, str(self.threads)) | {"PYTHONPATH": path},
            pass_fds=numbers,
            start_new_session=True,  # Ctrl-C is its starter's
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        self.started = Started(process, connection, faults)
        connection.send_bytes(self.function)
        if not connection.poll(START):
            raise OSError(f"a process for cells did not start within {START:g} s")
        connection.recv()
        return self.started

    def _end(self, ask: bool = False) -> tuple[str, str]:
        """Kill it, if it lives; how it ended, and where it was."""
        if self.started is None:
            return "the cell's process did not start", ""
        process, connection, faults = self.started
        if ask:
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGUSR1)
                time.sleep(TELLING)
        # What has closed its end is about to end by itself, by whatever killed it.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0 if ask or self.closed else TELLING)
        _kill(process)
        code = process.wait()
        connection.close()
        faults.seek(0)
        where = faults.read().decode(errors="replace")
        faults.close()
        self.started = None
        return f"the cell's process {_ending(code)}", where


def serve(connection_number: int, faults_number: int) -> None:
    """The life of the process: load the function, run what is asked for."""
    for number in (connection_number, faults_number):
        os.set_inheritable(number, False)
    faulthandler.enable(faults_number)
    faulthandler.register(signal.SIGUSR1, faults_number)
    signal.signal(signal.SIGIO, signal.SIG_DFL)  # which ends the process
    connection = Connection(connection_number)
    try:
        function = cloudpickle.loads(connection.recv_bytes())
    except Exception as error:  # a module that is not to be found here, for one
        function = functools.partial(_fail, error)
    versions()  # not of a cell's time
    connection.send("ready")
    while connection.poll(IDLE):
        try:
            arguments = connection.recv()
        except EOFError:
            return
        with _ends_with_starter(connection):
            found = outcome(function, arguments)
        connection.send(found)


@contextlib.contextmanager
def _ends_with_starter(connection: Connection) -> Iterator[None]:
    """The kernel's signal that the other end has closed needs no interpreter that listens: it ends C code, too."""
    number = connection.fileno()
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    fcntl.fcntl(number, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(number, fcntl.F_SETFL, flags | os.O_ASYNC)
    if connection.poll(0):  # it had closed before
        os._exit(1)
    yield
    fcntl.fcntl(number, fcntl.F_SETFL, flags)


def _fail(error: Exception, **_: object) -> NoReturn:
    raise error


def _kill(process: "subprocess.Popen[bytes]") -> None:
    """And what it has started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"was killed by {name}" + (", as the system does when memory runs out" if name == "SIGKILL" else "")
