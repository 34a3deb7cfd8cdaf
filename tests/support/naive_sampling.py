"""Naive twins of samplers: every outcome of a draw, its probability and weights, by loops from the definitions."""

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np

Outcome = tuple[float, list[tuple[int, float]]]  # its probability, and what was looked at: (term, ω), E Σ ω x = Σ x


def put_back(p: Sequence[float], m: int) -> Iterator[Outcome]:
    for chosen in itertools.product(range(len(p)), repeat=m):
        chance = math.prod(p[i] for i in chosen)
        if chance:
            yield chance, [(i, 1 / (m * p[i])) for i in chosen]


def not_put_back(p: Sequence[float], m: int) -> Iterator[Outcome]:
    """Des Raj 1956, in the order drawn."""
    for chosen in itertools.permutations([i for i in range(len(p)) if p[i] > 0], m):
        chance, left, weights = 1.0, 1.0, []
        for k, i in enumerate(chosen):
            weights.append((i, (left / p[i] + m - 1 - k) / m))
            chance *= p[i] / left
            left -= p[i]
        yield chance, weights


def poisson(count: int, rate: float, *, sampled: bool) -> Iterator[Outcome]:
    for kept in itertools.product((0, 1), repeat=count):
        size = sum(kept)
        weight = count / max(size, 1) if sampled else 1 / rate
        yield rate**size * (1 - rate) ** (count - size), [(i, weight) for i in range(count) if kept[i]]


def with_top(outcomes: Iterator[Outcome], top: Sequence[int]) -> Iterator[Outcome]:
    for chance, weights in outcomes:
        yield chance, [(i, 1.0) for i in top] + weights


def all_alike(outcomes: Iterator[Outcome], count: int) -> Iterator[Outcome]:
    """The plain mean of what was looked at."""
    for chance, weights in outcomes:
        yield chance, [(i, count / len(weights)) for i, _ in weights]


def normalised(outcomes: Iterator[Outcome], count: int) -> Iterator[Outcome]:
    for chance, weights in outcomes:
        total = sum(w for _, w in weights)
        yield chance, [(i, count * w / total) for i, w in weights]


def moments(outcomes: Iterator[Outcome], x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of X = (1/N) Σ ω x, entry by entry, and E (1/N²) Σ ω² x."""
    found = list(outcomes)
    assert abs(sum(chance for chance, _ in found) - 1) < 1e-12
    mean, second, squares = np.zeros(x.shape[1]), np.zeros(x.shape[1]), np.zeros(x.shape[1])
    for chance, weights in found:
        value = sum((w * x[i] for i, w in weights), np.zeros(x.shape[1])) / len(x)
        mean, second = mean + chance * value, second + chance * value**2
        squares = squares + chance * sum((w**2 * x[i] for i, w in weights), np.zeros(x.shape[1])) / len(x) ** 2
    return mean, second - mean**2, squares
