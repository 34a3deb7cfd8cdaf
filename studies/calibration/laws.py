"""Laws of estimates whose statistics are known: what the intervals of `fgvar.measure` are tried on."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any
Rng = np.random.Generator


@dataclass(frozen=True)
class Law:
    """Estimates, what they are compared with, and what is true of them.

    Attributes:
        sample: (runs, draws) → estimates [runs, draws, numbers].
        references: target and backprop.
        truth: statistic → its value, or one for either reference; of "cosine", "variance_difference", … too.
        paired: estimates of a baseline of the same noise, if differences are looked at: sample then gives both.
    """

    sample: Callable[[int, int], Array]
    references: tuple[Array, Array]
    truth: dict[str, Array]
    paired: bool = False


Scalar = Callable[[Rng, tuple[int, ...]], Array]


def times(factor: float, share: float) -> Scalar:
    """A share of χ²₁ is so many times as large."""
    return lambda rng, shape: rng.chisquare(1, shape) * np.where(rng.random(shape) < share, factor, 1.0)


def lognormal(sigma: float) -> Scalar:
    return lambda rng, shape: rng.lognormal(0, sigma, shape)


def pareto(exponent: float) -> Scalar:
    return lambda rng, shape: rng.pareto(exponent, shape) + 1


def chi(rng: Rng, shape: tuple[int, ...]) -> Array:
    return rng.chisquare(1, shape)


# Of one scalar a draw: name → sampler and mean.
SCALARS: dict[str, tuple[Scalar, float]] = {
    "uniform": (lambda rng, shape: rng.random(shape), 0.5),
    "exponential": (lambda rng, shape: rng.exponential(size=shape), 1.0),
    "χ²₁": (chi, 1.0),
    "(χ²₁)²": (lambda rng, shape: chi(rng, shape) ** 2, 3.0),
    "χ²₁ χ²₄": (lambda rng, shape: chi(rng, shape) * rng.chisquare(4, shape), 4.0),
    "χ²₁ χ²₅₀": (lambda rng, shape: chi(rng, shape) * rng.chisquare(50, shape), 50.0),
    **{f"lognormal {sigma:g}": (lognormal(sigma), float(np.exp(sigma**2 / 2))) for sigma in (0.5, 1.0, 1.5, 2.0)},
    **{f"Pareto {exponent}": (pareto(exponent), exponent / (exponent - 1)) for exponent in (3, 5)},
    "t₅²": (lambda rng, shape: rng.standard_t(5, shape) ** 2, 5 / 3),
    "χ²₁ × lognormal 1": (lambda rng, shape: chi(rng, shape) * rng.lognormal(0, 1, shape), float(np.exp(0.5))),
    "10 % × 10": (times(10, 0.1), 1.9),
    "1 % × 100": (times(100, 0.01), 1.99),
}


def scalar(name: str, rng: Rng) -> list[Law]:
    """One law as that of ⟨ĝ, r⟩, and as that of ‖ĝ − E ĝ‖² in 8 random directions and in one."""
    sample, mean = SCALARS[name]

    def directed(size: int) -> Callable[[int, int], Array]:
        def draw(runs: int, n: int) -> Array:
            along = rng.standard_normal((runs, n, size))
            along /= np.linalg.norm(along, axis=-1, keepdims=True)
            return np.sqrt(sample(rng, (runs, n)))[..., None] * along

        return draw

    one, eight = np.ones(1), np.ones(8)
    return [
        Law(lambda runs, n: sample(rng, (runs, n))[..., None], (mean * one,) * 2, {"slope": np.ones(2)}),
        Law(directed(8), (eight, eight), {"variance": mean}),
        Law(directed(1), (one, one), {"variance of one number": mean}),
    ]


@dataclass(frozen=True)
class Weights:
    """Estimates (g·u)u + a bias in a random direction, in units of ‖g‖, a mean over ``examples`` independent ones."""

    noise: str
    size: int
    bias: float = 0.0
    examples: int = 1

    @property
    def name(self) -> str:
        words = [f"{self.noise}, d = {self.size}", *([f"{self.examples} examples"] if self.examples > 1 else [])]
        return ", ".join([*words, *([f"bias {self.bias:g}"] if self.bias else [])])


WEIGHTS = (
    *(Weights("Gaussian", size) for size in (1, 4, 20, 100, 2000)),
    *(Weights("signs", size) for size in (4, 20)),
    *(Weights("Gaussian", size, 1.0) for size in (4, 20, 100)),
    Weights("Gaussian", 20, 3.0),
    Weights("Gaussian", 100, examples=8),
    Weights("coordinate", 20),
)
PLANTED = (0.3, 0.6, 1.0)  # biases of Gaussian weight perturbation, d = 20, whose p-values show what they cost


def weights(case: Weights, rng: Rng, *, cosines: int = 200_000) -> Law:
    """Perturbed weights; the true cosine is the mean of so many further draws."""
    d = case.size
    target, other, shift = rng.standard_normal((3, d))
    target, shift = target / np.linalg.norm(target), case.bias * shift / np.linalg.norm(shift)
    excess = {"Gaussian": 1.0, "signs": -1.0}.get(case.noise, 0.0)
    trace = d + excess if case.noise != "coordinate" else d - 1.0

    def once(*shape: int) -> Array:
        if case.noise == "coordinate":
            index = rng.integers(d, size=shape)[..., None]
            return np.where(np.arange(d) == index, d * target, 0.0)
        u = (
            rng.standard_normal((*shape, d))
            if case.noise == "Gaussian"
            else rng.integers(0, 2, (*shape, d)) * 2.0 - 1
        )
        return (u @ target)[..., None] * u

    def sample(runs: int, n: int) -> Array:
        return sum(once(runs, n) for _ in range(case.examples)) / case.examples + shift

    mean, trace, references = target + shift, trace / case.examples, np.stack([target, other])
    truth = known(mean, trace, references)
    if d > 1:
        truth["cosine"] = mean_cosine(sample, references, cosines)
    return Law(sample, (target, other), truth)


def known(mean: Array, trace: float, references: Array) -> dict[str, Array]:
    """Statistics of estimates with this mean and tr Cov; [references] where they depend on them."""
    along, lengths, signal = references @ mean, np.square(references).sum(1), mean @ mean
    found = {"variance": trace, "sq_bias": np.square(mean - references).sum(1), "slope": along / lengths}
    if len(mean) > 1:
        found |= {"snr": signal / trace, "efficiency": along**2 / lengths / (trace + signal)}
    return found


def mean_cosine(sample: Callable[[int, int], Array], references: Array, draws: int) -> Array:
    """Mean cosine of estimates to either reference, from draws of its own."""
    found, at_once = np.zeros(len(references)), max(1, min(draws, 10_000_000 // references.shape[1]))
    for _ in range(0, draws, at_once):
        rows = sample(1, at_once)[0]
        length = np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(references, axis=1)
        inner = rows @ references.T
        found += np.divide(inner, length, out=np.zeros_like(inner), where=length > 0).mean(0) * at_once
    return found / (-(-draws // at_once) * at_once)


@dataclass(frozen=True)
class Pair:
    """Weight perturbation of one Gaussian direction (baseline) and the mean of it and of another one."""

    size: int
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"difference, d = {self.size}")


PAIRS = (Pair(4), Pair(20), Pair(100))


def pair(case: Pair, rng: Rng, *, cosines: int = 200_000) -> Law:
    """Both estimates, [2, runs, draws, numbers]."""
    d = case.size
    target, other = rng.standard_normal((2, d))
    target /= np.linalg.norm(target)

    def sample(runs: int, n: int) -> Array:
        first, second = ((u @ target)[..., None] * u for u in rng.standard_normal((2, runs, n, d)))
        return np.stack([(first + second) / 2, first])

    references = np.stack([target, other])
    both = [
        mean_cosine(one, references, cosines)
        for one in (lambda runs, n: sample(runs, n)[0], lambda runs, n: sample(runs, n)[1])
    ]
    truth = {
        "variance_difference": -(d + 1) / 2,
        "slope_difference": np.zeros(2),
        "cosine_difference": both[0] - both[1],
    }
    return Law(sample, (target, other), truth, paired=True)
