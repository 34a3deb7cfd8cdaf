"""Checkpoints: all that a run needs to go on as if it had never stopped, in one file, written atomically.

A file is a line that names the format, a line with a hash of the rest, and the rest: plain tensors, numbers,
text and bytes by ``torch.save``. What was cut short or damaged has another hash; reading runs no pickled code.
"""

import hashlib
import io
import re
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fgvar.data.images import Images
from fgvar.storage.atomic import replace
from fgvar.training.distributed import broadcast_bytes

MAGIC = b"fgvar checkpoint 6\n"  # another number is another format, or other noise for a run to go on with
HASHED_PIXELS = 4096  # images of a split, evenly spaced, whose pixels are part of a run's identity


@dataclass
class State:
    """Where a run is.

    Attributes:
        step: updates made.
        params: name → value.
        optimiser: torch's state of the optimiser.
        curves: rows of the curves so far.
        probes: measurements so far, each packed.
        losses: of every update's batch; NaN where there is none yet.
    """

    step: int
    params: dict[str, Tensor]
    optimiser: dict[str, Any]
    curves: list[tuple[float, ...]]
    probes: list[bytes]
    losses: Tensor


def store(path: Path, identity: Mapping[str, str], state: State) -> None:
    """Write the state of the run with this identity: a reader sees the old file or the whole new one.

    Raises:
        OSError: it cannot be written; what stood there stays.
    """
    body = io.BytesIO()
    torch.save({"identity": dict(identity), **{name: getattr(state, name) for name in _FIELDS}}, body)
    replace(path, [MAGIC, _hash(body.getbuffer()), b"\n", body.getbuffer()])


def restore(path: Path, identity: Mapping[str, str], device: torch.device) -> State | None:
    """The state of the run with this identity; None where there is no checkpoint yet.

    Of several processes the first one reads the file, for all.

    Raises:
        ValueError: a file that is truncated, damaged or no checkpoint, or another run's, naming what differs.
    """
    content = broadcast_bytes(path.read_bytes() if path.exists() else None)
    if content is None:
        return None
    if not content.startswith(MAGIC):
        raise ValueError(f"{path} is no checkpoint of this version of fgvar, or cut short; {_REMEDY}")
    digest, _, body = content[len(MAGIC) :].partition(b"\n")
    if digest != _hash(body):
        raise ValueError(f"{path} is truncated or damaged: its content has another hash than it states; {_REMEDY}")
    try:
        stored = torch.load(io.BytesIO(body), map_location=device, weights_only=True)
    except Exception as error:  # zip files, pickles and torch raise errors of their own
        raise ValueError(f"{path} cannot be read as a checkpoint ({_line(error)}); {_REMEDY}") from error
    theirs = stored["identity"]
    for key in sorted({*theirs, *identity}):
        if theirs.get(key) != identity.get(key):
            raise ValueError(
                f"{path} is the checkpoint of another run: its {key} is {theirs.get(key)}, this run's is "
                f"{identity.get(key)}; {_REMEDY}"
            )
    return State(**{name: stored[name] for name in _FIELDS})


_FIELDS = tuple(State.__dataclass_fields__)
_REMEDY = "give another checkpoint= path, delete the file, or train with resume=False"


def described(thing: object) -> str:
    """What an object says of itself, without where it happens to lie in memory."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, types.FunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if not value.is_meta:
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def described_images(images: Images) -> str:
    """A split: its name and size, and a hash of all labels, the normalisation and (of large ones, some) pixels."""
    numbers = torch.arange(0, len(images), -(-len(images) // HASHED_PIXELS), device=images.pixels.device)
    scale = torch.tensor([images.mean, images.std], dtype=torch.float64)
    found = fingerprint({"labels": images.labels, "pixels": images.pixels[numbers], "scale": scale})
    return f"{images.name} ({images.split}), {len(images)} examples, {found}"


def _hash(content: bytes | memoryview) -> bytes:
    return hashlib.blake2b(content, digest_size=16).hexdigest().encode()


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
