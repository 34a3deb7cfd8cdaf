"""Identity: texts and hashes that tell one run from another, so that a checkpoint goes on with its own run alone."""

import hashlib
import re
import types
from collections.abc import Mapping

import torch
from torch import Tensor

from fgvar.data.images import Images

HASHED_PIXELS = 4096  # images of a split, evenly spaced, whose pixels are part of a run's identity


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


def described_images(images: Images) -> str:
    """A split: its name and size, and a hash of all labels, the normalisation and (of large ones, some) pixels."""
    numbers = torch.arange(0, len(images), -(-len(images) // HASHED_PIXELS), device=images.pixels.device)
    scale = torch.tensor([images.mean, images.std], dtype=torch.float64)
    found = fingerprint({"labels": images.labels, "pixels": images.pixels[numbers], "scale": scale})
    return f"{images.name} ({images.split}), {len(images)} examples, {found}"
