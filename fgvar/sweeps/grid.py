"""The grid of a sweep: its axes, and all cells as one dataset."""

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from fgvar.storage.packing import Values, holds, parts
from fgvar.sweeps.cells import Cell, Outcome, Scalar

# Of the sweep itself: what became of each cell.
STATUS = {
    "status": "done, failed, timed out, died, or missing",
    "traceback": "where the cell went wrong",
    "cell_seconds": "wall time of the cell",
}
PROVENANCE = ("fgvar_version", "torch_version", "python_version", "commit", "device", "dtype", "threads")


def checked_axes(axes: Mapping[str, Sequence[Any]]) -> dict[str, tuple[Scalar, ...]]:
    """The axes with plain values.

    Raises:
        ValueError: an axis that is empty, repeats a value, mixes text, bools and numbers, or that no array holds.
        TypeError: values that are neither text nor numbers.
    """
    found = {}
    for name, values in axes.items():
        if isinstance(values, str) or not hasattr(values, "__iter__"):
            raise TypeError(
                f"axis {name!r} is {values!r}, expected a sequence of values; of one value: ({values!r},)"
            )
        plain = tuple(value.item() if isinstance(value, np.generic) else value for value in values)
        kinds = {_kind(name, value) for value in plain}
        if len(kinds) != 1:
            wrong = f"mixes {' and '.join(sorted(kinds))}" if kinds else "has no values"
            raise ValueError(f"axis {name!r} {wrong}; give at least one value, all of one kind")
        if len(set(plain)) < len(plain):
            raise ValueError(f"axis {name!r} repeats {sorted({v for v in plain if plain.count(v) > 1})}; drop those")
        if not holds(plain) or np.array(plain).tolist() != list(plain):
            raise ValueError(
                f"axis {name!r} holds {plain!r}, which one array of labels cannot hold as they are; give integers of "
                "64 bits, beside fractions of 53, and text without NUL or surrogates"
            )
        if name in STATUS:
            raise ValueError(f"axis {name!r} has the name of a variable that every sweep has; give it another one")
        found[name] = plain
    return found


def _kind(axis: str, value: object) -> str:
    if isinstance(value, str | bool):
        return "text" if isinstance(value, str) else "bools"
    if not isinstance(value, int | float):
        raise TypeError(
            f"axis {axis!r} holds {value!r}, a {type(value).__name__}; expected text or numbers: give names, and "
            "make the objects in the cell"
        )
    if not math.isfinite(value):
        raise ValueError(f"axis {axis!r} holds {value}, expected finite numbers")
    return "numbers"


def points(axes: Mapping[str, Sequence[Scalar]]) -> list[tuple[tuple[int, ...], dict[str, Scalar]]]:
    """Every place of the grid with its values, the last axis fastest."""
    places = itertools.product(*(range(len(values)) for values in axes.values()))
    return [(place, {name: axes[name][i] for name, i in zip(axes, place, strict=True)}) for place in places]


def consolidated(
    axes: Mapping[str, Sequence[Scalar]], outcomes: Mapping[Cell, Outcome | None], attrs: Mapping[str, Any]
) -> xr.Dataset:
    """All cells in one dataset over the axes and the cells' own dimensions.

    Labels of a dimension are those of all cells; what a cell lacks is NaN (text: empty). A coordinate is shared where
    all cells that have it agree, and otherwise stands over the axes. A dimension or variable with the name of an axis
    or of `STATUS` fails its cell.

    Raises:
        ValueError: cells that return one variable over different dimensions, or text and numbers under one name, or
            a label twice.
    """
    cells, of_cells, become = _sorted_out(axes, outcomes)
    labels = {name: _labels(name, cells) for name in _own_dims(cells)}
    dataset = xr.Dataset(coords={name: list(values) for name, values in axes.items()})
    for name in dict.fromkeys(name for variables in cells.values() for name in variables):
        if name in labels:
            attributes = _common([variables[name].attrs for variables in cells.values() if name in variables])
            dataset = dataset.assign_coords({name: (name, labels[name], attributes)})
            continue
        variable, coordinate = _combined(name, cells, axes, labels)
        dataset = dataset.assign_coords({name: variable}) if coordinate else dataset.assign({name: variable})
    for (name, long_name), values in zip(STATUS.items(), become, strict=True):
        dataset[name] = (tuple(axes), values, {"long_name": long_name})
    dataset["cell_seconds"].attrs["units"] = "s"
    own = {name: _printable(value) if isinstance(value, str) else value for name, value in attrs.items()}
    dataset.attrs = _common(of_cells) | own
    return dataset


def _sorted_out(
    axes: Mapping[str, Sequence[Scalar]], outcomes: Mapping[Cell, Outcome | None]
) -> tuple[dict[Cell, dict[str, Values]], list[dict[str, Any]], tuple[np.ndarray, ...]]:
    """Variables and attributes of the cells that are done, and over the axes what `STATUS` says of all."""
    shape = tuple(len(values) for values in axes.values())
    status, tracebacks = np.full(shape, "missing", object), np.full(shape, "", object)
    seconds = np.full(shape, np.nan)
    cells: dict[Cell, dict[str, Values]] = {}
    of_cells = []
    for cell, outcome in outcomes.items():
        if outcome is None:
            continue
        status[cell.place], tracebacks[cell.place] = outcome.status, _printable(outcome.traceback)
        seconds[cell.place] = outcome.seconds
        if outcome.status != "done":
            continue
        variables, its = parts(outcome.content)
        # A cell may say where it stands, by scalar coordinates.
        variables = {name: v for name, v in variables.items() if not (name in axes and v.coordinate and not v.dims)}
        taken = {*variables, *(dim for v in variables.values() for dim in v.dims)} & {*axes, *STATUS}
        if taken:
            status[cell.place] = "failed"
            tracebacks[cell.place] = f"ValueError: the cell's dataset has {_names(taken)}, as the sweep; rename that"
            continue
        cells[cell] = variables
        of_cells.append(its)
    return cells, of_cells, (status, tracebacks, seconds)


