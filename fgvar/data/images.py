"""Image data for the studies: decoded once to uint8, normalised batch by batch on the device that uses it.

Nothing is written unless the pixels outgrow a quarter of memory.
"""

import functools
import hashlib
import io
import itertools
import math
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fgvar.data import sources
from fgvar.data.split import Device, Indices, Split
from fgvar.errors import unknown
from fgvar.storage import atomic

__all__ = ["Images", "load"]

Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std per channel, white = 1

DIGITS_TRAIN = 1437
DIGITS_STATISTICS: Statistics = ((0.3054,), (0.3753,))
# Recognised by what they hold (training examples, class names), whatever the folder is called. CIFAR-10's std
# is the field's constant: the mean over images of each image's own std (over all pixels it is larger, about 0.25).
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
KNOWN_STATISTICS: dict[tuple[int, str], Statistics] = {
    (60_000, "0 1 2 3 4 5 6 7 8 9"): ((0.1307,), (0.3081,)),
    (50_000, CIFAR10_CLASSES): ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
HASHED_PIXELS = 4096  # images of a split, evenly spaced, whose pixels are part of a run's identity
STATISTICS_EXAMPLES = 50_000  # other data: over at most so many, evenly spaced training examples


@dataclass(frozen=True, eq=False)
class Images(Split):
    """Labelled images of one split, as uint8 in memory (or memory-mapped), with their normalisation.

    `pixels` uint8 [n, channels, height, width]; `labels` int64 [n] in 0 … classes−1; `mean` and `std` per
    channel of the train split, in units where black is 0 and white 1. A batch is (pixels/255 − mean)/std,
    computed on the target device, so that uint8 is what travels. Other constants: `dataclasses.replace`.
    Floating-point `pixels` have 1 for white.

    Attributes:
        name: of the data, for provenance.
        split: "train" or "test".

    Raises:
        ValueError: shapes, dtypes or labels that do not fit each other.

    Example:
        >>> from fgvar import data
        >>> x, y = data.load("digits").sample(32, seed=0)
        >>> x.shape, x.dtype, y.dtype
        (torch.Size([32, 1, 8, 8]), torch.float32, torch.int64)
    """

    pixels: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    name: str
    split: str

    def __post_init__(self) -> None:
        channels = self.pixels.shape[1]
        if not (len(self.mean) == len(self.std) == channels and min(self.std) > 0):
            raise ValueError(
                f"{self.title}: mean {self.mean} and std {self.std} cannot normalise {channels} "
                "channel(s); need one of each per channel, std > 0 (drop a channel that is constant over train)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def title(self) -> str:
        return f"{self.name} ({self.split})"

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def tensors(self) -> dict[str, Tensor]:
        return {"pixels": self.pixels, "labels": self.labels}

    def hashed(self) -> dict[str, Tensor]:
        """All labels, the normalisation and (of large ones, some) pixels."""
        numbers = torch.arange(0, len(self), -(-len(self) // HASHED_PIXELS), device=self.device)
        scale = torch.tensor([self.mean, self.std], dtype=torch.float64)
        return {"labels": self.labels, "pixels": self.pixels[numbers], "scale": scale}

    def batch(
        self, indices: Indices, *, device: Device = "cpu", dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor]:
        """The examples at `indices` [b]: x [b, channels, height, width] normalised (float32), y [b] int64."""
        dtype = dtype or torch.float32
        if not dtype.is_floating_point:
            raise TypeError(f"normalised images cannot be {dtype}; give a floating dtype, or read .pixels")
        index = torch.as_tensor(indices, dtype=torch.int64, device=self.pixels.device)
        # Not self.pixels[index], which copies number by number: five times as slow.
        wide = torch.promote_types(dtype, torch.float32)  # small floats would round mean, std and pixels, too
        x = self.pixels.index_select(0, index).to(device).to(wide)
        # In place: no second copy of the batch.
        white = 1.0 if self.pixels.is_floating_point() else 255.0
        mean, std = (_constants(s, white, torch.device(device), wide) for s in (self.mean, self.std))
        return x.sub_(mean).div_(std).to(dtype), self.labels[index].to(device)

    def subset(self, indices: Indices) -> "Images":
        """The examples at `indices`, with the normalisation of the whole."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def to(self, device: Device) -> "Images":
        """With pixels and labels on another device, so that batches there cost no transfer."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))


def load(
    name_or_path: str | Path, split: str = "train", *, image_size: int | None = None, cache: Path | None = None
) -> Images:
    """Read one split of labelled images and decode it once to uint8 [n, channels, height, width].

    `name_or_path`, in this order:

    - `"digits"`: scikit-learn's 1797 grey 8×8 digits, round(255/16 · value); in the file's order, the first
      1437 are train and the last 360 test.
    - a directory of parquet files named after their split (`train.parquet`, `test-00000-of-00002.parquet`),
      with an `image` (or `img`) and a `label` (else `labels`, else `fine_label`) column.
    - an image folder: `<class>/*` (all of it train) or `train/<class>/*`, `test/<class>/*`…; the sorted
      class folders of train are the labels.
    - a name on the Hugging Face hub: the only route that uses the network.

    Images are grey (one channel) if the first 256 are, else RGB (alpha dropped). `image_size` resizes the
    shorter side (bilinear, antialiased) and crops the centre; without it all must have one size. Mean and std
    are the field's for MNIST and CIFAR-10 (recognised by class names and number of training examples), else
    computed over the train split (every k-th example, where it has more than 50,000). Pixels above a quarter
    of memory go to a memory-mapped file in `cache` (default `$XDG_CACHE_HOME/fgvar` or `~/.cache/fgvar`),
    which later calls reuse as long as the source files stay the same.

    Raises:
        FileNotFoundError: there is no such data.
        ImportError: the extra `fgvar[data]` is not installed.
        ValueError: data that is empty, truncated or mislabelled; the message names the file or row and a remedy.

    Example:
        >>> from fgvar import data
        >>> test = data.load("digits", "test")
        >>> len(test), test.image_shape, test.classes
        (360, (1, 8, 8), 10)
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; give a positive number of pixels")
    if name_or_path == "digits":
        return _digits(split, image_size)
    path = Path(name_or_path).expanduser()
    splits = sources.local(path) if path.exists() else sources.hub(str(name_or_path))
    for needed in (split, "train"):  # train states the classes and the normalisation
        if needed not in splits:
            raise ValueError(f"{name_or_path}: {unknown('split', needed, splits)}")
    train = splits["train"]()
    encoded = train if split == "train" else splits[split]()
    classes = len(train.names) or 1 + int(train.labels.max(initial=0))
    sources.check_labels(train, classes, f"{name_or_path} (train)", every_class=not train.names)
    sources.check_labels(encoded, classes, f"{name_or_path} ({split})")
    pixels = _collect(encoded, image_size, cache)
    statistics = KNOWN_STATISTICS.get((len(train.labels), " ".join(train.names)))
    if statistics is None:
        every = math.ceil(len(train.labels) / STATISTICS_EXAMPLES)
        step = sources.CHUNK * every
        chunks = (pixels[start : start + step : every] for start in range(0, len(pixels), step))
        statistics = _mean_std(chunks if encoded is train else sources.decode(train, image_size, every))
    name = path.resolve().name if path.exists() else str(name_or_path)
    return Images(torch.from_numpy(pixels), torch.from_numpy(encoded.labels), classes, *statistics, name, split)


def _digits(split: str, image_size: int | None) -> Images:
    rows = {"train": slice(None, DIGITS_TRAIN), "test": slice(DIGITS_TRAIN, None)}
    if split not in rows:
        raise ValueError(f"digits: {unknown('split', split, rows)}")
    if image_size not in (None, 8):
        raise ValueError(f"digits are 8×8, got image_size={image_size}; leave it out (it resizes files only)")
    # The file inside scikit-learn, without the 1.3 s that importing scikit-learn takes.
    package = find_spec("sklearn")
    assert package is not None
    assert package.submodule_search_locations
    file = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")
    values, targets = table[:, :-1], table[:, -1]
    pixels = torch.from_numpy(np.rint(values * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(targets.astype(np.int64))
    return Images(pixels[rows[split]], labels[rows[split]], 10, *DIGITS_STATISTICS, "digits", split)


@functools.cache
def _constants(values: tuple[float, ...], white: float, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Mean or std, in the units of pixels, to broadcast with images: copied to a device once, not at every batch."""
    return (white * torch.tensor(values, device=device, dtype=dtype))[:, None, None]


def _memory_budget() -> int:
    """Bytes of pixels that may stay in memory: a quarter of what the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def _collect(encoded: sources.Encoded, image_size: int | None, cache: Path | None) -> np.ndarray:
    """All images uint8 [n, channels, height, width], in memory or, above the budget, in a mapped file."""
    chunks = sources.decode(encoded, image_size)
    first = next(chunks)
    shape = (len(encoded.labels), *first.shape[1:])
    chunks = itertools.chain([first], chunks)
    if (size := math.prod(shape)) <= _memory_budget():
        pixels, start = np.empty(shape, np.uint8), 0
        for chunk in chunks:
            pixels[start : start + len(chunk)] = chunk
            start += len(chunk)
        return pixels
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgvar"
    folder.mkdir(parents=True, exist_ok=True)
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in encoded.files]
    path = folder / f"{hashlib.sha256(repr((shape, image_size, stats)).encode()).hexdigest()[:32]}.npy"
    if not path.exists():
        if (free := shutil.disk_usage(folder).free) < size:  # a full disk under a mapped file is a crash
            raise OSError(f"{folder}: {free:,} bytes free, {size:,} needed for decoded pixels; give cache=")
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        atomic.replace(path, itertools.chain([header.getvalue()], (chunk.tobytes() for chunk in chunks)))
    # "r+", not "r" or "c": torch wants writable memory, and Linux refuses private maps larger than memory.
    return np.load(path, mmap_mode="r+")


def _mean_std(chunks: Iterable[np.ndarray]) -> Statistics:
    """Mean and std per channel over all pixels, exact: from counts of the 256 values."""
    counts: Any = 0
    for chunk in chunks:
        counts = counts + np.stack([np.bincount(c.ravel(), minlength=256) for c in chunk.swapaxes(0, 1)])
    weights = counts / counts.sum(1, keepdims=True)
    values = np.arange(256) / 255
    mean = weights @ values
    std = np.sqrt((weights * (values - mean[:, None]) ** 2).sum(1))
    return tuple(mean.tolist()), tuple(std.tolist())
