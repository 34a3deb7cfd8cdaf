"""The protocol of every gradient estimator, and the composed one: ĝ = pullback(oracle(losses, u) · u)."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, cast

from torch import Tensor
from torch.utils._pytree import tree_map

from fgvar.errors import require_word
from fgvar.estimators.combine import Combine, Directions, Mean
from fgvar.estimators.declared import declared
from fgvar.estimators.factors import Factors, sum_directions
from fgvar.estimators.guesses import Guess, Isotropic
from fgvar.estimators.laws import LAW, Law
from fgvar.estimators.loss_terms import gradient, gradient_and_loss
from fgvar.estimators.losses import GlobalLoss, Losses
from fgvar.estimators.noise import Gaussian
from fgvar.estimators.oracles import Jvp, Oracle
from fgvar.estimators.protocol import Estimate, require_directions
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.estimators.spaces import Linearised, OnePassSpace, Space, Tensors, TermsAndLoss
from fgvar.estimators.weight_space import WeightSpace
from fgvar.nn.stacking import DIRECTIONS, Stacker
from fgvar.problem import Problem

# What spaces, guesses and oracles do: one that does it in its own way takes none of our short cuts unless it says so.
WAYS = ("linearise", "linearise_along", "shapes", "direction", "terms", "__call__")


@dataclass(frozen=True)
class Estimator:
    """A perturbation scheme, composed of words: space, noise, losses, oracle, guess, combine.

    u ~ noise, shaped by the guess, on the space; c = oracle(losses, u), how each credited loss term moves along
    u; the estimate is pullback(c · u), combined over directions. With the default guess and combination its
    mean is the gradient of the losses, its ``target``, and its variance is in closed form in `fgvar.theory`;
    ``bias_reason`` says where it is not. Parameters of heads and read-outs are not perturbed: they get their exact
    gradient (Ren et al. 2023, Sec. 5).

    Gradients are of batch means, in a dict like ``problem.params``.

    Args:
        space, noise, losses, oracle, guess, combine: the words.
        shared: one draw for the whole batch; None takes the custom of the space (weights yes, activities no).
        directions: independent directions, the mean of whose estimates is the estimate: variance / directions.
        antithetic: pair every direction u with −u. Their estimates differ only by the error of finite
            differences: with the `Jvp` oracle, which has none, a pair repeats one estimate.

    Raises:
        TypeError: a word that is none.
        ValueError: fewer than 1 direction.

    Example:
        >>> import torch
        >>> from fgvar.estimators.weight_space import WeightSpace
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> estimator = Estimator(WeightSpace())
        >>> noise = estimator.randomness(problem).sample(seed=0, draws=[7])
        >>> one = {name: u[0] for name, u in noise.items()}
        >>> estimator.estimate(problem, one).gradient["weight"].shape
        torch.Size([2, 3])
    """

    space: Space = WeightSpace()
    noise: Law = Gaussian()
    losses: Losses = GlobalLoss()
    oracle: Oracle = Jvp()
    guess: Guess = Isotropic()
    combine: Combine = Mean()
    shared: bool | None = None
    directions: int = 1
    antithetic: bool = False

    # What tells a word from another one put in its place.
    WORDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "space": ("linearise", "per_example"),
        "noise": ("sample",),
        "losses": ("cuts", "total"),
        "oracle": ("terms", "bias_order"),
        "guess": ("direction", "shapes"),
        "combine": ("__call__", "bias_reason"),
    }

    def __post_init__(self) -> None:
        for word, parts in self.WORDS.items():
            default = type(self.__dataclass_fields__[word].default).__name__
            require_word(word, getattr(self, word), parts, f"{default}()")
        if isinstance(self.noise, Randomness):  # which samples, too, but is what laws make
            raise TypeError(f"noise is {self.noise!r}, expected a law like Gaussian()")
        require_directions(self.directions)

    @property
    def shares_noise(self) -> bool:
        """Is one direction used for the whole batch?"""
        return not self.space.per_example if self.shared is None else self.shared

    @property
    def stacks_directions(self) -> bool:
        """Has its noise an axis of directions?"""
        return self.directions > 1 or getattr(self.noise, "couples_directions", False)

    @property
    def bias_reason(self) -> str:
        """Why its mean is not its target; empty where it is."""
        space = getattr(self.space, "bias_reason", "")
        # Of activities every group's numbers are credited by that group anyway.
        losses = "" if self.space.per_example else getattr(self.losses, "bias_reason", "")
        steps = "" if self.bias_order is None else f"of order step^{self.bias_order}"
        spans_evenly = declared(self.noise, "spans_evenly", *LAW)
        spans = "" if spans_evenly and spans_evenly(self.directions) else getattr(self.combine, "uneven", "")
        reasons = (space, losses, self.guess.bias_reason, self.combine.bias_reason, spans, steps)
        return "; ".join(reason for reason in reasons if reason)

    @property
    def bias_order(self) -> int | None:
        """The power of a finite difference's step that its bias falls with; None of exact derivatives."""
        # A one-sided error is even in u, and averages out over u and −u: along one direction without noise it stays.
        lone = getattr(self.guess, "noiseless", False) and not self.antithetic
        return 1 if lone and getattr(self.oracle, "one_sided", False) else self.oracle.bias_order

    @property
    def _each_alone(self) -> bool:
        """Are the weights perturbed anew for every example, each a problem of its own?"""
        return not self.shares_noise and not self.space.per_example

    def randomness(self, problem: Problem) -> Randomness:
        self.losses.check(problem)
        self.space.check(problem)
        self.guess.check(problem)
        if problem.coupled and self.shares_noise == self.space.per_example:
            raise ValueError(
                "the loss couples the examples, so that weights need one direction for the whole batch, and "
                f"activities one for each example: use shared={not self.shares_noise}"
            )
        shapes = self.guess.shapes(problem, self.space, self.losses, 1 if self._each_alone else problem.batch_size)
        if getattr(self.combine, "crosses_examples", False) and (self.shares_noise or not shapes):
            raise ValueError(
                f"{self.combine!r} credits an example's direction with another one's derivative, but all have the "
                "same direction; take noise of their own in activity space, or across='directions'"
            )
        k = self.directions
        if not shapes and k > 1:
            raise ValueError(f"{self.guess!r} needs no noise, so that {k} directions would be one; take 1")
        lead = (*((k,) if self.stacks_directions else ()), *(() if self.shares_noise else (problem.batch_size,)))
        return Randomness({name: Leaf((*lead, *shape), self.noise, len(lead)) for name, shape in shapes.items()})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        draws = {name: u if self.stacks_directions else u[None] for name, u in noise.items()}
        if not self._each_alone:
            return self._estimate(problem, draws)

        def one(example: Problem, own: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Any]:
            estimate = self._estimate(example, own)
            return estimate.gradient, estimate.loss

        gradients, losses = problem.per_example(one, {name: u.movedim(1, 0) for name, u in draws.items()})
        return Estimate({name: g.mean(0) for name, g in gradients.items()}, losses.mean())

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return gradient(self.losses, problem, problem.params)

    @property
    def _one_pass(self) -> bool:
        """Can the forward pass that the local VJPs come from carry the direction, too?

        It can where the noise itself is the direction, but for numbers masked since nothing depends on them.
        """
        single = self.directions == 1 and not self.antithetic
        return single and all(declared(word, "one_pass", *WAYS) for word in (self.space, self.guess, self.oracle))

    @property
    def _by_tensor(self) -> bool:
        """Is its noise one direction, of which no more than a tensor is looked at at a time?"""
        single = not (self.stacks_directions or self.antithetic) and type(self.combine) is Mean
        return single and bool(declared(self.oracle, "by_tensor", *WAYS))

    @property
    def factored(self) -> bool:
        """Are its `factors` all that there is to know of an estimate whose noise is known?"""
        return self.shares_noise and (type(self), self.space, self.guess) == (Estimator, WeightSpace(), Isotropic())

    def factors(self, problem: Problem, noise: Mapping[str, Tensor]) -> Factors:
        """What `estimate` multiplies its noise by, where it is `factored`.

        Of `LazyTensors` no more than one is there at a time, where the oracle takes differences along one direction.
        """
        if self._by_tensor:  # the mean of one direction is its own
            linearised = self.space.linearise(problem, self.losses)
            terms, loss = self.oracle.terms(linearised, noise)
            credit = {name: c[None] for name, c in linearised.credit(terms).items()}
            return Factors(credit, linearised.backward({}), loss)
        draws = {name: u if self.stacks_directions else u[None] for name, u in noise.items()}
        linearised, credit, _, loss = self._credited(problem, draws)
        if self.antithetic:  # u and −u were credited apart
            credit = {name: -c.unflatten(0, (2, -1)).diff(dim=0)[0] for name, c in credit.items()}
        return Factors(credit, linearised.backward({}), loss)

    def _estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:
        linearised, credit, directions, loss = self._credited(problem, noise)
        found = linearised.backward({name: sum_directions(credit[name], u) for name, u in directions.items()})
        return Estimate({name: found[name] for name in problem.params}, loss)

    def _credited(
        self, problem: Problem, noise: Mapping[str, Tensor]
    ) -> tuple[Linearised, dict[str, Tensor], dict[str, Tensor], Tensor]:
        """The linearised space, what credits each direction, the directions, and the batch-mean loss."""
        derivatives: Callable[[Tensors], TermsAndLoss]
        if self._one_pass:
            along, space = {name: u[0] for name, u in noise.items()}, cast(OnePassSpace, self.space)
            linearised, precomputed_jvp = space.linearise_along(problem, self.losses, along)
            derivatives = lambda _direction: precomputed_jvp  # noqa: E731
        else:
            linearised = self.space.linearise(problem, self.losses)
            derivatives = lambda direction: self.oracle.terms(linearised, direction)  # noqa: E731
        stack = problem.network.stack
        draws = _each(stack, lambda own: self.guess.direction(problem, self.losses, linearised, own), noise)
        directions = Directions.of(linearised, draws, per_tensor=self.space.per_tensor, antithetic=self.antithetic)
        terms, losses = _each(stack, derivatives, directions.directions)
        credit = _each(stack, linearised.credit, self.combine(terms, directions))
        return linearised, credit, directions.directions, losses.mean()


