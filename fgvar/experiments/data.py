"""Image data for the studies: decoded once to uint8, normalised batch by batch on the device that uses it.

Every source (parquet files, image folder, Hugging Face hub) ends in an `_Encoded` split, which one decoder
turns into pixels. Local data is read by pyarrow and Pillow alone: no network, and nothing is written unless
the pixels outgrow a quarter of memory.
"""

import functools
import hashlib
import importlib
import io
import itertools
import json
import math
import os
import re
import shutil
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fgvar.errors import unknown

__all__ = ["Images", "load"]

Device = torch.device | str
Indices = Tensor | Sequence[int]
Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std per channel, white = 1

DIGITS_TRAIN = 1437
DIGITS_STATISTICS: Statistics = ((0.3054,), (0.3753,))
# Recognised by what they hold (training examples, class names), whatever the folder is called. CIFAR-10's std
# is the field's constant: the mean over images of each image's own std (over all pixels it is about 0.247).
CIFAR10_CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"
KNOWN_STATISTICS: dict[tuple[int, str], Statistics] = {
    (60_000, "0 1 2 3 4 5 6 7 8 9"): ((0.1307,), (0.3081,)),
    (50_000, CIFAR10_CLASSES): ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
}
STATISTICS_EXAMPLES = 50_000  # other data: over at most so many, evenly spaced training examples

