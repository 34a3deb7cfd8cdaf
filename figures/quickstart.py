"""The quickstart's figure: error, both cosines and relative variance over training.

Run   python -m figures.quickstart results/quickstart.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption), and <stem>_layers.* (`figures.layers`) of the last step.
"""

from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from figures import command, drawing, intervals, layers, style
from figures.page import Figures, Page, Sheet

LAYER = "perturbed"  # all parameters that a scheme estimates
TITLES = ("error", "cosine to target", "cosine to backprop", "relative variance")
NEEDED = {
    "train_error": ("algorithm", "epoch"),
    "test_error": ("algorithm", "epoch"),
    **dict.fromkeys(("cosine", "cosine_se", "bias_p"), ("algorithm", "step", "estimator", "reference", "layer")),
    **dict.fromkeys(("relative_variance", "relative_variance_se"), ("algorithm", "step", "estimator", "layer")),
    **dict.fromkeys(("cosine_null", "size"), ("layer",)),
}
PAGE = Page("studies/quickstart.py", NEEDED)
TRAIN: dict[str, Any] = {"linestyle": (0, (1, 0.8)), "linewidth": 0.8}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Four panels for each algorithm that trained: a row of them over two columns, a column of them in one.

    Drawn are ``layer="perturbed"`` and bands of 95 % intervals; theory is a line under the points.
    """
    data, algorithms = dataset.sel(layer=LAYER), style.names(dataset, "algorithm")
    if sheet.wide:  # [algorithm, quantity]
        grid = sheet.grid(len(algorithms), len(TITLES), head=0.75, height=1.05)
    else:
        grid = sheet.grid(len(TITLES), len(algorithms), head=0.75, height=1.35).T
    for row, algorithm in zip(grid, algorithms, strict=True):
        _run(row, data, algorithm)
    _label(grid, algorithms, in_rows=sheet.wide)
    helpers = [
        Line2D([], [], color=style.GREY, label="test error", linestyle="-"),
        Line2D([], [], color=style.GREY, label="train error", **TRAIN),
        Line2D([], [], label="random direction", **style.NULL),
    ]
    helpers += [Line2D([], [], label="FG-W, theory", **style.THEORY)] if layers.has_theory(data) else []
    schemes = [*style.names(dataset, "estimator"), *algorithms]
    sheet.schemes(schemes, helpers, entry=1.05)


def _run(row: NDArray[Any], data: xr.Dataset, algorithm: str) -> None:
    """One algorithm's panels; the limits are of all algorithms, so that panels compare."""
    run, steps, d = data.sel(algorithm=algorithm), data["step"].values, int(data["size"].values.flat[0])
    _error(row[0], run, data["epoch"].values, algorithm)
    linear, limits = layers.cosine_limits(data)
    for axes, reference in zip(row[1:3], ("target", "backprop"), strict=True):
        drawing.log_steps(axes, steps)
        drawing.symlog(axes, "y", linear, limits)
        _schemes(axes, run.sel(reference=reference), "cosine")
        axes.plot(steps, np.broadcast_to(run["cosine_null"], steps.shape), label="random direction", **style.NULL)
    drawing.log_steps(row[3], steps)
    drawing.log(row[3], "y", layers.variance_limits(data))
    _schemes(row[3], run, "relative_variance")
    if layers.has_theory(data):
        for axes in row[1:3]:
            axes.axhline(layers.mean_cosine(d), label="FG-W, theory", **style.THEORY)
        row[3].axhline(d + 1, label="FG-W, theory", **style.THEORY)