def _each(stack: Stacker, function: Callable[[Any], Any], stacked: Mapping[str, Tensor]) -> Any:
    """``function`` of every item of a stack, stacked. One item alone takes the plain way; no tensor is one item."""
    if stacked and len(next(iter(stacked.values()))) > 1:
        return stack(DIRECTIONS, function, dict(stacked))
    found = function({name: u[0] for name, u in stacked.items()})
    return tree_map(lambda value: value[None], found)


@dataclass(frozen=True)
class ExactGradient:
    """The gradient of the losses by reverse mode: no noise, no bias to its target. BP, L-BP and LG-BP.

    Its cosine to backprop tells what the choice of losses alone costs.

    Example:
        >>> ExactGradient(GlobalLoss(heads=False)).losses.heads
        False
    """

    losses: Losses = GlobalLoss(heads=False)

    additive: ClassVar[bool] = True  # its estimate is the mean of those of each example alone

    @property
    def bias_reason(self) -> str:
        return ""

    def randomness(self, problem: Problem) -> Randomness:
        self.losses.check(problem)
        return Randomness({})

    def estimate(self, problem: Problem, noise: Mapping[str, Tensor]) -> Estimate:  # noqa: ARG002
        return Estimate(*gradient_and_loss(self.losses, problem, problem.params))

    def target(self, problem: Problem) -> dict[str, Tensor]:
        return gradient(self.losses, problem, problem.params)
