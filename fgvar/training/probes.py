"""Probes: measure gradients at chosen steps of a run, on a batch and noise of their own, and change nothing of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from torch.utils._pytree import tree_map

from fgvar.data.split import Batch
from fgvar.errors import unknown
from fgvar.estimators.protocol import GradientEstimator
from fgvar.identity import described, fingerprint
from fgvar.measurement.arguments import BUDGET, Settings, check_arguments
from fgvar.measurement.budget import examples_at_once
from fgvar.measurement.closed import check_route
from fgvar.measurement.data_variance import DataVariance
from fgvar.measurement.dataset import ENDS
from fgvar.measurement.measure import measure_unchecked
from fgvar.measurement.references import require_layer_names
from fgvar.nn.structures import cast
from fgvar.problem import Problem
from fgvar.problem_checks import named_leaves, require_pair
from fgvar.theory.applicability import no_closed_form


@dataclass(frozen=True)
class Probe:
    """When and how gradients are measured during a run. Probing has its own random streams and batch.

    Args:
        estimators: what to measure, at the run's own parameters.
        batch: inputs and targets of the fixed probe batch (in a run with views, one pair of them is made of it).
        steps: after how many updates (0: before training; a zero head then has no trunk gradient).
        draws: see `measure`.
        seed: of the probes' noise.
        route: "drawn"; "exact"; or "both": what has a closed form from it, with error 0, and the rest (cosines,
            tests of bias, estimators without one) from draws.

    Raises:
        ValueError: an unknown route.

    Example:
        >>> import fgvar
        >>> Probe({"FG-A": fgvar.scheme("FG-A")}, fgvar.data.load("digits").sample(8, seed=0), steps=(0, 10)).draws
        128
    """

    estimators: Mapping[str, GradientEstimator]
    batch: Batch
    steps: Sequence[int]
    draws: int = 128
    seed: int = 0
    route: str = "drawn"

    def __post_init__(self) -> None:
        routes = ("drawn", "exact", "both")
        if self.route not in routes:
            raise ValueError(unknown("route", self.route, routes))

    def check(self, problem: Problem, last: int) -> None:
        """Raise where these estimators cannot be measured on this problem, or not within ``last`` steps."""
        require_layer_names(problem.params)
        for settings in self._settings:
            check_arguments(self.estimators, settings)
        if outside := [step for step in self.steps if not 0 <= step <= last]:
            raise ValueError(f"the probe's step {outside[0]} is none of the run's, which are 0 … {last}")
        for estimator in self.estimators.values():
            estimator.randomness(problem)
        if self.route != "both":  # of both, what has no closed form is drawn
            check_route(self.route, self.estimators, problem, keep_draws=False)

    @property
    def _settings(self) -> tuple[Settings, ...]:
        """Of `measure`, for each route that it takes."""
        routes = ("drawn", "exact") if self.route == "both" else (self.route,)
        return tuple(Settings(self.draws, self.seed, route) for route in routes)

    @property
    def identity(self) -> str:
        """All that its results depend on, in words and a hash."""
        estimators = {name: described(estimator) for name, estimator in self.estimators.items()}
        batch = fingerprint(named_leaves(*self.batch))
        return (
            f"{estimators} at {list(self.steps)}, {self.draws} draws, seed {self.seed}, {self.route}, batch {batch}"
        )

    def measure(self, problem: Problem, step: int) -> xr.Dataset:
        """The measurement at the problem's parameters, over ``step``."""
        data_variance = DataVariance(problem, examples_at_once(problem, BUDGET))  # which do not depend on the route
        first, *second = self._settings
        dataset = measure_unchecked(self.estimators, problem, data_variance, first)
        if second:
            # What needs no noise is exact on either route.
            noisy = {name: e for name, e in self.estimators.items() if e.randomness(problem).size}
            closed = {name: e for name, e in noisy.items() if not no_closed_form(e, problem)}
            if closed:
                exact = measure_unchecked(closed, problem, data_variance, *second)
                rows = [list(self.estimators).index(name) for name in closed]
                for name in {f"{name}{end}" for name in EXACT for end in ("", *ENDS)} & set(dataset):
                    # In place: xarray takes a millisecond to put a variable in.
                    dataset[name].values[rows] = exact[name].values  # a squared bias has no lower end
            dataset.attrs |= {"route": "both", "exact": ", ".join(EXACT)}
        # A run has a loss over epochs, too.
        return dataset.rename({"loss": "probe_loss"}).expand_dims(step=[step])


EXACT = ("variance", "relative_variance", "snr", "slope", "sq_bias", "efficiency")  # what has a closed form


def log_steps(count: int, last: int) -> tuple[int, ...]:
    """About ``count`` distinct steps from 1 to ``last``, evenly spaced in the logarithm.

    Example:
        >>> log_steps(4, 1000)
        (1, 10, 100, 1000)
    """
    return tuple(sorted({round(step) for step in np.geomspace(1, max(last, 1), count)}))


def moved(batch: Batch, device: torch.device, dtype: torch.dtype) -> Batch:
    """The batch on another device, floating-point numbers in another precision; integers stay integers."""
    pair: Batch = cast(tree_map(lambda leaf: leaf.to(device), require_pair(batch)), dtype)
    return pair
