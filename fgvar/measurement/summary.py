"""Summary: sums a measurement up in a table, for the eye: text in a shell, HTML in a notebook."""

from collections.abc import Callable

import numpy as np
import xarray as xr

from fgvar.errors import unknown
from fgvar.measurement.dataset_checks import REFERENCES, require_measurement
from fgvar.measurement.html_tables import Table
from fgvar.measurement.stored import UNKNOWN, bias_over_target, ends, explained, missing
from fgvar.measurement.text_tables import visible

LARGE = 1e6  # numbers above it are written with exponents
WIDTHS = (10, 15, 26)  # least ones of columns: of names, of the bias, of intervals


class Summary(str):
    """The text of a summary, which notebooks show as HTML; to all that takes text it is the text.

    Attributes:
        tables: of which it is made.

    Example:
        >>> one = Summary.of([[Table("costs", ("scheme", "cost"), (("BP", "2.9"),))]])
        >>> one
        costs
        scheme                          cost
        BP                               2.9
    """

    tables: tuple[Table, ...] = ()

    @classmethod
    def of(cls, groups: list[list[Table]]) -> "Summary":
        """Of groups of tables, with a line between groups."""
        made = cls("\n\n".join("\n".join(line for table in group for line in _lines(table)) for group in groups))
        made.tables = tuple(table for group in groups for table in group)
        return made

    __repr__ = str.__str__  # a shell shows the table, not its line breaks

    def _repr_html_(self) -> str:
        return "\n".join(table.to_html() for table in self.tables)


def summary(dataset: xr.Dataset, *, layer: str = "perturbed") -> Summary:
    """A table a person can read: each estimator's bias, relative variance and cosines, with 95 % intervals.

    Beside the z and p of the bias stands how large it may be: ‖E ĝ − target‖/‖target‖ is at most so much, in 97.5 %
    of runs. On the exact route the relative bias itself stands in place of both. Where a dataset has standard errors
    alone (stored ones), ± 1.96 of them are shown, and its heading says so. A paired dataset
    (``measure(…, paired=True)``) has a second table, of the differences to its baseline.

    Args:
        dataset: of `measure`, or of a training run with probes (one table for each step).
        layer: which layer; "perturbed" is all parameters that the scheme estimates.

    Raises:
        TypeError: no dataset.
        ValueError: an unknown layer; a dataset that is no measurement, or several.

    Example:
        >>> import torch
        >>> from fgvar import Problem, measure, scheme
        >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
        >>> problem = Problem(torch.nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> print(summary(measure({"BP": scheme("BP")}, problem, draws=2)).splitlines()[-1].split())
        ['BP', '–', '0', '0', '1', '1']
    """
    require_measurement(dataset)
    layers = [str(name) for name in dataset["layer"].values]
    if layer not in layers:
        raise ValueError(unknown("layer", layer, map(visible, layers)))
    chosen = explained(dataset).sel(layer=layer)
    if "step" in chosen.dims:
        return Summary.of([_tables(chosen.sel(step=step), layer, f", step {step.item()}") for step in chosen["step"]])
    return Summary.of([_tables(chosen, layer, "")])


def _tables(dataset: xr.Dataset, layer: str, when: str) -> list[Table]:
    """One of all estimators, and of a paired dataset one of differences."""
    columns, notes = _columns(dataset), [*_flat_target(dataset), *_unmeasured(dataset)]
    rows = []
    for name in dataset["estimator"].values:
        row = dataset.sel(estimator=name)
        rows.append((str(name), *(cell(row) for cell in columns.values())))
    first = Table(f"layer {layer!r}{when}: {_how(dataset)}", ("estimator", *columns), tuple(rows), tuple(notes))
    return [first] if "baseline" not in dataset.coords else [first, _paired(dataset)]


def _flat_target(dataset: xr.Dataset) -> list[str]:
    """A line that says why there are dashes, where a target is 0."""
    if "gradient_norm" not in dataset:
        return []
    rows = dataset.sel(reference="target")
    names = [
        visible(str(name))
        for name in dataset["estimator"].values
        if rows.sel(estimator=name)["gradient_norm"].item() == 0
    ]
    if not names:
        return []
    return [
        f"–: the target of {', '.join(names)} is 0, which nothing is relative to and has no angle; a loss without a "
        'derivative (0-1 loss) has no other gradient: see dataset["variance"], or measure a loss that has one'
    ]


def _unmeasured(dataset: xr.Dataset) -> list[str]:
    """Lines that say why an estimator has dashes alone, and how a cell of a sweep that failed went wrong."""
    found: dict[tuple[str, str], list[str]] = {}
    for name in dataset["estimator"].values:
        row = dataset.sel(estimator=name, reference="target")
        if row["gradient_norm"].item() == 0:  # of which another line speaks
            continue
        for variable, of in (("relative_variance", ""), ("cosine", "cosines of "), ("bias_p", "p of ")):
            word = missing(row, variable)[0]
            if word not in ("", UNKNOWN, "no noise"):  # of which no bias is drawn
                found.setdefault((of, word), []).append(visible(str(name)))
                break
    lines = str(dataset["traceback"].item()).splitlines() if "traceback" in dataset else []
    how = f"; {visible(lines[-1])}" if lines else ""
    return [f"–: {of}{', '.join(names)}: {word}{how}" for (of, word), names in found.items()]


