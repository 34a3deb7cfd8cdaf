"""measure: estimators × one problem → a dataset of bias, variance and direction, layer by layer."""

import time
from collections.abc import Mapping
from numbers import Integral
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from fgvar.errors import NonFiniteError
from fgvar.estimators.estimator import GradientEstimator, require_estimator, require_problem
from fgvar.measurement import moments as streaming
from fgvar.measurement.closed import check_route, exact_statistics
from fgvar.measurement.cost import cost
from fgvar.measurement.data_variance import DataVariance
from fgvar.measurement.dataset import FLAGS, RATIOS, REFERENCES, describe, provenance
from fgvar.measurement.intervals import Array, Estimated
from fgvar.measurement.lending import Loan, require_randomness, tensors_in
from fgvar.measurement.moments import BLOCK, FEATURES, References
from fgvar.measurement.paired import Measured, differences
from fgvar.measurement.sampled import BUDGET, default_chunk, drawn_statistics, examples_at_once, require_like
from fgvar.measurement.statistics import ERRORS, NOT_OF_ONE, cosine_null
from fgvar.problem import Problem
from fgvar.problem_checks import usable_device


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
            Default: the largest up to 64 that keeps to the budget.
        budget: bytes that one chunk may take by the default (estimated from shapes).
        noise_device: where noise is made; "cpu" gives the same draws on every device.
        keep_draws: keep the per-draw scalars (variables ``draw_*``, dimension ``draw``).
        route: "drawn", or "exact": closed forms (`fgvar.theory`) without errors and without a draw (``draws``,
            ``seed`` and ``noise_device`` play no part). Cosines of noisy estimates have none: NaN with a flag.
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
        ValueError: fewer than 2 draws, a chunk of another size, no estimator, a problem that an estimator does
            not fit, an unknown route, an estimator without a closed form on the exact one, or a single estimator
            to be compared.
        NonFiniteError: NaN or infinity in an estimate, naming estimator, layer and draw.

    Example:
        >>> from fgvar import Problem, scheme
        >>> x, y = torch.ones(4, 3), torch.tensor([0, 1, 1, 0])
        >>> problem = Problem(torch.nn.Linear(3, 2), "cross_entropy", (x, y))
        >>> ds = measure({"FG-W": scheme("FG-W")}, problem, draws=64)
        >>> ds["variance"].sizes
        Frozen({'estimator': 1, 'layer': 4})
    """
    check_arguments(estimators, draws, chunk, seed, budget)
    require_problem(problem)
    check_noise_device(noise_device, problem)
    check_route(route, estimators, problem, keep_draws)
    if paired and len(estimators) < 2:
        raise ValueError(
            f"paired=True compares estimators with the first one, and {list(estimators)} is alone; give at least two"
        )
    spreads = DataVariance(problem, examples_at_once(problem, budget) if chunk is None else chunk)
    return measured(
        estimators, problem, spreads, draws=draws, seed=seed, chunk=chunk, budget=budget, noise_device=noise_device,
        keep_draws=keep_draws, route=route, paired=paired,
    )  # fmt: skip


def measured(
    estimators: Mapping[str, GradientEstimator],
    problem: Problem,
    spreads: DataVariance,
    *,
    draws: int,
    seed: int,
    route: str,
    chunk: int | None = None,
    budget: int = BUDGET,
    noise_device: torch.device | str | None = None,
    keep_draws: bool = False,
    paired: bool = False,
) -> xr.Dataset:
    """`measure` without its checks, with data variances that another route of the same problem may know already."""
    backprop, outputs = problem.backprop(), problem.run(problem.params)[0]
    _require_gradient("backprop", problem, backprop)
    layers, sizes = (*problem.params, *streaming.GROUPS), np.array(_sizes(problem), dtype=np.float64)
    rows: list[xr.Dataset] = []
    baseline = None
    for name, estimator in estimators.items():
        started = time.perf_counter()
        loan = Loan.of(name, estimator, problem)
        randomness = require_randomness(name, estimator.randomness(loan.problem))
        what = f"the target of estimator {name!r}"
        target = tensors_in(what, estimator.target(loan.problem))
        _require_gradient(what, problem, target)
        references = References.of(target, backprop, problem.perturbed)
        size = default_chunk(estimator, problem, randomness, budget) if chunk is None else chunk
        exact = route == "exact" and randomness.size > 0
        if exact:
            drawn, values = None, exact_statistics(estimator, problem, references, budget)
        else:
            drawn = drawn_statistics(
                loan,
                estimator,
                references,
                randomness,
                draws,
                seed,
                size,
                spreads.plain,
                noise_device,
                keep_draws,
                paired,
            )
            values = dict(drawn.values)
        values["data_variance"] = spreads.of(estimator)
        flags = _relate(values, references, sizes, problem.dtype)
        if exact:
            flags |= (values["variance"].value > 0).astype(np.int8) * FLAGS["no_closed_form"]
        passes = cost(estimator, loan.problem, randomness)
        row = _labelled(values) | {"flag": (("reference", "layer"), flags), "cost": ((), passes)}
        if keep_draws and drawn is not None:
            row |= {f"draw_{f}": (("layer", "draw"), drawn.features[:, :, i]) for i, f in enumerate(FEATURES)}
        if paired:
            this = Measured(
                values, flags, sizes, None if route == "exact" else drawn, float(torch.finfo(problem.dtype).eps)
            )
            baseline = baseline or this
            row |= _compared(this, baseline)
        row["seconds"] = ((), time.perf_counter() - started)
        rows.append(xr.Dataset(row, coords={"reference": list(REFERENCES), "layer": list(layers)}))
    dataset = xr.concat(rows, xr.IndexVariable("estimator", list(estimators)), join="outer")
    dataset["cosine_null"] = ("layer", [cosine_null(size) for size in _sizes(problem)])
    dataset["size"] = ("layer", _sizes(problem))
    dataset["loss"] = ((), float(problem.losses(outputs).mean()))
    if (right := problem.correct(outputs)) is not None:
        dataset["accuracy"] = ((), float(right.double().mean()))
    if paired:
        dataset = dataset.assign_coords(baseline=next(iter(estimators)))
    dataset.attrs = {
        "route": route,
        **({"draws": draws, "seed": seed} if route == "drawn" else {}),
        "batch_size": problem.batch_size,
        "estimators": "\n".join(f"{name}: {estimator!r}" for name, estimator in estimators.items()),
    } | provenance(problem.device, problem.dtype)
    return describe(dataset)


def _relate(values: dict[str, Estimated], references: References, sizes: Array, dtype: torch.dtype) -> np.ndarray:
    """Add what is relative to the references' norms, blank what is undefined, and return the flags."""
    pairs = zip(references.target.values(), references.backprop.values(), strict=True)
    squares = references.grouped([torch.stack([t @ t, b @ b]) for t, b in pairs]).cpu().numpy().T
    # Rounding of a sum over examples is proportional to the largest gradients that were added up.
    dead = np.sqrt(squares) <= 10 * torch.finfo(dtype).eps * np.sqrt(squares[:, -1:])
    variance = values["variance"].value
    # What varies by rounding alone has no noise: heads, which learn exactly, estimators without randomness, and
    # parameters that a norm behind them makes dead. Rounding is proportional to the estimates of all parameters.
    noiseless = variance <= (10 * torch.finfo(dtype).eps) ** 2 * (squares[0, -1] + variance[-1])
    flags = dead.astype(np.int8) * FLAGS["dead"] | noiseless.astype(np.int8) * FLAGS["no_noise"]
    for name in ERRORS:
        values[name] = values[name].known(noiseless)
    values["gradient_norm"] = Estimated.exact(np.sqrt(squares))
    with np.errstate(divide="ignore", invalid="ignore"):
        values["relative_variance"] = values["variance"].scaled(1 / squares[0])
    for name in (*RATIOS, "bias_z", "bias_p"):
        blank = np.zeros_like(dead) if name.startswith("bias") else dead
        if name in ("snr", "bias_z", "bias_p"):
            blank = blank | noiseless
        blank = blank[0] if values[name].value.ndim == 1 else blank
        values[name] = values[name].undefined(blank)
    for name in ERRORS:
        flags |= _lacking(name, values[name], sizes)
    untested = np.isnan(values["bias_p"].value) & np.isfinite(values["bias_z"].value)
    return flags | untested.astype(np.int8) * FLAGS["few_draws"]


