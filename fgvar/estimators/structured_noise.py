"""Structured noise: directions whose numbers depend on each other, with E u = 0 and E uuᵀ = I all the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from fgvar.estimators.random_streams import Stream


@dataclass(frozen=True)
class Sphere:
    """Uniform on the sphere of radius √d of all d numbers that are perturbed together.

    For one scalar loss, tr Cov(ĝ) = (d − 1)‖∇‖²: as little as Rademacher noise, in every basis.

    Source: Flaxman, Kalai and McMahan 2005, who perturb along such directions.

    Example:
        >>> from fgvar.estimators.randomness import Leaf, Randomness
        >>> u = Randomness({"w": Leaf((3,), Sphere()), "b": Leaf((1,), Sphere())}).sample(seed=0, draws=[0])
        >>> round(float(u["w"].square().sum() + u["b"].square().sum()), 5)
        4.0
    """

    isotropic: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def spans_evenly(self, directions: int) -> bool:  # noqa: ARG002
        return True

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.normal(shape, dtype, device)

    def couple(self, rows: Tensor) -> Tensor:
        return rows * (rows.shape[-1] ** 0.5 / torch.linalg.vector_norm(rows, dim=-1, keepdim=True))


@dataclass(frozen=True)
class Coordinate:
    """±√d·e_i for a uniformly drawn number i of the d that are perturbed together, with a random sign.

    For one scalar loss, tr Cov(ĝ) = (d − 1)‖∇‖². One estimate is the gradient's entry i, d times too large.

    Source: Nesterov 2012 (random coordinate descent).

    Example:
        >>> from fgvar.estimators.randomness import Leaf, Randomness
        >>> u = Randomness({"w": Leaf((4,), Coordinate())}).sample(seed=0, draws=[0])["w"]
        >>> u.abs().sort().values
        tensor([[0., 0., 0., 2.]])
    """

    isotropic: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.normal(shape, dtype, device)

    def couple(self, rows: Tensor) -> Tensor:
        # The largest of independent normals is at a uniform place, with a uniform sign.
        chosen = torch.nn.functional.one_hot(rows.abs().argmax(-1), rows.shape[-1]).to(rows.dtype)
        return chosen * rows.sign() * rows.shape[-1] ** 0.5


@dataclass(frozen=True)
class Orthogonal:
    """Orthogonal directions of length √d, all K of an estimate: uniform among such frames in its d numbers.

    For one scalar loss the mean of their estimates is d/K times the projection of ∇ on a random K-dimensional
    subspace: tr Cov(ĝ) = (d/K − 1)‖∇‖², and 0 for K = d.

    Source: Choromanski et al. 2018 (orthogonal evolution strategies, whose lengths are random, too).

    Raises:
        ValueError: on use, more directions than there are numbers.

    Example:
        >>> from fgvar.estimators.randomness import Leaf, Randomness
        >>> u = Randomness({"w": Leaf((2, 3), Orthogonal(), batch_dims=1)}).sample(seed=0, draws=[0])["w"][0]
        >>> bool(torch.allclose(u @ u.T, 3 * torch.eye(2), atol=1e-5))
        True
    """

    isotropic: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True
    couples_directions: ClassVar[bool] = True  # its leaves have an axis of directions, also where there is one alone

    def spans_evenly(self, directions: int) -> bool:  # noqa: ARG002
        return True

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        return stream.normal(shape, dtype, device)

    def couple(self, rows: Tensor) -> Tensor:
        directions = (rows if rows.ndim > 1 else rows[None]).movedim(0, -1)  # [examples, numbers, directions]
        numbers, count = directions.shape[-2:]
        if count > numbers:
            raise ValueError(f"{count} directions cannot be orthogonal among {numbers} perturbed numbers")
        # Of half precision torch has no QR.
        wide = torch.float32 if directions.dtype.itemsize < 4 else directions.dtype
        q, r = torch.linalg.qr(directions.to(wide))
        # QR fixes signs its own way; with those of R's diagonal the frame is uniform.
        q = q * r.diagonal(dim1=-2, dim2=-1).sign()[..., None, :]
        return (q * numbers**0.5).movedim(-1, 0).reshape(rows.shape).to(rows.dtype)


@dataclass(frozen=True)
class Sparse:
    """Each number is 0 but with probability ``density``, then normal with variance 1/density: E u⁴ = 3/density.

    Args:
        density: share of the numbers that are perturbed.

    Raises:
        ValueError: a density outside of (0, 1].

    Example:
        >>> Sparse(0.25).kurtosis
        12.0
    """

    density: float

    isotropic: ClassVar[bool] = True
    elementwise: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise ValueError(f"density is {self.density!r}, expected a share above 0 and at most 1")

    @property
    def kurtosis(self) -> float:
        return 3 / self.density

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        normal, uniform = stream.normal((2, *shape), torch.float64, device)
        kept = torch.special.ndtr(uniform) < self.density
        return (normal * kept / self.density**0.5).to(dtype)


@dataclass(frozen=True)
class LowRank:
    """Matrices A Bᵀ/√rank of normal factors; tensors of one axis are plain normal.

    The rows are those of the first axis: of a weight, or of one example's activities where a site has several axes.
    Its numbers are uncorrelated but not independent: E u⁴ = 3 + 6/rank.

    Args:
        rank: of each matrix.

    Raises:
        ValueError: a rank below 1.

    Source: Sarkar et al. 2025 (EGGROLL).

    Example:
        >>> from fgvar.estimators.randomness import Leaf, Randomness
        >>> u = Randomness({"w": Leaf((4, 5), LowRank(2))}).sample(seed=0, draws=[0])["w"]
        >>> int(torch.linalg.matrix_rank(u[0]))
        2
    """

    rank: int = 1

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank!r}, expected at least 1")

    isotropic: ClassVar[bool] = True

    def sample(self, stream: Stream, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
        if len(shape) < 2:
            return stream.normal(shape, dtype, device)
        rows, columns = shape[0], math.prod(shape[1:])
        a, b = stream.normal((rows + columns, self.rank), dtype, device).split([rows, columns])
        return (a @ b.T / self.rank**0.5).reshape(tuple(shape))
