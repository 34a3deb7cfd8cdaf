"""Guesses from the network's own matrices: the subspaces in which gradients have to lie."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import grad

from fgvar.errors import unknown
from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.guesses import Shapes, is_weight, owner
from fgvar.estimators.losses import Losses
from fgvar.estimators.spaces import Linearised, Space, Tensors
from fgvar.nn.reach import OUTPUT
from fgvar.problem import Problem


@dataclass(frozen=True)
class TransposedWeights:
    """u = Wᵀε through the layers that read an activity next, and the nonlinearity before them: mask ⊙ Wᵀε.

    Backpropagation would send exactly such a vector, with the true gradient in ε's place, so u lies in the right
    subspace; which of it is chance. Sites that no layer reads, such as logits, get the noise itself. E ĝ = BBᵀ∇,
    for u = Bε: biased, by a matrix that can be enumerated. For weights, the local VJPs carry u on to the weights.

    Args:
        orthogonal: "none" takes W as it is; "svd" the nearest matrix with orthonormal rows or columns, UVᵀ;
            "newton-schulz" the same by matrix products alone (five quintic steps: singular values between 0.65
            and 1.25, but those below a hundredth of the Frobenius norm, which stay smaller): less bias and variance.
        rank: with "svd", of how many leading singular directions; None takes all that are not numerically 0.

    Raises:
        ValueError: an unknown ``orthogonal``, a rank without "svd"; on use, a network without sites.

    Source: Singhal et al. 2023 (arXiv 2312.04709); orthogonalised, Wang et al. 2025 (arXiv 2511.03110).

    Example:
        >>> TransposedWeights(orthogonal="svd", rank=8).rank
        8
    """

    orthogonal: str = "none"
    rank: int | None = None

    bias_reason: ClassVar[str] = "E ĝ = BBᵀ∇ for directions u = Bε"
    WAYS: ClassVar[tuple[str, ...]] = ("none", "svd", "newton-schulz")

    def __post_init__(self) -> None:
        if self.orthogonal not in self.WAYS:
            raise ValueError(unknown("way to orthogonalise", self.orthogonal, self.WAYS))
        if self.rank is not None and (self.orthogonal != "svd" or self.rank < 1):
            raise ValueError(f"rank={self.rank} with orthogonal={self.orthogonal!r}: expected a rank ≥ 1 with 'svd'")

    def check(self, problem: Problem) -> None:
        ActivitySpace().check(problem)

    def shapes(self, problem: Problem, space: Space, losses: Losses, examples: int) -> Shapes:
        outputs = {name: (problem.trace.visits[name][0].shape or ())[1:] for name in self._layers(problem)}
        heads = {head: (_classes(problem, head),) for head in self._heads(problem, losses).values()}
        last = {site: problem.trace.sites[site][1:] for site in self._last(problem, losses)}
        return {**{f"after.{name}": shape for name, shape in {**outputs, **heads}.items()}, **last}

    def direction(
        self, problem: Problem, losses: Losses, linearised: Linearised, noise: Tensors
    ) -> dict[str, Tensor]:
        sites, layers = tuple(problem.trace.sites), self._layers(problem)
        heads = self._heads(problem, losses)
        params = {name: self._orthogonalised(problem, name) for name in problem.network.owners}
        values = problem.run(problem.params, watch=sites)[1]

        def following(activities: Tensors) -> Tensor:
            still = next(iter(activities.values())).new_zeros(1)
            cuts = {*losses.cuts(problem), *heads}
            ends, called = problem.shift_outputs(params, dict.fromkeys(layers, still), cut=cuts, replace=activities)
            outputs = {f"after.{name}": called[name][1] for name in layers}
            for end, head in heads.items():
                outputs[f"after.{head}"] = problem.logits(params, end, ends[end])
            return torch.cat([still, *((noise[k] * output).sum()[None] for k, output in outputs.items())]).sum()

        found = grad(following)(values)
        for site in self._last(problem, losses):
            found[site] = noise[site].expand_as(found[site])
        return _carried(problem, losses, linearised, found)

    @staticmethod
    def _layers(problem: Problem) -> tuple[str, ...]:
        """Modules that own weights and are called behind a site: each reads some activities."""
        owners = {owner for owners in problem.network.owners.values() for owner in owners}
        first = min(problem.trace.visits[site][0].left for site in problem.trace.sites)
        shaped = {name: visits[0].shape is not None for name, visits in problem.trace.visits.items()}
        calls = {name: visits[0].entered for name, visits in problem.trace.visits.items() if len(visits) == 1}
        return tuple(name for name, entered in calls.items() if name in owners and entered > first and shaped[name])

    def _last(self, problem: Problem, losses: Losses) -> tuple[str, ...]:
        """Sites that no layer reads, such as the logits."""
        readers = [
            problem.trace.visits[name][0].entered for name in (*self._layers(problem), *self._heads(problem, losses))
        ]
        return tuple(s for s in problem.trace.sites if problem.trace.visits[s][0].left > max(readers, default=-1))

    @staticmethod
    def _heads(problem: Problem, losses: Losses) -> dict[str, str]:
        """End → local head, where its loss trains the trunk."""
        return {end: problem.trace.ends[end] for end in losses.active(problem) if end != OUTPUT}

    def _orthogonalised(self, problem: Problem, name: str) -> Tensor:
        weight = {**problem.buffers, **problem.params}[name]
        if not is_weight(weight) or self.orthogonal == "none":
            return weight
        # Behind the rows and columns of a convolution are its positions; before those of a grouped layer, its groups.
        grouped = isinstance(owner(problem, name), nn.modules.conv._ConvNd) or weight.ndim == 2
        matrix = weight.flatten(1) if grouped else weight
        found = _svd(matrix, self.rank) if self.orthogonal == "svd" else _newton_schulz(matrix)
        return found.reshape(weight.shape)


@dataclass(frozen=True)
class ActivationSpan:
    """Directions from the span of activations, where gradients of weights have to lie.

    A linear layer's gradient is Σ_n δ_n x_nᵀ with its inputs x_n: for weights the direction is Σ_n ε_n x_nᵀ with
    noise in δ's place, carried there by the local VJPs of all sites. For activities it is a random mixture of the
    batch's own activities at the site, Σ_m ε_m z_m/√N. Biased by the projection on that span.

    Raises:
        ValueError: on use, a network without sites.

    Source: Singhal et al. 2023 (arXiv 2312.04709).

    Example:
        >>> ActivationSpan()
        ActivationSpan()
    """

    bias_reason: ClassVar[str] = TransposedWeights.bias_reason

    def check(self, problem: Problem) -> None:
        ActivitySpace().check(problem)

    def shapes(self, problem: Problem, space: Space, losses: Losses, examples: int) -> Shapes:
        if space.per_example:
            return dict.fromkeys(space.shapes(problem), (examples,))
        return {site: (examples, *shape[1:]) for site, shape in problem.trace.sites.items()}

    def direction(
        self, problem: Problem, losses: Losses, linearised: Linearised, noise: Tensors
    ) -> dict[str, Tensor]:
        if _perturbs_weights(problem, linearised):
            return _carried(problem, losses, linearised, noise)
        values = problem.run(problem.params, watch=tuple(noise))[1]
        active = linearised.direction(values)
        mixed = {site: u @ active[site].flatten(1) / u.shape[-1] ** 0.5 for site, u in noise.items()}
        return linearised.direction(
            {site: m.reshape(*noise[site].shape[:-1], *active[site].shape[1:]) for site, m in mixed.items()}
        )


def _perturbs_weights(problem: Problem, linearised: Linearised) -> bool:
    return set(linearised.point) <= set(problem.params)


def _carried(problem: Problem, losses: Losses, linearised: Linearised, noise: Tensors) -> dict[str, Tensor]:
    """Noise at all sites → direction; of weights, by the local VJPs."""
    if not _perturbs_weights(problem, linearised):
        return linearised.direction({site: noise[site] for site in linearised.point})
    sites = ActivitySpace().linearise(problem, losses)
    found = sites.backward(sites.direction(noise))
    return linearised.direction({name: found[name] for name in linearised.point})


def _classes(problem: Problem, head: str) -> int:
    linear = problem.network.modules[f"{head}.linear"]
    assert isinstance(linear, nn.Linear)
    return linear.out_features


def _svd(matrix: Tensor, rank: int | None) -> Tensor:
    # Torch decomposes no matrix of 16-bit numbers, as frozen weights often are.
    u, s, v = torch.linalg.svd(matrix.float() if matrix.itemsize == 2 else matrix, full_matrices=False)
    kept = s > s[..., :1] * torch.finfo(s.dtype).eps * max(matrix.shape[-2:])
    if rank is not None:
        kept = kept & (torch.arange(s.shape[-1], device=s.device) < rank)
    return ((u * kept.to(u.dtype)[..., None, :]) @ v).to(matrix.dtype)


def _newton_schulz(matrix: Tensor, steps: int = 5) -> Tensor:
    """Odd polynomials of the matrix, whose singular values they drive to about 1."""
    tall = matrix.shape[-2] > matrix.shape[-1]
    x = matrix.mT if tall else matrix
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x
