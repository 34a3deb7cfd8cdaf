"""Tiny image data on disk: parquet files in the hub's schema, and folders of classes."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest


def noise(n: int, *, size: tuple[int, ...] = (6, 6, 3), seed: int = 0) -> list[np.ndarray]:
    """n images [height, width(, 3)]."""
    return list(np.random.default_rng(seed).integers(0, 256, (n, *size), dtype=np.uint8))


def encode(image: np.ndarray, kind: str = "png") -> bytes:
    pillow = pytest.importorskip("PIL.Image", reason="needs the extra fgvar[data]")
    buffer = io.BytesIO()
    pillow.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(file: Path, images: list[Any], labels: Any, *, names: Any = None, columns: Any = None) -> None:
    """A file in the hub's schema; images are arrays, or bytes or None to be stored as they are."""
    pa = pytest.importorskip("pyarrow", reason="needs the extra fgvar[data]")
    parquet = pytest.importorskip("pyarrow.parquet", reason="needs the extra fgvar[data]")
    rows = [{"bytes": encode(image) if isinstance(image, np.ndarray) else image, "path": None} for image in images]
    column = pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    labels = labels if isinstance(labels, pa.Array) else pa.array(labels, pa.int64())
    table = pa.table(dict(zip(columns or ["image", "label"], [column, labels], strict=True)))
    if names:
        feature = {"label": {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": feature}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file)


def write_folder(root: Path, classes: dict[str, list[np.ndarray]]) -> None:
    for name, images in classes.items():
        (root / name).mkdir(parents=True)
        for number, image in enumerate(images):
            (root / name / f"{number}.png").write_bytes(encode(image))
