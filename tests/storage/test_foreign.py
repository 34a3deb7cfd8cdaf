"""Datasets that somebody else wrote, with our names or none: a sentence or an overview; nothing for a terminal."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar import plot
from fgvar.cli import main
from fgvar.measurement.dataset import ranged
from fgvar.measurement.dataset_checks import missing_from
from fgvar.measurement.report import provenance_line, rows, to_text
from fgvar.measurement.text_tables import format_table, to_json, to_tsv, visible
from fgvar.plot import datasets

NAMES = {"estimator": ["BP", "FG-W"], "reference": ["target", "backprop"], "layer": ["perturbed", "weight"]}
EVIL = "\x1b[2J\x9b31m\u202e"


def measurement() -> xr.Dataset:
    full = ("estimator", "reference", "layer"), np.full((2, 2, 2), 0.5)
    half = np.full((2, 2), 0.5)
    return xr.Dataset(
        dict.fromkeys(("bias_z", "bias_p", "sq_bias", "cosine", "cosine_se"), full)
        | dict.fromkeys(("relative_variance", "relative_variance_se", "flag"), (("estimator", "layer"), half))
        | {"gradient_norm": (("reference", "layer"), half)},
        NAMES,
        {"route": "drawn", "draws": 64},
    )  # fmt: skip


def probed() -> xr.Dataset:
    curve = xr.Dataset({"loss": ("epoch", [2.0, 1.0])}, {"epoch": [0, 1]})
    return measurement().expand_dims(step=[1, 8]).merge(curve).assign_attrs(measurement().attrs)


# ---- summaries ---------------------------------------------------------------------------------------------------

CHANGES: dict[str, tuple[Callable[[xr.Dataset], xr.Dataset], str]] = {
    "other variables": (lambda _: xr.Dataset({"variance": ("time", [1.0, 2.0])}), "lacks variable 'bias_z', "),
    "no error": (lambda d: d.drop_vars("relative_variance_se"), "lacks variable 'relative_variance_se'; give one of"),
    "no dims": (lambda d: d.isel(estimator=0), r"lacks dims \['estimator'\] of 'bias_z', dims"),
    "no layer": (lambda d: d.assign(cosine=d["cosine"].isel(layer=0, drop=True)), r"dims \['layer'\] of 'cosine'"),
    "text": (lambda d: d.assign(cosine=d["cosine"].astype(str)), "lacks numbers in 'cosine'; give"),
    "times": (lambda d: d.assign(bias_z=d["bias_z"].astype("timedelta64[s]")), "lacks numbers in 'bias_z'"),
    "no names": (lambda d: d.drop_vars("estimator"), "lacks names along 'estimator'; give"),
    "numbers for names": (lambda d: d.assign_coords(layer=[0, 1]), "lacks names along 'layer'; give"),
    "one name": (lambda d: d.isel(estimator=[0, 0]), "lacks a name of its own for each along 'estimator'"),
    "one reference": (lambda d: d.sel(reference=["target"]), "lacks 'backprop' along 'reference'; give one of fgvar"),
    "no estimators": (lambda d: d.isel(estimator=[]), "lacks names along 'estimator'"),
    "no step": (lambda d: d.expand_dims(step=[]), "lacks values along 'step'; give one"),
    "no differences": (lambda d: d.assign_coords(baseline="BP"), "lacks variable 'slope_difference', variable"),
    "exact, without": (lambda d: d.drop_vars("sq_bias").assign_attrs(route="exact"), "lacks variable 'sq_bias'"),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_no_measurement_is_no_summary_but_an_overview(name: str) -> None:
    change, what = CHANGES[name]
    dataset = change(measurement())
    with pytest.raises(ValueError, match=f"the dataset is no measurement, as it .*{what}"):
        fgvar.summary(dataset)
    assert "variable" in to_text(dataset)
    assert {row["variable"] for row in rows(dataset)} == {*dataset.data_vars}


def test_other_wrong_input_of_a_summary() -> None:
    with pytest.raises(TypeError, match=r"got a dict, expected a dataset: of fgvar\.measure, or run\.dataset of one"):
        fgvar.summary({"bias_z": 1.0})
    several = measurement().expand_dims(seed=[0, 1])
    with pytest.raises(
        ValueError, match=r"of several measurements, over 'seed'; choose one, as dataset\.isel\(seed=0"
    ):
        fgvar.summary(several)
    assert fgvar.summary(several.isel(seed=0)) in to_text(several)
    one = measurement()
    one["bias_p"] = one["bias_p"].expand_dims(seed=[0, 1])
    with pytest.raises(ValueError, match="of several measurements, over 'seed'"):
        fgvar.summary(one)
    assert to_text(one).count("layer 'perturbed'") == 2
    with pytest.raises(ValueError, match="unknown layer 'wieght'; did you mean 'weight'"):
        fgvar.summary(measurement(), layer="wieght")


def test_a_flag_of_another_type_does_no_harm() -> None:
    assert fgvar.summary(measurement()).count("0.50 ± 0.98") == 6
    assert to_text(measurement()) == fgvar.summary(measurement())


ODD = {
    "nothing": xr.Dataset(),
    "no values": xr.Dataset({"a": ("t", np.zeros(0))}),
    "one text": xr.Dataset({"loss": "low"}, {"epoch": 3}),
    "texts": xr.Dataset({"loss": ("epoch", ["low", "high"]), "test_error": ("epoch", [0.5, 0.4])}, {"epoch": [0, 1]}),
    "dates": xr.Dataset({"loss": ("epoch", np.array(["2020-01-01", "NaT"], "datetime64[ns]"))}),
    "times": xr.Dataset({"loss": ("epoch", np.array([1, 2], "timedelta64[s]"))}),
    "complex": xr.Dataset({"loss": ("epoch", [1j, 2.0])}),
    "bytes": xr.Dataset({"a": ("t", np.array([b"x", b"y"]))}),
    "objects": xr.Dataset({"a": ("t", np.array([1, "x"], object))}),
    "no epoch": probed().isel(epoch=[]),
    "no step": probed().isel(step=[]),
    "no labels": probed().drop_vars(["epoch", "step"]),
    "no run": xr.Dataset({"loss": (("run", "epoch"), np.ones((0, 3)))}),
    "our names for other things": xr.Dataset({"estimator": ("t", [1, 2]), "layer": ("t", [1.0, 2.0])}),
    "lists as attributes": measurement().assign_attrs(
        route=np.array([1, 2]), draws=[3, 4], study=np.array(["a", "b"])
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_any_dataset_is_told_in_every_form(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert to_text(ODD[name])
        found = rows(ODD[name])
    to_tsv(found)
    json.loads(to_json(found))
    provenance_line(ODD[name])


# ---- columns -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "half", "text"),
    [
        (1.1e16, 5e14, "1.100e+16 ± 5.0e+14"),
        (-123456789.0, 1000.0, "-1.234568e+08 ± 1.0e+03"),
        (0.0, 2e7, "0.0e+00 ± 2.0e+07"),
        (3e5, 2e7, "3e+05 ± 2.0e+07"),
        (999999.4, 12.0, "999999 ± 12"),
        (0.7375, 0.0029, "0.7375 ± 0.0029"),
        (2.5e10, 0.0, "2.5e+10"),
        (1.0, np.nan, "1 [–]"),
        (np.inf, 1.0, "inf [–]"),
        (1.0, np.inf, "1 [–]"),
        (np.nan, 1.0, "–"),
    ],
)
def test_numbers_and_what_they_are_off_by(value: float, half: float, text: str) -> None:
    assert ranged(value, value - half, value + half, plus_minus=True) == text


def test_intervals_need_not_be_even() -> None:
    assert ranged(1.1e16, 1.05e16, 1.2e16) == "1.100e+16 [1.050e+16, 1.200e+16]"
    assert ranged(16.63, 15.21, 18.88) == "16.6 [15.2, 18.9]"


def test_columns_stay_apart_whatever_stands_in_them() -> None:
    """Two blanks at least before each number, and no line longer than others."""
    wide = measurement().assign_coords(estimator=["BP", "a_name_that_is_longer_than_its_column"])
    wide["relative_variance"] = ("estimator", "layer"), np.array([[1.0, 1.0], [1.2345678901e30, 1.0]])
    wide["relative_variance_se"] = ("estimator", "layer"), np.full((2, 2), 1.1e17)
    _, *lines = fgvar.summary(wide).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert re.split("  +", lines[2]) == [
        "a_name_that_is_longer_than_its_column", "0.5 (0.5)", "1.23456789010000e+30 ± 2.2e+17",
        "0.50 ± 0.98", "0.50 ± 0.98",
    ]  # fmt: skip


# ---- terminals ---------------------------------------------------------------------------------------------------


def printable(text: str) -> bool:
    return all(sign.isprintable() or sign in "\n\t" for sign in text)


def test_control_characters_are_shown_and_not_sent(tmp_path, capsys) -> None:
    """In attributes, labels, names and units; by every command, in every form, and in errors."""
    assert visible(EVIL) == r"\x1b[2J\x9b31m\u202e"
    assert visible("ĝ ± 0.5 – 中 \\") == "ĝ ± 0.5 – 中 \\"
    ours = measurement().assign_coords(estimator=["BP", f"mine{EVIL}"], layer=["perturbed", f"weight{EVIL}"])
    ours = ours.assign_attrs(study=f"study{EVIL}", draws=EVIL, data="two\nlines")
    theirs = xr.Dataset({f"a{EVIL}": (f"t{EVIL}", [1.0, 2.0], {"units": EVIL, "long_name": EVIL})},
                        {f"t{EVIL}": [f"x{EVIL}", "y"]})  # fmt: skip
    runs = xr.Dataset({"loss": (("run", "epoch"), np.ones((2, 2)))}, {"run": [EVIL, "b"], "epoch": [0, 1]})
    assert printable(fgvar.summary(ours))
    for dataset in (ours, theirs, runs, ours.expand_dims(run=[EVIL])):
        path = str(fgvar.save(dataset, tmp_path / "a.nc"))
        for how in ((), ("--plain",), ("--json",), ("--layer", f"no{EVIL}")):
            main(["open", path, *how])
            out, err = capsys.readouterr()
            assert printable(out), how
            assert printable(err), how
            assert "\\x1b[2J" in out + err or "\\u001b[2J" in out + err
            if "--json" in how:
                assert json.loads(out) == json.loads(json.dumps(rows(dataset)))


def test_forms_show_control_characters() -> None:
    row = [{f"a{EVIL}": EVIL, "b": 1.0}]
    assert printable(format_table(row) + to_tsv(row) + to_json(row))
    assert json.loads(to_json(row)) == row


# ---- figures -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda d: d.drop_vars("relative_variance_se"), "variable 'relative_variance_se'"),
        (lambda d: d.assign(cosine=d["cosine"].isel(layer=0, drop=True)), r"dims \['layer'\] of 'cosine'"),
        (lambda d: d.assign(size=("layer", ["a", "b"])), "numbers in 'size'"),
        (lambda d: d.drop_vars("layer"), "names along 'layer'"),
        (lambda d: d.assign(size=("layer", [1.0, 2.0])).expand_dims(seed=[]), "values along 'seed'"),
        (lambda d: d.assign_coords(reference=["target", "mine"]), "'backprop' along 'reference'"),
    ],
)
def test_figures_refuse_what_is_not_their_dataset(change, what: str) -> None:
    whole = measurement().assign(size=("layer", [1.0, 2.0]), cosine_null=("layer", [0.5, 0.5]))
    plot.layers(whole)
    with pytest.raises(ValueError, match=rf"not a dataset of fgvar\.measure: it lacks {what}"):
        plot.layers(change(whole))


def test_variables_of_text_may_hold_text() -> None:
    dataset = xr.Dataset({"family": ("t", ["a"]), "cost": ("t", ["b"])})
    assert missing_from(dataset, {"family": ("t",), "cost": ("t",)}, datasets.TEXT) == ["numbers in 'cost'"]


def test_figures_need_labels_that_they_know(tmp_path) -> None:
    """Without any it is said what is missing; others are met while drawing, and told on the command line."""
    from figures import command, weight_sharing

    stored = Path(__file__).resolve().parents[2] / "figures" / "data" / "weight_sharing.nc"
    dataset = fgvar.open_dataset(stored)
    with pytest.raises(ValueError, match="it lacks labels along 'kind'"):
        weight_sharing.draw(dataset.drop_vars("kind"))
    path = fgvar.save(dataset.assign_coords(loss=[f"x{i}" for i in range(dataset.sizes["loss"])]), tmp_path / "a.nc")
    with pytest.raises(ValueError, match=r"a\.nc is not a dataset that these figures show: it lacks 'x0'"):
        command.write(command.Config(path), weight_sharing.FIGURES)
    assert list(tmp_path.iterdir()) == [path]


def test_figures_look_at_their_places_before_they_draw(tmp_path, monkeypatch) -> None:
    from figures import all_schemes, command

    stored = Path(__file__).resolve().parents[2] / "figures" / "data" / "all_schemes.nc"
    (tmp_path / "a.tex").mkdir()
    monkeypatch.setattr(all_schemes, "FIGURES", {"": (lambda *_, **__: pytest.fail("too early"), str)})
    with pytest.raises(OSError, match=r"a\.tex is a folder, expected a regular file"):
        command.write(command.Config(stored, out=tmp_path / "a"), all_schemes.FIGURES, all_schemes.table)
