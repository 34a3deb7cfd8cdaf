"""What a sweep's figure draws: one quantity over one axis, line by line, panel by panel."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from fgvar.errors import unknown
from fgvar.measurement.stored import explained, flags_of
from fgvar.plot import datasets, limits, looks, series, theory_lines
from fgvar.plot.looks import Look, Wanted
from fgvar.plot.ranked import called
from fgvar.plot.series import Series


@dataclass(frozen=True)
class Swept:
    """A sweep as it is drawn.

    Attributes:
        data: over x, hue and col; ``seeds`` has the seeds, too.
        seeds: before they were averaged.
        x, y, hue, col: as in `fgvar.plot.sweep`; empty where there is none.
        called: the name of y on its axis.
        placeless: what of x is infinite or no number, and has no place on its axis.
    """

    data: xr.Dataset
    seeds: xr.Dataset
    x: str
    y: str
    hue: str
    col: str
    called: str
    placeless: str

    @property
    def panels(self) -> list[tuple[str, xr.Dataset]]:
        """Title and data of each."""
        return self._by_panel(self.data)

    def _by_panel(self, data: xr.Dataset) -> list[tuple[str, xr.Dataset]]:
        if not self.col:
            return [("", data)]
        return [
            (f"{self.col.replace('_', ' ')} {_written(value)}", data.isel({self.col: i}))
            for i, value in enumerate(data[self.col].values)
        ]

    def lines(self, data: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
        """Name and data of each line, in the order of legends."""
        if not self.hue:
            yield "", data
            return
        names = datasets.names(data, self.hue)
        for name in looks.in_order(names):
            yield name, data.isel({self.hue: names.index(name)})

    def named(self, name: str) -> str:
        """A line in a legend or a sentence: a number says of what."""
        if not self.hue or self.data[self.hue].dtype.kind in "OUST":
            return name
        value = self.data[self.hue].values[datasets.names(self.data, self.hue).index(name)]
        return f"{self.hue.replace('_', ' ')} {_written(value)}"

    def looks(self, wanted: Mapping[str, Wanted] | None) -> dict[str, Look]:
        """Of the lines; a name has the one that it has in other figures of the dataset."""
        names = [name for name, _ in self.lines(self.data)]
        found = looks.of(self.seeds, wanted)
        return {name: found[name] for name in names} if set(names) <= set(found) else looks.assign(names, wanted)

    @property
    def log_x(self) -> bool:
        places = self.data[self.x].values
        return bool((places > 0).all() and places.max() / places.min() > 3)

    @property
    def log_y(self) -> bool:
        return not limits.linear(self.y, self.drawn())

    def drawn(self) -> list[Series]:
        """What is drawn, of all lines and panels, whose y axis is one."""
        return [self.series(one) for _, data in self.panels for _, one in self.lines(data)]

    def series(self, one: xr.Dataset) -> Series:
        """The numbers of a line."""
        return series.of(one, self.y).without_rounding(self.y)

    def theory(self, one: xr.Dataset) -> NDArray[np.float64] | None:
        """The prediction of a line: the dataset's own, or d + 1 of FG-W."""
        if f"{self.y}_theory" in one:
            found: NDArray[np.float64] = np.atleast_1d(one[f"{self.y}_theory"].values.astype(float))
            return found if np.isfinite(found).any() else None
        is_it = "estimator" in one.coords and str(one["estimator"].values) == theory_lines.FG_W
        if self.y == "relative_variance" and is_it and theory_lines.known(one) and "size" in one:
            return np.broadcast_to(np.asarray(one["size"].values, float) + 1, (one.sizes[self.x],))
        return None

    @property
    def predicted(self) -> set[str]:
        """Names of the lines that have a prediction."""
        return {name for _, data in self.panels for name, one in self.lines(data) if self.theory(one) is not None}

    def slopes(self) -> dict[str, dict[str, str]]:
        """Exponent of y as a power of x, panel by panel and line by line, with the half-width of its 95 % interval.

        Of several seeds the mean of their slopes, by Student's t; of one the least-squares slope through the
        logarithms, whose error is that of the intervals. Only where both axes are logarithmic.
        """
        if not (self.log_x and self.log_y) or self.data.sizes[self.x] < 2:
            return {}
        found: dict[str, dict[str, str]] = {}
        for (title, data), (_, every) in zip(self.panels, self._by_panel(self.seeds), strict=True):
            for (name, one), (_, seeds) in zip(self.lines(data), self.lines(every), strict=True):
                value, half = slope(one, seeds, self.x, self.y)
                if np.isfinite(value):
                    told = f"{value:z.2f}".replace("-", "−") + (f" ± {half:.2f}" if np.isfinite(half) else "")
                    found.setdefault(title, {})[name] = told
        return found


def _written(value: Any) -> str:
    """A label without the digits that are rounding alone."""
    return f"{value:.12g}" if isinstance(value, np.floating) else str(value)


