"""Kinds: which figures fit a dataset, and all of them at once."""

from collections.abc import Callable, Mapping
from typing import Any

import xarray as xr
from matplotlib.figure import Figure

from fgvar.errors import unknown
from fgvar.plot import datasets, runs, swept
from fgvar.plot.along_axes import sweep
from fgvar.plot.bias_variance import split, tradeoff
from fgvar.plot.by_layer import layers
from fgvar.plot.check_chart import check, require_report
from fgvar.plot.draw_laws import draws, kept
from fgvar.plot.looks import Wanted
from fgvar.plot.over_training import training
from fgvar.plot.ranked import quantity, ranking

DRAW: dict[str, Callable[..., Figure]] = {
    "training": training,
    "sweep": sweep,
    "layers": layers,
    "ranking": ranking,
    "tradeoff": tradeoff,
    "draws": draws,
}
PERTURBED = "perturbed"
SHOWN = 6  # variables that an error names
SEVERAL = 2  # estimators, from which on a ranking says something


def kinds(shown: Any) -> tuple[str, ...]:
    """Names of the functions of `fgvar.plot` that fit a dataset, or a check report, the most telling first.

    Args:
        shown: any dataset, or a report of `fgvar.testing.check_estimator`.

    Example:
        >>> import xarray as xr
        >>> kinds(xr.Dataset({"test_error": ("epoch", [0.9, 0.1])}, {"epoch": [0, 1]}))
        ('training',)
    """
    if not isinstance(shown, xr.Dataset):
        return ("check",) if _fits(lambda: require_report(shown)) else ()
    return tuple(kind for kind in DRAW if fits(shown, kind, {}))


def fits(shown: xr.Dataset, kind: str, asked: Mapping[str, Any]) -> bool:
    """Does a figure fit a dataset, by its own choices and those that are asked for?"""
    tried: dict[str, Callable[[], Any]] = {
        "training": lambda: runs.of(shown),
        "sweep": lambda: swept.of(shown, **of_sweep(shown, asked)),
        "layers": lambda: datasets.one(shown),
        "ranking": lambda: _several(datasets.one(shown, layer=PERTURBED)),
        "tradeoff": lambda: split(shown, PERTURBED),
        "draws": lambda: kept(shown, "cosine_target", PERTURBED),
    }
    return kind in tried and _fits(tried[kind])


def _fits(try_it: Callable[[], Any]) -> bool:
    try:
        try_it()
    except (ValueError, TypeError, KeyError):
        return False
    return True


def _several(data: xr.Dataset) -> None:
    if data.sizes["estimator"] < SEVERAL:
        raise ValueError("one estimator has no rank")


def of_sweep(dataset: xr.Dataset, asked: Mapping[str, Any]) -> dict[str, Any]:
    """Which x, y, hue and col a sweep is drawn by: those asked for, the longest numeric axis, and what else there is.

    Raises:
        ValueError: no quantity, or no axis, or too many.
    """
    known = (name for name in ("relative_variance", "variance", "cosine") if name in dataset)
    y = asked.get("y") or next(known, None)
    if y is None:
        raise ValueError("the dataset has neither relative_variance, variance nor cosine")
    if y not in dataset:
        raise ValueError(unknown("quantity", y, datasets.quantities(dataset)))
    others = [
        str(dim) for dim in dataset[y].dims if dim not in ("reference", "layer", "seed", "step", "epoch", "draw")
    ]
    numeric = [
        dim for dim in others if dim in dataset.coords and dataset[dim].dtype.kind in "fiu" and dataset.sizes[dim] > 1
    ]
    taken = (asked.get("hue"), asked.get("col"))
    free = [dim for dim in numeric if dim not in taken]
    if asked.get("x") is None and (not free or "step" in dataset[y].dims):
        raise ValueError(f"{y!r} has no numeric axis with several values")
    x = asked.get("x") or max(free, key=lambda dim: dataset.sizes[dim])
    lines = [dim for dim in others if dim not in (x, *taken) and dataset.sizes[dim] > 1]
    hue = asked.get("hue", "estimator" if "estimator" in lines else (lines[0] if lines else None))
    col = asked.get("col", next((dim for dim in lines if dim != hue), None))
    return {"reference": "target", "layer": "perturbed", **asked, "x": x, "y": y, "hue": hue, "col": col}


def figures(shown: Any, looks: Mapping[str, Wanted] | None = None) -> dict[str, Figure]:
    """Every figure that fits a dataset, or a check report, by its kind; a name has one look in all of them.

    Args:
        shown: a dataset, or a report of `fgvar.testing.check_estimator`.
        looks: name → a colour, a colour and a marker, or a `Look`; default: `fgvar.plot.assign`.

    Raises:
        ValueError: none fits.

    Example:
        >>> import xarray as xr
        >>> list(figures(xr.Dataset({"test_error": ("epoch", [0.9, 0.1])}, {"epoch": [0, 1]})))
        ['training']
    """
    found = kinds(shown)
    if not found:
        why = why_no_sweep(shown)
        raise ValueError(
            "no figure fits: expected a dataset of fgvar.measure, fgvar.train or fgvar.sweep, or a report of "
            f"fgvar.testing.check_estimator, and got {_told(shown)}" + (f"; as a sweep: {why}" if why else "")
        )
    return {kind: draw(shown, kind, looks) for kind in found}


def draw(shown: Any, kind: str, looks: Mapping[str, Wanted] | None = None, **how: Any) -> Figure:
    """One figure by its kind, with the choices that the dataset suggests where ``how`` has no others."""
    if kind == "check":
        return check(shown)
    return DRAW[kind](shown, **choices(shown, kind, how), looks=looks)


def choices(dataset: xr.Dataset, kind: str, asked: Mapping[str, Any]) -> dict[str, Any]:
    """What a kind of figure is drawn with: what is asked for, and of the rest what the dataset has."""
    if kind == "sweep":
        return of_sweep(dataset, asked)
    if kind == "ranking":
        return {"by": quantity(dataset, asked.get("layer", PERTURBED)), **asked}
    return dict(asked)


def why_no_sweep(shown: Any) -> str:
    """What is in the way of a sweep's figure, where a dataset has measurements; empty where nothing is."""
    if not isinstance(shown, xr.Dataset) or not {"cosine", "relative_variance"} <= set(map(str, shown.data_vars)):
        return ""
    try:
        swept.of(shown, **of_sweep(shown, {}))
    except (ValueError, TypeError) as error:
        return str(error)
    return ""


def _told(shown: Any) -> str:
    if not isinstance(shown, xr.Dataset):
        return f"a {type(shown).__name__}"
    variables = [str(name) for name in shown.data_vars]
    told = ", ".join(variables[:SHOWN]) + (f" and {len(variables) - SHOWN} more" if len(variables) > SHOWN else "")
    return f"a dataset over {', '.join(map(str, shown.dims)) or 'no dims'} of {told or 'no variables'}"
