"""Cells in processes of this machine: whatever becomes of one is a status, and nothing of it is left."""

import contextlib
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cloudpickle
import psutil
import pytest
from sweeping import HERE, ROOT, run, trouble

import fgvar
from fgvar.sweeps.local import CellProcess

LONG = 100.0  # seconds that no cell takes, however busy the machine is


@pytest.mark.parametrize("how", [{}, {"workers": 2}], ids=["process", "workers"])
def test_cells_that_die_or_run_out_of_memory(tmp_path, how) -> None:
    kinds = ("memory", "killed", "crashes", "ends", "fine")
    found = fgvar.sweep(trouble, {"kind": kinds}, config={"limit": 1 << 33}, timeout=LONG, folder=tmp_path, **how)
    assert found["status"].values.tolist() == ["failed", "died", "died", "died", "done"]
    told = dict(zip(kinds, found["traceback"].values.tolist(), strict=True))
    assert "MemoryError" in told["memory"]
    assert told["killed"].startswith("the cell's process was killed by SIGKILL")
    assert told["crashes"].startswith("the cell's process was killed by SIGSEGV")
    assert "Segmentation fault" in told["crashes"]
    assert told["ends"].startswith("the cell's process ended with exit code 0, 2 times")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("kind", ["hangs in C", "child hangs"])
def test_cells_that_hang(tmp_path, kind: str, workers: int) -> None:
    log, timeout = tmp_path / "log", 1.0
    while not log.exists():  # on a busy machine it takes longer until the cell is in
        give = {"timeout": timeout, "folder": tmp_path, "workers": workers, "config": {"log": str(log)}}
        found = fgvar.sweep(trouble, {"kind": (kind,)}, **give)
        assert found["status"] == "timed out"
        told, timeout = found["traceback"].values.item(), 4 * timeout
    assert told.startswith(f"still running after {timeout / 4:g} s\n")
    assert "in trouble\n" in told
    assert gone(int(log.read_text())), "it took along what it had started"


def gone(pid: int) -> bool:
    """Has a process ended? It may stay a zombie, where nobody waits for it."""
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for _ in range(int(LONG / 0.05)):
            if process.status() == psutil.STATUS_ZOMBIE:
                break
            time.sleep(0.05)
        else:
            return False
    return True


def test_what_dies_in_the_middle_of_its_answer_stops_no_other(tmp_path) -> None:
    kinds = ("killed while it answers", "fine")
    found = fgvar.sweep(trouble, {"kind": kinds}, timeout=LONG, folder=tmp_path)
    assert found["status"].values.tolist() == ["died", "done"]


def test_a_cell_that_hangs_in_c_ends_with_a_killed_driver(tmp_path) -> None:
    code = "import fgvar, sweeping; fgvar.sweep(sweeping.trouble, {'kind': ('hangs in C',)}, workers=1, "
    code += f"config={{'log': {str(tmp_path / 'log')!r}}}, folder={str(tmp_path)!r})"
    driver = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | HERE, stderr=subprocess.DEVNULL
    )
    pid = pid_in(tmp_path / "log")
    driver.kill()
    driver.wait()
    assert gone(pid)


def test_closing_ends_what_a_process_runs(tmp_path) -> None:
    process, arguments = CellProcess(cloudpickle.dumps(trouble), 1), {"kind": "hangs in C", "log": f"{tmp_path}/log"}
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(process.run, arguments, None)
        pid = pid_in(tmp_path / "log")
        process.close()
        assert running.result().status == "died"
    assert gone(pid)


def pid_in(log: Path) -> int:
    """Of the cell that writes there when it is in."""
    while not (log.exists() and log.read_text().endswith("\n")):
        time.sleep(0.05)
    return int(log.read_text())


def test_processes_do_not_run_the_script_again(tmp_path) -> None:
    """Which may have no guard, and whose function is pickled by value."""
    script = tmp_path / "script.py"
    script.write_text(f"""
import sys
sys.modules["distributed"] = None  # nor is dask needed
import fgvar, xarray
print("once")
def cell(number):
    return xarray.Dataset({{"value": number}})
found = fgvar.sweep(cell, {{"number": (1, 2, 3)}}, folder={str(tmp_path)!r}, workers=2)
print(*found["value"].values)
""")
    assert run(str(script)) == "once\n1 2 3\n"


def test_a_process_without_the_function_says_so(tmp_path) -> None:
    (tmp_path / "elsewhere.py").write_text("import xarray\n\ndef cell(number):\n    return xarray.Dataset()\n")
    code = f"""
import sys
sys.path.insert(0, {str(tmp_path)!r})
import elsewhere, fgvar
sys.path.pop(0)
found = fgvar.sweep(elsewhere.cell, {{"number": (1, 2)}}, folder={str(tmp_path)!r}, timeout=60)
print(*found["status"].values, *found["traceback"].values)
"""
    assert run(code).count("ModuleNotFoundError: No module named 'elsewhere'") == 2


def test_a_driver_ends_in_silence(tmp_path) -> None:
    """What a killed process leaves behind would be told on its starter's last lines: tqdm's lock was, once."""
    script = tmp_path / "script.py"
    script.write_text(
        "import fgvar, xarray\nfrom tqdm import tqdm\n"
        "def cell(number): return xarray.Dataset({'x': sum(tqdm([number], disable=False))})\n"
        f"fgvar.sweep(cell, {{'number': (1, 2)}}, folder={str(tmp_path / 'cells')!r}, workers=1)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, env=os.environ | HERE)
    assert "leaked" not in done.stderr
