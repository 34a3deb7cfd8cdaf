"""Directions in subspaces of each matrix: SubZero's random ones on both sides, AGZO's span of the inputs, LOZO's."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import fgvar
from studies.published.directional import Moments, Tensors, of_gaussian, squares

Bases = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Subspaces:
    """u = L Z Rᵀ with normal Z, for orthonormal L and R that are kept: E ĝ = P∇ with P∇ = LLᵀ∇RRᵀ.

    Tensors without a basis on a side keep it whole. Without a factor that makes up for what is not in the subspace,
    as published: tr Cov(ĝ) = (q + 1)‖P∇‖² for q = Σ rank · rank dimensions of all subspaces together.

    Args:
        left: matrix → orthonormal columns [rows, rank].
        right: matrix → orthonormal columns [columns, rank].

    Source: Yu et al. 2024 (arXiv 2410.08989, SubZero: both sides, by QR of normal matrices, drawn anew every T₀
    steps); Lin et al. 2026 (arXiv 2601.17261, AGZO: on the side of a layer's inputs their leading singular vectors, a
    plain normal direction for all that is no linear layer). Their definitions were held against public summaries.

    Example:
        >>> subspaces = Subspaces({"weight": torch.eye(3)[:, :1]}, {})
        >>> subspaces.project({"weight": torch.ones(3, 2)})["weight"][:, 0]
        tensor([1., 0., 0.])
    """

    left: Bases
    right: Bases

    bias_reason = "directions span subspaces: E ĝ = P∇"

    def leaves(self, problem: fgvar.Problem) -> dict[str, fgvar.Leaf]:
        return {
            name: fgvar.Leaf(self._shape(name, tuple(p.shape)), fgvar.Gaussian())
            for name, p in problem.params.items()
        }

    def directions(self, problem: fgvar.Problem, noise: Tensors) -> tuple[Tensors, Tensors]:
        query = {name: self._placed(name, noise[name]) for name in problem.params}
        return query, query

    def moments(self, gradient: Tensors) -> Moments:
        projected = self.project(gradient)
        sizes = {name: _product(self._shape(name, tuple(g.shape))) for name, g in gradient.items()}
        return Moments(projected, of_gaussian(projected, sizes))

    def project(self, gradient: Tensors) -> dict[str, Tensor]:
        """P∇."""
        found = {}
        for name, g in gradient.items():
            within = self.left[name].to(g).mT @ g if name in self.left else g
            found[name] = self._placed(name, within @ self.right[name].to(g) if name in self.right else within)
        return found

    def _shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        if name in self.left:
            shape = (self.left[name].shape[1], *shape[1:])
        return (*shape[:1], self.right[name].shape[1]) if name in self.right else shape

    def _placed(self, name: str, z: Tensor) -> Tensor:
        found = self.left[name].to(z) @ z if name in self.left else z
        return found @ self.right[name].to(z).mT if name in self.right else found


def random_bases(shapes: Mapping[str, tuple[int, ...]], axis: int, rank: int, seed: int) -> dict[str, Tensor]:
    """Uniform orthonormal bases of so many dimensions at most, of this axis of every matrix."""
    generator = torch.Generator().manual_seed(2 * seed + axis)
    found = {}
    for name, shape in shapes.items():
        if len(shape) == 2:
            normal = torch.randn(shape[axis], min(rank, *shape), generator=generator, dtype=torch.float64)
            found[name] = torch.linalg.qr(normal)[0]
    return found


def input_bases(module: Any, inputs: Tensor, names: Iterable[str], rank: int) -> tuple[dict[str, Tensor], ...]:
    """Leading singular vectors of what each linear layer reads: those of the layer's rows, those of its columns.

    The weights of a `torch.nn.Linear` have inputs for columns, those of GPT-2's Conv1D for rows.
    """
    wanted, left, right, hooks = set(names), dict[str, Tensor](), dict[str, Tensor](), []

    def watch(name: str, transposed: bool) -> Any:
        def hook(_module: Any, read: tuple[Tensor, ...]) -> None:
            flat = read[0].detach().double().flatten(0, -2)
            basis = torch.linalg.svd(flat, full_matrices=False).Vh[:rank].mT
            (left if transposed else right)[name] = basis

        return hook

    for name, layer in module.named_modules():
        weight = getattr(layer, "weight", None)
        linear = isinstance(layer, torch.nn.Linear) or type(layer).__name__ == "Conv1D"
        if linear and f"{name}.weight".lstrip(".") in wanted and weight is not None:
            own = f"{name}.weight".lstrip(".")
            hooks.append(layer.register_forward_pre_hook(watch(own, not isinstance(layer, torch.nn.Linear))))
    with torch.no_grad():
        module(inputs)
    for one in hooks:
        one.remove()
    return left, right


@dataclass(frozen=True)
class LazyLowRank:
    """The mean of so many steps of LOZO, ĝ_t = c_t U_t Vᵀ/r, with c_t the derivative along U_t Vᵀ, and one V for all.

    Unbiased over V. E‖ĝ‖² is 1/T of one step's (`of_low_rank`), and (1 − 1/T)(n + r + 1)/r · ‖∇_k‖² of a matrix with
    n columns: what V does not see in all of its T steps.

    Args:
        rank: r.
        steps: T, for which V is kept.

    Source: Chen et al. 2024 (arXiv 2410.07698, LOZO), held against a public summary; tensors that are no matrix get
    normal noise and the same c_t, which could not be held against the paper.

    Example:
        >>> LazyLowRank(rank=2, steps=50).bias_reason
        ''
    """

    rank: int
    steps: int

    bias_reason = ""

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        found = {}
        for name, p in problem.params.items():
            if p.ndim == 2:
                found[f"V.{name}"] = fgvar.Leaf((p.shape[1], self.rank), fgvar.Gaussian())
            own = (p.shape[0], self.rank) if p.ndim == 2 else tuple(p.shape)
            found[f"U.{name}"] = fgvar.Leaf((self.steps, *own), fgvar.Gaussian())
        return fgvar.Randomness(found)

    def estimate(self, problem: fgvar.Problem, noise: Tensors) -> fgvar.Estimate:
        gradient = problem.backprop()
        # ⟨∇, UVᵀ⟩ = ⟨∇V, U⟩: no direction is ever made whole.
        seen = {name: g @ noise[f"V.{name}"] if g.ndim == 2 else g for name, g in gradient.items()}
        flat = {name: noise[f"U.{name}"].flatten(1) for name in gradient}
        c = torch.stack([u @ seen[name].flatten() for name, u in flat.items()]).sum(0) / self.steps
        found = {}
        for name, g in gradient.items():
            summed = torch.tensordot(c, noise[f"U.{name}"], 1)
            found[name] = summed @ noise[f"V.{name}"].mT / self.rank if g.ndim == 2 else summed
        return fgvar.Estimate(found)

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()

    def moments(self, gradient: Tensors) -> Moments:
        each = squares(gradient)
        first = of_low_rank(gradient, self.rank, scale=self.rank)
        kept = {
            name: (g.shape[1] + self.rank + 1) / self.rank * each[name] if g.ndim == 2 else each[name]
            for name, g in gradient.items()
        }
        share = 1 / self.steps
        return Moments(dict(gradient), {name: share * first[name] + (1 - share) * kept[name] for name in kept})


def of_low_rank(gradient: Tensors, rank: int, scale: float = 1.0) -> dict[str, float]:
    """E‖ĝ‖² of each tensor, of matrices ABᵀ/√r beside normal vectors.

    d_k(‖∇‖² − ‖∇_k‖²) + (mn + 2 + 2(m + n + 1)/r)‖∇_k‖² of a matrix, where what is seen is what is updated. With
    ``scale``, what matrices see is √scale times as large, and their update as much smaller: vectors then have
    that much more of the noise of matrices, and these less of theirs.
    """
    each = squares(gradient)
    matrices = sum(s for name, s in each.items() if gradient[name].ndim > 1)
    vectors, found = sum(each.values()) - matrices, {}
    for name, g in gradient.items():
        if g.ndim > 1:
            own = g.numel() + 2 + 2 * (g.shape[0] + g[0].numel() + 1) / rank
            found[name] = g.numel() * (matrices - each[name] + vectors / scale) + own * each[name]
        else:
            found[name] = g.numel() * (scale * matrices + vectors) + 2 * each[name]
    return found


def _product(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())