def _error(axes: Axes, run: xr.Dataset, epochs: NDArray[Any], algorithm: str) -> None:
    """Error on either split after each epoch of the one run: a single number, so no band."""
    drawing.symlog(axes, "y", 0.01, (-0.0015, 1.4))
    axes.set_xlim(0, max(epochs.max(), 1))
    how = style.line_style(algorithm)
    axes.plot(epochs, run["train_error"], label="train error", color=how["color"], **TRAIN)
    every = max(1, len(epochs) // 5)
    axes.plot(
        epochs, run["test_error"], label="test error", **how | {"linestyle": "-", "markevery": (every // 2, every)}
    )
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))


def _schemes(axes: Axes, data: xr.Dataset, variable: str) -> None:
    for scheme in style.in_order(style.names(data, "estimator")):
        its = data.sel(estimator=scheme)
        drawing.curve(axes, data["step"].values, its[variable], intervals.ends(its, variable), scheme)


def _label(grid: NDArray[Any], algorithms: list[str], *, in_rows: bool) -> None:
    """Titles and axis labels where a reader looks for them, and tick labels on the outer panels only."""
    for i, j in np.ndindex(grid.shape):
        axes, trained = cast(Axes, grid[i, j]), f"trained by {algorithms[i]}"
        bottom, x = (i == len(grid) - 1 if in_rows else j in (0, 3)), "epoch" if j == 0 else "training step"
        axes.set_xlabel(x if bottom else "")
        axes.tick_params(labelbottom=bottom)
        axes.tick_params(labelleft=j != 2 if in_rows else i == 0)  # both cosines have one axis
        title, y = (TITLES[j], trained) if in_rows else (trained, TITLES[j])
        axes.set_title(title if (i if in_rows else j) == 0 else "")
        axes.set_ylabel(y if (j if in_rows else i) == 0 else "")


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    steps, data, get = dataset["step"].values, dataset.sel(layer=LAYER), dataset.attrs.get
    return [
        f"Error and gradient quality over training on {get('data', '?')}, in the panels of each algorithm that "
        f"trained ({', '.join(style.names(dataset, 'algorithm'))}). {layers.measured(dataset)} at {len(steps)} "
        f"steps, {steps[0]} to {steps[-1]}. Shown is the layer 'perturbed': all parameters that a scheme estimates.",
        layers.explained(dataset),
        "Error on the train and test split after each epoch of one run of SGD for each algorithm, hence without a "
        f"band: {get('train_epochs', '?')} epochs, batch {get('train_batch', '?')}, initial learning rate "
        f"{get('train_lr', '?')}, momentum {get('train_momentum', '?')}, weight decay "
        f"{get('train_weight_decay', '?')}, seed {get('train_seed', '?')}.",
        f"Axes of error are linear below 0.01, of cosines below {layers.cosine_limits(data)[0]:g}, elsewhere "
        "logarithmic. Dotted: 95 % half-width of the cosine of one random direction.",
        layers.theory(data),
        *(_at_the_end(dataset.sel(algorithm=name), name) for name in style.names(dataset, "algorithm")),
        layers.undefined(data),
        layers.unbiased(dataset),
    ]


def _at_the_end(run: xr.Dataset, name: str) -> str:
    """Errors and relative variances of the last step."""
    last = run.sel(layer=LAYER).isel(epoch=-1, step=-1)
    values = [
        f"{scheme} {intervals.written(its, 'relative_variance')}"
        for scheme in style.names(last, "estimator")
        if (its := last.sel(estimator=scheme))["relative_variance"] > 0
    ]
    return (
        f"Trained by {name}: in the end {last['train_error'].item():.2%} train and {last['test_error'].item():.2%} "
        f"test error; relative variance {', '.join(values)} ({intervals.words(run, 'relative_variance')})."
    )


def _by_layers(dataset: xr.Dataset, *, venue: style.Venue = "iclr", columns: style.Columns = 2) -> Figure:
    """Of the last algorithm's last step."""
    return layers.draw(dataset.isel(algorithm=-1, step=-1), venue=venue, columns=columns)


def _caption_by_layers(dataset: xr.Dataset) -> str:
    return layers.caption(dataset.isel(algorithm=-1, step=-1))


FIGURES: Figures = {"": (draw, caption), "_layers": (_by_layers, _caption_by_layers)}

if __name__ == "__main__":
    command.run("figures.quickstart", __doc__, FIGURES)
