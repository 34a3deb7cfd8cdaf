"""The figures of Table 3's probes: six schemes on the same weights, over training by each algorithm; layer by layer.

Run   python -m figures.table3_probes results/table3_probes.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption), and <stem>_layers.*.
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fgvar.plot import Sheet, datasets, drawing, intervals, looks, marks, series
from figures import command
from figures.page import Figures, Page

LAYER = "perturbed"  # all parameters that a scheme estimates
TRAINED = ("BP", "LG-FG-A")  # of all that trained, those that are drawn beside other networks
TITLES = ("cosine to target", "cosine to backprop", "relative variance")
NEEDED = {
    **dict.fromkeys(
        ("cosine", "cosine_se", "gradient_norm"), ("network", "algorithm", "probe", "estimator", "reference", "layer")
    ),
    "relative_variance": ("network", "algorithm", "probe", "estimator", "layer"),
    "step": ("network", "algorithm", "probe"),
    **dict.fromkeys(("data_variance", "cosine_null"), ("layer",)),
}
PAGE = Page("studies/table3.py", NEEDED)
DATA: dict[str, Any] = {"color": "black", "linestyle": (0, (5, 2)), "linewidth": 0.6, "zorder": 1.5}


def runs(dataset: xr.Dataset) -> list[tuple[str, str]]:
    """Which runs are drawn: of one network all that were probed; of several those of `TRAINED`, else the first."""
    probed = dataset["step"].notnull().any("probe")
    found = []
    networks = datasets.names(dataset, "network")
    for network in networks:
        there = [name for name in datasets.names(dataset, "algorithm") if probed.sel(network=network, algorithm=name)]
        drawn = there if len(networks) == 1 else [n for n in TRAINED if n in there] or there[:1]
        found += [(network, name) for name in drawn]
    return found


def run_of(dataset: xr.Dataset, network: str, algorithm: str) -> xr.Dataset:
    """One run over its own probes, with the data variance over the target's squared norm."""
    one = dataset.sel(network=network, algorithm=algorithm)
    one = one.isel(probe=one["step"].notnull().values)
    target = one.sel(reference="target")
    norm = target["gradient_norm"]
    return one.assign(
        relative_data_variance=(target["data_variance"] / norm**2).where(norm > 0).drop_vars("reference")
    )


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A row for each run, with both cosines and the relative noise variance of six schemes over training."""
    rows = runs(dataset)
    grid = sheet.grid(len(rows), len(TITLES), head=0.75, height=1.05)
    for row, (network, algorithm) in zip(grid, rows, strict=True):
        _run(row, run_of(dataset, network, algorithm).sel(layer=LAYER))
        row[0].set_ylabel(f"{network}\nby {algorithm}")
    for axes, title in zip(grid[0], TITLES, strict=True):
        axes.set_title(title)
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    helpers = [
        Line2D([], [], label="random direction", **looks.NULL),
        Line2D([], [], label="data, backprop", **DATA),
    ]
    sheet.schemes(datasets.names(dataset, "estimator"), helpers)


def _run(row: NDArray[Any], one: xr.Dataset) -> None:
    steps = one["step"].values
    for axes, reference in zip(row[:2], ("target", "backprop"), strict=True):
        drawing.log_steps(axes, steps)
        drawing.symlog(axes, "y", 0.01, (-0.02, 1.3))
        its = one.sel(reference=reference)
        for scheme in looks.in_order(datasets.names(one, "estimator")):
            drawn = series.of(its.sel(estimator=scheme), "cosine")
            marks.band(axes, steps, drawn, looks.look(scheme), label=scheme)
        axes.plot(steps, one["cosine_null"], **looks.NULL)
    drawing.log_steps(row[2], steps)
    noisy = one["relative_variance"].where(one["relative_variance"] > 1e-9)
    data = one["relative_data_variance"].sel(estimator="BP")
    shown = np.concatenate([noisy.values.ravel(), data.values.ravel()])
    drawing.log(row[2], "y", (float(np.nanmin(shown)) / 2, float(np.nanmax(shown)) * 2))
    for scheme in looks.in_order(datasets.names(one, "estimator")):
        exact = series.of(one.assign(noisy=noisy).sel(estimator=scheme), "noisy", certain=True)
        marks.band(row[2], steps, exact, looks.look(scheme), label=scheme)
    row[2].plot(steps, data, **DATA)


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    drawn = {run: run_of(dataset, *run).sel(layer=LAYER) for run in runs(dataset)}
    unsure = any(bool((one["cosine"].notnull() & one["cosine_se"].isnull()).any()) for one in drawn.values())
    return [
        "Gradient quality over complete training runs: six schemes on the same weights and probe batch, at "
        f"log-spaced steps of the first probed run of each algorithm (batch sizes: {get('batch_size', '?')}). Rows: "
        "network and the algorithm that trains it (probing never changes the run). All parameters that a scheme "
        "estimates.",
        f"Cosines: drawn, {get('draws', '?')} draws whose directional derivatives are replayed from the known "
        f"gradient, {intervals.words(dataset, 'cosine')}; those of BP and LG-BP have no "
        "noise. Relative variance (noise variance over the squared norm of the target; its inverse is the SNR): "
        "exact, from its closed form. Long dashes: "
        "data variance of backprop's "
        "gradient (variance between examples over batch size) over its squared norm. Dotted: 95 % half-width of the "
        "cosine of one random direction. Axes of cosines are linear below 0.01."
        + " ? stands beside a cosine without a standard error."
        * unsure,
        *(_said(one, *run) for run, one in drawn.items()),
    ]


def _said(one: xr.Dataset, network: str, algorithm: str) -> str:
    """How variances and the local target's direction went from the first probe to the last."""
    noisy = [
        n
        for n in looks.in_order(datasets.names(one, "estimator"))
        if float(one["relative_variance"].sel(estimator=n).max()) > 1e-9
    ]
    ends = one.isel(probe=[0, -1])
    values = ", ".join(
        f"{name} " + " to ".join(f"{v:.3g}" for v in ends["relative_variance"].sel(estimator=name).values)
        for name in noisy
    )
    local = ends["cosine"].sel(estimator="LG-BP", reference="backprop").values
    data = ends["relative_data_variance"].sel(estimator="BP").values
    first, last = (int(step) for step in ends["step"].values)
    return (
        f"{network} by {algorithm}, step {first} to step {last}: relative noise variance {values}; data variance of "
        f"backprop {data[0]:.2g} to {data[1]:.2g}; cosine of the local target (LG-BP) to backprop {local[0]:.2f} to "
        f"{local[1]:.2f}."
    )


