"""Identity: texts and hashes that tell one run from another, so that a checkpoint goes on with its own run alone."""

import hashlib
import re
import types
from collections.abc import Mapping

import torch
from torch import Tensor

from fgvar.data.split import Split


def described(thing: object) -> str:
    """What an object says of itself, without where it happens to lie in memory."""
    if isinstance(thing, str):
        return thing
    if isinstance(thing, types.FunctionType):
        return f"{thing.__module__}.{thing.__qualname__}"
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(thing))  # addresses differ from process to process


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """A hash of names, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, value in tensors.items():
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if not value.is_meta:
            # The bytes themselves, so that −0 and NaN count, and every dtype has them.
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def described_split(split: Split | None) -> str:
    """A split: its name and size, and a hash of what it holds."""
    return "none" if split is None else f"{split.title}, {len(split)} examples, {fingerprint(split.hashed())}"
