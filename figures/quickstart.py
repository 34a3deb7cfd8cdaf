"""The quickstart's figures: error and gradient quality over training, and gradient quality layer by layer.

Run   python -m figures.quickstart results/quickstart.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption), and the same for <stem>_layers, beside the dataset.

Both are pure functions of the dataset, which is read by xarray alone: neither torch nor fgvar is imported.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import seaborn as sns
import tyro
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from scipy import optimize, special

from figures import style

LAYER = "perturbed"  # all parameters that a scheme estimates
LEVEL = 0.05  # of the test of no bias, over all cells together
FLOOR = 1e-12  # smaller p-values are drawn here
TITLES = ("error", "cosine to target", "cosine to backprop", "relative variance")
NEEDED = {
    "train_error": ("algorithm", "epoch"),
    "test_error": ("algorithm", "epoch"),
    **dict.fromkeys(("cosine", "cosine_se", "bias_p"), ("algorithm", "step", "estimator", "reference", "layer")),
    **dict.fromkeys(("relative_variance", "relative_variance_se"), ("algorithm", "step", "estimator", "layer")),
    "cosine_null": ("layer",),
}


@dataclass(frozen=True)
class Config:
    """Draw the quickstart's figures from its dataset."""

    dataset: tyro.conf.Positional[Path]
    """The netCDF file that studies/quickstart.py wrote."""
    venue: style.Venue = "iclr"
    """Whose text width and font sizes to keep to."""
    columns: style.Columns = 2
    """2: the whole text width; 1: one column, or half of the text width."""
    out: Path | None = None
    """An existing folder, or path and name without a suffix. Default: beside the dataset, by its name."""


def main(config: Config) -> list[Path]:
    """Write both figures with their captions, and print the paths."""
    dataset, stem = read(config.dataset), config.dataset.with_suffix("")
    if config.out is not None:
        stem = config.out / stem.name if config.out.is_dir() else config.out
    size: dict[str, Any] = {"venue": config.venue, "columns": config.columns}
    paths = style.save(draw(dataset, **size), stem, caption(dataset))
    paths += style.save(draw_layers(dataset, **size), f"{stem}_layers", caption_layers(dataset))
    print(*paths, sep="\n")
    return paths


def read(path: Path) -> xr.Dataset:
    """The dataset in a file, wholly in memory.

    Raises:
        FileNotFoundError, ValueError: no such file, or not a netCDF file.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no dataset at {path}; write one by: python studies/quickstart.py")
    try:
        with xr.open_dataset(path, engine="h5netcdf") as stored:
            return stored.load()
    except OSError as error:
        raise ValueError(f"{path} is not a whole netCDF file ({error}); write it again") from error


def check(dataset: xr.Dataset) -> None:
    """Raise ValueError where the dataset is not one of the quickstart, naming what is missing."""
    missing = [f"variable {name!r}" for name in NEEDED if name not in dataset]
    for name, dims in NEEDED.items():
        if name in dataset and not set(dims) <= set(dataset[name].dims):
            missing.append(f"dims {sorted(set(dims) - set(dataset[name].dims))} of {name!r}")
    if not missing and LAYER not in dataset["layer"]:
        missing.append(f"layer {LAYER!r}")
    if missing:
        raise ValueError(f"not a dataset of studies/quickstart.py: it lacks {', '.join(missing)}")


# ---- over training -------------------------------------------------------------------------------------------


def draw(dataset: xr.Dataset, *, venue: style.Venue = "iclr", columns: style.Columns = 2) -> Figure:
    """Error, both cosines and relative variance over training; each algorithm's panels in a row (of 2 columns).

    Drawn are ``layer="perturbed"`` and bands of ±1.96 standard errors; theory is a line under the points.

    Raises:
        ValueError: not a quickstart dataset, an unknown venue or number of columns, a scheme without a look.
    """
    check(dataset)
    data, algorithms = dataset.sel(layer=LAYER), names(dataset, "algorithm")
    shape = (len(algorithms), len(TITLES)) if columns == 2 else (len(TITLES), len(algorithms))
    with style.context(venue):
        figure = Figure((style.width(venue, columns), 0.75 + 1.05 * shape[0]), layout="constrained")
        grid = figure.subplots(*shape, squeeze=False)
        grid = grid if columns == 2 else grid.T  # [algorithm, quantity]
        for row, algorithm in zip(grid, algorithms, strict=True):
            draw_run(row, data, algorithm)
        label(grid, algorithms, in_rows=columns == 2)
        helpers = [
            Line2D([], [], color=style.GREY, label="test error", linestyle="-"),
            Line2D([], [], color=style.GREY, label="train error", **TRAIN),
            Line2D([], [], label="random direction", **NULL),
        ]
        helpers += [Line2D([], [], label="FG-W, theory", **THEORY)] if dimension(data) else []
        legend(figure, [*names(dataset, "estimator"), *algorithms], helpers, 5 if columns == 2 else 3)
        sns.despine(fig=figure)
        figure.draw_without_rendering()  # ticks and layout are made here, under these settings
    return figure


TRAIN: dict[str, Any] = {"linestyle": (0, (1, 0.8)), "linewidth": 0.8}
NULL: dict[str, Any] = {"color": style.GREY, "linestyle": (0, (1, 1.5)), "linewidth": 0.7, "zorder": 1}
THEORY: dict[str, Any] = {"color": "black", "linestyle": "-", "linewidth": 0.5, "zorder": 1.5}


def draw_run(row: NDArray[Any], data: xr.Dataset, algorithm: str) -> None:
    """One algorithm's panels; the limits are of all algorithms, so that panels compare."""
    run, steps, d = data.sel(algorithm=algorithm), data["step"].values, dimension(data)
    draw_error(row[0], data, algorithm)
    linear, limits = cosine_limits(data)
    for axes, reference in zip(row[1:3], ("target", "backprop"), strict=True):
        style.log_steps(axes, steps)
        style.symlog(axes, "y", linear, limits)
        draw_schemes(axes, run.sel(reference=reference), "cosine")
        axes.plot(steps, np.broadcast_to(run["cosine_null"], steps.shape), label="random direction", **NULL)
        if d:
            axes.axhline(mean_cosine(d), label="FG-W, theory", **THEORY)
    style.log_steps(row[3], steps)
    style.log(row[3], "y", variance_limits(data))
    draw_schemes(row[3], run, "relative_variance")
    if d:
        row[3].axhline(d + 1, label="FG-W, theory", **THEORY)


