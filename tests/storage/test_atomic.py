"""Files: what may be replaced, what stays when a disk is full, and what damage does."""

import contextlib
import errno
import os
import random
import resource
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.measurement import files
from fgvar.storage import atomic, foreign
from fgvar.storage.atomic import replace, require_folder, require_place
from studies import table3
from studies.common import Options

ROOT = Path(__file__).resolve().parents[2]
DATASET = xr.Dataset(
    {"loss": ("step", np.arange(100.0), {"units": "nats"}), "name": ("step", [f"step {i}" for i in range(100)])},
    {"step": range(100)},
    {"made": "here"},
)


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ---- what may be replaced ----------------------------------------------------------------------------------------


def test_links_are_followed_and_stay(tmp_path) -> None:
    """A link to a file, to a link, and to nothing yet."""
    real, link, second, hanging = (tmp_path / name for name in ("real.nc", "link.nc", "second.nc", "hanging.nc"))
    fgvar.save(DATASET, real)
    link.symlink_to("real.nc")
    second.symlink_to(link)
    hanging.symlink_to(tmp_path / "new" / "later.nc")
    for path, target in ((link, real), (second, real), (hanging, tmp_path / "new" / "later.nc")):
        assert fgvar.save(DATASET.assign(one=1.0), path) == path
        assert path.is_symlink()
        assert not target.is_symlink()
        assert fgvar.open_dataset(target)["one"].item() == 1.0
        fgvar.save(DATASET, target)


def test_permissions_follow_the_mask_and_the_file_before(tmp_path) -> None:
    path = tmp_path / "a"
    with umask(0o027):
        replace(path, [b"new"])
        assert mode(path) == 0o640
    path.chmod(0o604)
    replace(path, [b"newer"])
    assert (mode(path), path.read_bytes()) == (0o604, b"newer")


def a_folder(path: Path) -> None:
    path.mkdir()


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)


@pytest.mark.parametrize("make", [a_folder, a_pipe, a_socket], ids=lambda make: make.__name__)
@pytest.mark.parametrize(
    "write", [lambda path: fgvar.save(DATASET, path), require_place, lambda path: replace(path, [b""])],
    ids=["save", "require_place", "replace"],
)  # fmt: skip
def test_what_is_no_file_is_refused_also_behind_a_link(tmp_path, make: Callable, write: Callable) -> None:
    path, link = tmp_path / "a.nc", tmp_path / "link.nc"
    make(path)
    link.symlink_to(path)
    before = path.stat()
    kind = make.__name__.replace("_", " ")
    remedy = r"a file in it, as .*a\.nc/result\.nc$" if make is a_folder else "another path$"
    with pytest.raises(OSError, match=rf"a\.nc is {kind}, expected a regular file or nothing; give {remedy}"):
        write(path)
    with pytest.raises(OSError, match=rf"link\.nc is {kind}, expected a regular file"):
        write(link)
    assert os.path.samestat(before, path.stat())
    assert sorted(tmp_path.iterdir()) == [path, link]


def test_a_device_is_no_file() -> None:
    with pytest.raises(OSError, match="/dev/null is a device, expected a regular file or nothing; give another path"):
        fgvar.save(DATASET, "/dev/null")