# ---- layer by layer ------------------------------------------------------------------------------------------

ROWS = {
    "cosine\nto target": ("cosine", "target"),
    "cosine\nto backprop": ("cosine", "backprop"),
    "relative\nvariance": ("relative_variance", None),
    "relative\ndata variance": ("relative_data_variance", None),
}


def by_layer(dataset: xr.Dataset) -> tuple[str, str, xr.Dataset]:
    """The last run that is drawn (largest network, last algorithm), and its layers that are estimated by noise."""
    network, algorithm = runs(dataset)[-1]
    one = run_of(dataset, network, algorithm)
    noisy = [
        n
        for n in looks.in_order(datasets.names(one, "estimator"))
        if float(one["relative_variance"].sel(estimator=n, layer=LAYER).max()) > 1e-9
    ]
    one = one.sel(estimator=noisy)
    shown = (one["relative_variance"] > 1e-9).any(("estimator", "probe")) & ~one["layer"].isin(["perturbed", "total"])
    return network, algorithm, one.isel(layer=shown.values)


@PAGE.figure
def draw_layers(sheet: Sheet, dataset: xr.Dataset) -> None:
    """Shades over training (across) and layers (down), a column for each noisy scheme (one column: the last two)."""
    *_, one = by_layer(dataset)
    schemes = datasets.names(one, "estimator")[-4 if sheet.wide else -2 :]
    names = datasets.names(one, "layer")
    height = max(0.85, 0.2 + 0.085 * len(names))
    grid = sheet.grid(len(ROWS), len(schemes), head=0.6, height=height, sharex=True, sharey=True)
    for row, (title, (variable, reference)) in zip(grid, ROWS.items(), strict=True):
        values = one[variable] if reference is None else one[variable].sel(reference=reference)
        image = _shades(row, values.sel(estimator=schemes), is_cosine=variable == "cosine")
        sheet.figure.colorbar(image, ax=list(row), label=title, aspect=18, pad=0.01)
        row[0].set_yticks(range(len(names)), names, fontsize="xx-small")
    for axes, scheme in zip(grid[0], schemes, strict=True):
        axes.set_title(scheme)
    steps = one["step"].values.astype(int)
    for axes in grid[-1]:
        axes.set_xticks([0, len(steps) - 1], [str(steps[0]), str(steps[-1])])
        axes.set_xlabel("step")


def _shades(row: NDArray[Any], values: xr.DataArray, *, is_cosine: bool) -> Any:
    """One panel for each scheme, of one scale."""
    if is_cosine:
        norm: Normalize = Normalize(0, max(float(values.max()), 1e-3))
    else:
        positive = values.where(values > 1e-9)
        norm = LogNorm(float(positive.min()), float(positive.max()))
    image = None
    for axes, scheme in zip(row, values["estimator"].values, strict=True):
        panel: Axes = axes
        shown = values.sel(estimator=scheme).transpose("layer", "probe").values
        image = panel.imshow(
            np.ma.masked_invalid(shown), norm=norm, cmap="viridis", aspect="auto", interpolation="none"
        )
        panel.tick_params(length=0)
        panel.grid(visible=False)
        panel.set_facecolor("0.85")
    return image


@PAGE.caption
def caption_layers(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    network, algorithm, one = by_layer(dataset)
    last = one.isel(probe=-1).sel(estimator=datasets.names(one, "estimator")[-1])
    last = last.sortby("relative_variance").dropna("layer", subset=["relative_variance"])
    least, most = (last.isel(layer=i) for i in (0, -1))
    return [
        f"The same layer by layer: {network} trained by {algorithm}. Across: probes, log-spaced steps "
        f"{int(one['step'].values[0])} to {int(one['step'].values[-1])}; down: layers. Grey: undefined (a gradient "
        "of 0, such as that of a bias which a layer norm cancels). Variances are over the squared norm of the "
        "layer's own target: noise variance exact, data variance between examples over batch size; cosines drawn, "
        "replayed.",
        f"At the last probe {last['estimator'].item()} is least noisy at {least['layer'].item()} (relative variance "
        f"{least['relative_variance'].item():.3g}) and most at {most['layer'].item()} "
        f"({most['relative_variance'].item():.3g}).",
    ]


FIGURES: Figures = {"": (draw, caption), "_layers": (draw_layers, caption_layers)}

if __name__ == "__main__":
    command.run("figures.table3_probes", __doc__, FIGURES)
