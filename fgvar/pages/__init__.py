"""Pages: a dataset or a check report as one HTML file that needs nothing else: no network, no script from elsewhere.

`of_dataset` and `of_report` return the text of the file; ``fgvar report`` and ``fgvar check --report`` write it.
Tables sort, figures are inline SVG, and both read without script, on paper, in the dark and on a telephone.
"""

from fgvar.lazy import lazy

_NAMES = {
    "of_dataset": "fgvar.pages.dataset_page",
    "of_report": "fgvar.pages.check_page",
    "write": "fgvar.pages.page",
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy(__name__, _NAMES)
