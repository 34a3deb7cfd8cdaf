"""Reports: turn any dataset into rows for other programs, and into text for a first look."""

import functools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from fgvar.errors import unknown
from fgvar.measurement.dataset_checks import TO_A_REFERENCE as MEASURED
from fgvar.measurement.dataset_checks import extra_dims, missing_for_measurement
from fgvar.measurement.html_tables import Table
from fgvar.measurement.stored import explained
from fgvar.measurement.summary import summary
from fgvar.measurement.text_tables import TableRow, cell, format_table, visible

CURVES = ("loss", "train_error", "test_error")  # of a training run, over epochs
PROVENANCE = (
    "study",
    "problem",
    "data",
    "network",
    "route",
    "draws",
    "seed",
    "batch_size",
    "device",
    "dtype",
    "commit",
)


def rows(dataset: xr.Dataset, layers: Sequence[str] = ()) -> list[TableRow]:
    """One row for each estimator, layer and reference, and for each run, cell, … beside them.

    Columns are the coordinates and variables; what does not depend on all of them is repeated, per-draw scalars
    are left out. Of training runs these are the errors of the last epoch and the last probe. Datasets of another
    form have a row for each variable (`overview`).

    Args:
        dataset: of `measure`, of training runs, or any other.
        layers: which layers, or ("all",); default "perturbed".

    Raises:
        ValueError: an unknown layer.

    Example:
        >>> rows(xr.Dataset({"loss": ("epoch", [2.0, 1.5])}, {"epoch": [0, 1]}))
        [{'epoch': 1, 'loss': 1.5}]
    """
    dataset = _chosen(dataset, layers)
    if not (_measured(dataset) or _trained(dataset)):
        return overview(dataset)
    return _existing(_flat(dataset.isel(step=-1) if dataset.sizes.get("step") else dataset))


def to_text(dataset: xr.Dataset, layers: Sequence[str] = ()) -> str:
    """The same for a person: the last epoch of training runs, then a `summary` of every measurement.

    Example:
        >>> print(to_text(xr.Dataset({"loss": ("epoch", [2.0, 1.5])}, {"epoch": [0, 1]})))
        last epoch
        epoch  loss
            1   1.5
    """
    dataset = _chosen(explained(dataset) if _measured(dataset) else dataset, layers)
    parts = []
    if _trained(dataset):
        parts.append("last epoch\n" + format_table(_runs(dataset)))
    if _measured(dataset):
        last = dataset.isel(step=[-1]) if "step" in dataset.dims else dataset
        for place, one in _cells(last):
            heading = visible(", ".join(f"{dim} {value}" for dim, value in place.items()))
            tables = [summary(one, layer=str(name)) for name in one["layer"].values]
            parts += ["\n".join([heading, tables[0]] if heading else tables[:1]), *tables[1:]]
    if not parts:
        parts = [_axes(dataset)] * bool(dataset.dims) + [format_table(overview(dataset)) or "no variables"]
    return "\n\n".join(parts)


def tables(dataset: xr.Dataset, layers: Sequence[str] = ()) -> list[Table]:
    """The same as tables to sort: one line for each estimator, layer and measurement, in place of a table each.

    Example:
        >>> tables(xr.Dataset({"loss": ("epoch", [2.0, 1.5])}, {"epoch": [0, 1]}))[0].rows
        (('1', '1.5'),)
    """
    dataset = _chosen(explained(dataset) if _measured(dataset) else dataset, layers)
    found: list[Table] = []
    if _trained(dataset):
        found.append(Table.of("last epoch", _runs(dataset)))
    if _measured(dataset):
        found += _joined(dataset)
    return found or [Table.of("variables", overview(dataset))]


def _runs(dataset: xr.Dataset) -> list[TableRow]:
    names = [name for name, v in dataset.variables.items() if not {*v.dims} & {*MEASURED, "step"}]
    return _existing(_flat(dataset[names].drop_vars("step", errors="ignore")))


def _joined(dataset: xr.Dataset) -> list[Table]:
    """Summaries of the last step, those with the same columns in one table."""
    last = dataset.isel(step=[-1]) if "step" in dataset.dims else dataset
    names, parts = [str(name) for name in dataset["layer"].values], dict[tuple[str, ...], list[Table]]()
    said: dict[str, list[str]] = {}
    for place, one in _cells(last):
        for name in names:
            where = {str(dim): cell(value) for dim, value in place.items()} | ({"layer": name} if names[1:] else {})
            for table in summary(one, layer=name).tables:
                heading = (table.heading[0], *where, *table.heading[1:])
                rows = tuple((first, *where.values(), *rest) for first, *rest in table.rows)
                parts.setdefault(heading, []).append(replace(table, heading=heading, rows=rows))
                at = ", ".join(f"{dim} {cell(value)}" for dim, value in place.items())
                for note in table.notes:
                    said.setdefault(note, []).append(at)
    return [
        Table(
            some[0].caption.replace(f"layer {names[0]!r}", "every layer") if names[1:] else some[0].caption,
            heading,
            tuple(row for one in some for row in one.rows),
            tuple(dict.fromkeys(_placed(note, said[note]) for one in some for note in one.notes)),
        )
        for heading, some in parts.items()
    ]


def _placed(note: str, places: list[str]) -> str:
    """A note with the cells that it is of."""
    named = "; ".join(dict.fromkeys(filter(None, places)))
    return f"{note} ({named})" if named else note


