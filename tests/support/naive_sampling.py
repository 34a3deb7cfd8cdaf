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


def draw(scores: Sequence[float], size: int, top: int, *, replace: bool, weigh: str) -> Iterator[Outcome]:
    """The ``top`` terms of highest score for certain, and so many of the others by their scores."""
    count = len(scores)
    best = sorted(range(count), key=lambda n: -scores[n])[:top]
    rest = [0.0 if n in best else s for n, s in enumerate(scores)]
    p = [s / sum(rest) for s in rest]
    for chance, drawn in put_back(p, size) if replace else not_put_back(p, size):
        weights = [(i, 1.0) for i in best] + drawn
        total = sum(w for _, w in weights)
        # Of equal probabilities without putting back N/m, which is not what Des Raj gives, varies least.
        alike = weigh == "none" or (not replace and len(set(scores)) == 1)
        if alike:
            weights = [(i, count / len(weights)) for i, _ in weights]
        elif weigh == "normalised":
            weights = [(i, count * w / total) for i, w in weights]
        yield chance, weights


def union(*parts: tuple[int, Sequence[Outcome]]) -> Iterator[Outcome]:
    """Independent draws, each with the number that it looks at, by its share of all of them."""
    total = sum(size for size, _ in parts)
    for outcomes in itertools.product(*(list(part) for _, part in parts)):
        shares = [(i, w * size / total) for (size, _), (_, own) in zip(parts, outcomes, strict=True) for i, w in own]
        yield math.prod(chance for chance, _ in outcomes), shares


def distinct(count: int, outcomes: Iterator[Outcome]) -> Iterator[Outcome]:
    """The mean over those of ``count`` terms that were drawn, however often."""
    for chance, drawn in outcomes:
        chosen = {i for i, _ in drawn}
        yield chance, [(i, count / len(chosen)) for i in chosen]


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
