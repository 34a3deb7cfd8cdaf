"""Panels of training runs, a row for each: what is of one run alone, and how it is named."""

import itertools
from typing import Any

import numpy as np
import pytest
import xarray as xr
from pictures import clipped

import fgvar
from fgvar import plot
from fgvar.plot import theory_lines


def probed(**along: list) -> xr.Dataset:
    """Probes of FG-W and one more, of a run for each label; of d = 20, 40, … numbers."""
    dims = ("step", "estimator", "reference")
    one = xr.Dataset(
        {
            "cosine": (dims, np.full((3, 2, 2), 0.5)),
            "cosine_null": ("step", np.full(3, 0.1)),
            "relative_variance": (dims[:2], np.full((3, 2), 5.0)),
        },
        {"step": [1, 10, 100], "estimator": ["FG-W", "other"], "reference": ["target", "backprop"]},
        {"estimators": f"FG-W: {fgvar.scheme('FG-W')!r}"},
    )
    ((dim, labels),) = along.items()
    sizes = xr.DataArray([20.0 * (i + 1) for i in range(len(labels))], dims=dim)
    return one.expand_dims(along).assign(size=sizes)


def test_theory_of_each_run_is_of_its_own_network() -> None:
    dataset = probed(width=[2, 64])
    figure = plot.training(dataset)
    heights = [
        line.get_ydata()[0] for axes in figure.axes for line in axes.lines if line.get_label() == "FG-W, theory"
    ]
    cosines = [theory_lines.cosine(d) for d in (20, 40)]
    assert heights == [cosines[0], cosines[0], 21, cosines[1], cosines[1], 41]
    told = f"21 and {cosines[0]:.2g} for d = 20; 41 and {cosines[1]:.2g} for d = 40."
    assert told in plot.caption(dataset, "training")


def test_a_run_of_unknown_size_has_no_theory_and_the_others_have_theirs() -> None:
    dataset = probed(width=[2, 64])
    dataset["size"].loc[{"width": 2}] = np.nan
    lines = [
        [line.get_ydata()[0] for line in axes.lines if line.get_label() == "FG-W, theory"]
        for axes in plot.training(dataset).axes
    ]
    assert lines[2::3] == [[], [41]]
    assert "41 and 0.13 for d = 40." in plot.caption(dataset, "training")


def test_a_legend_has_what_is_drawn_alone() -> None:
    """Neither classes of what is not drawn, nor estimators whose probes are not there, nor runs without curves."""
    error = xr.DataArray([0.9, 0.5, 0.1], dims="epoch", coords={"epoch": range(3)})
    apart = xr.DataArray(np.zeros((3, 3)), {"class": ["cat", "dog", "bird"]}, ("class", "epoch"))
    assert not plot.training(xr.Dataset({"test_error": error, "per_class": apart})).legends
    runs = probed(algorithm=["mine", "other"])
    told = [text.get_text() for text in plot.training(runs).legends[0].get_texts()]
    assert "FG-W" in told
    assert "mine" not in told
    curves = xr.Dataset({"test_error": error.expand_dims(algorithm=["mine", "other"]), "per_class": apart})
    told = [text.get_text() for text in plot.training(xr.merge([curves, runs])).legends[0].get_texts()]
    assert {"mine", "FG-W"} <= set(told)
    assert "cat" not in told


@pytest.mark.parametrize("place", [("icml", 1), ("iclr", 2)], ids=str)
@pytest.mark.parametrize("count", [2, 3])
def test_long_names_of_runs_lie_neither_on_each_other_nor_beyond_the_page(place: tuple[Any, Any], count: int) -> None:
    names = ["FG-A of 16 directions, clipped at 3", "LG-FG-A of 4 directions, no stop"]
    names = [*names, "momentum of weight perturbations"][:count]
    with plot.venue(place[0], columns=place[1]):
        figure = plot.training(probed(algorithm=names))
    assert not clipped(figure)
    labels = [text for axes in figure.axes for text in (axes.title, axes.yaxis.label) if text.get_text()]
    told = ["".join(label.get_text().split()) for label in labels]
    assert all("".join(f"trained by {name}".split()) in told for name in names)
    boxes = [label.get_window_extent() for label in labels]
    assert not [(one, other) for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]