def _lacking(name: str, one: Estimated, sizes: Array) -> np.ndarray:
    """Flags that say why there is a value and no interval (above, in the case of a squared bias)."""
    lacks, never = np.isfinite(one.value) & np.isnan(one.high), (sizes < 2) & (name in NOT_OF_ONE)
    return np.where(lacks, np.where(never, FLAGS["one_number"], FLAGS["few_draws"]), 0).astype(np.int8)


def _compared(one: Measured, baseline: Measured) -> dict[str, Any]:
    """Rows of the differences and their flag."""
    found = differences(one, baseline)
    flags = (one.flags | baseline.flags) & (FLAGS["dead"] | FLAGS["no_closed_form"]) | (
        one.flags & baseline.flags & FLAGS["no_noise"]
    )
    for name, value in found.items():
        flags = flags | _lacking(name, value, one.sizes)
    row = {f"{name}_difference": value for name, value in found.items()}
    return _labelled(row) | {"difference_flag": (("reference", "layer"), flags)}


def _labelled(values: dict[str, Estimated]) -> dict[str, Any]:
    """Variables of every value, and of its error and interval where it has them."""
    row: dict[str, Any] = {}
    for name, one in values.items():
        dims = ("layer",) if one.value.ndim == 1 else ("reference", "layer")
        row[name] = (dims, one.value)
        if not name.startswith(("bias_", "gradient_norm", "data_variance")):
            row |= {f"{name}_se": (dims, one.error), f"{name}_high": (dims, one.high)}
            row |= {} if name == "sq_bias" else {f"{name}_low": (dims, one.low)}
    return row


