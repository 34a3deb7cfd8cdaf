"""The study of the guess matrix, its stored evidence, and its figure."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import venues
from figures import guesses as figure
from studies import guesses as study

STORED = Path(__file__).parents[2] / "figures/data/guesses.nc"


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


def test_a_place_outside_of_the_matrix_is_told() -> None:
    with pytest.raises(ValueError, match="place of the guess matrix"):
        study.cell(space="weight", target="global", guess="Delphi", draws=2, seed=0)


def test_the_stored_dataset_is_the_whole_matrix(stored: xr.Dataset) -> None:
    assert (stored["status"] == "done").all()
    places = stored["cosine"].stack(place=("space", "target", "guess"))["place"].values
    assert {"/".join(place) for place in places} == set(fgvar.guesses.guess_matrix())
    assert np.isfinite(stored["cosine"]).all()


def test_guesses_that_know_the_network_come_closer_to_backprop(stored: xr.Dataset) -> None:
    """In every space: by every seed than isotropic noise, and in this order on average over seeds."""
    theirs = stored["cosine"].sel(reference="backprop", target="global")
    gaussian, transposed, local, exact = (
        theirs.sel(guess=guess) for guess in ("Gaussian", "transposed", "local", "global")
    )
    assert (gaussian > 0.05).all()
    assert (gaussian < transposed).all()
    assert (gaussian < local).all()
    assert (transposed.mean("seed") < local.mean("seed")).all()
    assert (local < exact).all()
    np.testing.assert_allclose(exact, 1, atol=1e-5)


@pytest.mark.parametrize(("venue", "columns"), [("iclr", 2), ("icml", 1)])
def test_the_grid_shows_its_numbers(stored: xr.Dataset, venue: venues.Venue, columns: venues.Columns) -> None:
    drawn = figure.draw(stored, venue=venue, columns=columns)
    assert drawn.get_figwidth() == venues.width(venue, columns)
    data = figure.matrix(stored)
    assert data["guess"].values[0] == "global"
    for axes, reference in zip(drawn.axes, figure.REFERENCES, strict=True):
        shown = [text.get_text() for text in axes.texts]
        assert shown == [f"{value:.2f}" for value in data.sel(reference=reference).values.ravel()]
    place = {"guess": "local", "space": "activity", "target": "global", "reference": "backprop"}
    assert data.sel(place).item() == pytest.approx(stored["cosine"].sel(place).mean().item())
