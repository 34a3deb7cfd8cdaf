"""The consolidated dataset of a sweep: what no cell may stop, and what all cells have in common."""

import os

import numpy as np
import pytest
import xarray as xr

import fgvar


def swept(cell, tmp_path, ns: tuple[int, ...] = (1, 2)) -> xr.Dataset:
    """As it is stored."""
    fgvar.sweep(cell, {"n": ns}, folder=tmp_path)
    return fgvar.open_dataset(tmp_path / "sweep.nc")


@pytest.mark.parametrize(
    ("text", "escaped"), [("nul\0", r"nul\x00"), (os.fsdecode(b"caf\xe9"), r"caf\udce9"), ("café\t", "café\t")]
)
def test_any_text_of_an_exception_is_kept(tmp_path, text: str, escaped: str) -> None:
    def cell(n):
        if n == 2:
            raise ValueError(f"no {os.environ['FGVAR_TEXT'].encode().decode('unicode_escape')}")
        return xr.Dataset({"v": n})

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FGVAR_TEXT", text.encode("unicode_escape").decode())
        found = swept(cell, tmp_path)
    assert found["status"].values.tolist() == ["done", "failed"]
    assert found["traceback"].values[1].endswith(f"ValueError: no {escaped}\n")


UNHELD = {
    "a name": lambda: xr.Dataset({"loss/train": 1.0}),
    "a number": lambda: xr.Dataset(attrs={"big": 2**64}),
    "a list": lambda: xr.Dataset(attrs={"of": [1, "a"]}),
    "a text": lambda: xr.Dataset(attrs={"of": "nul\0"}),
    "labels twice": lambda: xr.Dataset({"v": ("t", [1.0, 2.0])}, {"t": ["a", "a"]}),
    "a label that is NaN": lambda: xr.Dataset({"v": ("t", [1.0, 2.0])}, {"t": [0.5, np.nan]}),
}


@pytest.mark.parametrize("what", UNHELD)
def test_what_no_file_holds_fails_its_cell_alone(tmp_path, what: str) -> None:
    def cell(n, what):
        return UNHELD[what]() if n > 1 else xr.Dataset({"v": ("t", [1.0])}, {"t": [0.5]})

    found = fgvar.sweep(cell, {"n": (1, 2, 3)}, config={"what": what}, folder=tmp_path)
    assert found["status"].values.tolist() == ["done", "failed", "failed"]
    assert all(("Error: " in text) for text in found["traceback"].values[1:])
    assert found["v"].sel(n=1, t=0.5) == 1


def test_attributes_of_variables_are_what_all_cells_say(tmp_path) -> None:
    def cell(n):
        attrs = {"units": "nats" if n == 1 else "bits", "draws": n, "source": "here", "limit": float("nan")}
        return xr.Dataset({"v": ("t", [1.0], attrs)}, {"t": ("t", [0], attrs)})

    found = swept(cell, tmp_path)
    for name in ("v", "t"):
        assert found[name].attrs.keys() == {"source", "limit"}


def test_what_is_nan_in_all_cells_is_the_same_in_all(tmp_path) -> None:
    def cell(n):
        limits = {"temperature": float("nan"), "limits": [0.0, float("nan")]}
        return xr.Dataset({"v": ("t", [n, n])}, {"t": [0, 1], "c": ("t", [1.0, np.nan])}, limits)

    found = swept(cell, tmp_path)
    np.testing.assert_array_equal(found.attrs["temperature"], np.nan)
    np.testing.assert_array_equal(found.attrs["limits"], [0, np.nan])
    assert found["c"].dims == ("t",)
    np.testing.assert_array_equal(found["c"], [1, np.nan])