COLUMNS = {"image": ("image", "img"), "label": ("label", "labels", "fine_label")}
SPLIT_FOLDERS = {"train", "test", "val", "valid", "validation"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
GREY_MODES = {"1", "L"}
UNLABELLED = -(2**63)  # stands for a null label until it is reported
CHUNK = 256  # images decoded at a time
THREADED = 128 * 128  # pixels; below, the hand-over between threads costs more than they save


@dataclass(frozen=True, eq=False)
class Images:
    """Labelled images of one split, as uint8 in memory (or memory-mapped), with their normalisation.

    `pixels` uint8 [n, channels, height, width]; `labels` int64 [n] in 0 … classes−1; `mean` and `std` per
    channel of the train split, in units where black is 0 and white 1. A batch is (pixels/255 − mean)/std,
    computed on the target device, so that uint8 is what travels. Other constants: `dataclasses.replace`.

    >>> from fgvar.experiments import data
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
                f"{self.name} ({self.split}): mean {self.mean} and std {self.std} cannot normalise {channels} "
                "channel(s); need one of each per channel, std > 0 (drop a channel that is constant over train)"
            )

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        channels, height, width = self.pixels.shape[1:]
        return channels, height, width

    def batch(
        self, indices: Indices, *, device: Device = "cpu", dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """The examples at `indices` [b]: x [b, channels, height, width] normalised, y [b] int64."""
        if not dtype.is_floating_point:
            raise TypeError(f"normalised images cannot be {dtype}; give a floating dtype, or read .pixels")
        index = torch.as_tensor(indices, dtype=torch.int64)
        x = self.pixels[index].to(device).to(dtype)
        # In 0 … 255 units and in place: no second copy of the batch.
        mean, std = (255 * torch.tensor(s, device=device, dtype=dtype) for s in (self.mean, self.std))
        return x.sub_(mean[:, None, None]).div_(std[:, None, None]), self.labels[index].to(device)

    def sample(
        self, n: int, *, seed: int, device: Device = "cpu", dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor]:
        """`n` distinct examples that depend on `seed` only; a larger `n` begins with the smaller one's."""
        return self.batch(self._order(n, seed, 0)[:n], device=device, dtype=dtype)

    def batches(
        self,
        size: int,
        *,
        seed: int,
        epoch: int,
        device: Device = "cpu",
        dtype: torch.dtype = torch.float32,
        drop_last: bool = True,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """One epoch in batches of `size`, in an order that depends on (seed, epoch) only.

        `drop_last` leaves out the examples that would make a smaller last batch (others in each epoch).
        """
        order = self._order(size, seed, 1, epoch)
        stop = len(self) - size + 1 if drop_last else len(self)
        parts = (order[start : start + size] for start in range(0, stop, size))
        return (self.batch(part, device=device, dtype=dtype) for part in parts)

    def subset(self, indices: Indices) -> "Images":
        """The examples at `indices`, with the normalisation of the whole."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def _order(self, wanted: int, seed: int, *key: int) -> Tensor:
        if not 1 <= wanted <= len(self):
            raise ValueError(f"{self.name} ({self.split}): asked for {wanted} of 1 … {len(self)} examples")
        state = np.random.SeedSequence(seed, spawn_key=key).generate_state(1, np.uint64)[0]
        return torch.randperm(len(self), generator=torch.Generator().manual_seed(int(state)))


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

    Errors: `FileNotFoundError` where there is no such data, `ImportError` without the extra `fgvar[data]`,
    `ValueError` for data that is empty, truncated or mislabelled; each names the file or row and a remedy.

    >>> from fgvar.experiments import data
    >>> test = data.load("digits", "test")
    >>> len(test), test.image_shape, test.classes
    (360, (1, 8, 8), 10)
    """
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size is {image_size}; give a positive number of pixels")
    if name_or_path == "digits":
        return _digits(split, image_size)
    path = Path(name_or_path).expanduser()
    splits = _local(path) if path.exists() else _hub(str(name_or_path))
    for needed in (split, "train"):  # train states the classes and the normalisation
        if needed not in splits:
            raise ValueError(f"{name_or_path}: {unknown('split', needed, splits)}")
    train = splits["train"]()
    encoded = train if split == "train" else splits[split]()
    classes = len(train.names) or 1 + int(train.labels.max(initial=0))
    _check_labels(train, classes, f"{name_or_path} (train)", every_class=not train.names)
    _check_labels(encoded, classes, f"{name_or_path} ({split})")
    pixels = _collect(encoded, image_size, cache)
    statistics = KNOWN_STATISTICS.get((len(train.labels), " ".join(train.names)))
    if statistics is None:
        every = math.ceil(len(train.labels) / STATISTICS_EXAMPLES)
        step = CHUNK * every
        chunks = (pixels[start : start + step : every] for start in range(0, len(pixels), step))
        statistics = _mean_std(chunks if encoded is train else _decode(train, image_size, every))
    name = path.resolve().name if path.exists() else str(name_or_path)
    return Images(torch.from_numpy(pixels), torch.from_numpy(encoded.labels), classes, *statistics, name, split)


def _digits(split: str, image_size: int | None) -> Images:
    rows = {"train": slice(None, DIGITS_TRAIN), "test": slice(DIGITS_TRAIN, None)}
    if split not in rows:
        raise ValueError(f"digits: {unknown('split', split, rows)}")
    if image_size not in (None, 8):
        raise ValueError(f"digits are 8×8, got image_size={image_size}; leave it out (it resizes files only)")
    from sklearn.datasets import load_digits

    values, targets = load_digits(return_X_y=True)
    pixels = torch.from_numpy(np.rint(values * (255 / 16)).astype(np.uint8)).reshape(-1, 1, 8, 8)
    labels = torch.from_numpy(targets.astype(np.int64))
    return Images(pixels[rows[split]], labels[rows[split]], 10, *DIGITS_STATISTICS, "digits", split)


# ---- where the images lie ----------------------------------------------------------------------------------

Content = bytes | str | Path | None  # an image file's bytes, or where it is


@dataclass(frozen=True, eq=False)
class _Encoded:
    """One split before decoding; `where(i)` names example i in errors."""

    labels: np.ndarray
    names: tuple[str, ...]  # of the classes; empty where the source states none
    files: Sequence[Path]
    contents: Callable[[], Iterator[Content]]
    where: Callable[[int], str]


Splits = dict[str, Callable[[], _Encoded]]


def _require(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(f"reading this data needs {module}: pip install 'fgvar[data]' ({error})") from error


def _check_labels(encoded: _Encoded, classes: int, where: str, every_class: bool = False) -> None:
    labels = encoded.labels
    if not len(labels):
        raise ValueError(f"{where}: no examples; expected at least one row, or images in <class>/*.png")
    for row in np.flatnonzero((labels < 0) | (labels >= classes))[:1]:
        got = "no label (null)" if labels[row] == UNLABELLED else f"label {labels[row]}"
        remedy = "correct it, or use a split that is labelled"
        raise ValueError(f"{encoded.where(int(row))}: {got}, expected 0 … {classes - 1}; {remedy}")
    if every_class and (seen := len(np.unique(labels))) < classes:
        got = f"{seen} different labels between {labels.min()} and {labels.max()}"
        raise ValueError(f"{where}: {got}; number the classes 0, 1, 2, … without gaps, or state their names")


def _local(root: Path) -> Splits:
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is a file; give the directory that holds it")
    shards: dict[str, list[Path]] = {}
    for file in sorted(root.glob("*.parquet")):
        shards.setdefault(re.sub("[^A-Za-z].*", "", file.stem) or "train", []).append(file)
    if shards:
        return {split: functools.partial(_parquet, files) for split, files in shards.items()}
    folders = {folder.name: folder for folder in _folders(root)}
    if not folders:
        expected = "train*.parquet, or images as <class>/*.png or train/<class>/*.png"
        raise FileNotFoundError(f"{root}: no data; expected {expected}")
    splits = folders if set(folders) <= SPLIT_FOLDERS else {"train": root}
    train = splits.get("train", root)
    return {split: functools.partial(_image_folder, folder, train) for split, folder in splits.items()}


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _image_folder(root: Path, train: Path) -> _Encoded:
    names = tuple(folder.name for folder in _folders(train))
    files: list[Path] = []
    labels: list[int] = []
    for folder in _folders(root):
        if folder.name not in names:
            raise ValueError(f"{folder}: {unknown('class', folder.name, names)}; {train} states the classes")
        found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not found:
            remedy = "fill or remove it (where it holds parquet files, give their own directory)"
            raise ValueError(f"{folder}: no image in this class folder; {remedy}")
        files += found
        labels += [names.index(folder.name)] * len(found)
    return _Encoded(np.array(labels, np.int64), names, files, lambda: iter(files), lambda i: str(files[i]))


def _parquet(files: list[Path]) -> _Encoded:
    total = re.search(r"-of-0*(\d+)$", files[0].stem)
    if total and len(files) != int(total[1]):
        raise FileNotFoundError(f"{files[0]}: {len(files)} of {total[1]} files; download the missing ones")
    shards = [_shard(file) for file in files]
    starts = list(itertools.accumulate((len(shard.labels) for shard in shards), initial=0))

    def where(row: int) -> str:
        shard = bisect_right(starts, row) - 1
        return shards[shard].where(row - starts[shard])

    def contents() -> Iterator[Content]:
        return itertools.chain.from_iterable(shard.contents() for shard in shards)

    labels = np.concatenate([shard.labels for shard in shards])
    return _Encoded(labels, shards[0].names, files, contents, where)


def _shard(file: Path) -> _Encoded:
    def tables(column: str) -> Iterator[Any]:
        with _reader(file) as reader:
            yield from reader.iter_batches(CHUNK, columns=[column])

    with _reader(file) as reader:
        schema = reader.schema_arrow
    return _tabular(str(file), schema, tables, [file])


@contextmanager
def _reader(file: Path) -> Iterator[Any]:
    parquet = _require("pyarrow.parquet")
    try:
        with parquet.ParquetFile(file) as reader:
            yield reader
    except (_require("pyarrow").ArrowException, OSError) as error:
        remedy = "truncated or corrupt; download it again"
        raise ValueError(f"{file}: not a readable parquet file, {remedy} ({error})") from error


def _hub(name: str) -> Splits:
    missing = f"{unknown('dataset', name, ['digits'])}; there is no directory {Path(name).absolute()}"
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FileNotFoundError(missing)
    datasets = _require("datasets")
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # datasets, huggingface_hub and httpx share no base class
        remedy = "check name and network, or download it and give the directory"
        raise FileNotFoundError(f"{missing}, and the hub does not give it: {remedy} ({error})") from error
    return {split: functools.partial(_hub_split, f"{name} ({split})", rows) for split, rows in found.items()}


def _hub_split(name: str, rows: Any) -> _Encoded:
    def tables(column: str) -> Iterator[Any]:
        return rows.select_columns([column]).with_format("arrow").iter(CHUNK)  # arrow: still encoded

    files = [Path(entry["filename"]) for entry in rows.cache_files]
    return _tabular(name, rows.features.arrow_schema, tables, files)


def _columns(where: str, schema: Any) -> list[str]:
    """The names of the image column and of the label column."""
    chosen = []
    for kind, valid in COLUMNS.items():
        found = [column for column in valid if column in schema.names]
        if not found:
            raise ValueError(f"{where}: no {kind} column in {schema.names}; name it {' or '.join(valid)}")
        chosen.append(found[0])
    held = schema.field(chosen[1]).type
    if not _require("pyarrow").types.is_integer(held):
        raise ValueError(f"{where}: column {chosen[1]} holds {held}, not integers; number the classes from 0")
    return chosen


def _tabular(name: str, schema: Any, tables: Callable[[str], Iterator[Any]], files: Sequence[Path]) -> _Encoded:
    """The split that `tables(column)` iterates over in pieces."""
    image, label = _columns(name, schema)
    parts = [np.empty(0, np.int64)]
    for table in tables(label):
        parts.append(table.column(label).cast("int64").fill_null(UNLABELLED).to_numpy())

    def contents() -> Iterator[Content]:
        for table in tables(image):
            for cell in table.column(image).to_pylist():
                yield cell.get("bytes") or cell.get("path") if isinstance(cell, dict) else cell

    features = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    names = tuple(features.get(label, {}).get("names", ()))
    return _Encoded(np.concatenate(parts), names, files, contents, lambda row: f"{name}, row {row}")


# ---- decoding ----------------------------------------------------------------------------------------------


def _decode(encoded: _Encoded, image_size: int | None, every: int = 1) -> Iterator[np.ndarray]:
    """Chunks uint8 [≤ CHUNK, channels, height, width] of every `every`-th image."""
    rows = range(0, len(encoded.labels), every)
    contents = itertools.islice(encoded.contents(), 0, None, every)
    bar = tqdm(total=len(rows), desc="decoding", unit="image", delay=1, disable=None)
    fitted: Callable[..., Any] | None = None
    with bar, ThreadPoolExecutor() as pool:
        for start in range(0, len(rows), CHUNK):
            chunk = rows[start : start + CHUNK], list(itertools.islice(contents, CHUNK))
            if fitted is None:
                images = [_open(encoded, row, content) for row, content in zip(*chunk, strict=True)]
                mode = "L" if all(image.mode in GREY_MODES for image in images) else "RGB"
                width, height = (image_size, image_size) if image_size else images[0].size
                fitted = functools.partial(_fitted, encoded, mode, (width, height), image_size is not None)
                threaded = math.prod(images[0].size) >= THREADED
            # One tall canvas a chunk: Pillow takes as long to hand over one small array as to decode it.
            canvas = _require("PIL.Image").new(mode, (width, height * len(chunk[0])))
            for i, image in enumerate(pool.map(fitted, *chunk) if threaded else map(fitted, *chunk)):
                canvas.paste(image, (0, i * height))
            yield np.asarray(canvas).reshape(len(chunk[0]), height, width, -1).transpose(0, 3, 1, 2)
            bar.update(len(chunk[0]))


def _open(encoded: _Encoded, row: int, content: Content) -> Any:
    pillow = _require("PIL.Image")
    try:
        data = Path(content).read_bytes() if isinstance(content, str | Path) else content
        image = pillow.open(io.BytesIO(data or b""))
        image.load()
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, …
        remedy = "truncated or corrupt; fetch it again, or remove the example"
        raise ValueError(f"{encoded.where(row)}: not a readable image, {remedy} ({error})") from error
    if image.mode[0] in "IF":
        raise ValueError(f"{encoded.where(row)}: pixels of mode {image.mode}; convert the images to 8 bits")
    return image


def _fitted(encoded: _Encoded, mode: str, size: tuple[int, int], resize: bool, row: int, content: Content) -> Any:
    """One image in the mode and size, (width, height), of all."""
    image = _open(encoded, row, content)
    if mode == "L" and image.mode not in GREY_MODES:
        remedy = "convert all to one of the two"
        raise ValueError(f"{encoded.where(row)}: colour ({image.mode}) among grey images; {remedy}")
    if image.mode != mode:
        image = image.convert(mode)
    if resize and image.size != size:  # fit: shorter side to size, centre crop
        image = _require("PIL.ImageOps").fit(image, size, _require("PIL.Image").Resampling.BILINEAR)
    if image.size != size:
        got, first = ("{}×{}".format(*pair) for pair in (image.size, size))
        remedy = f"give image_size={min(size)}, say, to resize and crop all"
        raise ValueError(f"{encoded.where(row)}: {got} pixels, but the first image has {first}; {remedy}")
    return image


def _memory_budget() -> int:
    """Bytes of pixels that may stay in memory: a quarter of what the machine has."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 4


def _collect(encoded: _Encoded, image_size: int | None, cache: Path | None) -> np.ndarray:
    """All images uint8 [n, channels, height, width], in memory or, above the budget, in a mapped file."""
    chunks = _decode(encoded, image_size)
    first = next(chunks)
    shape = (len(encoded.labels), *first.shape[1:])
    chunks = itertools.chain([first], chunks)
    if (size := math.prod(shape)) <= _memory_budget():
        return _fill(np.empty(shape, np.uint8), chunks)
    folder = cache or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fgvar"
    folder.mkdir(parents=True, exist_ok=True)
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in encoded.files]
    path = folder / f"{hashlib.sha256(repr((shape, image_size, stats)).encode()).hexdigest()[:32]}.npy"
    if not path.exists():
        if (free := shutil.disk_usage(folder).free) < size:  # a full disk under a mapped file is a crash
            raise OSError(f"{folder}: {free:,} bytes free, {size:,} needed for decoded pixels; give cache=")
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            _fill(np.lib.format.open_memmap(partial, "w+", np.uint8, shape), chunks).flush()
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    # "r+", not "r" or "c": torch wants writable memory, and Linux refuses private maps larger than memory.
    return np.load(path, mmap_mode="r+")


def _fill(pixels: Any, chunks: Iterable[np.ndarray]) -> Any:
    start = 0
    for chunk in chunks:
        pixels[start : start + len(chunk)] = chunk
        start += len(chunk)
    return pixels


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