def test_places_are_looked_at_before_the_work(tmp_path, monkeypatch) -> None:
    """Folders are made, and nothing else."""
    require_place(tmp_path / "new" / "folder" / "a.nc")
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "folder"]
    assert not list((tmp_path / "new" / "folder").iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write in .*file \(.*\); nothing was computed"):
        require_place(tmp_path / "file" / "a.nc")
    (tmp_path / "file").unlink()
    monkeypatch.setattr(atomic.tempfile, "TemporaryFile", lambda dir: open("/dev/full", "wb"))  # noqa: ARG005, SIM115
    with pytest.raises(OSError, match=r"cannot write in .* \(No space left on device\); nothing was computed"):
        require_folder(tmp_path, room=1)


def test_a_name_that_somebody_has_planted_is_not_followed(tmp_path) -> None:
    (tmp_path / ".a.partial").symlink_to(tmp_path / "theirs")
    with pytest.raises(OSError, match=r"\.a\.partial"):
        replace(tmp_path / "a", [b""])
    assert not (tmp_path / "theirs").exists()


# ---- full disks --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_what_stood_there_stays_and_nothing_is_left(tmp_path, monkeypatch, call: str) -> None:
    path = tmp_path / "a.nc"
    fgvar.save(DATASET, path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(
            OSError, match=r"a\.nc could not be written \(No space left on device\); what stood there stays"
        ):
            fgvar.save(DATASET, path)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def limited() -> None:
    """A limit on the size of files stands for a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_a_measurement_is_printed_where_its_file_cannot_be_written(tmp_path) -> None:
    """HDF5 itself would end the process by a crash."""
    out = tmp_path / "a.nc"
    out.write_bytes(b"old")
    command = [sys.executable, "-m", "fgvar", "measure", "--scheme", "BP", "--draws", "2", "--batch", "4"]
    done = subprocess.run(
        [*command, "--out", str(out)], cwd=ROOT, capture_output=True, text=True, preexec_fn=limited, check=False
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1].startswith("BP ")
    assert done.stderr.splitlines()[-1] == (
        f"fgvar: --out: {out} could not be written (File too large); what stood there stays"
    )
    assert list(tmp_path.iterdir()) == [out]
    assert out.read_bytes() == b"old"


# ---- damage ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> bytes:
    return fgvar.save(DATASET, tmp_path_factory.mktemp("whole") / "a.nc").read_bytes()


def test_other_libraries_read_what_is_written(tmp_path) -> None:
    path = fgvar.save(DATASET, tmp_path / "a.nc")
    assert files.LINE.fullmatch(path.read_bytes()[-files.LENGTH :])
    with xr.open_dataset(path, engine="h5netcdf") as read:
        assert read.load().identical(DATASET)
    with h5py.File(path) as read:
        assert sorted(read) == ["loss", "name", "step"]
        assert read["loss"][5] == 5.0


def test_what_other_libraries_write_is_read(tmp_path) -> None:
    """In another process, with everything that is in it."""
    path = tmp_path / "a.nc"
    theirs = DATASET.assign(when=("step", np.arange(100).astype("datetime64[D]").astype("datetime64[ns]")))
    theirs.to_netcdf(path, engine="h5netcdf")
    with xr.open_dataset(path, engine="h5netcdf") as stored:
        expected = stored.load()
    assert fgvar.open_dataset(path).identical(expected)


def test_no_damage_hangs_or_passes_unseen(tmp_path, whole) -> None:
    """A bit, 512 zeroed bytes, or an end cut off, at 150 places."""
    luck, path = random.Random(0), tmp_path / "a.nc"
    refused = 0
    for number in range(150):
        content, at = bytearray(whole), luck.randrange(len(whole) - 512 * (number % 3 == 1))
        if number % 3 == 0:
            content[at] ^= 1 << luck.randrange(8)
        elif number % 3 == 1:
            content[at : at + 512] = bytes(512)
        else:
            del content[min(at, len(whole) - 2 * files.LENGTH) :]
        if bytes(content) == whole:
            continue
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.nc (has changed since it was written|is not a whole netCDF file)"):
            fgvar.open_dataset(path)
        refused += 1
    assert refused > 140


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda c: c[:3000] + bytes([c[3000] ^ 1]) + c[3001:], r"states another hash .* by xarray\.open_dataset\('/"),
        (lambda c: c[:-20] + bytes(20), "has changed since it was written: its last line states"),
        (lambda c: c[:-100], r"it has [\d,]+ of its [\d,]+ bytes\); make it again"),
        (lambda c: c[:-1], r"it has [\d,]+ of its [\d,]+ bytes\); make it again"),
        (lambda c: c[:-70], r"it has [\d,]+ of its [\d,]+ bytes\); make it again"),
        (lambda c: b"\0" * 100 + c[100:], "has changed since"),
        (lambda c: c[:40] + b"\xff" * 8 + c[48:], r"of its 18,446,744,073,709,551,615 bytes\); make it again"),
        (lambda _: b"half a file", r"is not a whole netCDF file \(.*\); make it again"),
        (lambda _: b"", r"is not a whole netCDF file \(.*\); make it again"),
    ],
    ids=[
        "a bit",
        "the last line",
        "cut",
        "cut by a byte",
        "cut in its line",
        "its head",
        "its end",
        "no netCDF",
        "empty",
    ],
)
def test_damage_is_told(tmp_path, whole, change: Callable, what: str) -> None:
    path = tmp_path / "a.nc"
    path.write_bytes(change(whole))
    with pytest.raises(ValueError, match=what):
        fgvar.open_dataset(path)


def test_a_file_that_has_lost_its_line_is_anybodys(tmp_path, whole) -> None:
    path = tmp_path / "a.nc"
    path.write_bytes(whole[: -files.LENGTH])
    assert fgvar.open_dataset(path).identical(DATASET)


def test_a_reader_that_hangs_or_crashes_is_stopped(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a.nc"
    DATASET.to_netcdf(path, engine="h5netcdf")
    with monkeypatch.context() as patch:
        patch.setattr(foreign, "SECONDS", 0.0)  # no interpreter starts so fast
        patch.setattr(foreign, "RATE", np.inf)
        with pytest.raises(ValueError, match=r"not a whole netCDF file \(reading it did not end within 0 s\); make"):
            fgvar.open_dataset(path)
    crash = tmp_path / "crash"
    crash.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crash.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crash))
    with pytest.raises(ValueError, match=r"not a whole netCDF file \(reading it ended the process with status -11\)"):
        fgvar.open_dataset(path)


def test_a_file_that_is_no_file_is_not_opened(tmp_path) -> None:
    os.mkfifo(tmp_path / "pipe.nc")
    with pytest.raises(FileNotFoundError, match=r"no dataset at .*pipe\.nc; write one with fgvar\.save"):
        fgvar.open_dataset(tmp_path / "pipe.nc")


def test_writers_of_one_file_do_not_mix(tmp_path) -> None:
    """Two processes that write it over and over; a reader sees one or the other."""
    path = tmp_path / "a"
    code = (
        "import sys; from fgvar.storage.atomic import replace\n"
        "for _ in range(300): replace(sys.argv[1], [sys.argv[2].encode() * 100_000], sync=False)"
    )
    several = [subprocess.Popen([sys.executable, "-c", code, str(path), sign], cwd=ROOT) for sign in "ab"]
    seen = set()
    while any(one.poll() is None for one in several):
        with contextlib.suppress(FileNotFoundError):
            seen.add(path.read_bytes())
    assert [one.returncode for one in several] == [0, 0]
    assert seen <= {b"a" * 100_000, b"b" * 100_000}
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_kill_leaves_is_written_over(tmp_path) -> None:
    (tmp_path / ".a.partial").write_bytes(b"half of something long")
    atomic.replace(tmp_path / "a", [b"whole"])
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a", b"whole")]


# ---- studies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "all_schemes", "check_calibration", "cost", "language_model", "quickstart", "scaling", "table3", "table4",
        "weight_sharing",
    ],
)  # fmt: skip
def test_studies_look_at_their_place_first(tmp_path, name: str) -> None:
    study, path = import_module(f"studies.{name}"), tmp_path / "a.nc"
    path.mkdir()
    config = study.Config(run=Options(path)) if "run" in study.Config.__annotations__ else study.Config(out=path)
    with pytest.raises(OSError, match=r"a\.nc is a folder, expected a regular file"):
        study.main(config)
    assert list(tmp_path.iterdir()) == [path]


def test_table_3_looks_at_the_place_of_its_probes_first(tmp_path) -> None:
    path = tmp_path / "a_probes.nc"
    path.mkdir()
    with pytest.raises(OSError, match=r"a_probes\.nc is a folder"):
        table3.main(table3.Config(run=Options(tmp_path / "a.nc")))
    assert list(tmp_path.iterdir()) == [path]
