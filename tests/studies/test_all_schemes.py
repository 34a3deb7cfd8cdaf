"""The study of all schemes as a user runs it, its stored evidence, and its figure."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import venues
from figures import all_schemes as figure
from studies import all_schemes as study

ROOT = Path(__file__).resolve().parents[2]
STORED = ROOT / "figures" / "data" / "all_schemes.nc"


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


@pytest.fixture(scope="module")
def cosine(stored: xr.Dataset) -> xr.DataArray:
    return stored["cosine"].sel(layer="perturbed")


def test_the_stored_dataset_has_all_schemes(stored: xr.Dataset) -> None:
    names = {scheme.name: scheme.bias_reason for scheme in fgvar.schemes()}
    assert list(stored["estimator"].values) == list(names)
    assert {name: stored["biased"].sel(estimator=name).item() for name in names} == names
    assert np.isfinite(stored[["cosine", "cosine_se"]].sel(layer="perturbed").to_array()).all()
    assert stored.attrs["draws"] >= 512


def test_families_are_told_from_words(stored: xr.Dataset) -> None:
    expected = {
        "BP": "exact", "DFA": "feedback", "SPSA": "weights", "NP": "activities", "span-guess": "guess",
        "random-guess": "guess", "sham": "control", "minibatch": "control", "isotropic-null": "control",
    }  # fmt: skip
    assert {name: study.family(fgvar.scheme(name)) for name in expected} == expected
    assert {name: stored["family"].sel(estimator=name).item() for name in expected} == expected


def test_controls_without_a_gradient_point_nowhere(stored: xr.Dataset, cosine: xr.DataArray) -> None:
    error = stored["cosine_se"].sel(layer="perturbed")
    for name in ("sham", "isotropic-null", "frozen"):
        assert (abs(cosine.sel(estimator=name)) <= 3 * error.sel(estimator=name)).all(), name


def test_unbiased_schemes_have_the_right_scale(stored: xr.Dataset) -> None:
    """Slope 1 to their target, within 4 standard errors; projections shrink."""
    its = stored.sel(layer="perturbed", reference="target", estimator=(stored["biased"] == "").values)
    sure = its["slope_se"].notnull()
    assert int(sure.sum()) > 10
    assert (abs(its["slope"] - 1) <= 4 * its["slope_se"] + 1e-5).where(sure, True).all()
    assert stored["slope"].sel(layer="perturbed", reference="target", estimator="random-guess") < 0.1


def test_local_losses_and_activities_come_closest_to_their_target(cosine: xr.DataArray) -> None:
    ours = cosine.sel(reference="target")
    assert ours.sel(estimator="LG-FG-A") > 3 * ours.sel(estimator=["FG-W", "FG-A", "LG-FG-W"]).max()


def test_guesses_that_project_each_tensor_come_closer_to_backprop(cosine: xr.DataArray) -> None:
    theirs = cosine.sel(reference="backprop")
    assert theirs.sel(estimator="random-guess") > 3 * theirs.sel(estimator="FG-A")


def test_differences_see_the_noise_of_what_they_approximate(cosine: xr.DataArray) -> None:
    theirs = cosine.sel(reference="backprop")
    assert theirs.sel(estimator="MeZO").item() == pytest.approx(theirs.sel(estimator="FG-W").item(), rel=0.02)


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_what_is_drawn(stored: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    drawn = figure.draw(stored, venue=venue, columns=columns)
    assert drawn.get_figwidth() == venues.width(venue, columns)
    axes = drawn.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names[0] in ("BP", "backprop-guess")
    assert set(names) == {scheme.name for scheme in fgvar.schemes()}
    points = {names[int(line.get_ydata()[0])]: line for line in axes.lines if line.get_marker() in "os^Dvh"}
    cosines = [points[name].get_xdata()[0] for name in names]
    assert cosines == sorted(cosines, reverse=True)
    for scheme in fgvar.schemes():
        assert (points[scheme.name].get_markerfacecolor() == "white") == bool(scheme.bias_reason), scheme.name


def test_unknown_families_are_refused(stored: xr.Dataset) -> None:
    other = stored.assign_coords(family=stored["family"].str.replace("weights", "magic"))
    with pytest.raises(ValueError, match=r"no colour for families \['magic'\]"):
        figure.draw(other)
