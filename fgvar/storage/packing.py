"""Datasets as bytes, for files that hold more than a dataset: a line of JSON and plain arrays.

They cost far less than a netCDF file each, and keep every type to the bit.
"""

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
    entries, arrays = {}, []
    for name, variable in dataset.variables.items():
        values = np.asarray(variable.values)
        entry = {
            "dims": [str(dim) for dim in variable.dims],
            "shape": values.shape,
            "attrs": _plain(variable.attrs, str(name)),
            "coordinate": name in dataset.coords,
        }
        if values.dtype.kind in "biu" or values.dtype in (np.float32, np.float64):
            dtype = values.dtype.newbyteorder("<")
            entry["dtype"] = dtype.str
            arrays.append(values.astype(dtype).tobytes())
        elif all(isinstance(each, str) for each in values.flat):
            entry["text"] = [str(each) for each in values.flat]
        else:
            raise TypeError(f"variable {name!r} has dtype {values.dtype}, expected floats, integers, bools or text")
        entries[str(name)] = entry
    header = {"variables": entries, "attrs": _plain(dataset.attrs, "the dataset")}
    return b"\n".join([json.dumps(header).encode(), b"".join(arrays)])


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
    header, _, body = content.partition(b"\n")
    stored, start = json.loads(header), 0
    variables = {}
    for name, entry in stored["variables"].items():
        if "text" in entry:
            values = np.array(entry["text"], dtype=object)
        else:
            dtype = np.dtype(entry["dtype"])
            number = int(np.prod(entry["shape"], dtype=int))
            values = np.frombuffer(body, dtype, number, start)
            start += number * dtype.itemsize
        dims = tuple(entry["dims"])
        variables[name] = Values(dims, values.reshape(entry["shape"]), entry["attrs"], entry["coordinate"])
    return variables, stored["attrs"]


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
