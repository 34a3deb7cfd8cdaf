"""Tables of datasets: numbers with their intervals as a pandas frame, and written as Markdown or LaTeX."""

from typing import Literal

import numpy as np
import pandas as pd
import xarray as xr

from fgvar.errors import unknown
from fgvar.measurement import tabular
from fgvar.measurement.dataset_checks import extra_dims, missing_for_measurement
from fgvar.measurement.report import rows
from fgvar.measurement.stored import UNKNOWN, bias_over_target, ends, explained, missing
from fgvar.measurement.summary import ranged
from fgvar.measurement.text_tables import cell, visible

Form = Literal["pandas", "markdown", "latex"]
FORMS = ("pandas", "markdown", "latex")
# Heading → variable, and reference of those that have one.
COLUMNS = {
    "bias p": ("bias_p", "target"),
    "bias at most": ("sq_bias_high", "target"),
    "relative bias": ("sq_bias", "target"),
    "relative variance": ("relative_variance", ""),
    "cosine to target": ("cosine", "target"),
    "cosine to backprop": ("cosine", "backprop"),
    "efficiency": ("efficiency", "backprop"),
    "cost": ("cost", ""),
}
BIASES = ("bias p", "bias at most", "relative bias")  # the last one where values are exact, else the others
ENDS = {"value": "", "low": "_low", "high": "_high"}


def table(
    dataset: xr.Dataset, *, layer: str = "perturbed", to: Form = "pandas", siunitx: bool = False
) -> pd.DataFrame | str:
    r"""A table of a dataset: a row for each estimator (and cell of a sweep), a column for each quantity.

    Bias is ‖E ĝ − target‖/‖target‖ where it is exact; where numbers were drawn, the p-value of its test and how
    large it is at most, in 97.5 % of runs. Of several steps the last one is shown. Datasets of another form, such as
    curves of training, have the columns of ``fgvar open``.

    Args:
        dataset: of `fgvar.measure`, `fgvar.train` or `fgvar.sweep`, or any other.
        layer: of measurements; "perturbed" is all that an estimator estimates.
        to: "pandas" is a frame of numbers, of measurements with columns (quantity, value | low | high); "markdown"
            and "latex" are text, in which ``16.6 [15.2, 18.9]`` is a value with its 95 % interval (± 1.96 standard
            errors of datasets that have no more), and what there is not says why ("no closed form", "too few draws"),
            or is a dash. LaTeX needs the package booktabs, and for names in Chinese, Cyrillic or other scripts a
            Unicode engine (XeLaTeX, LuaLaTeX) with such a font.
        siunitx: of LaTeX: numbers in columns that stand by their points, which needs the package siunitx.

    Raises:
        TypeError: no dataset.
        ValueError: an unknown layer or form, or siunitx without LaTeX.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, route="exact")
        >>> print(table(ds, to="markdown").splitlines()[0])
        | | relative bias | relative variance | cosine to target | cosine to backprop | efficiency | cost |
        >>> round(table(ds)["relative variance", "value"].item(), 6)
        7.0
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"got a {type(dataset).__name__}, expected a dataset, as fgvar.measure returns")
    if to not in FORMS:
        raise ValueError(unknown("form", to, FORMS))
    if siunitx and to != "latex":
        raise ValueError(f"siunitx=True is of LaTeX, and to={to!r}; give to='latex'")
    if missing_for_measurement(dataset):
        found = pd.DataFrame(rows(dataset))
        if to == "pandas":
            return found
        names = [visible(str(value)) for value in found.iloc[:, 0]] if found.shape[1] else []
        frame = pd.DataFrame(found.iloc[:, 1:].map(cell).values, index=names, columns=found.columns[1:])
    else:
        frame = _numbers(dataset, layer) if to == "pandas" else _written(dataset, layer)
        if to == "pandas":
            return frame
    return tabular.markdown(frame) if to == "markdown" else tabular.latex(frame, siunitx=siunitx)


def _numbers(dataset: xr.Dataset, layer: str) -> pd.DataFrame:
    """Values with the ends of their intervals."""
    found = {}
    for name, one in _measurements(dataset, layer):
        found[name] = {
            (heading, end): value
            for heading, values in _quantities(one).items()
            for end, value in zip(ENDS, values, strict=True)
            if end == "value" or values[1] == values[1]
        }
    frame = pd.DataFrame.from_dict(found, orient="index")
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    return frame[[(heading, end) for heading in COLUMNS for end in ENDS if (heading, end) in frame.columns]]


def _written(dataset: xr.Dataset, layer: str) -> pd.DataFrame:
    """The same as text."""
    found = {
        name: {heading: _text(heading, values, one) for heading, values in _quantities(one).items()}
        for name, one in _measurements(explained(dataset), layer)
    }
    return pd.DataFrame.from_dict(found, orient="index")


def _text(heading: str, values: tuple[float, float, float], one: xr.Dataset) -> str:
    """A value as it is written, or in a word or two why there is none; a dash where the dataset does not say."""
    variable, reference = COLUMNS[heading]
    if np.isnan(values[0]):
        its = _of(one, reference)
        if variable.startswith("sq_bias"):  # over a target that is 0, or with an interval that few draws lack
            variable = "relative_variance" if its["relative_variance"].isnull() else "bias_p"
        why = missing(its, variable)[0]
        return why if why not in ("", UNKNOWN) else "–"
    if heading in BIASES or not {f"{variable}_low", f"{variable}_se"} & set(one):  # no error by its nature
        return f"{values[0]:{'.2g' if 'bias' in heading else '.4g'}}"
    return ranged(*values, plus_minus=f"{variable}_low" not in one)


def _quantities(one: xr.Dataset) -> dict[str, tuple[float, float, float]]:
    """Heading → value, low and high of one estimator; NaN where there is none."""
    found, exact = {}, str(one.attrs.get("route")) == "exact"
    for heading, (variable, reference) in COLUMNS.items():
        if variable not in one or (heading in BIASES and exact != (heading == "relative bias")):
            continue
        if variable.startswith("sq_bias"):
            found[heading] = (bias_over_target(one, variable).item(), np.nan, np.nan)
        else:
            its = _of(one, reference)
            low, high = (float(end) for end in ends(its, variable))
            found[heading] = (float(its[variable]), low, high)
    return found


def _of(one: xr.Dataset, reference: str) -> xr.Dataset:
    return one.sel(reference=reference) if reference and "reference" in one.dims else one


def _measurements(dataset: xr.Dataset, layer: str) -> list[tuple[str, xr.Dataset]]:
    """Every estimator in every cell, by what tells it apart."""
    if layer not in (valid := [str(name) for name in dataset["layer"].values]):
        raise ValueError(unknown("layer", layer, map(visible, valid)))
    data = dataset.sel(layer=layer)
    data = data.isel(step=-1) if data.sizes.get("step") else data
    dims = [dim for dim in extra_dims(dataset) if dim in data.dims]
    found = []
    for index in np.ndindex(*(data.sizes[dim] for dim in dims)):
        cell_of = data.isel(dict(zip(dims, index, strict=True)))
        place = [
            f"{dim} {cell_of[dim].item() if dim in cell_of.coords else i}" for dim, i in zip(dims, index, strict=True)
        ]
        for name in map(str, data["estimator"].values):
            told = visible(", ".join([*place, name]))
            found.append((told, cell_of.sel(estimator=name)))
    return found
