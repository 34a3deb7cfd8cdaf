"""Measurement: `measure` makes estimators × one problem a dataset of bias, variance and direction, layer by layer.

With g the target: bias E ĝ − g, relative variance tr Cov(ĝ)/‖g‖², cosine ⟨ĝ, r⟩/‖ĝ‖‖r‖ to each reference r.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import xarray as xr

from fgvar.allocator import keep_freed_memory
from fgvar.estimators.protocol import GradientEstimator, require_problem
from fgvar.measurement.arguments import BUDGET, Settings, check_arguments, check_noise_device
from fgvar.measurement.budget import announce, examples_at_once
from fgvar.measurement.closed import check_route, exact_statistics
from fgvar.measurement.cost import cost
from fgvar.measurement.data_variance import DataVariance
from fgvar.measurement.dataset import FLAGS, describe, provenance
from fgvar.measurement.dataset_checks import REFERENCES
from fgvar.measurement.intervals import Estimated
from fgvar.measurement.moments import FEATURES
from fgvar.measurement.mutation_guard import MutationGuard
from fgvar.measurement.paired import Measured, differences
from fgvar.measurement.protocol_checks import require_finite_gradient, require_randomness
from fgvar.measurement.references import GROUPS, require_layer_names
from fgvar.measurement.relative import missing_interval, relate, rounding
from fgvar.measurement.sampled import drawn_statistics
from fgvar.measurement.shared_references import SharedReferences
from fgvar.measurement.statistics import cosine_null
from fgvar.problem import Problem


def measure(
    estimators: Mapping[str, GradientEstimator],
    problem: Problem,
    *,
    draws: int = 256,
    seed: int = 0,
    chunk: int | None = None,
    budget: int = BUDGET,
    noise_device: torch.device | str | None = None,
    keep_draws: bool = False,
    route: str = "drawn",
    paired: bool = False,
) -> xr.Dataset:
    """How far estimators are from the true gradient, in mean, in spread and in direction, layer by layer.

    All estimators see the same batch, and the same noise where they need leaves of the same name and shape.
    The numbers are *drawn*: every mean ``v`` has its standard error ``v_se`` and, from 32 draws on, its 95 %
    interval ``v_low`` to ``v_high`` given the batch (of the squared bias, the limit ``sq_bias_high`` alone); or
    *exact*, with error 0 and ends that are the value. Estimators without randomness are evaluated once on either
    route, and their numbers are exact.

    Args:
        estimators: name → estimator.
        problem: network, loss and batch.
        draws: estimates of each. Below 32 intervals, and below 64 p-values of the bias, are NaN with a flag; nothing
            else hides them, whatever the draws look like.
        seed: of the noise. Draw i depends on (seed, i) only, so more draws extend fewer.
        chunk: estimates computed at once (one vmap; 1 means plain calls); 1, 2, 4, 8 or a multiple of 16.
            Default: the largest up to 64 (256 where draws are small) that keeps to the budget.
        budget: bytes that one chunk may take by the default (estimated from shapes).
        noise_device: where noise is made; "cpu" gives the same draws on every device.
        keep_draws: keep the per-draw scalars (variables ``draw_*``, dimension ``draw``).
        route: "drawn", or "exact": closed forms (`fgvar.theory`) without errors and without a draw (``draws``,
            ``seed`` and ``noise_device`` play no part). Cosines of noisy estimates have none: NaN with a flag; so are
            all numbers of an estimator without a closed form, of which a warning says why and what to use.
        paired: add how each estimator differs from the *first* one, the coordinate ``baseline``: variables
            ``variance_difference``, ``relative_variance_difference``, ``slope_difference`` and
            ``cosine_difference``, estimator − baseline. Draw i has common noise where the two need leaves of one
            name, shape and law, and the interval of a difference knows it: it is that of the per-draw
            difference, and 0 for the baseline against itself. All else is as without; memory grows by 23 numbers a
            draw and layer. ``difference_flag`` says why one is missing.

    Returns:
        Variables of `fgvar.measurement.dataset.VARIABLES` over ``estimator``, ``reference`` (target, backprop)
        and ``layer`` (every parameter, ``perturbed``, ``total``). A ratio whose reference is 0 within rounding
        is NaN with a flag.

    Raises:
        ValueError: on the drawn route fewer than 2 draws or a chunk of another size, on the exact one no estimator
            with a closed form; no estimator, a problem that an estimator does not fit, a parameter named
            "perturbed" or "total", an unknown route, or a single estimator to be compared; somebody else's estimator
            that changes its problem, or gives another estimate for the same noise: it draws inside ``estimate`` or
            keeps a state between calls, so that no interval would cover (its first chunk is made twice to see it).
        NotImplementedError: torch lacks a derivative of an operation in the network that an estimator needs.
        NonFiniteError: NaN or infinity in an estimate, naming estimator, layer and draw.

    Example:
        >>> from fgvar import Problem, scheme
        >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
        >>> problem = Problem(torch.nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> ds = measure({"FG-W": scheme("FG-W")}, problem, draws=64)
        >>> ds["variance"].sizes
        Frozen({'estimator': 1, 'layer': 4})
    """
    settings = Settings(draws, seed, route, chunk, budget, noise_device, keep_draws, paired)
    check_arguments(estimators, settings)
    require_problem(problem)
    require_layer_names(problem.params)
    check_noise_device(noise_device, problem)
    check_route(route, estimators, problem, keep_draws)
    if paired and len(estimators) < 2:
        raise ValueError(
            f"paired=True compares estimators with the first one, and {list(estimators)} is alone; give at least two"
        )
    if route == "drawn":
        announce(estimators, problem, settings)
    data_variance = DataVariance(problem, examples_at_once(problem, budget) if chunk is None else chunk)
    return measure_unchecked(estimators, problem, data_variance, settings)


def measure_unchecked(
    estimators: Mapping[str, GradientEstimator],
    problem: Problem,
    data_variance: DataVariance,
    settings: Settings,
) -> xr.Dataset:
    """`measure` without its checks, with data variances that another route of the same problem may know already."""
    backprop, point = problem.backprop(), _loss_and_accuracy(problem)
    require_finite_gradient("backprop", problem, backprop)
    for name in backprop:  # flat, as references hold it: of a transposed gradient they would hold a copy
        backprop[name] = backprop[name].flatten()
    labels = {"reference": list(REFERENCES), "layer": [*problem.params, *GROUPS]}
    rows: list[dict[str, Any]] = []
    baseline: Measured | None = None
    shared = SharedReferences(problem, backprop, settings.budget)
    for name, estimator in estimators.items():
        started = time.perf_counter()
        found, row = _measure_one(name, estimator, shared, data_variance, settings)
        if settings.paired:
            baseline = baseline or found
            row |= _compared(found, baseline)
        row["seconds"] = ((), time.perf_counter() - started)
        rows.append(row)
    dataset = xr.Dataset(_stacked(rows), coords={"estimator": list(estimators), **labels})
    sizes = _sizes(problem)
    dataset["cosine_null"] = ("layer", [cosine_null(size) for size in sizes])
    dataset["size"] = ("layer", sizes)
    dataset = dataset.assign(point)
    if settings.paired:
        dataset = dataset.assign_coords(baseline=next(iter(estimators)))
    dataset.attrs = {
        "route": settings.route,
        **({"draws": settings.draws, "seed": settings.seed} if settings.route == "drawn" else {}),
        "batch_size": problem.batch_size,
        "estimators": "\n".join(f"{name}: {estimator!r}" for name, estimator in estimators.items()),
    } | provenance(problem.device, problem.dtype)
    return describe(dataset)


def _loss_and_accuracy(problem: Problem) -> dict[str, float]:
    """Variables of the network's own output, which is gone before anything is drawn."""
    outputs = problem.run(problem.params)[0]
    found, correct = {"loss": float(problem.losses(outputs).mean())}, problem.correct(outputs)
    return found if correct is None else {**found, "accuracy": float(correct.double().mean())}


def _stacked(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The variables of all rows over ``estimator``: NaN where one has draws and another has none."""
    found = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        dims, like = next(row[name] for row in rows if name in row)
        # Not xr.concat, which takes as long for its alignment as one estimator's statistics.
        values = [row[name][1] if name in row else np.full_like(like, np.nan) for row in rows]
        found[name] = (("estimator", *dims), np.stack(values))
    return found


def _measure_one(
    name: str,
    estimator: GradientEstimator,
    shared: SharedReferences,
    data_variance: DataVariance,
    settings: Settings,
) -> tuple[Measured, dict[str, Any]]:
    """One estimator's numbers, and its variables of the dataset."""
    problem, guard = shared.problem, MutationGuard.of(name, estimator, shared.problem)
    randomness = require_randomness(estimator.randomness(guard.problem), name)
    relations = shared.of(guard, estimator)
    references = relations.references
    sizes = np.array(_sizes(problem), dtype=float)
    drawn, noisy, eps = None, randomness.size > 0, rounding(problem.dtype)
    with keep_freed_memory():
        if settings.route == "drawn":
            drawn = drawn_statistics(guard, estimator, references, randomness, settings)
            values = dict(drawn.values)
        elif noisy:
            values = exact_statistics(estimator, problem, references, settings.budget)
        else:
            # Its one estimate is exact on either route, also of estimators that closed forms know nothing of.
            one = replace(settings, draws=2, paired=False)
            values = drawn_statistics(guard, estimator, references, randomness, one).values
    values["data_variance"] = data_variance.of(estimator)
    by_draws = drawn is not None or not noisy
    flags = relate(values, relations, sizes, eps, by_draws=by_draws)
    if noisy and drawn is None:
        unknown = ~(values["variance"].value <= 0)  # the cosine of what varies, or all where even that is NaN
        flags |= unknown.astype(np.int8) * FLAGS["no_closed_form"]
    passes = cost(estimator, guard.problem, randomness)
    row = _labelled(values) | {"flag": (("reference", "layer"), flags), "cost": ((), passes)}
    if settings.keep_draws and drawn is not None:
        row |= {f"draw_{f}": (("layer", "draw"), drawn.features[:, :, i]) for i, f in enumerate(FEATURES)}
    return Measured(values, flags, sizes, drawn, eps), row


def _compared(one: Measured, baseline: Measured) -> dict[str, Any]:
    """Rows of the differences and their flag."""
    found = differences(one, baseline)
    # A difference lacks what either number lacks; it has no noise only where neither has.
    flags = (one.flags | baseline.flags) & (FLAGS["dead"] | FLAGS["no_closed_form"]) | (
        one.flags & baseline.flags & FLAGS["no_noise"]
    )
    for name, value in found.items():
        flags = flags | missing_interval(name, value, one.sizes)
    row = {f"{name}_difference": value for name, value in found.items()}
    return _labelled(row) | {"difference_flag": (("reference", "layer"), flags)}


def _labelled(values: dict[str, Estimated]) -> dict[str, Any]:
    """Variables of every value, and of its error and interval where it has them."""
    row: dict[str, Any] = {}
    for name, one in values.items():
        dims = ("layer",) if one.value.ndim == 1 else ("reference", "layer")
        row[name] = (dims, one.value)
        # A test is its own uncertainty, and the other two are given the batch, without noise.
        if not name.startswith(("bias_", "gradient_norm", "data_variance")):
            row |= {f"{name}_se": (dims, one.error), f"{name}_high": (dims, one.high)}
            row |= {} if name == "sq_bias" else {f"{name}_low": (dims, one.low)}
    return row


def _sizes(problem: Problem) -> list[int]:
    sizes = {name: p.numel() for name, p in problem.params.items()}
    return [*sizes.values(), sum(sizes[name] for name in problem.perturbed) or 1, sum(sizes.values())]