def _combined(
    name: str,
    cells: Mapping[Cell, Mapping[str, Values]],
    axes: Mapping[str, Sequence[Scalar]],
    labels: Mapping[str, Sequence[Any]],
) -> tuple[xr.Variable, bool]:
    """One variable of all cells, and whether it is a coordinate."""
    having = {cell: variables[name] for cell, variables in cells.items() if name in variables}
    first = _require_alike(name, having)
    sizes = tuple(len(labels[dim]) for dim in first.dims)
    places = {dim: {label: i for i, label in enumerate(labels[dim])} for dim in first.dims}
    at = {  # where a cell's values stand among the labels of all cells
        cell: np.ix_(*([places[dim][label] for label in _labels_of(dim, cells[cell])] for dim in first.dims))
        for cell in having
    }
    coordinate = all(found.coordinate for found in having.values())
    attributes = _common([found.attrs for found in having.values()])
    if coordinate and all(found.values.shape == sizes for found in having.values()):
        shared, *others = (_ordered(found.values, at[cell]) for cell, found in having.items())
        if all(_same(other, shared) for other in others):
            return xr.Variable(first.dims, shared, attributes), True
    shape = (*(len(values) for values in axes.values()), *sizes)
    stacked = np.full(shape, *_filling(list(having.values()), shape))
    for cell, found in having.items():
        index: tuple[Any, ...] = (*cell.place, *at[cell])
        stacked[index] = found.values[()]  # of text without dims, the text
    return xr.Variable((*axes, *first.dims), stacked, attributes), coordinate


def _ordered(values: np.ndarray, at: tuple[np.ndarray, ...]) -> np.ndarray:
    """The values of all labels, each put at its place."""
    ordered = np.empty_like(values)
    ordered[at] = values[()]
    return ordered


def _require_alike(name: str, having: Mapping[Cell, Values]) -> Values:
    """The first cell's variable, if those of all have its dimensions and are text if it is.

    Raises:
        ValueError: they are not.
    """
    example, first = next(iter(having.items()))
    for cell, found in having.items():
        if found.dims != first.dims or (found.values.dtype == object) != (first.values.dtype == object):
            ours, theirs = (f"{each.values.dtype} over {each.dims}" for each in (found, first))
            raise ValueError(
                f"{name!r} is {ours} in the cell {cell}, and {theirs} in {example}; return it in one way, or under "
                "two names"
            )
    return first


def _filling(having: Sequence[Values], shape: tuple[int, ...]) -> tuple[Any, np.dtype[Any]]:
    """What stands where no cell has a value, and the type that has room for it."""
    whole = sum(found.values.size for found in having) == math.prod(shape)
    dtype = np.result_type(*{found.values.dtype for found in having})
    if dtype.kind in "biu" and not whole:
        dtype = np.dtype(float)  # integers and bools have no value for what is missing
    return {"f": np.nan, "O": ""}.get(dtype.kind, 0), dtype


def _own_dims(cells: Mapping[Cell, Mapping[str, Values]]) -> list[str]:
    return list(dict.fromkeys(dim for variables in cells.values() for v in variables.values() for dim in v.dims))


def _labels_of(dim: str, variables: Mapping[str, Values]) -> list[Any]:
    """The labels of a cell's dimension; positions where it has none."""
    if dim in variables:
        return variables[dim].values.tolist()
    size = next((v.values.shape[v.dims.index(dim)] for v in variables.values() if dim in v.dims), 0)
    return list(range(size))


def _labels(dim: str, cells: Mapping[Cell, Mapping[str, Values]]) -> list[Any]:
    """Labels of all cells. Numbers are sorted; of names each stands before the next one that others have, too."""
    several = dict.fromkeys(tuple(_labels_of(dim, variables)) for variables in cells.values())
    if twice := [found for found in several if len(set(found)) < len(found)]:
        raise ValueError(
            f"labels of {dim!r} repeat in a cell: {', '.join(map(str, twice[0]))}; each has to stand once"
        )
    if not any(isinstance(label, str) for found in several for label in found):
        return sorted(set().union(*several))
    merged: list[Any] = []
    for found in several:
        at = len(merged)
        for label in reversed(found):
            if label in merged:
                at = merged.index(label)
            else:
                merged.insert(at, label)
    return merged


def _common(attrs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What all cells say alike, and all that made them."""
    found = {}
    for name in dict.fromkeys(name for each in attrs for name in each):
        values = [each.get(name) for each in attrs]
        if all(_same(value, values[0]) for value in values):
            found[name] = values[0]
        elif name == "estimators":  # a line of each, of which a stranger's may have an address of its own
            lines = [str(value).splitlines() for value in values]
            found[name] = "\n".join(line for line in lines[0] if all(line in each for each in lines))
        elif name in PROVENANCE:
            found[name] = ", ".join(sorted({str(value) for value in values if value is not None}))
    return found


def _same(one: Any, other: Any) -> bool:
    """Are these values or arrays equal, NaN to NaN?"""
    one, other = np.asarray(one), np.asarray(other)
    return np.array_equal(one, other, equal_nan=one.dtype.kind == other.dtype.kind == "f")


def _printable(text: str) -> str:
    """Control characters, and bytes that were no text, as their escapes: no file could hold them."""
    return "".join(each if each.isprintable() or each in "\n\t" else ascii(each)[1:-1] for each in text)


def _names(names: set[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
