"""Closed forms of means and variances, and what decides between perturbing weights and activities."""

from fgvar.theory.activity_ratio import ActivityRatio, activity_ratio
from fgvar.theory.applicability import no_closed_form
from fgvar.theory.closed_forms import mean, trace, variance

__all__ = ["ActivityRatio", "activity_ratio", "mean", "no_closed_form", "trace", "variance"]
