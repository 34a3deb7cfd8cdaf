"""Relative numbers: relate statistics to the norms of their references, blank what is undefined, and flag why."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgvar.measurement.dataset import FLAGS, RATIOS
from fgvar.measurement.intervals import Array, Estimated
from fgvar.measurement.references import References
from fgvar.measurement.statistics import ERRORS, NOT_OF_ONE

Layers = NDArray[np.bool_]  # [references, layers]
LOST = 1e-10  # E‖ĝ‖²/‖target‖² below which sums about the target, in float64, do not know ‖ĝ‖ any more


def rounding(dtype: torch.dtype) -> float:
    """Relative rounding of estimates by which draws of one number may differ, at most that of float32.

    In half precision equal numbers are rounded alike, from draw to draw; what differs there is noise.
    """
    return float(min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps))


def lengths(references: References) -> Array:
    """‖target‖² and ‖backprop‖², [references, layers]."""
    squares: Array = references.grouped([references.squares(name) for name in references.target]).cpu().numpy().T
    return squares


def rounding_of(gradient: Mapping[str, Tensor], precise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """‖g − the same in float64‖² of every parameter of a flat gradient."""
    return {name: (g.double() - precise[name].flatten()).square().sum() for name, g in gradient.items()}


def dead_layers(
    references: References, squares: Array, dtype: torch.dtype, their_rounding: Callable[[], list[Tensor] | None]
) -> Layers:
    """Layers whose reference is 0 within rounding: small beside the whole, and another gradient in float64.

    Rounding of a sum over examples is proportional to what was added up, of which nothing is known but that it was no
    larger than the largest gradients.

    Args:
        references: of the problem as it is.
        squares: their `lengths`.
        dtype: of the problem.
        their_rounding: `rounding_of` the references, [2] for each parameter, if that is to be had; asked where a
            layer is in doubt.
    """
    small: Layers = np.sqrt(squares) <= 10 * torch.finfo(dtype).eps * np.sqrt(squares[:, -1:])
    if dtype == torch.float64 or not (small & (squares > 0)).any() or (apart := their_rounding()) is None:
        return small
    off: Array = references.grouped(apart).cpu().numpy().T
    return small & ((squares == 0) | (off > squares / 4))


def relate(
    values: dict[str, Estimated], squares: Array, dead: Layers, sizes: Array, eps: float, *, by_draws: bool
) -> NDArray[np.int8]:
    """Add what is relative to the references' norms, blank what is undefined, and return the flags.

    Args:
        values: of one estimator, by name; they are added to and blanked in place.
        squares: of `lengths`.
        dead: of `dead_layers`.
        sizes: numbers of each layer.
        eps: of `rounding`.
        by_draws: are the values sums over draws?
    """
    variance = values["variance"].value
    energy = variance + _signal(values, squares)
    # What varies by rounding alone has no noise: heads, which learn exactly, estimators without randomness, and
    # parameters that a norm behind them makes dead. Rounding is proportional to the estimates of all parameters.
    noiseless = variance <= (10 * eps) ** 2 * energy[-1]
    lost = by_draws & (energy < LOST * squares[0])
    flags = dead.astype(np.int8) * FLAGS["dead"] | noiseless.astype(np.int8) * FLAGS["no_noise"]
    flags |= lost.astype(np.int8) * FLAGS["lost_digits"]
    for name in ERRORS:
        values[name] = values[name].exact_where(noiseless)
    values["gradient_norm"] = Estimated.exact(np.sqrt(squares))
    with np.errstate(divide="ignore", invalid="ignore"):
        values["relative_variance"] = values["variance"].scaled(1 / squares[0])
    for name in (*RATIOS, "bias_z", "bias_p"):
        # A bias is tested in its own units; all others are divided by the norm of a reference.
        blank = np.zeros_like(dead) if name.startswith("bias") else dead
        if name in ("snr", "bias_z", "bias_p"):
            blank = blank | noiseless
        if name in ("cosine", "efficiency"):
            blank = blank | lost
        blank = blank[0] if values[name].value.ndim == 1 else blank
        values[name] = values[name].nan_where(blank)
    for name in ERRORS:
        flags |= missing_interval(name, values[name], sizes)
    untested = np.isnan(values["bias_p"].value) & np.isfinite(values["bias_z"].value)
    return flags | untested.astype(np.int8) * FLAGS["few_draws"]


def _signal(values: dict[str, Estimated], squares: Array) -> Array:
    """‖E ĝ‖² = ‖E ĝ − g‖² + 2⟨E ĝ, g⟩ − ‖g‖², not below 0."""
    inner = np.where(squares[0] > 0, values["slope"].value[0] * squares[0], 0)
    found: Array = np.maximum(values["sq_bias"].value[0] + 2 * inner - squares[0], 0)
    return found


def missing_interval(name: str, one: Estimated, sizes: Array) -> NDArray[np.int8]:
    """Flags that say why there is a value and no interval (above, in the case of a squared bias)."""
    missing, never = np.isfinite(one.value) & np.isnan(one.high), (sizes < 2) & (name in NOT_OF_ONE)
    return np.where(missing, np.where(never, FLAGS["one_number"], FLAGS["few_draws"]), 0).astype(np.int8)