def _lines(table: Table) -> list[str]:
    """Lines of columns at least as wide as `WIDTHS`, and as their cells and the two blanks between them need."""
    columns = []
    for i, cells in enumerate(zip(table.heading, *table.rows, strict=True)):
        shown = [visible(cell) for cell in cells]
        least = WIDTHS[0 if i == 0 else 1 if "bias" in cells[0] else 2]
        width = max(least, *(len(cell) + (2 if i else 0) for cell in shown))
        columns.append([cell.rjust(width) if i else cell.ljust(width) for cell in shown])
    return [table.caption, *("".join(line) for line in zip(*columns, strict=True)), *table.notes]


def _how(dataset: xr.Dataset) -> str:
    if str(dataset.attrs.get("route")) == "exact":
        return "exact, closed form"
    shown = (
        "95 % intervals" if "relative_variance_low" in dataset else "± 1.96 standard errors, as it has no intervals"
    )
    return f"drawn, {visible(str(dataset.attrs.get('draws', '?')))} draws, {shown}"


def _columns(dataset: xr.Dataset) -> dict[str, Callable[[xr.Dataset], str]]:
    """Heading → what is in the cell of one estimator."""
    if str(dataset.attrs.get("route")) == "exact":
        first: dict[str, Callable[[xr.Dataset], str]] = {"relative bias": _relative_bias}
    else:
        first = {"bias z (p)": _tested_bias}
        if "sq_bias_high" in dataset:
            first["bias, of the target"] = _largest_bias
    return first | {
        "relative variance": lambda row: _interval(row, "relative_variance"),
        "cosine to target": lambda row: _interval(row.sel(reference="target"), "cosine"),
        "cosine to backprop": lambda row: _interval(row.sel(reference="backprop"), "cosine"),
    }


def _paired(dataset: xr.Dataset) -> Table:
    """How each estimator differs from the baseline."""
    baseline = dataset["baseline"].item()
    columns = (("slope", "target"), ("relative_variance", None), *(("cosine", r) for r in REFERENCES))
    heading = ("estimator", "slope to target", "relative variance", "cosine to target", "cosine to backprop")
    rows = []
    for name in dataset["estimator"].values:
        if name != baseline:
            row = dataset.sel(estimator=name)
            cells = (_interval(row.sel(reference=r) if r else row, f"{one}_difference") for one, r in columns)
            rows.append((str(name), *cells))
    return Table(f"less those of {baseline!r}, by common noise: {_how(dataset)}", heading, tuple(rows))


def _tested_bias(row: xr.Dataset) -> str:
    z, p = (row[name].sel(reference="target").item() for name in ("bias_z", "bias_p"))
    return "–" if np.isnan(z) else f"{z:.1f} ({'–' if np.isnan(p) else f'{p:.2g}'})"


def _largest_bias(row: xr.Dataset) -> str:
    """‖E ĝ − target‖/‖target‖ that cannot be excluded."""
    target = row.sel(reference="target")
    known = target["sq_bias_high"].item() == target["sq_bias"].item()
    return _share(bias_over_target(row, "sq_bias_high"), "" if known else "at most ")


def _relative_bias(row: xr.Dataset) -> str:
    """‖E ĝ − target‖/‖target‖."""
    return _share(bias_over_target(row))


def _share(found: xr.DataArray, before: str = "") -> str:
    return "–" if np.isnan(found.item()) else f"{before}{found.item():.2g}"


def _interval(row: xr.Dataset, name: str) -> str:
    """Value [low, high] of a variable; ± 1.96 errors of a dataset that has errors alone."""
    low, high = (end.item() for end in ends(row, name))
    return ranged(row[name].item(), low, high, plus_minus=f"{name}_low" not in row)


def ranged(value: float, low: float, high: float, *, plus_minus: bool = False) -> str:
    """``value [low, high]``, all rounded to the second significant digit of half its width.

    Args:
        value: NaN is a dash; above a million it has an exponent.
        low, high: equal for exact values, which have no brackets; NaN where there is no interval.
        plus_minus: ± half the width in place of the brackets.

    Example:
        >>> ranged(16.63, 15.21, 18.88), ranged(2.0, 2.0, 2.0), ranged(0.5, np.nan, np.nan)
        ('16.6 [15.2, 18.9]', '2', '0.5 [–]')
        >>> ranged(1.08e16, 1.04e16, 1.12e16, plus_minus=True)
        '1.080e+16 ± 4.0e+14'
    """
    if np.isnan(value):
        return "–"
    half = (high - low) / 2
    if half == 0 or not np.isfinite([value, low, high]).all():
        return f"{value:.4g}" + ("" if half == 0 else " [–]")
    last = int(np.floor(np.log10(half))) - 1  # the place of the second significant digit
    large, leading = max(abs(value), half) > LARGE, int(np.floor(np.log10(abs(value) or half)))
    form = f".{max(0, leading - last)}e" if large else f".{max(0, -last)}f"
    if plus_minus:
        return f"{value:{form}} ± {half:{'.1e' if large else form}}"
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"
