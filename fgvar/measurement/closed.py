"""The exact route: computes the numbers of `fgvar.measurement.statistics` from closed forms, where they have one.

With m = E ĝ and V = tr Cov ĝ: ‖m − r‖², ⟨m, r⟩/‖r‖², ‖m‖²/V and ⟨m, r⟩²/‖r‖²(‖m‖² + V).
"""

from collections.abc import Mapping

import numpy as np
import torch

from fgvar.errors import unknown
from fgvar.estimators.estimator import GradientEstimator
from fgvar.measurement.intervals import Estimated
from fgvar.measurement.references import References
from fgvar.measurement.statistics import BY_REFERENCE
from fgvar.problem import Problem
from fgvar.theory import closed_forms
from fgvar.theory.applicability import no_closed_form

ROUTES = ("drawn", "exact")


def check_route(route: str, estimators: Mapping[str, GradientEstimator], problem: Problem, keep_draws: bool) -> None:
    """Raise where this route cannot measure these estimators."""
    if route not in ROUTES:
        raise ValueError(unknown("route", route, ROUTES))
    if route == "drawn":
        return
    if keep_draws:
        raise ValueError("keep_draws=True keeps what is computed draw by draw, and route='exact' draws nothing")
    for name, estimator in estimators.items():
        reason = no_closed_form(estimator, problem)
        if reason and estimator.randomness(problem).size:
            raise ValueError(f"estimator {name!r} has no closed form: {reason}; measure it with route='drawn'")


def exact_statistics(
    estimator: GradientEstimator, problem: Problem, references: References, budget: int
) -> dict[str, Estimated]:
    """Like `fgvar.measurement.statistics.statistics`, every error 0 and every interval the value.

    Tests of a bias have no place here, and the mean of the per-draw cosines has no closed form: NaN, unless
    there is no noise.
    """
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