def slope(one: xr.Dataset, seeds: xr.Dataset, x: str, y: str) -> tuple[float, float]:
    """The exponent of one line, and the half-width of its 95 % interval; NaN where there is none."""
    places = np.log(one[x].values.astype(float))
    centred = (places - places.mean()) / np.square(places - places.mean()).sum()
    if "seed" in seeds[y].dims and seeds.sizes["seed"] > 1:
        values = series.without_rounding(seeds[y].transpose("seed", x).values, y)
        values = values[(values > 0).all(1)]
        if len(values) < 2:
            return np.nan, np.nan
        each = np.log(values) @ centred
        half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / len(each) ** 0.5
        return float(each.mean()), float(half)
    its = series.of(one, y).without_rounding(y)
    if not (its.value > 0).all():
        return np.nan, np.nan
    error = (its.high - its.low) / 2 / its.value
    half = float(np.sqrt(np.square(centred * error).sum()))
    return float(np.log(its.value) @ centred), half if half > 0 else np.nan


def of(
    dataset: xr.Dataset, *, x: str | None, y: str, hue: str | None, col: str | None, reference: str, layer: str
) -> Swept:
    """The quantity over its axis.

    Raises:
        TypeError, ValueError: as `fgvar.plot.sweep`.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"got a {type(dataset).__name__}, expected a dataset, as fgvar.sweep returns")
    if y not in datasets.quantities(dataset):
        raise ValueError(unknown("quantity", y, datasets.quantities(dataset)))
    data = explained(dataset)
    datasets.require_layer(data, layer)
    data = datasets.of_layer(data, layer if "layer" in data[y].dims else None)
    data = datasets.of_reference(data, y, reference)
    data = data.assign({name: flags_of(data, y) for name in ("flag", "cell_flag") if name in data})
    hue = None if hue == "estimator" and hue not in data[y].dims else hue
    x = _axis(data, y, hue, col) if x is None else x
    for what, dim in (("x", x), ("hue", hue), ("col", col)):
        if dim is not None and dim not in data[y].dims:
            raise ValueError(f"{what}={dim!r} is no dim of {y!r}: {unknown('dim', dim, map(str, data[y].dims))}")
        if dim == "seed":
            raise ValueError(f"{what}='seed': seeds are averaged; give another dim, or rename this one")
    if twice := [dim for dim in (hue, col) if dim is not None and [x, hue, col].count(dim) > 1]:
        raise ValueError(
            f"x, hue and col are {x!r}, {hue!r} and {col!r}: {twice[0]!r} stands twice; give each its own"
        )
    if x not in data.coords or data[x].dtype.kind not in "fiu":
        raise ValueError(f"x={x!r} has no numbers along it; give a numeric axis, or see fgvar.plot.ranking")
    data, placeless = _placed(data, x)
    data = _squeezed(data, y, (x, hue or "", col or "", "seed"))
    kept = [name for name, its in data.items() if {*its.dims} <= {x, hue, col, "seed"}]
    seeds = data[kept].sortby(x)
    return Swept(_averaged(seeds, y), seeds, x, y, hue or "", col or "", called(dataset[y], reference), placeless)


def _averaged(seeds: xr.Dataset, y: str) -> xr.Dataset:
    """Over seeds, whose spread is the error of what has none of its own, too."""
    if "seed" in seeds.dims and not series.has_errors(seeds, y):
        seeds = seeds.assign({f"{y}_se": xr.zeros_like(seeds[y])})
    return datasets.across_seeds(seeds)


def _placed(data: xr.Dataset, x: str) -> tuple[xr.Dataset, str]:
    """What has a place on an axis, and what has none."""
    placed = np.isfinite(data[x].values)
    if not placed.any():
        raise ValueError(f"x={x!r} has no finite number along it; give a numeric axis, or see fgvar.plot.ranking")
    others = ", ".join(map(_written, data[x].values[~placed]))
    return data.isel({x: placed}), f"{x} {others}" if others else ""


def _axis(data: xr.Dataset, y: str, hue: str | None, col: str | None) -> str:
    found = [
        str(dim)
        for dim in data[y].dims
        if dim in data.coords and data[dim].dtype.kind in "fiu" and data.sizes[dim] > 1
        and dim not in (hue, col, "seed")
    ]  # fmt: skip
    if not found:
        raise ValueError(
            f"{y!r} has no numeric axis with several values: its dims are {', '.join(map(str, data[y].dims))}; give "
            "x=, or see fgvar.plot.ranking and fgvar.plot.layers"
        )
    return max(found, key=lambda dim: data.sizes[dim])


def _squeezed(data: xr.Dataset, y: str, kept: tuple[str, ...]) -> xr.Dataset:
    others = [str(dim) for dim in data[y].dims if dim not in kept]
    data = data.squeeze([dim for dim in others if data.sizes[dim] == 1])
    if left := [dim for dim in others if data.sizes.get(dim, 1) > 1]:
        raise ValueError(
            f"{y!r} is along {', '.join(map(repr, left))}, too; give hue={left[0]!r} or col={left[0]!r}, or choose "
            f"one, as dataset.isel({left[0]}=0)"
        )
    return data
