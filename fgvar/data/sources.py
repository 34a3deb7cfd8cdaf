"""Where labelled images lie (parquet files, image folders, the Hugging Face hub), and how they are decoded.

Every source ends in `Encoded` splits, which one decoder turns into pixels. Local data is read by pyarrow and
Pillow alone: no network, and nothing is written. The library datasets needs a cache that it can write, turns photos
by their EXIF tag, labels by the innermost folder, and lets missing files and misspelled classes pass in silence.
"""

import functools
import importlib
import io
import itertools
import json
import math
import re
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from fgvar.errors import needs_extra, unknown

COLUMNS = {"image": ("image", "img"), "label": ("label", "labels", "fine_label")}
SPLIT_FOLDERS = {"train", "test", "val", "valid", "validation"}
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
GREY_MODES = {"1", "L"}
UNLABELLED = -(2**63)  # stands for a null label until it is reported
CHUNK = 256  # images decoded at a time
THREADED = 128 * 128  # pixels; below, the hand-over between threads costs more than they save

Content = bytes | str | Path | None  # an image file's bytes, or where it is


@dataclass(frozen=True, eq=False)
class Encoded:
    """One split before decoding; `where(i)` names example i in errors."""

    labels: np.ndarray
    names: tuple[str, ...]  # of the classes; empty where the source states none
    files: Sequence[Path]
    contents: Callable[[], Iterator[Content]]
    where: Callable[[int], str]


Splits = dict[str, Callable[[], Encoded]]


def _require(module: str) -> Any:
    with needs_extra("reading this data", "data"):
        return importlib.import_module(module)


def check_labels(encoded: Encoded, classes: int, where: str, every_class: bool = False) -> None:
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


def local(root: Path) -> Splits:
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


def _image_folder(root: Path, train: Path) -> Encoded:
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
    return Encoded(np.array(labels, np.int64), names, files, lambda: iter(files), lambda i: str(files[i]))


def _parquet(files: list[Path]) -> Encoded:
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
    return Encoded(labels, shards[0].names, files, contents, where)


def _shard(file: Path) -> Encoded:
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


def hub(name: str) -> Splits:
    missing = f"{unknown('dataset', name, ['digits'])}; there is no directory {Path(name).absolute()}"
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise FileNotFoundError(missing)
    try:
        datasets = _require("datasets")
    except ImportError as error:  # a folder that is not there is more likely than a name on the hub
        raise ImportError(f"{missing}; of a name on the hub, {error}", name=error.name) from error
    try:
        found = datasets.load_dataset(name)
    except Exception as error:  # datasets, huggingface_hub and httpx share no base class
        remedy = "check name and network, or download it and give the directory"
        raise FileNotFoundError(f"{missing}, and the hub does not give it: {remedy} ({error})") from error
    return {split: functools.partial(_hub_split, f"{name} ({split})", rows) for split, rows in found.items()}


def _hub_split(name: str, rows: Any) -> Encoded:
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


def _tabular(name: str, schema: Any, tables: Callable[[str], Iterator[Any]], files: Sequence[Path]) -> Encoded:
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
    return Encoded(np.concatenate(parts), names, files, contents, lambda row: f"{name}, row {row}")


def decode(encoded: Encoded, image_size: int | None, every: int = 1) -> Iterator[np.ndarray]:
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


def _open(encoded: Encoded, row: int, content: Content) -> Any:
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


def _fitted(encoded: Encoded, mode: str, size: tuple[int, int], resize: bool, row: int, content: Content) -> Any:
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
