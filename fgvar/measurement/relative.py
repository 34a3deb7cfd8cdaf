"""Relative numbers: relate statistics to the norms of their references, blank what is undefined, and flag why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fgvar.measurement.dataset import FLAGS, RATIOS
from fgvar.measurement.intervals import Array, Estimated
from fgvar.measurement.references import References
from fgvar.measurement.statistics import ERRORS, NOT_OF_ONE

Layers = NDArray[np.bool_]  # [references, layers]
TheirRounding = Callable[[], Array | None]  # ‖reference − the same in float64‖², if that is to be had
LOST = 1e-10  # E‖ĝ‖²/‖target‖² below which sums about the target, in float64, do not know ‖ĝ‖ any more


@dataclass(frozen=True, eq=False)
class Relations:
    """What estimates are related to.

    Attributes:
        references: target and backprop.
        squares: their `lengths`.
        dead: of `dead_layers`.
        their_rounding: how far they are from the same in float64.
    """

    references: References
    squares: Array
    dead: Layers
    their_rounding: TheirRounding


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


def dead_layers(squares: Array, dtype: torch.dtype, their_rounding: TheirRounding) -> Layers:
    """Layers whose reference is 0 within rounding: small beside the whole, and another gradient in float64.

    Rounding of a sum over examples is proportional to what was added up, of which nothing is known but that it was no
    larger than the largest gradients.

    Args:
        squares: `lengths` of the references.
        dtype: of the problem.
        their_rounding: of the references; asked where a layer is in doubt.
    """
    small: Layers = np.sqrt(squares) <= 10 * torch.finfo(dtype).eps * np.sqrt(squares[:, -1:])
    if dtype == torch.float64 or not (small & (squares > 0)).any() or (apart := their_rounding()) is None:
        return small
    return small & ((squares == 0) | (apart > squares / 4))


def noiseless_layers(variance: Array, energy: Array, eps: float, their_rounding: TheirRounding) -> NDArray[np.bool_]:
    """Layers that vary by rounding alone: heads, which learn exactly, and all of estimators without randomness.

    Rounding is proportional to the layer's own estimates, but where they are sums that cancel, as in what a norm
    behind them makes dead: there it may be proportional to the estimates of all parameters.

    Args:
        variance: of each layer, the last one all parameters.
        energy: E‖ĝ‖².
        eps: of `rounding`.
        their_rounding: of the references, which says whether a layer's sums cancel; asked where one is in doubt.
    """
    floor = (10 * eps) ** 2 * energy
    own: NDArray[np.bool_] = variance <= floor
    doubt = ~own & (variance <= floor[-1])
    if not doubt.any() or eps <= torch.finfo(torch.float64).eps:
        return own | doubt
    apart = their_rounding()
    return own | doubt if apart is None else own | (doubt & (variance <= 100 * apart[0]))


def relate(
    values: dict[str, Estimated], relations: Relations, sizes: Array, eps: float, *, by_draws: bool
) -> NDArray[np.int8]:
    """Add what is relative to the references' norms, blank what is undefined, and return the flags.

    Args:
        values: of one estimator, by name; they are added to and blanked in place.
        relations: of its references.
        sizes: numbers of each layer.
        eps: of `rounding`.
        by_draws: are the values sums over draws?
    """
    squares, dead, variance = relations.squares, relations.dead, values["variance"].value
    energy = variance + _signal(values, squares)
    noiseless = noiseless_layers(variance, energy, eps, relations.their_rounding)
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
