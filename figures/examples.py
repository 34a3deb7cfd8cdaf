"""The pictures of the examples of studies/README.md, by the functions that they call.

A report of checks is no dataset: the picture of the proof is drawn by its example alone.
"""

import xarray as xr
from matplotlib.figure import Figure

from fgvar import plot
from figures.page import Figures, Page

PAGE = Page("an example of studies/README.md", {"relative_variance": ("estimator",)})


def _for_the_paper(grid: xr.Dataset) -> Figure:
    with plot.venue("icml", columns=1):
        return plot.sweep(grid, x="width", y="relative_variance")


EXAMPLES: dict[str, Figures] = {
    "example_network": {"": (PAGE.drawn(plot.layers), plot.caption)},
    "example_figure": {"": (PAGE.drawn(_for_the_paper), plot.caption)},
}
