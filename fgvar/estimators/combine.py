"""Combine: how the derivatives along several directions become one estimate."""

from __future__ import annotations  # else those of inner functions are evaluated, which breaks compiled graphs

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.func import vmap

from fgvar.errors import unknown
from fgvar.estimators.losses import LossTerms
from fgvar.estimators.spaces import Linearised, Tensors


@dataclass(frozen=True)
class Directions:
    """The directions that an estimate is made of, as the loss terms see them.

    Attributes:
        linearised: the linearised space.
        directions: perturbed tensor → [directions, …].
        draws: how many draws of the noise they are.
        independent: how many of these draws are not the opposite of another one.
        blocks: into how many directions each draw falls, each with some of the tensors.
    """

    linearised: Linearised
    directions: dict[str, Tensor] = field(repr=False)
    draws: int
    independent: int
    blocks: int = 1

    @classmethod
    def of(
        cls, linearised: Linearised, draws: dict[str, Tensor], *, per_tensor: bool, antithetic: bool
    ) -> Directions:
        """Draws [draws, …], and with ``antithetic`` their opposites, as directions: whole, or a tensor each."""
        lines = len(next(iter(draws.values())))
        if antithetic:
            draws = {name: torch.cat([u, -u]) for name, u in draws.items()}
        count = lines * (2 if antithetic else 1)
        return (
            cls(linearised, _alone(draws), count, lines, len(draws))
            if per_tensor
            else cls(linearised, draws, count, lines)
        )

    # In float64, all of them: small floats hold neither the squares nor the counts of many numbers, and an inverse
    # loses the digits twice that a Gram matrix has squared.

    def norms(self, terms: LossTerms) -> LossTerms:
        """|u|² of each direction over the numbers that each term credits, like ``terms``."""
        return self._onto_terms(terms, {name: u.double().square() for name, u in self.directions.items()})

    def gram(self, terms: LossTerms) -> LossTerms:
        """Inner products of each two directions over the numbers that each term credits: [directions, *terms]."""
        wide = {name: u.double() for name, u in self.directions.items()}
        rows = [
            self._onto_terms(terms, {name: u * u[k] for name, u in wide.items()})
            for k in range(len(next(iter(wide.values()))))
        ]
        return {end: torch.stack([row[end] for row in rows]) for end in terms}

    def numbers(self, terms: LossTerms) -> LossTerms:
        """How many numbers each term credits along each direction, like ``terms``."""
        ones = {name: torch.ones_like(value) for name, value in self.linearised.point.items()}
        mask = {name: (u != 0).double()[None] for name, u in self.linearised.direction(ones).items()}
        found = self._onto_terms(terms, mask if self.blocks == 1 else _alone(mask))
        return {end: t.repeat(self.draws, 1, 1, 1) for end, t in found.items()}

    def _onto_terms(self, terms: LossTerms, numbers: Tensors) -> LossTerms:
        """The transpose of credit: sums of ``numbers`` [directions, …] over what each term credits."""
        point = self.linearised.point

        def credited(one: LossTerms) -> dict[str, Tensor]:
            return {name: c.expand(point[name].shape) for name, c in self.linearised.credit(one).items()}

        still = {end: torch.zeros_like(t[0], dtype=torch.float64) for end, t in terms.items()}
        transpose = torch.func.vjp(credited, still)[1]
        found: LossTerms = vmap(lambda one: transpose(one)[0])(dict(numbers))
        return found


def _alone(draws: Tensors) -> dict[str, Tensor]:
    """Every draw [draws, …] as one direction a tensor, the others at rest: [draws · tensors, …]."""

    def placed(index: int, u: Tensor) -> Tensor:
        others = [torch.zeros_like(u) for _ in range(len(draws) - 1)]
        return torch.stack([*others[:index], u, *others[index:]], 1).flatten(0, 1)

    return {name: placed(index, u) for index, (name, u) in enumerate(draws.items())}


class Combine(Protocol):
    """Derivatives along directions → the coefficients with which the directions add up to the estimate.

    Optional: ``uneven``, why there is a bias where directions do not span evenly; ``crosses_examples``, that examples
    are credited with one another's derivatives, which is refused where they share a direction.
    """

    @property
    def bias_reason(self) -> str:
        """Why E ĝ is not the target under isotropic noise; empty where it is."""

    def __call__(self, terms: LossTerms, directions: Directions) -> LossTerms:
        """From and to end → [directions, batch or 1, patches or 1, groups or 1]."""


@dataclass(frozen=True)
class Mean:
    """ĝ = 1/K Σ_k c_k u_k: E ĝ = ∇ for E uuᵀ = I, and the variance of one direction over K.

    Source: Ren et al. 2023, eqs 2-3, for K = 1.

    Example:
        >>> Mean()
        Mean()
    """

    bias_reason: ClassVar[str] = ""

    def __call__(self, terms: LossTerms, directions: Directions) -> LossTerms:
        return {end: c / directions.draws for end, c in terms.items()}


