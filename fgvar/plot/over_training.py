"""Training runs: error or loss over epochs, and what probes say of estimators over steps."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from fgvar.plot import datasets, drawing, limits, marks, runs, series, theory_lines
from fgvar.plot import looks as styles
from fgvar.plot.looks import Look, Wanted
from fgvar.plot.runs import Runs
from fgvar.plot.sheet import Sheet, folded, given
from fgvar.plot.venues import here

TITLES = {
    "error": "error (%)",
    "loss": "loss",
    "cosine, target": "cosine to target",
    "cosine, backprop": "cosine to backprop",
    "relative variance": "relative variance",
}
TRAIN: dict[str, Any] = {"linestyle": (0, (1, 0.8)), "linewidth": 0.8}
PROBES = ("cosine, target", "cosine, backprop", "relative variance")


def training(
    dataset: xr.Dataset,
    *,
    layer: str = "perturbed",
    axes: Sequence[Axes] | None = None,
    legend: bool = True,
    looks: Mapping[str, Wanted] | None = None,
) -> Figure:
    """Draw error (or loss) over epochs, and of the probes' estimators cosines and relative variance over steps.

    A row of panels for each run, where a dim such as ``algorithm`` has several; without probes their curves share
    one panel. Bands are 95 % intervals of probes, over the draws of one run or over the runs of several seeds; of
    curves of several seeds they reach from the lowest to the highest.

    Args:
        dataset: ``run.dataset`` of `fgvar.train`, or several of them along one more dim, and ``seed``.
        layer: of the probes; "perturbed" is all that an estimator estimates.
        axes: to draw on in place of a figure of its own, one for each panel, row by row.
        legend: with what tells marks apart.
        looks: name → a colour, a colour and a marker, or a `Look`; default: `fgvar.plot.assign`.

    Raises:
        TypeError: no dataset.
        ValueError: neither curves nor probes, several runs along two dims, no such layer, another number of axes.

    Example:
        >>> import xarray as xr
        >>> ds = xr.Dataset({"test_error": ("epoch", [0.9, 0.2, 0.1])}, {"epoch": [0, 1, 2]})
        >>> training(ds).axes[0].get_ylabel()
        'error (%)'
    """
    its = runs.of(dataset, layer)
    styled = _looks(dataset, its, looks)
    rows, quantities = (its.labels if its.probed else [None]), its.quantities
    if axes is not None:
        panels = np.array(given(axes, len(rows) * len(quantities)), dtype=object).reshape(len(rows), -1)
        _draw(panels, its, styled, rows, in_rows=True)
        if legend:
            panels[0, 0].legend(handles=_handles(its, _named(its, styled)))
        return cast(Figure, panels[0, 0].get_figure(root=True))
    with here() as place:
        sheet = Sheet(place)
        named = {sheet.wrapped(name): look for name, look in _named(its, styled).items()}
        handles = _handles(its, named) if legend else []
        head, down, across = sheet.head(handles), len(rows), len(quantities)
        in_rows = sheet.wide or down > 2
        if sheet.wide:
            grid = sheet.grid(down, across, head=head, height=1.2 if across > 2 else 1.6)
        elif down <= 2:
            grid = sheet.grid(across, down, head=head, height=1.35).T
        else:
            grid = sheet.grid(down * across, 1, head=head, height=1.2).reshape(down, across)
        _draw(grid, its, styled, rows, in_rows=in_rows, alone=not sheet.wide and down > 2)
        sheet.legend(handles)
        return sheet.settle()


def _looks(dataset: xr.Dataset, its: Runs, wanted: Mapping[str, Wanted] | None) -> dict[str, Look]:
    """Of all names of the dataset, as in its other figures, and of curves that only numbers tell apart."""
    found = styles.of(dataset, wanted)
    return styles.assign([*found, *its.labels], {**(wanted or {}), **found}) if its.along and its.curves else found


def _named(its: Runs, styled: Mapping[str, Look]) -> dict[str, Look]:
    """The looks of what is drawn, under the names that a legend has."""
    drawn = {name: name for name in datasets.names(its.data, "estimator")} if its.probed else {}
    drawn |= {name: its.named(name) for name in its.labels if its.along and its.curves}
    return {drawn[name]: look for name, look in styled.items() if name in drawn}


def _draw(
    grid: NDArray[Any],
    its: Runs,
    styled: Mapping[str, Look],
    rows: Sequence[str | None],
    *,
    in_rows: bool,
    alone: bool = False,
) -> None:
    for row, label in zip(grid, rows, strict=True):
        for axes, quantity in zip(row, its.quantities, strict=True):
            if quantity in PROBES:
                _probes(axes, its, label, quantity, styled)
            else:
                _curves(axes, its, label, quantity, styled)
    _label(grid, its, rows, in_rows=in_rows, alone=alone)


# ---- curves ----------------------------------------------------------------------------------------------------


def _curves(axes: Axes, its: Runs, label: str | None, quantity: str, styled: Mapping[str, Look]) -> None:
    """Curves after each epoch of one run, or of all runs together."""
    epochs = its.data["epoch"].values if "epoch" in its.data.coords else np.arange(its.data.sizes["epoch"])
    if quantity == "error":
        drawing.symlog(axes, "y", 1, (-0.15, 140))
    axes.set_xlim(0, max(epochs.max(), 1))
    every = max(1, len(epochs) // 5)
    for name in its.labels if label is None else [label]:
        look = styled.get(name, Look("0.35", "o"))
        for variable in its.curves[quantity]:
            values = its.of(name)[variable] * (100 if quantity == "error" else 1)
            dotted = variable.startswith("train") or (variable == "loss" and "test_loss" in its.curves[quantity])
            how = {"color": look.color, **TRAIN} if dotted else styles.line_style(look)
            how |= {} if dotted else {"markevery": (every // 2, every)}
            how |= {"linestyle": "-"} if not dotted and len(its.curves[quantity]) > 1 else {}
            if "seed" in values.dims:
                axes.fill_between(
                    epochs, values.min("seed"), values.max("seed"), color=look.color, alpha=0.25, linewidth=0
                )
                values = values.mean("seed")
            axes.plot(epochs, values, label=variable.replace("_", " "), **how)
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


# ---- probes ----------------------------------------------------------------------------------------------------


def _probes(axes: Axes, its: Runs, label: str | None, quantity: str, styled: Mapping[str, Look]) -> None:
    """One quantity of all estimators over the steps of a run; limits are of all runs, so that panels compare."""
    data, steps = its.probes(label), its.data["step"].values
    every = its.probes(None)
    drawing.log_steps(axes, steps)
    if quantity == "relative variance":
        variable = "relative_variance"
        drawing.log(axes, "y", limits.variance(every), series.without_rounding(every[variable].values, variable))
    else:
        drawing.symlog(axes, "y", *limits.cosine(every))
        null = np.broadcast_to(np.asarray(data["cosine_null"]), steps.shape)
        axes.plot(steps, null, label="random direction", **styles.NULL)
        data, variable = data.sel(reference=quantity.rpartition(" ")[2]), "cosine"
    gaps: dict[str, list[str]] = {}
    for name in styles.in_order(datasets.names(data, "estimator")):
        drawn = series.of(data.sel(estimator=name), variable).without_rounding(variable)
        marks.band(axes, steps, drawn, styled[name], label=name)
        for why in dict.fromkeys(filter(None, drawn.missing)):
            gaps.setdefault(why, []).append(name)
    told = "; ".join(f"{styles.plain(', '.join(names))}: {why}" for why, names in gaps.items())
    if told:
        axes.text(0.02, 0.02, told, transform=axes.transAxes, **marks.WORD)
    for d in theory_lines.perturbed(data) if theory_lines.known(data) else ():
        height = d + 1 if variable == "relative_variance" else theory_lines.cosine(d)
        axes.axhline(height, label="FG-W, theory", **styles.THEORY)


# ---- words -----------------------------------------------------------------------------------------------------


def _label(grid: NDArray[Any], its: Runs, rows: Sequence[str | None], *, in_rows: bool, alone: bool) -> None:
    """Titles and axis labels where a reader looks for them, and tick labels on the outer panels only."""
    for i, j in np.ndindex(grid.shape):
        axes, quantity = cast(Axes, grid[i, j]), its.quantities[j]
        run, title = its.called(rows[i]), TITLES[quantity]
        x = "training step" if quantity in PROBES else "epoch"
        if alone or len(grid) == 1:
            axes.set(xlabel=x, ylabel=title, title=_along(axes, run) if j == 0 else "")
            continue
        last = grid.shape[1] - 1
        bottom = i == len(grid) - 1 if in_rows else j == last or x != _x(its.quantities[j + 1])
        axes.set_xlabel(x if bottom else "")
        axes.tick_params(labelbottom=bottom)
        both = j > 0 and quantity == "cosine, backprop"  # both cosines have one axis
        axes.tick_params(labelleft=not both if in_rows else i == 0)
        heading, y = (title, _along(axes, run, upright=True)) if in_rows else (_along(axes, run), title)
        axes.set_title(heading if (i if in_rows else j) == 0 else "")
        axes.set_ylabel(y if (j if in_rows else i) == 0 else "")


def _along(axes: Axes, run: str, *, upright: bool = False) -> str:
    """A run's name in lines no longer than its panel is wide, or high where it stands upright."""
    box, label = axes.get_window_extent(), axes.yaxis.label if upright else axes.title
    inches = (box.height if upright else box.width) / cast(Figure, axes.get_figure(root=True)).dpi
    return styles.plain(folded(run, inches, float(label.get_fontsize())))


def _x(quantity: str) -> str:
    return "training step" if quantity in PROBES else "epoch"


def _handles(its: Runs, styled: Mapping[str, Look]) -> list[Line2D]:
    curves = [name for variables in its.curves.values() for name in variables]
    dotted = [name for name in curves if name.startswith("train") or (name == "loss" and "test_loss" in curves)]
    handles = marks.legend(dict(styled), lines=True)
    if len(curves) > len(dotted) and dotted:
        solid = next(name for name in curves if name not in dotted)
        handles.append(Line2D([], [], color=styles.GREY, label=solid.replace("_", " "), linestyle="-"))
    handles += [Line2D([], [], color=styles.GREY, label=name.replace("_", " "), **TRAIN) for name in dotted[:1]]
    if its.probed:
        data = its.probes(None)
        made = {series.made(data.sel(estimator=name), "cosine") for name in datasets.names(data, "estimator")}
        handles += [*marks.legend_made(made, lines=True), Line2D([], [], label="random direction", **styles.NULL)]
        handles += [Line2D([], [], label="FG-W, theory", **styles.THEORY)] if theory_lines.known(data) else []
    return handles
