"""Datasets as bytes, for files that hold more than a dataset: numpy's .npz with a header in JSON, and no pickle.

They cost far less than a netCDF file each, and keep every type to the bit.
"""

import io
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import xarray as xr


class Values(NamedTuple):
    """A variable of a packed dataset."""

    dims: tuple[str, ...]
    values: np.ndarray
    attrs: dict[str, Any]
    coordinate: bool


def pack(dataset: xr.Dataset) -> bytes:
    """A dataset as bytes.

    Raises:
        TypeError: one that netCDF could not hold.

    Example:
        >>> dataset = xr.Dataset({"loss": ("step", np.arange(3.0), {"units": "nats"})}, {"layer": "head"})
        >>> unpack(pack(dataset)).identical(dataset)
        True
    """
    entries: dict[str, dict[str, Any]] = {}
    arrays: dict[str, Any] = {}
    for name, variable in dataset.variables.items():
        values = np.asarray(variable.values)
        entry = {
            "dims": [str(dim) for dim in variable.dims],
            "attrs": _plain(variable.attrs, str(name)),
            "coordinate": name in dataset.coords,
        }
        if values.dtype.kind in "biu" or values.dtype in (np.float32, np.float64):
            arrays[f"variable {len(entries)}"] = values
        elif all(isinstance(each, str) for each in values.flat):
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


def _plain(attrs: Mapping[Any, Any], whose: str) -> dict[str, Any]:
    """Attributes as JSON."""
    found = {}
    for name, value in attrs.items():
        value = value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        every = value if isinstance(value, list | tuple) else [value]
        if not all(isinstance(each, str | int | float) and not isinstance(each, bool) for each in every):
            raise TypeError(f"attribute {name!r} of {whose} is {value!r}, expected text, numbers or lists of them")
        found[str(name)] = value
    return found
