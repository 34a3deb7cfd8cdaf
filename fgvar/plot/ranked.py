"""Estimators ranked by one quantity, each in a row of its own."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from fgvar.errors import unknown
from fgvar.plot import datasets, drawing, limits, marks, panel, series
from fgvar.plot import looks as styles
from fgvar.plot.by_layer import stripes
from fgvar.plot.looks import Look, Wanted

ROW = 0.15  # inches
SMALL_IS_BETTER = ("variance", "relative_variance", "data_variance", "sq_bias", "bias_z", "cost", "seconds")
OF = ("gradient_norm", "data_variance")  # of a reference, where others are to it
NULL: dict[str, Any] = {"color": "0.85", "linewidth": 0, "zorder": 0.5}


def ranking(
    dataset: xr.Dataset,
    *,
    by: str | None = None,
    reference: str | None = None,
    layer: str = "perturbed",
    order: Sequence[str] | None = None,
    ax: Axes | None = None,
    legend: bool = True,
    looks: Mapping[str, Wanted] | None = None,
) -> Figure:
    """Draw estimators by one quantity, the best first, with 95 % intervals; biased ones are hollow.

    Biased is what the dataset declares to be (``biased``, a text or true), what its closed form says, or what the
    test of no bias refutes at 1 % for all estimators together. What has no number stands last, and says why.

    Args:
        dataset: of `fgvar.measure`; of several steps the last is drawn, of several seeds their mean.
        by: a variable over ``estimator``; of variances, biases and costs, and of their differences, the smallest is
            the best, of slopes the nearest to 1. Default: cosine, or relative variance where cosines have no closed
            form.
        reference: of cosines, slopes, biases, efficiencies and norms: "backprop" or "target". Default: of biases
            the target, of all others backprop.
        layer: "perturbed" is all that an estimator estimates.
        order: names of estimators from above, in place of the best first.
        ax: to draw on in place of a figure of its own.
        legend: with what tells marks apart.
        looks: name → a colour, a colour and a marker, or a `Look`; default: `fgvar.plot.assign`.

    Raises:
        TypeError: no dataset.
        ValueError: no measurement, or several; no such variable, reference, layer or name in ``order``.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> pair = {name: fgvar.scheme(name) for name in ("FG-W", "BP")}
        >>> figure = ranking(fgvar.measure(pair, problem, draws=64))
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['BP', 'FG-W']
    """
    styled = styles.of(dataset, looks) if isinstance(dataset, xr.Dataset) else {}
    by = by or quantity(dataset, layer)
    data = ranked(dataset, by=by, reference=reference, layer=layer, order=order)
    handles = _handles(data, by)

    def draw(axes: Axes) -> None:
        points(axes, data, by, styled)
        axes.set_xlabel(called(dataset[by], reference))

    lines = max(label.count("\n") + 1 for label in panel.wrapped(datasets.names(data, "estimator")))
    return panel.drawn(
        ax, draw, handles if legend else [], height=0.4 + max(ROW * lines * data.sizes["estimator"], 0.5)
    )


def quantity(dataset: xr.Dataset, layer: str) -> str:
    """What estimators are ranked by where nobody asks: cosines, if several are known."""
    cosine = datasets.one(dataset, layer=layer)["cosine"]
    return "cosine" if bool(cosine.count("estimator").max() > 1) else "relative_variance"


def ranked(
    dataset: xr.Dataset,
    *,
    by: str,
    reference: str | None = None,
    layer: str = "perturbed",
    order: Sequence[str] | None = None,
) -> xr.Dataset:
    """One measurement, its estimators in the order of a quantity, the best first; without a number last."""
    data = datasets.one(dataset, layer=layer)
    known = [name for name in datasets.quantities(dataset) if "estimator" in dataset[name].dims]
    if by not in known:
        raise ValueError(unknown("quantity", by, known))
    tested = series.biased(data)
    data = datasets.of_reference(data, by, _reference(by, reference))
    for name in order or ():
        if name not in datasets.names(data, "estimator"):
            raise ValueError(unknown("estimator", name, datasets.names(data, "estimator")))
    best = data.isel(estimator=np.argsort(_badness(data[by]).values, kind="stable"))  # NaN last
    data = best if order is None else data.sel(estimator=list(order))
    return data.assign_coords(refuted=("estimator", [tested.get(n, "") for n in datasets.names(data, "estimator")]))


def _reference(by: str, asked: str | None) -> str:
    """What a quantity is to where nobody asks: an estimator is biased for its own target."""
    return asked or ("target" if "bias" in by else "backprop")


def _badness(values: xr.DataArray) -> xr.DataArray:
    """The smaller, the better a quantity is; a slope's scale is right at 1."""
    if values.name == "slope":
        return abs(values - 1)
    return values if str(values.name).removesuffix("_difference") in SMALL_IS_BETTER else -values


def points(axes: Axes, data: xr.Dataset, name: str, styled: Mapping[str, Look], *, labelled: bool = True) -> None:
    """One quantity of estimators that are in order, a row each; ``refuted`` ones are hollow."""
    rows = datasets.names(data, "estimator")
    found = [series.of(data.sel(estimator=row), name).without_rounding(name) for row in rows]
    _scale(axes, data, name, found)
    gaps: dict[float, dict[str, str]] = {}
    for row, (label, its) in enumerate(zip(rows, found, strict=True)):
        hollow = bool(str(data["refuted"].values[row]))
        marks.rows(axes, its, np.array([float(row)]), styled[label], label=label, hollow=hollow)
        if its.missing[0]:
            gaps[float(row)] = {label: its.missing[0]}
    marks.missing(axes, gaps, 1)
    stripes(axes, len(rows))
    axes.set_yticks(range(len(rows)), panel.wrapped(rows) if labelled else [], fontsize="small")


def _scale(axes: Axes, data: xr.Dataset, name: str, found: list[series.Series]) -> None:
    values = np.concatenate([one.ends for one in found])
    if name == "cosine" and "cosine_null" in data:
        null = float(data["cosine_null"])
        linear, around = limits.cosine(data)
        axes.axvspan(-null, null, **NULL)
        drawing.symlog(axes, "x", linear, around)
    elif limits.linear(name, found):
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 1.0)
        room = 0.06 * (high - low or 1.0)
        axes.set_xlim(min(low - room, 0), high + room)
    else:
        around = limits.positive(np.concatenate([one.extent for one in found]), room=2.0)
        drawing.log(axes, "x", around, [one.value for one in found])
    if axes.get_xlim()[0] < 0:
        axes.axvline(0, color="0.75", linewidth=0.5, zorder=1)


def called(variable: xr.DataArray, reference: str | None = None) -> str:
    """A variable's name on an axis, with the reference that is chosen of it where it has several."""
    name = str(variable.name)
    words = {
        "sq_bias": "squared bias",
        "snr": "signal to noise",
        "bias_z": "|z| of bias",
        "bias_p": "p-value of bias",
        "cost": "cost, forward passes",
    }
    plain = words.get(name, name.replace("_", " "))
    if "reference" not in variable.dims:
        return plain
    return f"{plain} {'of' if name in OF else 'to'} {_reference(name, reference)}"


def _handles(data: xr.Dataset, by: str) -> list[Artist]:
    made = {series.made(data.sel(estimator=name), by) for name in datasets.names(data, "estimator")}
    hollow = any(str(value) for value in data["refuted"].values)
    handles: list[Artist] = [*marks.legend_made(made, hollow=hollow)]
    return handles + ([Patch(**NULL, label="one random direction")] if by == "cosine" else [])