def draw_error(axes: Axes, data: xr.Dataset, algorithm: str) -> None:
    """Error on either split after each epoch of the one run: a single number, so no band."""
    run, epochs = data.sel(algorithm=algorithm), data["epoch"].values
    style.symlog(axes, "y", 0.01, (-0.0015, 1.4))
    axes.set_xlim(0, max(epochs.max(), 1))
    how = style.line_style(algorithm)
    axes.plot(epochs, run["train_error"], label="train error", color=how["color"], **TRAIN)
    every = max(1, len(epochs) // 5)
    axes.plot(epochs, run["test_error"], label="test error", **how | {"linestyle": "-", "markevery": every})


def draw_schemes(axes: Axes, data: xr.Dataset, variable: str) -> None:
    for scheme in style.in_order(names(data, "estimator")):
        its = data.sel(estimator=scheme)
        style.curve(axes, data["step"].values, its[variable], its[f"{variable}_se"], scheme)


def cosine_limits(data: xr.Dataset) -> tuple[float, tuple[float, float]]:
    """Where the cosines' axes turn linear (the power of ten below a random direction's), and their limits."""
    linear = float(10 ** np.floor(np.log10(data["cosine_null"].min())))
    low = float(np.nanmin((data["cosine"] - style.Z * data["cosine_se"].fillna(0)).values, initial=0))
    return linear, (1.2 * low - 0.15 * linear, 1.4)


def variance_limits(data: xr.Dataset) -> tuple[float, float]:
    """Limits of a log axis that holds every positive mean with its band, and FG-W's theory."""
    mean, error = data["relative_variance"].values, np.nan_to_num(data["relative_variance_se"].values)
    shown = mean > 0
    if not shown.any():
        return 0.1, 10.0
    mean, half = mean[shown], style.Z * error[shown]
    low, high = np.maximum(mean - half, mean / 10).min(), (mean + half).max()  # a band may reach to 0
    return float(low / 1.6), float(max(high, dimension(data)) * 1.6)


def label(grid: NDArray[Any], algorithms: list[str], *, in_rows: bool) -> None:
    """Titles and axis labels where a reader looks for them, and tick labels on the outer panels only."""
    for i, j in np.ndindex(grid.shape):
        axes, trained = grid[i, j], f"trained by {algorithms[i]}"
        bottom, x = (i == len(grid) - 1 if in_rows else j in (0, 3)), "epoch" if j == 0 else "training step"
        axes.set_xlabel(x if bottom else "")
        axes.tick_params(labelbottom=bottom)
        axes.tick_params(labelleft=j != 2 if in_rows else i == 0)  # both cosines have one axis
        title, y = (TITLES[j], trained) if in_rows else (trained, TITLES[j])
        axes.set_title(title if (i if in_rows else j) == 0 else "")
        axes.set_ylabel(y if (j if in_rows else i) == 0 else "")


def legend(figure: Figure, schemes: list[str], helpers: list[Line2D], across: int) -> None:
    """One legend above all panels: the schemes in their fixed order, then the other lines."""
    handles = [Line2D([], [], label=scheme, **style.line_style(scheme)) for scheme in style.in_order(schemes)]
    figure.legend(handles=[*handles, *helpers], loc="outside upper center", ncols=across)


# ---- layer by layer ------------------------------------------------------------------------------------------


def draw_layers(
    dataset: xr.Dataset,
    *,
    algorithm: str | None = None,
    venue: style.Venue = "iclr",
    columns: style.Columns = 2,
) -> Figure:
    """Bias, relative variance and both cosines of each layer at the last step, ±1.96 standard errors.

    Args:
        dataset: of studies/quickstart.py.
        algorithm: along whose weights; default: the last one.
        venue: whose sizes to keep to.
        columns: of the page that the figure is wide.

    Raises:
        ValueError: as `draw`, or an unknown algorithm.
    """
    data, threshold = last(dataset, algorithm), bias(dataset).threshold
    layers = estimated(data)
    data = data.sel(layer=layers)
    down, across = (1, 4) if columns == 2 else (2, 2)
    with style.context(venue):
        height = down * (0.45 + 0.155 * len(layers)) + 0.35
        figure = Figure((style.width(venue, columns), height), layout="constrained")
        grid = figure.subplots(down, across, squeeze=False)
        for j, (axes, (variable, reference, title)) in enumerate(zip(grid.flat, COLUMNS, strict=True)):
            chosen = data.sel(reference=reference)
            scale_rows(axes, chosen, variable, threshold)
            draw_rows(axes, chosen, variable)
            axes.set_yticks(range(len(layers)), layers if j % across == 0 else [])
            axes.set_title(title)
        helpers = [
            Line2D([], [], label="threshold of the bias", **THRESHOLD),
            Line2D([], [], label="random direction", color=style.GREY, **TICK),
        ]
        helpers += [Line2D([], [], label="FG-W, theory", color="black", **TICK)] if dimension(data) else []
        legend(figure, names(data, "estimator"), helpers, 4 if columns == 2 else 3)
        sns.despine(fig=figure, left=True)
        figure.draw_without_rendering()
    return figure


COLUMNS = (
    ("bias_p", "target", "$p$-value of bias"),
    ("relative_variance", "target", TITLES[3]),
    ("cosine", "target", TITLES[1]),
    ("cosine", "backprop", TITLES[2]),
)
THRESHOLD: dict[str, Any] = {"color": "black", "linestyle": (0, (3, 1.5)), "linewidth": 0.6, "zorder": 1}
TICK: dict[str, Any] = {"linestyle": "none", "marker": "|", "markersize": 5, "markeredgewidth": 0.7, "zorder": 1.5}


def scale_rows(axes: Axes, data: xr.Dataset, variable: str, threshold: float) -> None:
    """The x axis of one quantity, and what it is to be read against."""
    rows = np.arange(data.sizes["layer"])
    if variable == "bias_p":
        low = np.fmin(np.nanmin(data["bias_p"].values, initial=1.0), threshold)
        style.log(axes, "x", (max(float(low), FLOOR) / 3, 2.0))
        axes.axvline(threshold, label="threshold", **THRESHOLD)
    elif variable == "cosine":
        linear, limits = cosine_limits(data)
        style.symlog(axes, "x", linear, limits)
        axes.plot(data["cosine_null"], rows, label="random direction", color=style.GREY, **TICK)
    else:
        low, high = variance_limits(data)
        expected = layer_theory(data)
        style.log(axes, "x", (low, float(np.nanmax(expected, initial=high / 1.6)) * 1.6))
        if np.isfinite(expected).any():
            axes.plot(expected, rows, label="FG-W, theory", color="black", **TICK)


def draw_rows(axes: Axes, data: xr.Dataset, variable: str) -> None:
    """One row a layer, with every scheme's mean and error in it, each a little lower than the one before."""
    schemes, count = style.in_order(names(data, "estimator")), data.sizes["layer"]
    for scheme, shift in zip(schemes, np.linspace(-0.3, 0.3, len(schemes)), strict=True):
        its = data.sel(estimator=scheme)
        mean, rows = its[variable].values, np.arange(count) + shift
        if variable == "bias_p":
            mean, error = np.maximum(mean, FLOOR), np.zeros(count)
        else:
            error = style.Z * its[f"{variable}_se"].values
        shown = np.isfinite(mean) & ((mean > 0) | (axes.get_xscale() != "log"))
        if shown.any():
            how = style.point_style(scheme) | {"label": scheme, "elinewidth": 0.7, "zorder": 3}
            axes.errorbar(mean[shown], rows[shown], xerr=np.nan_to_num(error[shown]), **how)
    for row in np.flatnonzero(data[variable].isnull().all("estimator")):
        where = {"transform": axes.get_yaxis_transform(), "ha": "center", "va": "center"}
        axes.text(0.5, row, "undefined", color=style.GREY, fontsize="small", **where)
    for row in range(0, count, 2):
        axes.axhspan(row - 0.5, row + 0.5, color="0.95", zorder=0, linewidth=0)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.set_ylim(count - 0.5, -0.5)


def last(dataset: xr.Dataset, algorithm: str | None) -> xr.Dataset:
    """What was measured at the last step along one algorithm's weights."""
    check(dataset)
    algorithms = names(dataset, "algorithm")
    if algorithm not in (None, *algorithms):
        raise ValueError(f"algorithm={algorithm!r}: one of {', '.join(algorithms)} expected")
    return dataset.sel(algorithm=algorithm or algorithms[-1]).isel(step=-1)


def estimated(data: xr.Dataset) -> list[str]:
    """The layers where some scheme has noise, or where nothing is defined: not those that all learn exactly."""
    variance = data["relative_variance"]
    kept = (variance > 0).any("estimator") | variance.isnull().all("estimator")
    return names(data.isel(layer=kept.values), "layer")


# ---- theory and tests ----------------------------------------------------------------------------------------


def names(dataset: xr.Dataset, dim: str) -> list[str]:
    return [str(name) for name in dataset[dim].values]


def dimension(data: xr.Dataset) -> int:
    """How many numbers FG-W perturbs by shared Gaussian noise, as its theory wants them; 0: FG-W is not there."""
    described = [line for line in str(data.attrs.get("estimators", "")).splitlines() if line.startswith("FG-W: ")]
    if "FG-W" not in names(data, "estimator") or not described or "noise=Gaussian(shared=None)" not in described[0]:
        return 0
    null = data["cosine_null"]
    return size(float((null.sel(layer=LAYER) if "layer" in null.dims else null).values.flat[0]))


def size(null: float) -> int:
    """The dimension d in which a random direction's |cosine| has the .95 quantile ``null``.

    The dataset holds no d, but cos² ~ Beta(½, (d − 1)/2) gives it back.
    """
    if null >= 1:
        return 1

    def excess(log: float) -> float:
        return float(special.betainc(0.5, (np.exp(log) - 1) / 2, null**2)) - 0.95

    return round(float(np.exp(optimize.brentq(excess, np.log(1.5), np.log(1e13), xtol=1e-13))))


def mean_cosine(d: int) -> float:
    """FG-W's E|cos| = Γ(d/2) / (√π Γ((d + 1)/2)) ≈ √(2/πd): its estimate is the direction u, turned to the gradient."""
    return float(np.exp(special.gammaln(d / 2) - special.gammaln((d + 1) / 2)) / np.sqrt(np.pi))


def layer_theory(data: xr.Dataset) -> NDArray[np.float64]:
    """FG-W's relative variance in each layer, 1 + d_layer ‖g‖²/‖g_layer‖²: every layer hears the noise of all.

    ``g`` is of all perturbed parameters. NaN for the total, where exact layers count, too, and where undefined.
    """
    layers = names(data, "layer")
    if not dimension(data) or "gradient_norm" not in data:
        return np.full(len(layers), np.nan)
    its = data.sel(estimator="FG-W")
    its = its.sel(reference="target") if "reference" in its.dims else its
    sizes = np.array([size(float(null)) for null in its["cosine_null"].values])
    norm = its["gradient_norm"]
    with np.errstate(divide="ignore", invalid="ignore"):
        expected = 1 + sizes * (norm.sel(layer=LAYER) / norm).values ** 2
    return np.where(its["relative_variance"].isnull() | (its["layer"] == "total"), np.nan, expected)


@dataclass(frozen=True)
class Bias:
    """The tests that each scheme is unbiased for its own target."""

    cells: int  # algorithm × step × estimator × layer, where there is noise
    smallest: float  # p-value, as stored: corrected for the projections of its cell
    where: str
    corrected: float  # the smallest, corrected (Šidák) for the cells
    threshold: float  # of one cell, so that all cells together have LEVEL
    below: int  # cells whose p-value is below it


def bias(dataset: xr.Dataset) -> Bias:
    """All of a dataset's tests of bias at once; the total is left out: its test is that of ``perturbed``."""
    kept = [layer for layer in names(dataset, "layer") if layer != "total"]
    p = dataset["bias_p"].sel(reference="target", layer=kept).stack(cell=("algorithm", "step", "estimator", "layer"))
    p = p[np.isfinite(p.values)]
    if not p.size:
        return Bias(0, np.nan, "", np.nan, LEVEL, 0)
    least = p[int(np.argmin(p.values))]
    algorithm, step, estimator, layer = least["cell"].item()
    where = f"{estimator}, {layer}, step {step}, trained by {algorithm}"
    corrected = -np.expm1(p.size * np.log1p(-min(float(least), 1 - 1e-16)))
    threshold = -np.expm1(np.log1p(-LEVEL) / p.size)
    return Bias(p.size, float(least), where, float(corrected), float(threshold), int((p < threshold).sum()))


# ---- captions ------------------------------------------------------------------------------------------------


def caption(dataset: xr.Dataset) -> str:
    """What the first figure shows, in words and in numbers from the dataset."""
    check(dataset)
    steps, data = dataset["step"].values, dataset.sel(layer=LAYER)
    parts = [
        f"Error and gradient quality over training on {dataset.attrs.get('data', '?')}, in the panels of each "
        f"algorithm that trained ({', '.join(names(dataset, 'algorithm'))}). "
        f"{_measured(dataset)} at {len(steps)} steps, {steps[0]} to {steps[-1]}.",
        "Shown is the layer 'perturbed': all parameters that a scheme estimates, together. Cosine: mean over draws "
        "of each draw's cosine to the scheme's own target (of local schemes the local gradient) and to the "
        "end-to-end gradient by backpropagation. Relative variance: trace of the covariance of the estimate given "
        f"the batch / ‖target‖². {_bands(data)}",
        f"Error on the train and test split after each epoch. {_training(dataset)}",
        f"Axes of error are linear below 0.01, of cosines below {cosine_limits(data)[0]:g}, elsewhere logarithmic.",
        _lines(data),
        _at_the_end(dataset),
        _undefined(data),
        _unbiased(dataset),
    ]
    return _text(dataset, parts)


def caption_layers(dataset: xr.Dataset, algorithm: str | None = None) -> str:
    """What the figure by layers shows."""
    data = last(dataset, algorithm)
    layers = estimated(data)
    exact = [name for name in names(data, "layer") if name not in layers]
    parts = [
        f"Gradient quality layer by layer at the last step ({data['step'].item()}) of training by "
        f"{data['algorithm'].item()} on {dataset.attrs.get('data', '?')}. {_measured(dataset)}.",
        "perturbed: all parameters that a scheme estimates, together; total: with those that every scheme learns "
        f"exactly{f', which have no row of their own ({len(exact)}: ' + ', '.join(exact) + ')' if exact else ''}.",
        f"{_bands(data.sel(layer=layers))} Axes of cosines are linear within ±{cosine_limits(data)[0]:g}.",
        f"p-value of bias: of the hypothesis that a scheme is unbiased for its own target in that layer; dashed: the "
        f"threshold {bias(dataset).threshold:.2g}, at which all cells of the dataset together reject unbiased "
        f"schemes with probability {LEVEL:g} at most."
        + (
            f" Values below {FLOOR:g} are drawn there."
            if (data["bias_p"].sel(reference="target") < FLOOR).any()
            else ""
        ),
        "Grey ticks: .95 quantile of the cosine of one random direction in the layer's dimension."
        + (" Black ticks: FG-W in theory, 1 + d ‖g‖²/‖g_layer‖²." if np.isfinite(layer_theory(data)).any() else ""),
        _undefined(data.sel(layer=layers)),
        _unbiased(dataset),
    ]
    return _text(dataset, parts)


def _text(dataset: xr.Dataset, parts: list[str]) -> str:
    smoke = "smoke=True" in str(dataset.attrs.get("configuration", ""))
    return "\n".join((["A smoke run: the numbers mean nothing."] if smoke else []) + [part for part in parts if part])


def _measured(dataset: xr.Dataset) -> str:
    get = dataset.attrs.get
    return (
        f"Values are {get('route', 'drawn')} (Monte Carlo, n = {get('draws', '?')} draws of each scheme's noise, seed "
        f"{get('seed', '?')}), given one fixed probe batch of {get('batch_size', '?')} examples"
    )


def _bands(data: xr.Dataset) -> str:
    lacking = int((data["relative_variance"].notnull() & data["relative_variance_se"].isnull()).sum())
    return f"Bands and bars: ±{style.Z} standard errors over the draws, given the batch" + (
        f"; {lacking} relative variances have none (too few draws)." if lacking else "."
    )


def _training(dataset: xr.Dataset) -> str:
    get = dataset.attrs.get
    return (
        f"One run of SGD for each algorithm (so error has no band): {get('train_epochs', '?')} epochs, batch "
        f"{get('train_batch', '?')}, initial learning rate {get('train_lr', '?')}, momentum "
        f"{get('train_momentum', '?')}, weight decay {get('train_weight_decay', '?')}, seed {get('train_seed', '?')}."
    )


def _lines(data: xr.Dataset) -> str:
    null, d = float(data["cosine_null"].values.flat[0]), dimension(data)
    text = f"Dotted: .95 quantile ({null:.2g}) of the cosine of one random direction; means over draws resolve less."
    if d:
        text += (
            f" Thin black: FG-W in theory, d = {d} Gaussian numbers: relative variance d + 1, mean cosine "
            f"Γ(d/2)/(√π Γ((d + 1)/2)) = {mean_cosine(d):.2g}."
        )
    return text


def _at_the_end(dataset: xr.Dataset) -> str:
    """Errors, relative variances and cosines of the last step."""
    parts = []
    for algorithm in names(dataset, "algorithm"):
        run = dataset.sel(algorithm=algorithm, layer=LAYER).isel(epoch=-1, step=-1)
        values = [
            f"{name} {_plus_minus(its['relative_variance'], its['relative_variance_se'])}"
            for name in names(dataset, "estimator")
            if (its := run.sel(estimator=name))["relative_variance"] > 0
        ]
        parts.append(
            f"Trained by {algorithm}: in the end {run['train_error'].item():.2%} train and "
            f"{run['test_error'].item():.2%} test error; relative variance (± standard error) {', '.join(values)}."
        )
    return " ".join(parts)


def _plus_minus(value: xr.DataArray, error: xr.DataArray) -> str:
    return f"{value.item():.3g}" + (f" ± {error.item():.2g}" if np.isfinite(error) else "")


def _undefined(data: xr.Dataset) -> str:
    """What is not drawn, and why."""
    variance = data["relative_variance"]
    none = [name for name in names(data, "estimator") if (variance.sel(estimator=name).fillna(0) == 0).all()]
    exact = [name for name in none if (variance.sel(estimator=name) == 0).any()]
    text = f"Without noise, so with relative variance 0 and no test of bias: {', '.join(exact)}." if exact else ""
    missing = int(data["cosine"].isnull().sum() + variance.isnull().sum())
    if missing:
        text += f" {missing} values are undefined (NaN: their reference gradient is 0 within rounding) and left out."
        if "layer" in data.dims:
            text += (
                f" Layers: {', '.join(names(data.isel(layer=variance.isnull().all('estimator').values), 'layer'))}."
            )
    return text.strip()


def _unbiased(dataset: xr.Dataset) -> str:
    found = bias(dataset)
    if not found.cells:
        return ""
    return (
        f"Bias against each scheme's own target, tested in {found.cells} cells (algorithm × step × estimator × layer "
        f"with noise): smallest p = {found.smallest:.2g} ({found.where}), Šidák-corrected over the cells "
        f"{found.corrected:.2g}; {found.below} cells are below the threshold {found.threshold:.2g} "
        f"(level {LEVEL:g} over all)."
    )


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except (OSError, ValueError) as error:
        raise SystemExit(f"figures.quickstart: {error}") from None
