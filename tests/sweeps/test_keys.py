"""Keys of cells: which functions have the same cells, and which ones no key could tell apart."""

import contextlib
import functools
import importlib.util
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
import xarray as xr
from sweeping import ROOT, run

import fgvar
from fgvar.sweeps.keys import key_of


def times(width: int, factor: int = 2) -> xr.Dataset:
    return xr.Dataset({"v": width * factor})


def test_another_default_is_another_cell(tmp_path) -> None:
    """And the same one given, as an axis or in config=, is not."""

    def values(**how) -> list[int]:
        return fgvar.sweep(times, {"width": (1, 2)}, folder=tmp_path, **how)["v"].values.tolist()

    def files() -> int:
        return len(list((tmp_path / "cells").iterdir()))

    assert (values(), files()) == ([2, 4], 2)
    assert (values(config={"factor": 2}), files()) == ([2, 4], 2)
    times.__defaults__ = (10,)
    try:
        assert (values(), files()) == ([10, 20], 4)
    finally:
        times.__defaults__ = (2,)


def test_what_a_function_captures_has_to_be_an_argument(tmp_path) -> None:
    def made(k: int, other: str):
        def cell(width):
            return xr.Dataset({"v": k * width, "other": other, "dtype": str(torch.float32)})

        return cell

    sentence = r"made\.<locals>\.cell uses k, other of the function that it .* give them in config=, as parameters"
    with pytest.raises(ValueError, match=sentence):
        fgvar.sweep(made(1, "a"), {"width": (1,)}, folder=tmp_path / "a")
    assert not (tmp_path / "a").exists()
    wrapped = functools.wraps(made(1, "a"))(lambda **given: made(1, "a")(**given))
    with pytest.raises(ValueError, match="uses made, k, other of"):
        fgvar.sweep(wrapped, {"width": (1,)}, folder=tmp_path / "a")


def test_modules_the_function_itself_and_what_it_wraps_are_no_state(tmp_path) -> None:
    import json

    def cell(width):
        return xr.Dataset({"v": json.loads(str(width)) if width < 2 else cell(1)["v"].item()})

    @functools.wraps(cell)
    def around(**given):
        return cell(**given)

    found = fgvar.sweep(around, {"width": (1, 2)}, folder=tmp_path)
    assert found["v"].values.tolist() == [1, 1]


def test_a_lambda_needs_a_version(tmp_path) -> None:
    cell, give = (lambda width: xr.Dataset({"v": width})), {"axes": {"width": (1,)}, "folder": tmp_path}
    with pytest.raises(ValueError, match=r"the cell is a lambda, .*; define a function, or give a version="):
        fgvar.sweep(cell, **give)
    assert fgvar.sweep(cell, version="1", **give)["v"].item() == 1


def test_a_default_that_no_key_could_hold() -> None:
    def cell(width, dtype=torch.float32):
        return xr.Dataset({"v": width, "dtype": str(dtype)})

    with pytest.raises(TypeError, match=r"^default dtype=torch\.float32 is a dtype, and what defines a cell has"):
        key_of(cell, {"width": 1}, "", 1)


def test_functions_of_one_name_in_two_scripts_have_their_own_cells(tmp_path) -> None:
    """And a script that is run has those of the same one imported, also from a package, and by its processes."""
    text = """
import fgvar, xarray
def cell(width):
    return xarray.Dataset({{"v": {factor} * width}})
if __name__ == "__main__":
    import sys
    found = fgvar.sweep(cell, {{"width": (1, 2)}}, folder={folder!r}, workers=int(sys.argv[-1] == "1"))
    print(*found["v"].values)
"""
    (tmp_path / "package").mkdir()
    scripts = [tmp_path / "package" / name for name in ("one.py", "two.py")]
    for script, factor in zip(scripts, (1, 10), strict=True):
        script.write_text(text.format(factor=factor, folder=str(tmp_path)))
    assert [run(str(script)) for script in scripts] == ["1 2\n", "10 20\n"]
    assert len(list((tmp_path / "cells").iterdir())) == 4
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import fgvar; from package.two import cell; "
    code += f"print(*fgvar.sweep(cell, {{'width': (1, 2)}}, folder={str(tmp_path)!r})['v'].values)"
    assert run(code) == "10 20\n"
    done = subprocess.run([sys.executable, scripts[0], "1"], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "1 2\n"
    assert len(list((tmp_path / "cells").iterdir())) == 4, "no cell twice"


def test_numbers_of_any_type_have_one_key() -> None:
    keys = {key_of(times, {"width": width}, "", 1) for width in (1, 1.0, np.int64(1), np.float32(1))}
    assert len(keys) == 1
    assert key_of(times, {"width": 1}, "", 1) != key_of(times, {"width": 1, "factor": 3}, "", 1)


def loaded(path, text: str):
    """The function ``cell`` of a module of this text, as one that has been edited."""
    spec = importlib.util.spec_from_loader(path.stem, None)
    module = importlib.util.module_from_spec(spec)
    exec(compile(textwrap.dedent(text), path, "exec"), module.__dict__)
    return module.cell


SOURCE = """
    import xarray as xr
    STEPS = 3

    def doubled(width):
        return 2 * width

    def cell(width):
        '''Twice the width.'''
        return xr.Dataset({"v": doubled(width) + (width in {"a", "b"}) * STEPS})
"""


@pytest.mark.parametrize(
    ("old", "new", "other"),
    [
        ("Twice the width.", "The width, doubled.", False),
        ("STEPS = 3", "STEPS = 3  # a comment\n    UNUSED = 4", False),
        ('{"a", "b"}', '{"b", "a"}', False),
        ("doubled(width) +", "doubled(width) + 1 +", True),
        ('{"a", "b"}', '{"a", "c"}', True),
        ("2 * width", "3 * width", True),
        ("STEPS = 3", "STEPS = 4", True),
    ],
)
def test_cells_of_other_code_are_kept_and_said_to_be(tmp_path, old: str, new: str, other: bool) -> None:
    """In a function that it calls, and in a constant that it reads; another version is without doubt."""

    def swept(text: str, **how) -> xr.Dataset:
        return fgvar.sweep(loaded(tmp_path / "widths.py", text), {"width": (1, 2)}, folder=tmp_path / "kept", **how)

    before = swept(SOURCE)
    assert old in SOURCE
    edited = SOURCE.replace(old, new)
    said = pytest.warns(UserWarning, match=r"2 of 2 cells in .*kept were computed by other code of cell, or of what")
    with said if other else contextlib.nullcontext():
        assert swept(edited)["v"].equals(before["v"])
    swept(edited, version="2")


def test_the_code_of_a_cell_is_the_same_in_every_process(tmp_path) -> None:
    """Sets of text have another order in each."""
    (tmp_path / "widths.py").write_text(textwrap.dedent(SOURCE))
    script = "import widths; from fgvar.sweeps.keys import code_of; print(code_of(widths.cell))"
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONPATH": paths, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in "123"
    }
    assert len(told) == 1