def _sizes(problem: Problem) -> list[int]:
    sizes = {name: p.numel() for name, p in problem.params.items()}
    return [*sizes.values(), sum(sizes[name] for name in problem.perturbed) or 1, sum(sizes.values())]


def _require_gradient(what: str, problem: Problem, gradient: Mapping[str, Tensor]) -> None:
    require_like(what, problem, gradient)
    for name, value in gradient.items():
        if not value.is_meta and not bool(value.isfinite().all()):
            raise NonFiniteError(
                f"{what}: {name!r} holds NaN or infinity, though the loss is finite; move the parameters"
            )


def check_arguments(
    estimators: Mapping[str, GradientEstimator], draws: int, chunk: int | None, seed: int, budget: int = BUDGET
) -> None:
    """Raise where `measure` would refuse these arguments."""
    if not isinstance(estimators, Mapping) or not estimators:
        raise TypeError(
            f"estimators is {type(estimators).__name__}, expected a non-empty mapping of name → estimator, "
            'for instance {"FG-A": fgvar.scheme("FG-A")}'
        )
    for name, estimator in estimators.items():
        if not isinstance(name, str) or not name.strip():
            raise TypeError(f"an estimator is named {name!r}, expected a text that is not empty, as 'FG-A'")
        require_estimator(name, estimator)
    numbers = {"draws": draws, "seed": seed, "chunk": 1 if chunk is None else chunk, "budget": budget}
    for what, number in numbers.items():
        if not isinstance(number, Integral) or isinstance(number, bool):
            raise TypeError(f"{what} is {number!r}, expected an integer{' of bytes' * (what == 'budget')}")
    if seed < 0:
        raise ValueError(f"seed is {seed}, expected a non-negative integer")
    if budget <= 0:
        raise ValueError(f"budget is {budget}, expected a positive number of bytes, as {BUDGET} (the default)")
    if draws < 2:
        raise ValueError(f"draws is {draws}, expected at least 2: one draw has no spread")
    if chunk is not None and chunk not in (1, 2, 4, 8) and (chunk < BLOCK or chunk % BLOCK):
        raise ValueError(f"chunk is {chunk}, expected 1, 2, 4, 8 or a multiple of {BLOCK}, the block of the moments")


def check_noise_device(device: torch.device | str | None, problem: Problem) -> None:
    """Raise where noise cannot be made on this device, or not be brought from it to the problem."""
    if device is None:
        return
    found = usable_device("noise_device", device)
    if found.type == "meta" and problem.device.type != "meta":
        raise ValueError(
            f"noise_device is 'meta', which holds no numbers, and the problem is on {problem.device}; "
            "give 'cpu', or None for the problem's device"
        )
