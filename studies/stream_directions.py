"""What optimisers make of streams of estimates: their cosines to the gradient, drawn and in theory; lag on a path."""

from collections.abc import Callable, Iterator
from typing import Any

import torch

import fgvar
from fgvar import streams

OPTIMISERS = ("momentum", "Adam", "AMSGrad", "diffGrad", "sign of momentum")
PIECE = 4096  # estimates at once
PATH = 40  # steps of the path along which momentum lags


def flat(gradient: Any, problem: Any) -> Any:
    """All that is perturbed in one vector; the read-out learns exactly in every scheme, and is left out."""
    return torch.cat([gradient[name].flatten() for name in problem.perturbed])


def spread(feed: Any, problem: Any) -> Any:
    """The variance of every number, by its closed form."""
    return flat(fgvar.theory.variance(feed, problem), problem) + torch.zeros(()).double()


def estimates(feed: Any, problem: Any, count: int, seed: int) -> Any:
    """So many independent estimates [count, d]."""
    randomness = feed.randomness(problem)

    def one(noise: Any) -> Any:
        return flat(feed.estimate(problem, noise).gradient, problem)

    pieces = (range(start, min(start + PIECE, count)) for start in range(0, count, PIECE))
    return torch.cat(
        [torch.func.vmap(one)(randomness.sample(seed, numbers, dtype=problem.dtype)) for numbers in pieces]
    )


def outputs(stream: Any) -> Iterator[tuple[int, Any]]:
    """What every optimiser makes of a stream [draws, T, d], step by step: t, and [optimisers, draws, d]."""
    adam = {"Adam": streams.Adam(), "AMSGrad": streams.Adam(amsgrad=True)}
    words = {"momentum": streams.Momentum(), **adam, "diffGrad": streams.Adam(factor=streams.DiffGrad())}
    states: dict[str, Any] = {name: word.start({"": stream[:, 0]}) for name, word in words.items()}
    for step, gradient in enumerate(stream.unbind(1), start=1):
        found = {}
        for name, word in words.items():
            output, states[name] = word({"": gradient}, states[name])
            found[name] = output[""]
        found["sign of momentum"] = found["momentum"].sign()
        yield step, torch.stack([found[name] for name in OPTIMISERS])


def at_rest(stream: Any, g: Any, steps: list[int]) -> dict[str, Any]:
    """Cosines to the gradient, what each has over Adam's, and Adam's to momentum."""
    found: dict[str, list[Any]] = {"cosine": [], "over": [], "turned": [], "mean_cosine": []}
    momentum, adam = (OPTIMISERS.index(name) for name in ("momentum", "Adam"))
    for step, output in outputs(stream):
        if step in steps:
            to_g = Alignment(output, g)
            found["cosine"].append(to_g.estimate(lambda values: values))
            found["over"].append(to_g.estimate(lambda values: values - values[adam]))
            found["turned"].append(Alignment(output[adam], output[momentum]).estimate(lambda values: values))
            found["mean_cosine"].append(torch.cosine_similarity(output, g, dim=-1).mean(-1))
    means = {"mean_cosine": torch.stack(found.pop("mean_cosine"), -1)}
    for name, pairs in found.items():
        values, errors = zip(*pairs, strict=True)
        means |= {name: torch.stack(values, -1), f"{name}_se": torch.stack(errors, -1)}
    return means


class Alignment:
    """E⟨x, y⟩ / √(E‖x‖² E‖y‖²) of x and y [..., draws, d]: the cosine in mean square, exact where moments are."""

    def __init__(self, x: Any, y: Any) -> None:
        # Each draw's part of the three means, [3, ..., draws].
        self.parts = torch.stack([(x * y).sum(-1), x.square().sum(-1), y.square().sum(-1).expand(x.shape[:-1])])

    def estimate(self, function: Callable[[Any], Any]) -> tuple[Any, Any]:
        """A function of it by the jackknife: freed of the bias of few draws, and its standard error."""
        n, means = self.parts.shape[-1], self.parts.mean(-1, keepdim=True)
        whole = function(_quotient(means))[..., 0]
        without = function(_quotient((n * means - self.parts) / (n - 1)))
        error = ((n - 1) * without.var(-1, correction=0)).sqrt()
        return n * whole - (n - 1) * without.mean(-1), error


