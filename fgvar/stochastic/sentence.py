"""The second sentence: of what a gradient is taken, where, and what becomes of it: ĝ = then(Σ_n ω_n · each(ĝ_n))."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from fgvar.errors import require_integer, require_word
from fgvar.estimators.declared import declared
from fgvar.estimators.estimator import ExactGradient
from fgvar.estimators.protocol import Estimate, GradientEstimator, require_estimator
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.nn.stacking import DIRECTIONS
from fgvar.problem import Problem
from fgvar.stochastic.past import after
from fgvar.stochastic.points import Here, Point
from fgvar.stochastic.sampling import SAMPLE, Everything, Sample, looks_at_all
from fgvar.stochastic.transforms import TRANSFORM, Gradient, Shapes, Transform, returned_shapes, shapes_of

T = TypeVar("T")

WHOLE = frozenset({"sample", "at", "then"})  # what names of leaves begin with that no term has of its own
RESERVED = WHOLE | {"of", "each"}  # what names of leaves of words begin with


@dataclass(frozen=True)
class Stochastic:
    """Any stochastic gradient: sampled, reweighted, clipped, compressed, taken elsewhere.

    θ' = at(θ); ω ~ sample, with E ω = 1; ĝ_n = each(of(term n at θ')); ĝ = then(Σ_n ω_n ĝ_n). It is unbiased for
    ``of``'s target if E ω = 1 for every term, ω is constant for differentiation, the loss is linear in the sampled
    sum, the point does not move, and shaping has the identity for mean. ``bias_reason`` says which of these its words
    break; that a loss is not linear in a sum inside the network, as log Ẑ, is the problem's, which it does not see.

    ``at`` comes first, on the unsampled problem, then ``sample``: a fresh minibatch at the moved point. For the same
    minibatch at both nest: ``Stochastic(of=Stochastic(at=…), sample=…)``. ω is by the probabilities at θ, never by
    those of a moved point. Gradients are of batch means, in a dict like ``problem.params``.

    Args:
        of: any gradient estimator.
        sample: which terms are looked at (`fgvar.sampling`).
        at: where the gradient is taken (`fgvar.points`).
        each: what becomes of every term's own gradient, in order (`fgvar.transforms`); one vmap over the examples,
            each of which is a batch of one with noise of its own.
        then: what becomes of the whole.
        workers: independent estimates that are averaged: variance / workers, the same bias.

    Raises:
        TypeError: a word that is none.
        ValueError: fewer than 1 worker; on use, a loss that couples examples, or an ``of`` whose own probabilities
            depend on the parameters behind a sampler, which would change with what was drawn, or transforms that end
            with tensors of other shapes than the parameters.

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> from fgvar.stochastic.draw import Draw
        >>> {name: leaf.shape for name, leaf in Stochastic(sample=Draw(3)).randomness(problem).leaves.items()}
        {'sample': (3,)}
    """

    of: GradientEstimator = ExactGradient()
    sample: Sample = Everything()
    at: Point = Here()
    each: tuple[Transform, ...] = ()
    then: tuple[Transform, ...] = ()
    workers: int = 1

    # What each is like, and what tells it from another word put in its place.
    WORDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "sample": ("fgvar.sampling.Draw(8)", "leaves", "view", "batch_size"),
        "at": ("fgvar.points.Here()", "leaves", "view"),
        "each": ("fgvar.transforms.Clip(1.0)", "leaves", "__call__"),
        "then": ("fgvar.transforms.Sign()", "leaves", "__call__"),
    }

    def __post_init__(self) -> None:
        require_estimator("of", self.of)
        for word, (like, *parts) in self.WORDS.items():
            given = getattr(self, word)
            if word in ("each", "then") and not isinstance(given, tuple):
                meant = tuple(given) if isinstance(given, list) else (given,)
                raise TypeError(f"{word} is {given!r}, expected a tuple of transforms: {meant!r}")
            for one in given if isinstance(given, tuple) else (given,):
                require_word(word, one, parts, like)
        if hasattr(self.at, "batch_size"):  # which has leaves and a view, too
            raise TypeError(f"at is {self.at!r}, expected a point like fgvar.points.Here(); samplers go to sample=")
        require_integer("workers", self.workers, 1)

    @property
    def bias_reason(self) -> str:
        """Why its mean is not its target; empty where it is, of a loss that is linear in the sampled sum."""
        words = (self.of, self.sample, self.at, *self.each, *self.then)
        return "; ".join(reason for word in words if (reason := getattr(word, "bias_reason", "")))

    def randomness(self, problem: Problem) -> Randomness:
        apart = self.each or not looks_at_all(self.sample)
        if problem.coupled and apart:
            raise ValueError("the loss couples the examples, so that no sum over examples can be sampled")
        origin = origin_of(problem)
        own = self.of.randomness(self.template(problem))
        if own.adapted and apart:
            raise ValueError(
                f"the probabilities of {self.of!r} depend on the batch, which {self.sample!r} draws anew; sample once"
            )
        leaves = {_outer(name): leaf.within("of") if leaf.group else leaf for name, leaf in own.leaves.items()}
        of_each, shapes = _parts("each", self.each, problem, shapes_of(problem))
        if self.each:
            examples = self.sample.batch_size(problem)
            leaves = {name: leaf.repeated(examples) for name, leaf in {**leaves, **of_each}.items()}
        of_whole, shapes = _parts("then", self.then, problem, shapes)
        if shapes != shapes_of(problem):
            raise ValueError(
                f"each and then end with {', '.join(shapes)}, expected gradients of the parameters "
                f"{', '.join(problem.params)}; put the way back last in then, as Carriers(…).back"
            )
        leaves |= {
            **_named("sample", self.sample.leaves(origin)),
            **_named("at", self.at.leaves(problem)),
            **of_whole,
        }
        if self.workers > 1:
            leaves = {name: leaf.repeated(self.workers) for name, leaf in leaves.items()}
        return Randomness(leaves)

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        if self.workers == 1:
            return self._estimate(problem, noise)
        stack = problem.network.stack

        def one(own: Mapping[str, Tensor]) -> Gradient:
            return self._estimate(problem, own).gradient

        several = stack(DIRECTIONS, one, dict(noise)) if noise else one({})
        return Estimate({name: g.mean(0) for name, g in several.items()} if noise else several)

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return self.of.target(problem)

    def after(self, output: Mapping[str, Tensor]) -> "Stochastic":
        """The sentence after a step of a stream, whose last output its point may ask for."""
        return replace(self, of=after(self.of, output), at=after(self.at, output))

    def sensitivity(self, problem: Problem) -> float | None:
        """How far another example in place of one can move the estimate, apart from noise that is added: 2 C ω/N.

        C is the ``bound`` of a transform of each term, ω the largest that the sampler gives (its ``largest_share``).
        None where either is not known, or where what comes after the bound may move it further: it has to say of
        itself that it ``contracts`` (‖T g − T h‖ ≤ ‖g − h‖), as noise, masks and clips do. None, too, where one
        example moves the gradients of all: by the point, by a transform before or after the bound that says of
        itself that it looks at the batch (``of_batch``), by a loss of Σ w ℓ / Σ w, or by terms that share the batch
        (`fgvar.contrastive.Contrastive`). Factors that the problem has (`Problem.weighted`) count as the largest of
        them.

        Source: Dwork and Roth 2014, Definition 3.1.
        """
        largest_share = declared(self.sample, "largest_share", *SAMPLE)
        share: float | None = largest_share(problem) if largest_share else None
        shared = problem.weighs or problem.of_batch or self.at.bias_reason
        if share is None or shared or any(getattr(one, "of_batch", False) for one in (*self.each, *self.then)):
            return None
        share *= 1.0 if problem.importance is None else float(problem.importance.abs().max())
        bound = math.inf
        for one in self.each:
            own = declared(one, "bound", *TRANSFORM)
            before = bound if declared(one, "contracts", *TRANSFORM) else math.inf
            bound = before if own is None else min(own, before)
        contracts = all(declared(one, "contracts", *TRANSFORM) for one in self.then)
        return None if math.isinf(bound) or not contracts else 2 * bound * share

    def term(self, example: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Gradient:
        """each(ĝ_n): the shaped gradient of one example as a batch of one, given the noise that is its own."""
        gradient = self.of.estimate(example, _inner(noise)).gradient
        for index, transform in enumerate(self.each):
            # By the whole problem at θ, as in ``then``: masks and carriers are the same for every example.
            gradient = _transformed(transform, gradient, problem, _under(f"each.{index}", noise))
        return gradient

    def seen(self, problem: Problem, noise: Mapping[str, Tensor]) -> Problem:
        """The problem that ``of`` estimates: at the point, and sampled."""
        origin = origin_of(problem)
        here = _viewed(self.at, self.at.view(problem, _under("at", noise)))
        found = _viewed(self.sample, self.sample.view(here, _under("sample", noise), origin))
        # Of all examples, weighed or tapped, the probabilities of samplers within stay those that were declared.
        return found._with(origin=origin) if looks_at_all(self.sample) else found

    def template(self, problem: Problem) -> Problem:
        """A problem of as many examples as ``of`` will see."""
        if self.each:
            return problem.example(0)
        count = self.sample.batch_size(problem)
        if count == problem.batch_size:
            return problem
        return problem.rows(torch.arange(count, device=problem.device) % problem.batch_size)

    def _estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        seen = self.seen(problem, noise)
        gradient = self._shaped(seen, noise, problem) if self.each else self.of.estimate(seen, _inner(noise)).gradient
        for index, transform in enumerate(self.then):
            gradient = _transformed(transform, gradient, problem, _under(f"then.{index}", noise))
        return Estimate({name: gradient[name] for name in problem.params})

    def _shaped(self, seen: Problem, noise: Mapping[str, Tensor], problem: Problem) -> Gradient:
        """Σ_n ω_n each(ĝ_n)/N: every example's own gradient, without its ω, shaped before they are added up."""
        factors = seen.importance

        def one(example: Problem, own: Mapping[str, Tensor]) -> Gradient:
            return self.term(example, own, problem)

        each = seen.unweighted().per_example(one, of_terms(noise))
        if factors is None:
            return {name: g.mean(0) for name, g in each.items()}
        return {name: torch.tensordot(factors / len(factors), g, dims=1) for name, g in each.items()}


