"""Measurement: bias, variance and direction of estimators, from draws or closed forms, as datasets with errors.

`fgvar.measure` does it all. Its parts are here for who computes with them: the estimates of given noise, the moments
that are kept of a stream of estimates, the statistics made of them, and the dataset's names and provenance.
"""

from fgvar.lazy import lazy

_NAMES = {
    # estimates
    "estimates": "fgvar.measurement.draws",
    "ranges": "fgvar.measurement.draws",
    # moments
    "BLOCK": "fgvar.measurement.moments",
    "Block": "fgvar.measurement.moments",
    "Moments": "fgvar.measurement.moments",
    "init": "fgvar.measurement.moments",
    "absorb": "fgvar.measurement.moments",
    "BUCKETS": "fgvar.measurement.references",
    "References": "fgvar.measurement.references",
    "Drawn": "fgvar.measurement.sampled",
    # statistics
    "Sums": "fgvar.measurement.sums",
    "Estimated": "fgvar.measurement.intervals",
    "interval": "fgvar.measurement.intervals",
    "BY_REFERENCE": "fgvar.measurement.statistics",
    "bias_test": "fgvar.measurement.statistics",
    "snr": "fgvar.measurement.statistics",
    "variance": "fgvar.measurement.statistics",
    "Measured": "fgvar.measurement.paired",
    "differences": "fgvar.measurement.paired",
    # datasets
    "ENDS": "fgvar.measurement.dataset",
    "FLAGS": "fgvar.measurement.dataset",
    "provenance": "fgvar.measurement.dataset",
    "tabular": "",
    "LABELS": "fgvar.measurement.dataset_checks",
    "missing_from": "fgvar.measurement.dataset_checks",
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy(__name__, _NAMES)
