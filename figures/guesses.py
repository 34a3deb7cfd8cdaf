"""The figure of the guess matrix: how close each guess comes to its target and to backprop.

Run   python -m figures.guesses results/guesses.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import seaborn
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import command, style

DIMS = ("space", "target", "guess", "seed")
NEEDED: dict[str, tuple[str, ...]] = {
    "cosine": (*DIMS, "reference"),
    "cosine_se": (*DIMS, "reference"),
    "cosine_null": (),
}
SOURCE = "studies/guesses.py"
REFERENCES = {"target": "cosine to its target", "backprop": "cosine to backprop"}


def draw(dataset: xr.Dataset, *, venue: style.Venue = "iclr", columns: style.Columns = 2) -> Figure:
    """A grid for each reference, side by side over two columns: guesses by spaces and targets.

    Raises:
        ValueError: not a dataset of this study, an unknown venue or number of columns.
    """
    cosine = matrix(dataset)
    shape = (1, 2) if columns == 2 else (2, 1)
    with style.context(venue):
        height = 0.5 + 0.21 * cosine.sizes["guess"]
        figure = Figure((style.width(venue, columns), height * shape[0]), layout="constrained")
        panels = figure.subplots(*shape, sharey=True, sharex=True, squeeze=False).flat
        for axes, (reference, title) in zip(panels, REFERENCES.items(), strict=True):
            _grid(axes, cosine.sel(reference=reference))
            axes.set_title(title)
        style.settle(figure)
    return figure


def matrix(dataset: xr.Dataset) -> xr.DataArray:
    """Mean cosines over seeds: ``reference``, ``guess`` (best first) and ``place`` (space and target)."""
    style.require(dataset, NEEDED, SOURCE)
    cosine = dataset["cosine"].mean("seed").stack(place=("space", "target"))
    order = np.argsort(-cosine.mean(("reference", "place")).values, kind="stable")
    return cosine.isel(guess=order).transpose("reference", "guess", "place")


def _grid(axes: Axes, cosine: xr.DataArray) -> None:
    """Shades with the numbers on them."""
    values = cosine.to_pandas()
    words = values.map(lambda value: f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–")
    seaborn.heatmap(
        values, annot=words, fmt="", annot_kws={"fontsize": "small"}, cmap="Blues", vmin=0, vmax=1.15,
        cbar=False, ax=axes, xticklabels=["\n".join(place) for place in cosine["place"].values], yticklabels=True,
    )  # fmt: skip
    axes.set(xlabel="", ylabel="")
    axes.tick_params(length=0, rotation=0)


def caption(dataset: xr.Dataset) -> str:
    """What the figure shows, in words and in numbers from the dataset."""
    style.require(dataset, NEEDED, SOURCE)
    get, cosine = dataset.attrs.get, dataset["cosine"]
    parts = [
        "The guess matrix (Fournier et al. 2023): the projection of a target on a guess, for every example and "
        "tensor alone. Rows: guesses, best first; columns: the space in which is projected (weights or activities), "
        "and below it the target (of the global loss, or of the blocks' local losses).",
        f"Mean cosines in all perturbed parameters, drawn ({get('config_draws', '?')} draws for each of "
        f"{dataset.sizes['seed']} seeds of network, batch and noise; batches of {get('config_batch', '?')} digits "
        f"after {get('trained_steps', '?')} steps of backprop); for one seed the largest standard error is "
        f"{float(dataset['cosine_se'].max()):.2g}, and seeds lie at most "
        f"{float((cosine.max('seed') - cosine.min('seed')).max()):.2g} apart. Guesses without noise (local, NTK, "
        f"global) are evaluated once. A random direction lies within "
        f"±{float(dataset['cosine_null'].max()):.2g} in 95 of 100 cases.",
        "Guess and target of the same loss give the target itself, and the cosine of 1 says so.",
    ]
    return style.text(dataset, parts)


FIGURES: command.Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.guesses", __doc__, FIGURES)