def origin_of(problem: Problem) -> Problem:
    """Where probabilities come from: where the law of the noise was declared."""
    return problem if problem.origin is None else problem.origin


def of_terms(noise: Mapping[str, T]) -> dict[str, T]:
    """What of the noise, or of its leaves, each term has of its own where terms are shaped one by one."""
    return {name: u for name, u in noise.items() if name.partition(".")[0] not in WHOLE}


def _viewed(word: object, found: object) -> Problem:
    """What a point or a sampler, which may be anybody's, made of a problem."""
    if not isinstance(found, Problem):
        raise TypeError(f"the view of {word!r} is {type(found).__name__}, expected a problem, as here.rows(numbers)")
    return found


def _transformed(transform: Transform, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
    """What a transform, which may be anybody's, made of a gradient."""
    found: object = transform(gradient, problem, noise)
    if not isinstance(found, dict):
        raise TypeError(f"{transform!r} returned {type(found).__name__}, expected a dict of tensors, like a gradient")
    return found


def _outer(name: str) -> str:
    """What a leaf of ``of`` is called here: as it is, unless it begins like one of a word's."""
    return f"of.{name}" if name.partition(".")[0] in RESERVED else name


def _inner(noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The noise of ``of``, by its own names."""
    words = RESERVED - {"of"}
    return {name.removeprefix("of."): u for name, u in noise.items() if name.partition(".")[0] not in words}


def _named(word: str, leaves: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """Leaves of a word, "" → "word", "name" → "word.name"; joint laws are joint within the word."""
    return {f"{word}.{name}" if name else word: leaf.within(word) for name, leaf in leaves.items()}


def _parts(
    word: str, transforms: Sequence[Transform], problem: Problem, shapes: Shapes
) -> tuple[dict[str, Leaf], Shapes]:
    """Leaves of transforms of a gradient of these shapes, and the shapes of what they return."""
    found: dict[str, Leaf] = {}
    for index, transform in enumerate(transforms):
        found |= _named(f"{word}.{index}", transform.leaves(problem, shapes))
        shapes = returned_shapes(transform, problem, shapes)
    return found, shapes


def _under(word: str, noise: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The noise of a word, by the names that it gave."""
    return {
        name.removeprefix(word).removeprefix("."): u
        for name, u in noise.items()
        if name == word or name.startswith(f"{word}.")
    }
