"""Packed datasets: every type comes back to the bit, and what netCDF could not hold is refused."""

import numpy as np
import pytest
import xarray as xr

from fgvar.storage.packing import pack, unpack

NAN = np.array([0x7FF8_0000_0000_0001], np.uint64).view(np.float64)  # with bits of its own


@pytest.mark.parametrize(
    "values",
    [
        np.array(True),
        np.array([True, False]),
        *(np.arange(6, dtype=kind).reshape(2, 3) for kind in ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8")),
        np.array([1.5, -0.0, np.inf], np.float32),
        np.concatenate([NAN, [-0.0, 5e-324]]),
        np.array(2.5),
        np.zeros((0, 3)),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(6.0)[::2],
        np.array(["a", "été", "", "line\n"], object),
        np.array("text", object),
        np.zeros((2, 0), object),
    ],
    ids=lambda values: f"{values.dtype}{list(values.shape)}",
)
def test_every_type_comes_back_to_the_bit(values: np.ndarray) -> None:
    dims = ("row", "column")[: values.ndim]
    dataset = xr.Dataset(
        {"a - b": (dims, values, {"units": "1", "of": [1, 2]})}, {"header": 3}, {"file": "x", "n": 1.5}
    )
    found = unpack(pack(dataset))
    assert found.identical(dataset)
    variable = found["a - b"].variable
    assert (variable.dtype, variable.shape, variable.dims) == (values.dtype, values.shape, dims)
    if values.dtype != object:
        assert variable.values.tobytes() == values.tobytes()
    assert pack(found) == pack(dataset), "equal datasets have equal bytes"


@pytest.mark.parametrize(
    "values",
    [np.zeros(2, np.float16), np.zeros(2, complex), np.zeros(2, "M8[ns]"), np.array([None, "a"], object), b"a"],
    ids=["half", "complex", "date", "objects", "bytes"],
)
def test_other_types_are_refused(values: object) -> None:
    with pytest.raises(TypeError, match=r"variable 'a' has dtype .*, expected floats, integers, bools or text"):
        pack(xr.Dataset({"a": (("x",)[: np.ndim(values)], values)}))


@pytest.mark.parametrize("text", ["nul\0", "caf\udce9"], ids=ascii)
def test_texts_that_netcdf_cannot_hold_are_refused_wherever_they_stand(text: str) -> None:
    with pytest.raises(TypeError):  # by xarray itself of surrogates
        pack(xr.Dataset({"a": ("x", np.array(["a", text], object))}))
    for value in (text, ["a", text]):
        with pytest.raises(TypeError, match=r"attribute 'of' of the dataset is .*, expected text, numbers or"):
            pack(xr.Dataset(attrs={"of": value}))
    for dataset in (xr.Dataset({text: 1.0}), xr.Dataset({"a": (text, [1.0])}), xr.Dataset(attrs={text: 1})):
        with pytest.raises(TypeError, match="name"):
            pack(dataset)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, [1, 2**64], [1, "a"], True, None, {"a": 1}], ids=ascii)
def test_attributes_that_netcdf_cannot_hold_are_refused(value: object) -> None:
    with pytest.raises(TypeError, match=r"attribute 'of' of a is .*, expected text, numbers or lists of them"):
        pack(xr.Dataset({"a": ((), 1.0, {"of": value})}))


@pytest.mark.parametrize("name", ["loss/train", "", "."])
def test_names_that_netcdf_cannot_hold_are_refused(name: str) -> None:
    for dataset in (xr.Dataset({name: 1.0}), xr.Dataset({"a": (name, [1.0])})):
        with pytest.raises(TypeError, match=r"is the name of a variable or dimension, expected text without '/'"):
            pack(dataset)
    with pytest.raises(TypeError, match="attribute 'NAME' of a has a name that netCDF keeps to itself; rename it"):
        pack(xr.Dataset({"a": ((), 1.0, {"NAME": "b"})}))
