"""The figure of the guess matrix: how close each guess comes to its target and to backprop.

Run   python -m figures.guesses results/guesses.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

import numpy as np
import seaborn
import xarray as xr
from matplotlib.axes import Axes

from fgvar.plot import Sheet
from figures import command
from figures.page import Figures, Page

DIMS = ("space", "target", "guess", "seed")
NEEDED: dict[str, tuple[str, ...]] = {
    "cosine": (*DIMS, "reference"),
    "cosine_se": (*DIMS, "reference"),
    "cosine_null": (),
}
PAGE = Page("studies/guesses.py", NEEDED)
REFERENCES = {"target": "cosine to its target", "backprop": "cosine to backprop"}


@PAGE.figure
def draw(sheet: Sheet, dataset: xr.Dataset) -> None:
    """A grid for each reference, side by side over two columns: guesses by spaces and targets."""
    cosine = matrix(dataset)
    panels = sheet.row(2, head=0, height=0.5 + 0.21 * cosine.sizes["guess"], sharex=True, sharey=True)
    for axes, (reference, title) in zip(panels, REFERENCES.items(), strict=True):
        _grid(axes, cosine.sel(reference=reference))
        axes.set_title(title)


def matrix(dataset: xr.Dataset) -> xr.DataArray:
    """Mean cosines over seeds: ``reference``, ``guess`` (best first) and ``place`` (space and target)."""
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


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get, cosine = dataset.attrs.get, dataset["cosine"]
    return [
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


FIGURES: Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.guesses", __doc__, FIGURES)
