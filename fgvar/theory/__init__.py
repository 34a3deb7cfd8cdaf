"""Closed forms of means and variances, and what decides between perturbing weights and activities."""

from fgvar.theory.activity_ratio import ActivityRatio, activity_ratio
from fgvar.theory.applicability import no_closed_form
from fgvar.theory.closed_forms import mean, trace, variance
from fgvar.theory.sampled_sums import inclusion, log_second_moment

__all__ = [
    "ActivityRatio",
    "activity_ratio",
    "inclusion",
    "log_second_moment",
    "mean",
    "no_closed_form",
    "trace",
    "variance",
]
