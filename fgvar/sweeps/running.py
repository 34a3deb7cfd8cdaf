"""Running one cell: its dataset, or why there is none."""

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

import xarray as xr
from threadpoolctl import threadpool_limits

from fgvar.measurement.files import versions
from fgvar.storage.packing import pack
from fgvar.sweeps.cells import Function, Outcome

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def outcome(function: Function, arguments: Mapping[str, Any]) -> Outcome:
    """Call a cell's function; whatever it raises is its own affair, but for Ctrl-C."""
    made_by = versions()  # not of the cell's time
    began = time.perf_counter()
    try:
        found = function(**arguments)
        if not isinstance(found, xr.Dataset):
            raise TypeError(f"the cell returned a {type(found).__name__}, expected an xarray.Dataset")
        content = pack(found.assign_attrs(made_by | found.attrs))
    except KeyboardInterrupt:
        raise
    except BaseException:  # SystemExit, too, ends the cell alone
        return Outcome("failed", time.perf_counter() - began, traceback.format_exc())
    return Outcome("done", time.perf_counter() - began, content=content)


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
