"""Cells for the tests of sweeps, and drivers that can be killed."""

import ctypes
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import xarray as xr

import fgvar

AXES = {"scheme": ("FG-W", "FG-A", "LG-FG-A"), "width": (1, 2, 3, 4)}
SEEDS = (0, 1)
ROOT = Path(__file__).resolve().parents[2]
HERE = {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests" / "support")])}


def ragged(scheme: str, width: int, seed: int, log: str = "", seconds: float = 0.0) -> xr.Dataset:
    """As many layers as units; numbers of all kinds; a line in the log for each call."""
    if log:
        with open(log, "a") as file:
            file.write(f"{scheme} {width} {seed}\n")
    time.sleep(seconds)
    values = np.random.default_rng([seed, width, len(scheme)]).normal(size=(width + 1, 2))
    layers = [*(f"block{i}" for i in range(width)), "total"]
    return xr.Dataset(
        {
            "cosine": (("layer", "reference"), values, {"units": "1"}),
            "size": ("layer", np.arange(width + 1)),
            "exact": width % 2 == 0,
            "curve": ("step", values[:, 0].astype("float32")),
        },
        coords={
            "layer": layers,
            "reference": ["target", "backprop"],
            "kind": scheme[:2],
            "seed": seed,
            "unit": "all",
        },
        attrs={"route": "drawn", "width": width, "device": "cpu"},
    )


def trouble(kind: str, limit: int = 0, log: str = "") -> xr.Dataset:
    """A line in the log says that the cell is in."""
    if kind == "child hangs":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        Path(log).write_text(f"{child.pid}\n")
        child.wait()
    if log:
        Path(log).write_text(f"{os.getpid()}\n")
    if kind == "raises":
        raise RuntimeError("not this one")
    if kind == "exits":
        sys.exit(3)
    if kind == "hangs in C":
        ctypes.PyDLL(None).sleep(1000)  # holding the interpreter's lock
    if kind == "memory":
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        np.ones(limit)
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if kind == "ends":
        os._exit(0)
    if kind == "killed while it answers":
        threading.Thread(target=_kill_while_sending, args=[threading.get_ident()]).start()
        return xr.Dataset({"a": ("x", np.zeros(1 << 23))})
    if kind == "crashes":
        ctypes.string_at(0)
    if kind == "no dataset":
        return 1.0  # type: ignore[return-value]
    if kind == "objects":
        return xr.Dataset({"a": ((), np.array(None, object))})
    if kind == "attribute":
        return xr.Dataset(attrs={"exact": True})
    return xr.Dataset({"kind" if kind == "axis" else "value": 1.0})


def _kill_while_sending(thread: int) -> None:
    """The kernel takes 64 KiB of 64 MiB at a time: whoever sees the sending sees it unfinished."""
    while sys._current_frames()[thread].f_code.co_name not in ("_send", "_send_bytes"):
        time.sleep(1e-4)
    os.kill(os.getpid(), signal.SIGKILL)


def trivial(a: int, b: int) -> xr.Dataset:
    return xr.Dataset({"product": a * b})


def second(number: int) -> xr.Dataset:
    """A second of computing, by the clock of this process: whatever else the machine does."""
    end = time.process_time() + 1
    while time.process_time() < end:
        pass
    return xr.Dataset({"number": number})


def drive(folder: str, seconds: float, **how) -> xr.Dataset:
    return fgvar.sweep(
        ragged, AXES, seed=SEEDS, config={"seconds": seconds}, folder=folder, out=Path(folder) / "sweep.nc", **how
    )


def assert_same(found: xr.Dataset, expected: xr.Dataset) -> None:
    """To the bit, with all labels, types and attributes, but for the time it took."""
    found, expected = (each.drop_vars("cell_seconds") for each in (found, expected))
    xr.testing.assert_identical(found, expected)
    for name, variable in expected.variables.items():
        if variable.dtype.kind not in "OU":  # text, which a file has as another type
            assert found[name].dtype == variable.dtype
            assert found[name].values.tobytes() == variable.values.tobytes()


def run(code: str) -> str:
    """What a script or a line of code prints."""
    what = [code] if code.endswith(".py") else ["-c", code]
    done = subprocess.run(
        [sys.executable, *what], capture_output=True, text=True, check=False, cwd=ROOT, env=os.environ | HERE
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
