"""Datasets as bytes, for files that hold more than a dataset: numpy's .npz with a header in JSON, and no pickle.

They cost far less than a netCDF file each, and keep every type to the bit.
"""

import io
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr

UNHELD = re.compile("[\0\ud800-\udfff]")  # in no text of netCDF
RESERVED = (
    "CLASS",
    "NAME",
    "DIMENSION_LIST",
    "REFERENCE_LIST",
    "_Netcdf4Dimid",
    "_Netcdf4Coordinates",
    "coordinates",
)


class Values(NamedTuple):
    """A variable of a packed dataset."""

    dims: tuple[str, ...]
    values: np.ndarray
    attrs: dict[str, Any]
    coordinate: bool


def pack(dataset: xr.Dataset) -> bytes:
    """A dataset as bytes.

    Raises:
        TypeError: one that netCDF could not hold: other types, names and texts.

    Example:
        >>> dataset = xr.Dataset({"loss": ("step", np.arange(3.0), {"units": "nats"})}, {"layer": "head"})
        >>> unpack(pack(dataset)).identical(dataset)
        True
    """
    entries: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Any] = {}
    for name, variable in dataset.variables.items():
        values = np.asarray(variable.values)
        for each in (str(name), *map(str, variable.dims)):
            if "/" in each or each in ("", ".") or not holds(each):
                raise TypeError(f"{each!r} is the name of a variable or dimension, expected text without '/'")
        entry = {
            "dims": [str(dim) for dim in variable.dims],
            "attrs": _plain(variable.attrs, str(name)),
            "coordinate": name in dataset.coords,
        }
        if values.dtype.kind in "biu" or values.dtype in (np.float32, np.float64):
            arrays[f"variable {len(entries)}"] = values
        elif all(isinstance(each, str) for each in values.flat):
            if not holds(values.ravel().tolist()):
                raise TypeError(f"variable {name!r} holds text with NUL or surrogates; drop or escape them")
            entry |= {"text": [str(each) for each in values.flat], "shape": values.shape}
        else:
            raise TypeError(f"variable {name!r} has dtype {values.dtype}, expected floats, integers, bools or text")
        entries[str(name)] = entry
    header = json.dumps({"variables": entries, "attrs": _plain(dataset.attrs, "the dataset")}).encode()
    content = io.BytesIO()
    np.savez(content, header=np.frombuffer(header, np.uint8), **arrays)
    return content.getvalue()


def unpack(content: bytes) -> xr.Dataset:
    """The dataset that `pack` made bytes of."""
    variables, attrs = parts(content)
    data, coords = (
        {name: (v.dims, v.values, v.attrs) for name, v in variables.items() if v.coordinate is wanted}
        for wanted in (False, True)
    )
    return xr.Dataset(data, coords, attrs)


def parts(content: bytes) -> tuple[dict[str, Values], dict[str, Any]]:
    """The variables and attributes that `pack` made bytes of, without the cost of a dataset."""
    variables = {}
    with np.load(io.BytesIO(content)) as stored:
        header = json.loads(stored["header"].tobytes())
        for number, (name, entry) in enumerate(header["variables"].items()):
            if "text" in entry:
                values = np.array(entry["text"], dtype=object).reshape(entry["shape"])
            else:
                values = stored[f"variable {number}"]
            variables[name] = Values(tuple(entry["dims"]), values, entry["attrs"], entry["coordinate"])
    return variables, header["attrs"]


def holds(value: object) -> bool:
    """Can netCDF hold these texts, or these numbers?

    Example:
        >>> holds(["a", "b"]), holds([1, "a"]), holds("nul\\0"), holds(2**64)
        (True, False, False, False)
    """
    every = value if isinstance(value, list | tuple) else [value]
    texts = [each for each in every if isinstance(each, str)]
    if len(texts) == len(every):
        return not any(map(UNHELD.search, texts))
    return all(isinstance(each, int | float) for each in every) and np.asarray(value).dtype != object


def _plain(attrs: Mapping[Any, Any], whose: str) -> dict[str, Any]:
    """Attributes as JSON."""
    found = {}
    for name, value in attrs.items():
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        every = value if isinstance(value, list | tuple) else [value]
        if not holds(value) or any(isinstance(each, bool) for each in every):
            raise TypeError(
                f"attribute {name!r} of {whose} is {value!r}, expected text, numbers or lists of them, without "
                "NUL or surrogates, in 64 bits"
            )
        if name in RESERVED or name == "" or not holds(str(name)):
            raise TypeError(f"attribute {name!r} of {whose} has a name that netCDF keeps to itself; rename it")
        found[str(name)] = value
    return found
