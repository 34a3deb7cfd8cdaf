"""Quadratic forms: the variance of a layer's weights from its inputs and its site's credit, without a Jacobian.

For one weight M = Σ_k e_k X_k c_kᵀ, and ‖M‖² + tr M² + (κ − 3) Σ M_kk² is a sum of products of pullbacks
Σ_r p_r x_r through the layer alone, of the size of a per-example gradient: no term grows with the number of
perturbed numbers or of draws. ``p`` stands for numbers at the site, and X_k = a_k (P x)_k (see `Layer`).
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fgvar.estimators.credit import broadcast_over_site
from fgvar.estimators.spaces import Linearised
from fgvar.nn.sites import Site
from fgvar.problem import Problem
from fgvar.theory.credit_vectors import SiteCredit
from fgvar.theory.linear_layers import Layer, block_sum

Segments = list[Tensor] | None  # positions that belong together, for every row of weights; None: each alone


@dataclass(frozen=True)
class Arrangement:
    """How the credit classes and the normalised blocks of a site lie along the positions of a layer.

    Attributes:
        slots: 0/1 at the site [1, *site], for each of the classes that can meet in one block of the norm.
        classes: positions of one class, for every row and slot.
        blocks: positions of one block, for every row.
        blocks_in_rows: does every block lie within one row of the weight matrix?
    """

    slots: list[Tensor]
    classes: Segments
    blocks: Segments
    blocks_in_rows: bool


def arrange(problem: Problem, layer: Layer, patches: int, groups: int) -> Arrangement | None:
    """The arrangement for credit of so many classes; None where blocks and classes cross."""
    site, shape = problem.network.modules[layer.site], layer.scale.shape
    assert isinstance(site, Site)
    patch_tile = layer.tile[site.patch_axis - 1] if patches > 1 and site.patch_axis is not None else 1
    group_tile, chunk = 1, 1
    if groups > 1 and site.group_axis is not None:
        group_tile, chunk = layer.tile[site.group_axis - 1], shape[site.group_axis] // groups
    across = group_tile > chunk  # the norm couples the groups of its patch
    # A block of the norm has to lie within one patch, and hold whole groups or lie within one: else pullbacks of
    # different classes would mix in it.
    if patch_tile > 1 or (shape[site.group_axis or 0] != group_tile if across else chunk % group_tile):
        return None
    one = torch.ones((1, *shape[1:]), dtype=torch.int64, device=layer.scale.device)

    def label(*axes: int) -> Tensor:
        numbers = torch.arange(math.prod(axes), device=one.device).reshape(1, *axes)
        return one * (broadcast_over_site(site, numbers, shape) if math.prod(axes) > 1 else 0)

    # Labels are laid along the site as credit is, and carried to the weights' rows by the layer's own layout: no
    # arithmetic of axes is written twice.
    slots = [(label(1, groups) == group).to(layer.scale.dtype) for group in range(groups if across else 0)]
    block = torch.zeros_like(one)
    for axis, tile in enumerate(layer.tile, 1):
        along = torch.arange(shape[axis], device=one.device).reshape(-1, *[1] * (one.ndim - axis - 1)) // tile
        block = block * (shape[axis] // tile) + along
    classes = _segments(layer.rows(label(patches, 1 if across else groups))[0])
    blocks = _segments(layer.rows(block)[0])
    if classes is False or blocks is False:
        return None
    in_rows = blocks is not None and all(len(segment) == math.prod(layer.tile) for segment in blocks)
    return Arrangement(slots or [one.to(layer.scale.dtype)], classes, blocks, in_rows)


def _segments(labels: Tensor) -> "Segments | Literal[False]":
    """Positions of equal label, False where they differ from row to row of [positions, groups, fan-out]."""
    flat = labels.flatten(1)
    kinds, which = flat[:, 0].unique(return_inverse=True)
    segments = [(which == kind).nonzero()[:, 0] for kind in range(len(kinds))]
    leaders = torch.stack([flat[segment[0]] for segment in segments])
    ordered = leaders.sort(0).values
    if not torch.equal(leaders[which], flat) or bool((ordered[1:] == ordered[:-1]).any()):
        return False
    return None if len(kinds) == len(flat) else segments


def quadratic(
    layer: Layer,
    arrangement: Arrangement,
    credit: SiteCredit,
    linearised: Linearised,
    mask: Tensor,
    kurtosis: float,
    shift: int,
    budget: int,
) -> dict[str, Tensor]:
    """‖M‖² + tr M² + (κ − 3) Σ M_kk², summed over pairs of each example and the one ``shift`` further on.

    Returns:
        "weight" [groups, fan-out, fan-in] and "bias" [groups, fan-out, 1].
    """

    def other(v: Tensor) -> Tensor:
        return v.roll(-shift, 0) if shift else v

    scale = layer.scale * mask
    sums = _Sums(layer, arrangement, shift)
    own = credit.diagonal
    products = linearised.broadcast(layer.site, credit.products(shift))
    # ‖M‖² + (κ − 3) Σ M_kk²: of every number k its own X_k² times |c_k|² + (κ − 3) c_kk².
    sums.squares(scale * other(scale) * (products + (kurtosis - 3) * own * other(own)))

    def pulled(vector: Tensor, *, by_other: bool) -> Tensor:
        """P a v, through this example's layer or the other's."""
        if not by_other:
            return layer.project(scale * vector, layer.normed)
        return layer.project(other(scale) * vector, None if layer.normed is None else other(layer.normed))

    # tr M² = Σ_kl X_k c_kl X_l c_lk: numbers of class i move as one pullback of c_j, numbers of j as one of c_i. In
    # class i c_j is later + (own if i = j): products with later alone run over all numbers, others within a class.
    later = credit.later
    if later is not None:
        sums.add(pulled(other(later), by_other=False), pulled(later, by_other=True), "all")
    for slot in arrangement.slots:
        mine, theirs = pulled(slot * other(credit.own), by_other=False), pulled(slot * credit.own, by_other=True)
        if later is not None:
            sums.add(pulled(slot * other(later), by_other=False), theirs, "classes")
            theirs = theirs + pulled(slot * later, by_other=True)
        sums.add(mine, theirs, "classes")
    return {
        "weight": sums.total(layer.x, budget),
        "bias": sums.total(torch.ones_like(layer.x[..., :1]), budget),
    }


class _Sums:
    """Sums over positions and examples of p p' x x', and of products of pullbacks (Σ_r p x)(Σ_r p' x')."""

    def __init__(self, layer: Layer, arrangement: Arrangement, shift: int) -> None:
        self.layer, self.shift, self.arrangement = layer, shift, arrangement
        positions = layer.x.shape[1]
        every_position = torch.arange(positions, device=layer.x.device)
        self.segments = {
            "blocks": arrangement.blocks,
            "classes": arrangement.classes,
            "all": None if positions == 1 else [every_position],
        }
        self.per_position = torch.zeros_like(layer.scale)  # weights of x x', position by position
        self.products: list[tuple[Tensor, Tensor, list[Tensor]]] = []

    def add(self, p: Tensor, other: Tensor, kind: str) -> None:
        segments = self.segments[kind]
        if segments is None:
            self.per_position = self.per_position + p * other
        else:
            self.products.append((p, other, segments))

    def squares(self, weights: Tensor) -> None:
        """Σ_k weights_k (P x)_k (P' x')_k over the site's numbers k."""
        self.per_position = self.per_position + weights
        z, tile = self.layer.normed, self.layer.tile
        if z is None:
            return
        y, q = z.roll(-self.shift, 0), math.prod(tile)
        total, along, other, both = (block_sum(weights * v, tile) / q**2 for v in (torch.ones_like(z), z, y, z * y))
        # P x = x − s/q − ẑ t/q with s = Σ x and t = Σ ẑ x over the block. First what multiplies s', then t'; last
        # what s and t themselves multiply where the other example has its x'.
        self.add(total + along * z - weights / q, torch.ones_like(z), "blocks")
        self.add(other + both * z - weights * y / q, y, "blocks")
        self.add(torch.full_like(z, -1 / q), weights, "blocks")
        self.add(z / -q, weights * z, "blocks")

    def total(self, x: Tensor, budget: int) -> Tensor:
        """The sum for these inputs [batch, positions, groups, fan-in]: [groups, fan-out, fan-in]."""
        blocks = self.arrangement.blocks
        if blocks is not None and self.arrangement.blocks_in_rows:
            # P takes no notice of a constant over a block of one row: without it less cancels.
            centred = torch.empty_like(x)
            for segment in blocks:
                centred[:, segment] = x[:, segment] - x[:, segment].mean(1, keepdim=True)
            x = centred
        rows, other = self.layer.rows, x.roll(-self.shift, 0)
        total = torch.einsum("nrho,nrhi->hoi", rows(self.per_position), x * other)
        # A pullback of one example is as large as the weights.
        at_once = max(1, budget // (4 * x.element_size() * total.numel()))
        for p, q, segments in self.products:
            left, right = rows(p), rows(q)
            for segment in segments:
                for start in range(0, len(x), at_once):
                    part = slice(start, start + at_once)
                    one = torch.einsum("nrho,nrhi->nhoi", left[part, segment], x[part, segment])
                    two = torch.einsum("nrho,nrhi->nhoi", right[part, segment], other[part, segment])
                    total = total + (one * two).sum(0)
        return total
