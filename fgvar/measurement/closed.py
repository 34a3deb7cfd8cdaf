"""The exact route: computes the numbers of `fgvar.measurement.statistics` from closed forms, where they have one.

With m = E ĝ and V = tr Cov ĝ: ‖m − r‖², ⟨m, r⟩/‖r‖², ‖m‖²/V and ⟨m, r⟩²/‖r‖²(‖m‖² + V).
"""

import warnings
from collections.abc import Mapping

import numpy as np
import torch

from fgvar.errors import unknown
from fgvar.estimators.protocol import GradientEstimator
from fgvar.measurement.intervals import Estimated
from fgvar.measurement.references import GROUPS, References
from fgvar.measurement.statistics import BY_REFERENCE
from fgvar.problem import Problem
from fgvar.theory import closed_forms
from fgvar.theory.applicability import no_closed_form

ROUTES = ("drawn", "exact")


def check_route(route: str, estimators: Mapping[str, GradientEstimator], problem: Problem, keep_draws: bool) -> None:
    """Raise where this route can measure none of these estimators, and warn of those that it cannot."""
    if route not in ROUTES:
        raise ValueError(unknown("route", route, ROUTES))
    if route == "drawn":
        return
    if keep_draws:
        raise ValueError("keep_draws=True keeps what is computed draw by draw, and route='exact' draws nothing")
    without = {name: reason for name, one in estimators.items() if (reason := _drawn_alone(one, problem))}
    for name, reason in without.items():
        sentence = f"estimator {name!r} has no closed form: {reason}; "
        if len(without) == len(estimators):
            raise ValueError(f"{sentence}measure it with route='drawn'")
        warnings.warn(f"{sentence}its numbers are NaN with a flag, and route='drawn' measures it", stacklevel=3)


def _drawn_alone(estimator: GradientEstimator, problem: Problem) -> str | None:
    """Why its numbers can only be drawn; None where there is a closed form, or no noise."""
    reason = no_closed_form(estimator, problem)
    return reason if reason and estimator.randomness(problem).size else None


def exact_statistics(
    estimator: GradientEstimator, problem: Problem, references: References, budget: int
) -> dict[str, Estimated]:
    """Like `fgvar.measurement.statistics.statistics`, every error 0 and every interval the value.

    Tests of a bias have no place here, and the mean of the per-draw cosines has no closed form: NaN, unless
    there is no noise. Of an estimator without a closed form all are.
    """
    if no_closed_form(estimator, problem):
        layers = len(references.target) + len(GROUPS)
        nothing = {name: np.full(layers, np.nan) for name in ("variance", "snr")}
        nothing |= {name: np.full((2, layers), np.nan) for name in BY_REFERENCE}
        return {name: Estimated.exact(value) for name, value in nothing.items()}
    found = closed_forms.moments(estimator, problem, budget=budget)
    mean = {k: g.detach().double().flatten() for k, g in found.mean.items()}
    spread = {k: v.double().sum() for k, v in found.variance.items()}
    sums = []
    # Products by parameter add up to those of the groups, of which there is no vector.
    for name, target in references.target.items():
        m, pair = mean[name], (target.double(), references.backprop[name].double())
        own = [spread[name], m @ m]
        sums.append(torch.stack([*own, *(v for r in pair for v in (m @ r, r @ r, (m - r) @ (m - r)))]))
    variance, signal, *rest = references.grouped(sums).cpu().numpy().T
    inner, length, sq_bias = (np.stack([rest[i], rest[i + 3]]) for i in range(3))
    with np.errstate(divide="ignore", invalid="ignore"):
        values = {
            "variance": variance,
            "snr": signal / variance,
            "sq_bias": sq_bias,
            "slope": inner / length,
            # Of one estimate alone: the mean of many cosines is not the cosine of the mean.
            "cosine": np.where(variance == 0, inner / np.sqrt(length * signal), np.nan),
            "efficiency": inner**2 / (length * (signal + variance)),
        }
    empty = np.full_like(sq_bias, np.nan)
    values |= {name: empty for name in BY_REFERENCE if name not in values}
    return {name: Estimated.exact(value) for name, value in values.items()}