@dataclass(frozen=True)
class Normalised:
    """ĝ = 1/K Σ_k c_k u_k/|u_k|²: the mean projection of the gradient on each guess.

    Its length never exceeds that of the gradient which c is a derivative of (each example's own by activities that
    are perturbed, or by weights with ``shared=False``: where these cancel in the mean, ĝ can be far longer than ∇),
    and where the guess is the gradient, ĝ = ∇. With an isotropic guess over d numbers E ĝ = ∇/d, and for one loss and
    one direction for all examples tr Cov(ĝ) = (1/d − 1/d²)‖∇‖². |u|² runs over the numbers that the derivative
    credits: each example's own for activities.

    Source: Fournier et al. 2023, who project every tensor alone: ``per_tensor=True`` of the spaces.

    Example:
        >>> Normalised().bias_reason
        'projections shrink: E ĝ = ∇/d for an isotropic guess'
    """

    bias_reason: ClassVar[str] = "projections shrink: E ĝ = ∇/d for an isotropic guess"

    def __call__(self, terms: LossTerms, directions: Directions) -> LossTerms:
        norms = directions.norms(terms)
        found = {end: torch.where(norms[end] > 0, c / norms[end], 0) / directions.draws for end, c in terms.items()}
        return {end: w.to(terms[end].dtype) for end, w in found.items()}


@dataclass(frozen=True)
class Projection:
    """Orthogonal projection of the gradient on the span of all K directions: ĝ = U(UᵀU)⁺Uᵀ∇, least squares.

    For isotropic noise over d numbers E ĝ = K/d ∇ and, of directions that all examples share, E‖ĝ‖² = K/d ‖∇‖². The
    closest to ∇ that K derivatives can tell; K ≥ d gives ∇ itself. In activity space, and of weights with
    ``shared=False``, every example has its own span: the lengths are those of its own gradient, by what is perturbed.
    Directions of other noise can coincide (two of signs, say), and then span less.

    Args:
        scale: "none"; "norm", times √(d/K), so that E‖ĝ‖² = ‖∇‖² and E ĝ = √(K/d) ∇; "mean", times d/K, so that
            E ĝ = ∇.

    Raises:
        ValueError: an unknown scale.

    Source: Flügel et al. 2024 (arXiv 2410.17764).

    Example:
        >>> Projection(scale="mean").bias_reason
        ''
    """

    scale: str = "none"

    uneven: ClassVar[str] = "directions of this noise can coincide or vanish, and then span less"
    # Powers of d/K, and the share of ∇ that is left in the mean.
    SCALES: ClassVar[dict[str, tuple[float, str]]] = {
        "none": (0.0, "K/d"),
        "norm": (0.5, "√(K/d)"),
        "mean": (1.0, ""),
    }

    def __post_init__(self) -> None:
        if self.scale not in self.SCALES:
            raise ValueError(unknown("scale", self.scale, self.SCALES))

    @property
    def bias_reason(self) -> str:
        _, share = self.SCALES[self.scale]
        return f"projections shrink: E ĝ = {share} ∇ for isotropic noise" if share else ""

    def __call__(self, terms: LossTerms, directions: Directions) -> LossTerms:
        # Of ∇ no more is known than c = Uᵀ∇, one derivative a direction, and ĝ = U w with w = (UᵀU)⁺c: of U itself
        # the Gram matrix is enough, one for each loss term, over the numbers that this term credits.
        grams = directions.gram(terms)
        found = {}
        for end, c in terms.items():
            gram, right = grams[end].movedim((0, 1), (-2, -1)), c.double().movedim(0, -1)
            solved = torch.linalg.pinv(gram, hermitian=True) @ right[..., None]
            found[end] = solved[..., 0].movedim(-1, 0)
        if power := self.SCALES[self.scale][0]:
            numbers = directions.numbers(terms)
            # More directions than numbers span no more than the numbers.
            found = {
                end: w * (numbers[end] / directions.independent).clamp_min(1) ** power for end, w in found.items()
            }
        return {end: w.to(terms[end].dtype) for end, w in found.items()}


@dataclass(frozen=True)
class ShuffledCredit:
    """A control: every direction is credited with the derivative of another one, or of another example.

    All else, noise, sizes, cost, is as without it, but nothing is learnt: with independent noise E ĝ = 0 in the
    trunk. What a sham achieves (by heads, by noise itself) is not owed to the estimate.

    Args:
        combine: what combines the shuffled derivatives.
        across: "examples" (in activity space; noise of their own), or "directions" (at least two).

    Raises:
        ValueError: an unknown ``across``; on use, nothing to shuffle (a direction and its opposite are one), or
            examples that share a direction, of which E ĝ would be another one's gradient.

    Example:
        >>> ShuffledCredit(across="directions").combine
        Mean()
    """

    combine: Any = Mean()
    across: str = "examples"

    bias_reason: ClassVar[str] = "a control: E ĝ = 0 in the trunk"
    AXES: ClassVar[dict[str, int]] = {"directions": 0, "examples": 1}

    def __post_init__(self) -> None:
        if self.across not in self.AXES:
            raise ValueError(unknown("axis to shuffle across", self.across, self.AXES))

    @property
    def crosses_examples(self) -> bool:
        """Does it credit an example's direction with another one's derivative?"""
        return self.across == "examples"

    def __call__(self, terms: LossTerms, directions: Directions) -> LossTerms:
        axis = self.AXES[self.across]
        for t in terms.values():
            # The opposite of a direction has the opposite derivative: nobody else's.
            if (directions.independent * directions.blocks if axis == 0 else t.shape[axis]) < 2:
                raise ValueError(
                    f"ShuffledCredit(across={self.across!r}) has one of them to shuffle, expected at least two; "
                    "take a batch of examples in activity space, or several directions= and across='directions'"
                )
        shuffled: Callable[[LossTerms, Directions], LossTerms] = self.combine
        return shuffled({end: t.roll(1, axis) for end, t in terms.items()}, directions)