def provenance_line(dataset: xr.Dataset) -> str:
    """What made a dataset, as far as it says so.

    Example:
        >>> provenance_line(xr.Dataset(attrs={"draws": 64, "study": "quickstart"}))
        'study quickstart, draws 64'
    """
    values = {name: visible(str(dataset.attrs.get(name, ""))) for name in PROVENANCE}
    return ", ".join(f"{name} {text}" for name, text in values.items() if text)


def overview(dataset: xr.Dataset) -> list[TableRow]:
    """A row for each variable: its dims, range, missing values, units and meaning."""
    found = []
    for name, variable in dataset.data_vars.items():
        values = variable.values
        known = values[np.isfinite(values)] if np.issubdtype(values.dtype, np.number) else np.array([])
        found.append(
            {
                "variable": str(name),
                "over": ", ".join(map(str, variable.dims)),
                "smallest": known.min().item() if known.size else None,
                "largest": known.max().item() if known.size else None,
                "missing": int(variable.isnull().sum()),
                "units": str(variable.attrs.get("units", "")),
                "what": str(variable.attrs.get("long_name", "")),
            }
        )
    return found


def _measured(dataset: xr.Dataset) -> bool:
    return not missing_for_measurement(dataset)


def _trained(dataset: xr.Dataset) -> bool:
    """After `_chosen`, which leaves one epoch."""
    return "epoch" in dataset.coords and "epoch" not in dataset.dims and bool(_curves(dataset))


def _curves(dataset: xr.Dataset) -> list[str]:
    """Those that are there, and numbers: the names are not only ours."""
    return [name for name in CURVES if name in dataset and dataset[name].dtype.kind in "fiub"]


def _chosen(dataset: xr.Dataset, layers: Sequence[str]) -> xr.Dataset:
    """The last epoch, and the layers that are asked for."""
    if dataset.sizes.get("epoch") and any("epoch" in dataset[name].dims for name in _curves(dataset)):
        dataset = _last_epoch(dataset)
    if "layer" not in dataset.dims:
        if layers:
            raise ValueError(f"layer {layers[0]!r} is asked for, and the dataset has no layers; leave it out")
        return dataset
    valid = [str(name) for name in dataset["layer"].values]
    if not layers and _measured(dataset) and "perturbed" in valid:
        layers = ("perturbed",)
    require_layers(layers, valid)
    return dataset if tuple(layers) in ((), ("all",)) else dataset.sel(layer=list(layers))


def require_layers(layers: Sequence[str], valid: Sequence[str]) -> None:
    """Raise ValueError where a layer is asked for that there is not; ("all",) are those that there are."""
    for name in layers if tuple(layers) != ("all",) else ():
        if name not in valid:
            raise ValueError(unknown("layer", name, [*map(visible, valid), "all"]))


def _last_epoch(dataset: xr.Dataset) -> xr.Dataset:
    """Each run's last epoch that is known: in a dataset of many runs, the shorter ones end in NaN."""
    known = [dataset[name].notnull() for name in _curves(dataset) if "epoch" in dataset[name].dims]
    last = functools.reduce(operator.or_, known).cumsum("epoch").argmax("epoch")
    if "epoch" not in dataset.coords:
        dataset = dataset.assign_coords(epoch=range(dataset.sizes["epoch"]))
    found = dataset.isel(epoch=last)
    runs = {*last.dims, *MEASURED, "step", "draw"}
    return found.drop_vars([name for name, v in found.variables.items() if not {*v.dims} <= runs])


def _flat(dataset: xr.Dataset) -> list[TableRow]:
    dataset = dataset.drop_dims("draw", errors="ignore")
    if not dataset.dims:
        return [{str(name): dataset[name].item() for name in (*dataset.coords, *dataset.data_vars)}]
    order = [dim for dim in dataset.dims if dim not in MEASURED] + [dim for dim in MEASURED if dim in dataset.dims]
    frame = dataset.to_dataframe(dim_order=order).reset_index()
    columns = [*order, *(name for name in dataset.coords if name not in order), *dataset.data_vars]
    return [{str(name): value for name, value in row.items()} for row in frame[columns].to_dict("records")]


def _existing(table: list[TableRow]) -> list[TableRow]:
    """Without the runs that there are not: a dataset of many need not hold every combination."""
    first = table[0] if table and "epoch" in table[0] else {}
    curves = [name for name in CURVES if isinstance(first.get(name), int | float)]
    return [row for row in table if not curves or any(not np.isnan(row[name]) for name in curves)]


def _cells(dataset: xr.Dataset) -> Iterator[tuple[dict[str, Any], xr.Dataset]]:
    """Every measurement in a dataset of several, with its place among them."""
    dims = extra_dims(dataset)
    for index in np.ndindex(*(dataset.sizes[dim] for dim in dims)):
        one = dataset.isel(dict(zip(dims, index, strict=True)))
        yield {str(dim): one[dim].item() if dim in one.coords else i for dim, i in zip(dims, index, strict=True)}, one


def _axes(dataset: xr.Dataset) -> str:
    """The dims, one a line, each with its values."""
    lines = []
    for dim, size in dataset.sizes.items():
        values = [cell(value) for value in dataset[dim].values.tolist()] if dim in dataset.coords else []
        shown = ", ".join(values if size <= 8 else [*values[:3], "…", *values[-1:]] if values else [])
        lines.append(f"{visible(str(dim))} ({size}){': ' * bool(shown)}{shown}")
    return "\n".join(lines)
