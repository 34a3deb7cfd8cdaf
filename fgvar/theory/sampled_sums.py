"""Sums of which some terms are drawn: inclusion probabilities, and moments of a chain's partition function."""

import torch
from torch import Tensor

from fgvar.errors import require_integer
from fgvar.stochastic.inclusion import inclusion_probabilities


def log_second_moment(emissions: Tensor, transitions: Tensor, products: Tensor) -> Tensor:
    """Second moment log E Ẑ² of a linear chain's partition function by randomised dynamic programming.

    Ẑ is linear in the ω of every step, which are independent of those of others, so that pairs of sequences follow a
    recursion of their own: α_t = (Ψᵀ α_{t−1} Ψ) ∘ A_t with A_t(i, j) = φ_t(i) φ_t(j) E[ω_ti ω_tj], α_1 = A_1, and
    E Ẑ² = Σ α_T. It takes steps · states³ operations. Then Var Ẑ/Z² = E Ẑ²/Z² − 1 where E ω = 1, and to second order
    E log Ẑ − log Z is −Var Ẑ/2Z².

    Args:
        emissions: [steps, states], log φ.
        transitions: [states, states], log Ψ, from and to.
        products: [steps, states, states], E[ω_ti ω_tj], as ``Draw.products`` gives them.

    Returns:
        log E Ẑ², a scalar; −∞ where Ẑ is 0 for certain.

    Raises:
        ValueError: shapes that do not fit.

    Source: ours, held against the enumeration of all draws.

    Example:
        >>> log_second_moment(torch.zeros(2, 3), torch.zeros(3, 3), torch.ones(2, 3, 3)).exp()  # (3²)²
        tensor(81.0000)
    """
    steps, states = emissions.shape if emissions.ndim == 2 else (0, 0)
    if transitions.shape != (states, states) or products.shape != (steps, states, states) or not steps:
        raise ValueError(
            f"emissions {tuple(emissions.shape)}, transitions {tuple(transitions.shape)} and products "
            f"{tuple(products.shape)}, expected [steps, states], [states, states] and [steps, states, states]"
        )
    highest = _finite(transitions.max())
    psi = (transitions - highest).exp()
    total, alpha = 2 * highest * (steps - 1), None
    for emission, product in zip(emissions, products, strict=True):
        largest = _finite(emission.max())
        phi = (emission - largest).exp()
        pairs = product * torch.outer(phi, phi)
        alpha = pairs if alpha is None else psi.T @ alpha @ psi * pairs
        size = alpha.sum()
        alpha = alpha / size.where(size != 0, 1)
        total = total + size.log() + 2 * largest
    return total


def _finite(scale: Tensor) -> Tensor:
    """What is taken out of numbers before their exponential: nothing where all of them are −∞, of which 0 is made."""
    return scale.where(scale != -torch.inf, 0)


def inclusion(probabilities: Tensor, size: int) -> Tensor:
    """Inclusion probabilities π_i of m = ``size`` terms drawn by p and not put back: Σ π_i = m.

    Weighed as if put back, by 1/(m p_i), a term has E ω_i = π_i/(m p_i): below 1 where p_i is large, above where it
    is small.

    Args:
        probabilities: [N] ≥ 0, in proportion where they do not sum to 1.
        size: m.

    Returns:
        [N], in float64, to about 11 digits.

    Raises:
        ValueError: more terms than have a positive probability; not one population.

    Source: Rosén 1972 (successive sampling). Of one draw π = p; of all terms, 1.

    Example:
        >>> inclusion(torch.tensor([0.5, 0.25, 0.25]), 2).round(decimals=4).tolist()
        [0.8333, 0.5833, 0.5833]
    """
    require_integer("size", size, 1)
    possible = probabilities.ndim == 1 and int((probabilities > 0).sum())
    if not size <= possible:
        raise ValueError(
            f"{size} terms of probabilities {tuple(probabilities.shape)}, {possible or 'not one population'} of them "
            "positive; expected one row [N] with as many positive ones at least"
        )
    found = torch.zeros_like(probabilities, dtype=torch.float64)
    some = probabilities > 0
    p = probabilities[some].double()
    found[some] = inclusion_probabilities(p / p.sum(), size)
    return found