def _quotient(means: Any) -> Any:
    return means[0] / (means[1] * means[2]).sqrt()


def theory(g: Any, variance: Any, steps: list[int]) -> dict[str, Any]:
    """Cosines in mean square at rest, given the gradient and the variance of every number; NaN of a noisy diffGrad.

    Exact of momentum, and without noise. Else v̂ is taken at its mean, V_i + g_i², and momentum for normal.
    """
    columns, turned = [], []
    for step in steps:
        left = streams.Momentum().gain(step) * variance
        adam = (g.square() + variance).rsqrt()
        factor = torch.full_like(g, torch.nan) if variance.any() else torch.sigmoid(g.abs() * (step == 1))
        likely = torch.special.ndtr(g / left.sqrt())
        signs = (2 * likely - 1) @ g / (len(g) ** 0.5 * g.norm())
        shapes = torch.ones_like(g), adam, adam, factor * adam
        columns.append(torch.stack([*(_cosine(shape, g, left) for shape in shapes), signs]))
        moments = g.square() + left
        turned.append((adam @ moments) / (moments.sum() * (adam.square() @ moments)).sqrt())
    return {"cosine_theory": torch.stack(columns, -1), "turned_theory": torch.stack(turned)}


def _cosine(shape: Any, g: Any, left: Any) -> Any:
    """Of shape ∘ (g + what noise is left) to g."""
    return shape @ g.square() / (g.norm() * (shape.square() @ (g.square() + left)).sqrt())


def of_scale(stream: Any, g: Any, scales: list[float]) -> dict[str, Any]:
    """The last cosine of diffGrad less Adam's, if the loss is multiplied, which leaves Adam's output as it is."""
    times = torch.tensor(scales, dtype=stream.dtype)[:, None, None]
    words = streams.Adam(), streams.Adam(factor=streams.DiffGrad())
    states: list[Any] = [word.start({"": times * stream[:, 0]}) for word in words]
    found: list[Any] = [None, None]
    for gradient in stream.unbind(1):
        for index, word in enumerate(words):
            output, states[index] = word({"": times * gradient}, states[index])
            found[index] = output[""]
    both = Alignment(torch.stack(found), g)
    value, error = both.estimate(lambda values: values[1] - values[0])
    return {"difference": value, "difference_se": error}


def second_moments(stream: Any, g: Any) -> Any:
    """Adam's v̂ at the end, its standard error, its mean for weight perturbation, and g_i²: all over ‖g‖²."""
    weights = streams.Adam().beta2 ** torch.arange(stream.shape[1], dtype=g.dtype).flip(0)
    v = torch.einsum("t,dtn->dn", weights / weights.sum(), stream.square())
    square = g.square()
    return torch.stack([v.mean(0), v.std(0) / len(v) ** 0.5, g @ g + 2 * square, square]) / (g @ g)


def lag(problem: Any, rate: float) -> tuple[float, float]:
    """How far momentum is off the last gradient of its own path of exact ones, over its norm; and lr·age·‖Hg‖/‖g‖."""

    def whole(gradient: Any) -> Any:
        return torch.cat([value.flatten() for value in gradient.values()])

    momentum, here = streams.Momentum(), problem
    gradient = first = problem.backprop()
    output, state = momentum(first, momentum.start(first))
    for _ in range(PATH - 1):
        here = here.at({name: p - rate * output[name] for name, p in here.params.items()})
        gradient = here.backprop()
        output, state = momentum(gradient, state)
    weights = [momentum.beta**k for k in range(PATH)]
    age = sum(k * weight for k, weight in enumerate(weights)) / sum(weights)
    curved = torch.func.jvp(torch.func.grad(problem.loss), (dict(problem.params),), (first,))[1]
    off = (whole(output) - whole(gradient)).norm() / whole(gradient).norm()
    return float(off), float(rate * age * whole(curved).norm() / whole(first).norm())
