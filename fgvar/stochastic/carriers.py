"""Carriers: a matrix's gradient seen from a few rows and columns of its space, and the way back."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.errors import require_integer, require_word
from fgvar.estimators.random_streams import Stream
from fgvar.estimators.randomness import Leaf
from fgvar.problem import Problem
from fgvar.stochastic.transforms import (
    Gradient,
    Moments,
    Shapes,
    moments_without_noise,
    require_parameters,
    shapes_of,
)

LEFT, RIGHT = ".left", ".right"  # what the carriers of a matrix are called behind its name


@dataclass(frozen=True)
class Carriers:
    """The gradient g of every m × n matrix as its carriers gRᵀ [m, r] and Lᵀg [r, n], under names of their own.

    L [m, r] and R [r, n] have orthonormal columns and rows: one power iteration on the weight from normal numbers.
    ``back`` returns from carriers to matrices; both together leave out (1 − LLᵀ) g (1 − RᵀR), and nothing where r is
    m or n. Between them gradients are clipped, noised and added up: noise of variance s² on all r(m + n) numbers
    has the energy r(m + n − r) s² of the way back. Tensors of more axes are matrices of their rows; of less, such as
    biases, they stay what they are.

    Args:
        rank: r, at most; a matrix with fewer rows or columns has carriers of as many.
        left_only: gRᵀ alone, and gRᵀR on the way back: noise energy r m s².
        seed: of the numbers that the power iteration starts from.

    Raises:
        ValueError: a rank below 1; on use, what are no gradients of the parameters.

    Source: Yu et al. 2021 (RGP; its code returns from the left carriers alone).

    Example:
        >>> problem = Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> {name: tuple(g.shape) for name, g in Carriers(1)(problem.backprop(), problem, {}).items()}
        {'weight.left': (2, 1), 'weight.right': (1, 3), 'bias': (2,)}
    """

    rank: int
    left_only: bool = False
    seed: int = 0

    linear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        require_integer("rank", self.rank, 1)

    @property
    def bias_reason(self) -> str:
        return f"what lies outside of {self.rank} rows and columns of each matrix is left out"

    @property
    def back(self) -> "FromCarriers":
        """The way back, to put behind what is done to carriers."""
        return FromCarriers(self)

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        require_parameters(self, problem, shapes)
        return {}

    def shapes(self, problem: Problem, shapes: Shapes) -> Shapes:
        found: dict[str, tuple[int, ...]] = {}
        for name, shape in shapes.items():
            if len(shape) < 2:
                found[name] = shape
                continue
            rows, columns = problem.params[name].flatten(1).shape
            rank = min(self.rank, rows, columns)
            found[name + LEFT] = (rows, rank)
            if not self.left_only:
                found[name + RIGHT] = (rank, columns)
        return found

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        found = {}
        for name, g in gradient.items():
            if g.ndim < 2:
                found[name] = g
                continue
            left, right = self.bases(name, problem.params[name])
            found[name + LEFT] = g.flatten(1) @ right.T
            if not self.left_only:
                found[name + RIGHT] = left.T @ g.flatten(1)
        return found

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return moments_without_noise(self, mean, variance, problem)

    def bases(self, name: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """L [m, r] and R [r, n] of the parameter of this name."""
        # Decompositions take no 16-bit numbers.
        matrix = weight.detach().flatten(1).to(torch.promote_types(weight.dtype, torch.float32))
        rank = min(self.rank, *matrix.shape)
        stream = Stream(self.seed, f"carriers of {name}", 0)  # the same numbers on every device
        start = stream.normal((matrix.shape[1], rank), matrix.dtype, torch.device("cpu"))
        start = start.to(matrix.device, non_blocking=True)
        left = torch.linalg.qr(matrix @ start).Q
        right = torch.linalg.qr(matrix.T @ left).Q.T
        return left.to(weight.dtype), right.to(weight.dtype)


@dataclass(frozen=True)
class FromCarriers:
    """From carriers a = gRᵀ and b = Lᵀg back to matrices: aR + Lb − LLᵀaR, whatever has been done to a and b.

    Args:
        carriers: whose.

    Raises:
        TypeError: what has no ``bases``.
        ValueError: on use, what are no such carriers.

    Source: Yu et al. 2021 (RGP).

    Example:
        >>> Carriers(2).back
        FromCarriers(carriers=Carriers(rank=2, left_only=False, seed=0))
    """

    carriers: Carriers

    linear: ClassVar[bool] = True
    contracts: ClassVar[bool] = True  # its two parts, (1 − LLᵀ)aR and Lb, are orthogonal
    bias_reason: ClassVar[str] = ""

    def __post_init__(self) -> None:
        require_word("carriers", self.carriers, ("bases", "shapes"), "fgvar.transforms.Carriers(2)")

    def leaves(self, problem: Problem, shapes: Shapes) -> dict[str, Leaf]:
        if shapes != (expected := self.carriers.shapes(problem, shapes_of(problem))):
            raise ValueError(
                f"{self!r} is given {', '.join(shapes)}, expected {', '.join(expected)}; "
                f"put {self.carriers!r} before it"
            )
        return {}

    def shapes(self, problem: Problem, shapes: Shapes) -> Shapes:
        return shapes_of(problem)

    def __call__(self, gradient: Gradient, problem: Problem, noise: Mapping[str, Tensor]) -> Gradient:
        found = {}
        for name, weight in problem.params.items():
            if weight.ndim < 2:
                found[name] = gradient[name]
                continue
            left, right = self.carriers.bases(name, weight)
            matrix = gradient[name + LEFT] @ right
            if not self.carriers.left_only:
                # Both carriers hold LᵀgRᵀ: it is taken from the right ones.
                matrix = matrix + left @ (gradient[name + RIGHT] - left.T @ matrix)
            found[name] = matrix.reshape(weight.shape)
        return found

    def moments(self, mean: Gradient, variance: Gradient, problem: Problem) -> Moments:
        return moments_without_noise(self, mean, variance, problem)

    def spread(self, variance: Gradient, problem: Problem) -> Gradient:
        """Variance of every entry of matrices, for carriers of this variance whose entries are uncorrelated."""
        found = {}
        for name, weight in problem.params.items():
            if weight.ndim < 2:
                found[name] = variance[name]
                continue
            left, right = self.carriers.bases(name, weight)
            a = variance[name + LEFT]
            if not self.carriers.left_only:
                # Squares of the entries of 1 − LLᵀ, without a matrix of m × m: δ(1 − 2 LLᵀ) + (LLᵀ)².
                inner = torch.einsum("kpq,kj->pqj", torch.einsum("kp,kq->kpq", left, left), a)
                outer = torch.einsum("ipq,pqj->ij", torch.einsum("ip,iq->ipq", left, left), inner)
                a = a * (1 - 2 * left.square().sum(1, keepdim=True)) + outer
            matrix = a @ right.square()
            if not self.carriers.left_only:
                matrix = matrix + left.square() @ variance[name + RIGHT]
            found[name] = matrix.reshape(weight.shape)
        return found
