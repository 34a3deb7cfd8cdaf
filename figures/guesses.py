"""The figure of the guess matrix: how close each guess comes to its target and to backprop.

`figures.all_schemes` writes it, from the same dataset.
"""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from figures import style

LAYER = "perturbed"
NEEDED = {
    **dict.fromkeys(("cosine", "cosine_se"), ("estimator", "reference", "layer")),
    "kind": ("estimator",),
    "cosine_null": ("layer",),
}
SOURCE = "studies/all_schemes.py"
REFERENCES = {"target": "cosine to its target", "backprop": "cosine to backprop"}


def draw(dataset: xr.Dataset, *, venue: style.Venue = "iclr", columns: style.Columns = 2) -> Figure:
    """A grid for each reference, side by side over two columns: guesses by spaces and targets.

    Raises:
        ValueError: not a dataset of all schemes, an unknown venue or number of columns.
    """
    data = matrix(dataset)
    shape = (1, 2) if columns == 2 else (2, 1)
    with style.context(venue):
        height = 0.5 + 0.21 * data.sizes["guess"]
        figure = Figure((style.width(venue, columns), height * shape[0]), layout="constrained")
        panels = figure.subplots(*shape, sharey=True, sharex=True, squeeze=False).flat
        for axes, (reference, title) in zip(panels, REFERENCES.items(), strict=True):
            _grid(axes, data["cosine"].sel(reference=reference))
            axes.set_title(title)
        style.settle(figure)
    return figure


def matrix(dataset: xr.Dataset) -> xr.Dataset:
    """The guess matrix alone, over ``guess`` (best first) and ``place`` (space and target)."""
    style.require(dataset, NEEDED, SOURCE)
    data = dataset.isel(estimator=(dataset["kind"] == "guess matrix").values).sel(layer=LAYER)
    data = data[["cosine", "cosine_se"]]
    words = [name.split("/") for name in style.names(data, "estimator")]
    if any(len(three) != 3 for three in words) or not words:
        raise ValueError(f"not a dataset of {SOURCE}: the guess matrix has names like weight/global/Gaussian")
    places, guesses = (
        list(dict.fromkeys(one)) for one in ([f"{s}/{t}" for s, t, _ in words], [g for _, _, g in words])
    )
    whole = data.reindex(estimator=[f"{place}/{guess}" for guess in guesses for place in places])
    found = xr.Dataset(
        {
            name: (
                ("reference", "guess", "place"),
                values.transpose("reference", "estimator").values.reshape(-1, len(guesses), len(places)),
            )
            for name, values in whole.data_vars.items()
        },
        coords={"reference": data["reference"].values, "guess": guesses, "place": places},
    )
    return found.isel(guess=np.argsort(-found["cosine"].mean(("reference", "place")).values, kind="stable"))


def _grid(axes: Axes, cosine: xr.DataArray) -> None:
    """Shades with the numbers on them."""
    values = cosine.values
    axes.imshow(np.clip(values, 0, 1), cmap="Blues", vmin=0, vmax=1.15, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        color = "white" if value > 0.6 else "black"
        text = f"{value:.2f}".replace("-", "−") if np.isfinite(value) else "–"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize="small")
    axes.set_xticks(range(values.shape[1]), [str(p).replace("/", "\n") for p in cosine["place"].values])
    axes.set_yticks(range(values.shape[0]), [str(g) for g in cosine["guess"].values])
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)


def caption(dataset: xr.Dataset) -> str:
    """What the figure shows, in words and in numbers from the dataset."""
    data, get = matrix(dataset), dataset.attrs.get
    null = dataset["cosine_null"].sel(layer=LAYER).item()
    parts = [
        "The guess matrix (Fournier et al. 2023): the projection of a target on a guess, for every example and "
        "tensor alone. Rows: guesses, best first; columns: the space in which is projected (weights or activities), "
        "and below it the target (of the global loss, or of the blocks' local losses).",
        f"Mean cosines in all perturbed parameters, drawn ({get('draws', '?')} draws, given one batch of "
        f"{get('batch_size', '?')} digits after {get('trained_steps', '?')} steps of backprop); the largest standard "
        f"error is {float(data['cosine_se'].max()):.2g}, and guesses without noise (local, NTK, global) are "
        f"evaluated once. A random direction lies within ±{null:.2g} in 95 of 100 cases.",
        "Guess and target of the same loss give the target itself, and the cosine of 1 says so.",
    ]
    return style.text(dataset, parts)
