"""Checkpoints: all that a run needs to go on as if it had never stopped, in one file, written atomically."""

import hashlib
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fgvar.analysis.dataset import open_dataset, save

FORMAT = 1  # of the file; another number is another format


@dataclass
class State:
    """Where a run is.

    Attributes:
        step: updates made.
        params: name → value.
        optimiser: torch's state of the optimiser.
        curves: rows of the curves so far.
        probes: measurements so far.
    """

    step: int
    params: dict[str, Tensor]
    optimiser: dict[str, Any]
    curves: list[tuple[float, ...]]
    probes: list[xr.Dataset] = field(default_factory=list)


def store(path: Path, identity: Mapping[str, str], state: State) -> None:
    """Write the state of the run with this identity: a reader sees the old file or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "format": FORMAT,
        "identity": dict(identity),
        "step": state.step,
        "params": state.params,
        "optimiser": state.optimiser,
        "curves": state.curves,
        "probes": [_to_bytes(probe) for probe in state.probes],
    }
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def restore(path: Path, identity: Mapping[str, str], device: torch.device) -> State | None:
    """The state of the run with this identity; None where there is no checkpoint yet. Runs no pickled code.

    Raises:
        ValueError: a file that is truncated or no checkpoint, or another run's, naming what differs.
    """
    if not path.exists():
        return None
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} cannot be read as a checkpoint ({_line(error)}); {_REMEDY}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is no checkpoint of this version of fgvar; {_REMEDY}")
    theirs = content["identity"]
    for key in sorted({*theirs, *identity}):
        if theirs.get(key) != identity.get(key):
            raise ValueError(
                f"{path} is the checkpoint of another run: its {key} is {theirs.get(key)}, this run's is "
                f"{identity.get(key)}; {_REMEDY}"
            )
    return State(
        content["step"],
        content["params"],
        content["optimiser"],
        [tuple(row) for row in content["curves"]],
        [_from_bytes(probe) for probe in content["probes"]],
    )


_REMEDY = "give another checkpoint= path, delete the file, or train with resume=False"


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _to_bytes(dataset: xr.Dataset) -> Tensor:
    with tempfile.TemporaryDirectory() as folder:
        content = save(dataset, Path(folder) / "probe.nc").read_bytes()
    return torch.from_numpy(np.frombuffer(content, np.uint8).copy())


def _from_bytes(content: Tensor) -> xr.Dataset:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "probe.nc"
        path.write_bytes(content.cpu().numpy().tobytes())
        return open_dataset(path)


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
