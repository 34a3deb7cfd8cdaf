"""Inclusion: which of N terms are among m that are drawn by probabilities and not put back, and sums over them."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from fgvar.estimators.choices import require_enough

NEGLIGIBLE = 1e-18  # probability of what is left out: times of the integral, aliases on the circle


class SumOfDrawn(NamedTuple):
    """Of Σ x over the terms drawn mean and variance, and the mean of Σ x²: all entry by entry."""

    mean: Tensor
    variance: Tensor
    of_squares: Tensor


class _Instant(NamedTuple):
    """At one time of the integral, at points z on a circle of radius ρ: 1 − q + q z is the factor of a term.

    ``there`` is ρ q over that factor and ``coming`` r over it, [N, points]. Re Σ over the points of ``of_last`` or
    ``of_pair``, times those of terms, is the probability that m − 1 or m − 2 of all others are there, and so are
    these, or come.
    """

    there: Tensor
    coming: Tensor
    of_last: Tensor
    of_pair: Tensor


def inclusion_probabilities(p: Tensor, size: int) -> Tensor:
    """π_n of `sum_of_drawn`, [N], in float64."""
    p = p.double()
    if size >= int((p > 0).sum()):
        return (p > 0).double()
    pi = torch.zeros_like(p)
    for there, coming, of_last, _ in _instants(p, size):
        pi = pi + _included(there, coming, of_last)
    return pi


def sum_of_drawn(p: Tensor, size: int, x: Tensor) -> SumOfDrawn:
    """E and Var of Σ_{n∈B} x_n, and E Σ_{n∈B} x_n², of B: ``size`` of N terms by p, one after another, not put back.

    Terms come at exponential times of rates p, and B are the first ones (Efraimidis and Spirakis 2006). A term is one
    of them if it is there when the m-th of the others comes, and a pair is when the (m − 1)-th of the others does:

        π_n  = ∫ q_n Σ_{j≠n} r_j P(K_{−n−j} = m − 1) dt
        π_nk = ∫ q_n q_k Σ_{j≠n,k} r_j P(K_{−n−k−j} = m − 2) dt,    q = 1 − e^{−pt}, r = p e^{−pt}

    K counts how many of the terms that are left are there, independent zeros and ones: its probabilities are
    coefficients of Π (1 − q + q z), read off a circle through the saddle point, where no digits cancel.
    Σ_{n≠k} π_nk x_n x_k is a few products of sums at every point z; the integral over log t is a trapezoidal sum,
    exact to rounding.

    Shapes: p ``[N]``, summing to 1; x ``[N, numbers]`` → ``[numbers]`` each.
    """
    p, x = p.double(), x.double()
    mean, squares, pairs = torch.zeros_like(x[0]), torch.zeros_like(x[0]), torch.zeros_like(x[0])
    require_enough(size, possible := int((p > 0).sum()))
    if size == possible:
        return SumOfDrawn(x[p > 0].sum(0), mean, x[p > 0].square().sum(0))
    for there, coming, of_last, of_pair in _instants(p, size):
        come, pi = coming.sum(0), _included(there, coming, of_last)
        mean, squares = mean + pi @ x, squares + pi @ x.square()
        if size > 1:
            of_terms, of_both = there.T @ x.to(there.dtype), (there * coming).T @ x.to(there.dtype)
            same = (there**2 * (of_pair * (come - 2 * coming))).sum(1).real  # n = k, which is no pair
            product = of_terms * (come[:, None] * of_terms - 2 * of_both)
            pairs = pairs + (of_pair[:, None] * product).sum(0).real - same @ x.square()
    return SumOfDrawn(mean, squares + pairs - mean.square(), squares)


def _included(there: Tensor, coming: Tensor, of_last: Tensor) -> Tensor:
    """This time's part of π: a term is there, and another one comes last."""
    return (there @ (of_last * coming.sum(0)) - (there * coming) @ of_last).real


def _instants(p: Tensor, size: int) -> Iterator[_Instant]:
    """Times at which the last of those drawn can come, with the steps of the integral as a part of their rates."""
    step = 0.25 * min(1.0, 2.5 / math.sqrt(size))  # against the width of that time's density, 1/√m in log t
    low, high = _reach(p, size)
    half = 5 * math.isqrt(size) + 25  # of the points: those below the real axis are conjugates
    angles = math.pi * torch.arange(half + 1, dtype=p.dtype, device=p.device) / half
    turns = torch.polar(torch.ones_like(angles), angles)
    share = torch.full_like(angles, 1 / half)  # each point and its conjugate, out of 2 · half
    share[0] = share[-1] = 0.5 / half
    for log_t in torch.arange(low, high + step, step, dtype=p.dtype).tolist():
        t = math.exp(log_t)
        q, not_yet = -torch.expm1(-p * t), torch.exp(-p * t)
        radius = _tilt(q, not_yet, size)
        factors = not_yet[:, None] + q[:, None] * (radius * turns)
        whole = factors.log().sum(0)
        # ρ to the power that is missing is in ``there``, which is 1 at most.
        last, pair = (
            (whole - size * math.log(radius) - 1j * power * angles).exp() * share for power in (size - 1, size - 2)
        )
        yield _Instant(radius * q[:, None] / factors, (p * not_yet * t * step)[:, None] / factors, last, pair)


def _tilt(q: Tensor, not_yet: Tensor, count: int) -> float:
    """The r > 0 with Σ q r/(1 − q + q r) = ``count``, by bisection: the saddle point."""
    low, high = -700.0, 700.0
    for _ in range(60):
        middle = (low + high) / 2
        odds = q * math.exp(middle)
        low, high = (middle, high) if float((odds / (not_yet + odds)).sum()) < count else (low, middle)
    return math.exp((low + high) / 2)


def _reach(p: Tensor, size: int) -> tuple[float, float]:
    """Logarithms of the times before and after which so many terms have come but for a negligible probability.

    By Chernoff's bound P(K = k) ≤ Π (1 − q + q r)/r^k at the best r; K is near ``size`` at the middle.
    """

    def log_bound(log_t: float) -> float:
        q, not_yet = -torch.expm1(-p * math.exp(log_t)), torch.exp(-p * math.exp(log_t))
        r = _tilt(q, not_yet, size)
        return float((not_yet + q * r).log().sum()) - size * math.log(r)

    def too_few(log_t: float) -> bool:
        return float(-torch.expm1(-p * math.exp(log_t)).sum()) < size

    limit = math.log(NEGLIGIBLE)
    middle = _last(too_few, -100.0, 100.0)
    first = _last(lambda s: log_bound(s) < limit, middle - 100, middle)
    return first, _last(lambda s: log_bound(s) > limit, middle, middle + 100)


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition ceases to hold, by bisection, to 0.01 or so."""
    for _ in range(14):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
