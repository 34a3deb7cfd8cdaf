"""The quickstart's figure: error, both cosines and relative variance over training.

Run   python -m figures.quickstart results/quickstart.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption), and <stem>_layers.* of the last step.
"""

import xarray as xr

from fgvar import plot
from fgvar.plot import datasets, intervals
from figures import command
from figures.page import Figures, Page

LAYER = "perturbed"  # all parameters that a scheme estimates
NEEDED = {
    "train_error": ("algorithm", "epoch"),
    "test_error": ("algorithm", "epoch"),
    **dict.fromkeys(("cosine", "cosine_se", "bias_p"), ("algorithm", "step", "estimator", "reference", "layer")),
    **dict.fromkeys(("relative_variance", "relative_variance_se"), ("algorithm", "step", "estimator", "layer")),
    **dict.fromkeys(("cosine_null", "size"), ("layer",)),
}
PAGE = Page("studies/quickstart.py", NEEDED)

draw = PAGE.drawn(plot.training)


@PAGE.caption
def caption(dataset: xr.Dataset) -> list[str]:
    """What the figure shows, in words and in numbers from the dataset."""
    get = dataset.attrs.get
    return [
        f"Training on {get('data', '?')}: {get('train_epochs', '?')} epochs of SGD, batch {get('train_batch', '?')}, "
        f"initial learning rate {get('train_lr', '?')}, momentum {get('train_momentum', '?')}, weight decay "
        f"{get('train_weight_decay', '?')}, seed {get('train_seed', '?')}.",
        plot.caption(dataset, "training"),
        *(_at_the_end(dataset.sel(algorithm=name), name) for name in datasets.names(dataset, "algorithm")),
    ]


def _at_the_end(run: xr.Dataset, name: str) -> str:
    """Errors and relative variances of the last step."""
    last = run.sel(layer=LAYER).isel(epoch=-1, step=-1)
    values = [
        f"{scheme} {intervals.written(its, 'relative_variance')}"
        for scheme in datasets.names(last, "estimator")
        if (its := last.sel(estimator=scheme))["relative_variance"] > 0
    ]
    return (
        f"Trained by {name}: in the end {last['train_error'].item():.2%} train and {last['test_error'].item():.2%} "
        f"test error; relative variance {', '.join(values)} ({intervals.words(run, 'relative_variance')})."
    )


def last(dataset: xr.Dataset) -> xr.Dataset:
    """The last algorithm's last step."""
    return dataset.isel(algorithm=-1, step=-1)


layers = PAGE.drawn(lambda dataset: plot.layers(last(dataset)))


@PAGE.caption
def caption_layers(dataset: xr.Dataset) -> list[str]:
    """What the figure by layers shows."""
    its = last(dataset)
    return [f"Of training by {its['algorithm'].item()}, step {its['step'].item()}.", plot.caption(its, "layers")]


FIGURES: Figures = {"": (draw, caption), "_layers": (layers, caption_layers)}

if __name__ == "__main__":
    command.run("figures.quickstart", __doc__, FIGURES)
