"""Files in, files out: the figures of ``fgvar plot``."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import xarray as xr

import fgvar
from fgvar.errors import needs_extra, unknown

with needs_extra("fgvar plot", "plot"):
    from fgvar.plot import captions, files, kinds_of
    from fgvar.plot.venues import venue

ALL = "all"


def drawn(
    path: Path,
    out: Path | None,
    *,
    kind: str | None,
    at: Sequence[str],
    page: tuple[Any, Any],
    options: Mapping[str, Any],
) -> list[Path]:
    """Draw a dataset's figures to files.

    Args:
        path: of the dataset.
        out: a file, or a name without a suffix; of several kinds each adds its own. Default: beside the dataset.
        kind: of `fgvar.plot.kinds`, "all" of them, or None: the first.
        at: "dim=label" of what is chosen beforehand.
        page: a venue and its number of columns.
        options: keywords of the kind's function.

    Raises:
        ValueError: no such kind, dim, label, option, venue or format.
        OSError: no dataset is there, or no figure can be written.
    """
    if out is not None:  # before any work
        files.written(out)
    dataset = chosen(fgvar.open_dataset(path), at)
    fitting = _fitting(dataset, options)
    if not fitting:
        kinds_of.figures(dataset)  # whose error says what would fit
    if kind not in (None, ALL, *fitting):
        raise ValueError(f"{unknown('kind', kind, [*fitting, ALL])}; these fit {path}{_why(dataset, str(kind))}")
    first = next((one for one in fitting if not set(options) - set(_taken(one))), fitting[0])
    wanted = fitting if kind == ALL else (kind or first,)
    found = []
    for one in wanted:
        how = _options(one, options)
        place = _place(path, out, one, several=len(wanted) > 1)
        with venue(page[0], columns=page[1]):
            figure = kinds_of.draw(dataset, one, **how)
        found += files.save(figure, place, captions.caption(dataset, one, **how))
    return found


def _why(dataset: xr.Dataset, kind: str) -> str:
    """Why a kind that there is does not fit."""
    if kind not in kinds_of.DRAW:
        return ""
    try:
        kinds_of.draw(dataset, kind)
    except (ValueError, TypeError) as error:
        return f", as {error}"
    return ""


def _options(kind: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that a kind's function takes.

    Raises:
        ValueError: one that it does not.
    """
    for name in options:
        if name not in _taken(kind):
            fit = [other for other in kinds_of.DRAW if name in _taken(other)]
            raise ValueError(
                f"--{name} is of {' and '.join(fit)}, and the figure is of {kind}; leave it out, or --kind"
            )
    return dict(options)


def _fitting(dataset: xr.Dataset, options: Mapping[str, Any]) -> tuple[str, ...]:
    """Kinds that fit as they are, or by the options, if they take them all."""
    found = kinds_of.kinds(dataset)
    asked = [one for one in kinds_of.DRAW if set(options) <= set(_taken(one))]
    return tuple(
        one for one in kinds_of.DRAW if one in found or (one in asked and kinds_of.fits(dataset, one, options))
    )


def _taken(kind: str) -> tuple[str, ...]:
    return tuple(inspect.signature(kinds_of.DRAW[kind]).parameters)


def _place(path: Path, out: Path | None, kind: str, *, several: bool) -> Path:
    if out is None:
        return path.with_name(f"{path.stem}_{kind}")
    if not several:
        return out
    name = f"{out.stem}_{kind}{out.suffix}" if out.suffix[1:] in files.METADATA else f"{out.name}_{kind}"
    return out.with_name(name)


def chosen(dataset: xr.Dataset, at: Sequence[str]) -> xr.Dataset:
    """The dataset at labels of some dims.

    Args:
        at: "dim=label" of each.

    Raises:
        ValueError: no such dim or label.
    """
    for text in at:
        dim, _, label = text.partition("=")
        if dim not in dataset.dims or dim not in dataset.coords:
            raise ValueError(unknown("dim", dim, [str(one) for one in dataset.dims if one in dataset.coords]))
        labels = [str(value) for value in dataset[dim].values]
        if label not in labels:  # nor as it was written; as a number it may still be
            labels = [label if _number(each) == _number(label) else each for each in labels]
        if label not in labels:
            raise ValueError(unknown(dim, label, labels))
        dataset = dataset.isel({dim: labels.index(label)})
    return dataset


def _number(label: str) -> float | str:
    """What a label is as a number, however it is written; a label that is none as it is."""
    try:
        return float(label)
    except ValueError:
        return label
