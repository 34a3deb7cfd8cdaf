"""Moments: sum up a stream of estimates in float64, at a size that does not grow with draws.

Draws come in fixed blocks of the draw index. Of each block the Gram matrix, layer by layer, of its deviations
D = ĝ − target, of the mean M of all earlier blocks and of the two references holds every scalar that the
statistics need. Blocks add, and so do moments of different draws (`merge`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from fgvar.errors import NonFiniteError
from fgvar.measurement.references import BUCKETS, References

# Draws a block. Fixed, so that no sum depends on how many draws are computed at once; enough for an unbiased tr Σ² of
# each block, and few enough that its Gram matrix costs less than the estimates.
BLOCK = 16
PIECE = 1 << 15  # numbers of every draw that are worked on at a time, so that they stay in the CPU's cache
FEATURES = ("square", "along_target", "along_backprop", "cosine_target", "cosine_backprop")
# In units of tr Σ²/(draws before), what the noise of M adds to the covariances `within` a block.
LAG = torch.tensor([2.0, -1.0, -1.0, -1.0], dtype=torch.float64)


@dataclass(frozen=True)
class Moments:
    """Additive sums over draws. Axis 0 is the layer (parameters, then `GROUPS`), unless said otherwise.

    Attributes:
        count: draws.
        deviation: ΣD, a flat tensor for every parameter.
        first, second, third: Σf, Σf⊗f and Σf⊗f⊗f of the per-draw `FEATURES` ‖D‖², ⟨D, target⟩, ⟨D, backprop⟩
            and cosines.
        projected, projected_square, projected_cube: Σ, Σ² and Σ³ of the random projections of D [layers, BUCKETS].
        apart: Σw, Σw² and Σw³ of w = (k + 1)/k · ‖D − P‖², P the mean of D and of k other draws, all of the block
            and of those before [layers, 3]: E w = tr Σ, Var w = (Var‖ĝ − E ĝ‖² + (4/k + 2/k²) tr Σ²) (k/(k + 1))².
        share, excess: Σ (k/(k + 1))² and Σ (4/k + 2/k²)(k/(k + 1))² over the same draws.
        trace_square: Σ over blocks of (draws × an unbiased estimate of tr Σ²), Σ = Cov ĝ.
        trace_weight: Σ of those draws.
        within: Σ over blocks, weighted by the draws before, of the scatter matrix [4, 4] of ‖D − M‖², ⟨D, M⟩
            and ⟨D, M + target − r⟩ for r = backprop and 0.
        dof, lag: Σ (draws before)(draws − 1) and Σ (draws − 1), over the same blocks.
    """

    count: int
    deviation: dict[str, Tensor]
    first: Tensor
    second: Tensor
    third: Tensor
    projected: Tensor
    projected_square: Tensor
    projected_cube: Tensor
    apart: Tensor
    share: float
    excess: float
    trace_square: Tensor
    trace_weight: float
    within: Tensor
    dof: int
    lag: int


@dataclass(frozen=True)
class Block:
    """Up to `BLOCK` consecutive draws.

    Attributes:
        gram: Gram matrix of (D₁ … D_m, M, target, backprop), [layers, m + 3, m + 3].
        projected: random projections of each D [layers, m, BUCKETS].
        deviation: ΣD of the block, a flat tensor for every parameter.
    """

    gram: Tensor
    projected: Tensor
    deviation: dict[str, Tensor]


def init(references: References) -> Moments:
    """Moments of no draw."""
    empty = blank(len(references.layers), references.members.device)
    return replace(empty, deviation={name: torch.zeros_like(value) for name, value in references.target.items()})


def blank(layers: int, device: torch.device) -> Moments:
    """Moments of no draw that know of no parameter."""

    def zeros(*shape: int) -> Tensor:
        return torch.zeros(layers, *shape, dtype=torch.float64, device=device)

    return Moments(
        count=0,
        deviation={},
        first=zeros(len(FEATURES)),
        second=zeros(len(FEATURES), len(FEATURES)),
        third=zeros(len(FEATURES), len(FEATURES), len(FEATURES)),
        projected=zeros(BUCKETS),
        projected_square=zeros(BUCKETS),
        projected_cube=zeros(BUCKETS),
        apart=zeros(3),
        share=0.0,
        excess=0.0,
        trace_square=zeros(),
        trace_weight=0.0,
        within=zeros(4, 4),
        dof=0,
        lag=0,
    )


def update(moments: Moments, references: References, gradients: Mapping[str, Tensor]) -> tuple[Moments, Tensor]:
    """Moments with one more block of estimates, and the block's per-draw features [layers, draws, FEATURES].

    Args:
        moments: of the draws before.
        references: as in `init`.
        gradients: like ``problem.params`` with a leading axis of at most `BLOCK` draws.

    Raises:
        NonFiniteError: naming the layer and the draw within the block.
    """
    return absorb(moments, block(moments, references, gradients))


def block(moments: Moments, references: References, gradients: Mapping[str, Tensor]) -> Block:
    """The next block of estimates, centred about the mean of the draws before; raises as `update`."""
    m, before = len(next(iter(gradients.values()))), max(moments.count, 1)
    grams, projections, deviation = [], [], {}
    for name, target in references.target.items():
        rows, numbers = gradients[name].reshape(m, -1), target.numel()
        pieces = range(0, numbers, PIECE if target.device.type == "cpu" else max(numbers, 1))
        gram, projected, sums = target.new_zeros(m + 3, m + 3), target.new_zeros(m, BUCKETS), torch.empty_like(target)
        for at in (slice(first, min(first + pieces.step, numbers)) for first in pieces):
            # Deviations from the target, not estimates: a good estimator's are small, and their squares lose nothing.
            frame = target.new_empty(m + 3, at.stop - at.start)
            frame[:m].copy_(rows[:, at]).sub_(target[at])  # faster than a subtraction that converts
            # M, the mean of the draws before, is independent of this block's: no draw enters its own centre.
            torch.div(moments.deviation[name][at], before, out=frame[m])
            frame[m + 1], frame[m + 2] = target[at], references.backprop[name][at]
            gram += frame @ frame.T
            projected += references.projected(name, frame[:m], at)
            torch.sum(frame[:m], 0, out=sums[at])
        grams.append(gram)
        projections.append(projected)
        deviation[name] = sums
    gram, projected = references.grouped(grams), references.grouped(projections)
    _require_finite(references, gram[:, :m, :m].diagonal(dim1=1, dim2=2), moments.count)
    return Block(gram, projected, deviation)


def absorb(moments: Moments, one: Block) -> tuple[Moments, Tensor]:
    """Moments with one more block, and its per-draw features."""
    features = _features(one.gram, one.projected.shape[1])
    found = replace(
        scatter(one.gram, moments.count),
        count=features.shape[1],
        first=features.sum(1),
        second=features.mT @ features,
        third=torch.einsum("lni,lnj,lnk->lijk", features, features, features),
        projected=one.projected.sum(1),
        projected_square=one.projected.square().sum(1),
        projected_cube=one.projected.pow(3).sum(1),
    )
    return _add(moments, found, {k: moments.deviation[k] + v for k, v in one.deviation.items()}), features


def scatter(gram: Tensor, before: int) -> Moments:
    """Of one block after ``before`` draws, all that is about pairs of draws: apart, trace_square, within, weights."""
    m = draws_in(gram)
    found = blank(len(gram), gram.device)
    if others := before + m - 1:
        share = (others / (others + 1)) ** 2
        powers = _apart(gram, m, before)[:, :, None] ** torch.arange(1, 4, device=gram.device)
        excess = m * share * (4 / others + 2 / others**2)
        found = replace(found, apart=powers.sum(1), share=m * share, excess=excess)
    # Four different draws are needed for x₁₂x₃₄, and a mean of earlier draws for what is about it.
    if m >= 4:
        found = replace(found, trace_square=m * _trace_square(gram, m), trace_weight=float(m))
    if before and m >= 2:
        spread = _about_mean(gram, m)
        spread = spread - spread.mean(1, keepdim=True)
        # Later blocks are centred better and weigh more: in proportion to the draws before them.
        found = replace(found, within=before * (spread.mT @ spread), dof=before * (m - 1), lag=m - 1)
    return found


def draws_in(gram: Tensor) -> int:
    """Draws of the block with this Gram matrix."""
    return int(gram.shape[1]) - 3  # M and the two references


def merge(one: Moments, other: Moments) -> Moments:
    """Moments of the draws of both; means and variances are those of one pass, errors agree statistically."""
    return _add(one, other, {name: one.deviation[name] + other.deviation[name] for name in one.deviation})


def _add(one: Moments, other: Moments, deviation: dict[str, Tensor]) -> Moments:
    sums = {f.name: getattr(one, f.name) + getattr(other, f.name) for f in fields(Moments) if f.name != "deviation"}
    return Moments(deviation=deviation, **sums)


def _features(gram: Tensor, m: int) -> Tensor:
    """[layers, draws, FEATURES] of the Gram matrix of (D₁ … D_m, M, target, backprop)."""
    square = gram[:, :m, :m].diagonal(dim1=1, dim2=2)
    along = gram[:, :m, m + 1 :]
    norm = (square + 2 * along[..., 0] + gram[:, m + 1, m + 1, None]).clamp_min(0).sqrt()
    inner = along + gram[:, m + 1, None, m + 1 :]
    length = gram[:, m + 1 :, m + 1 :].diagonal(dim1=1, dim2=2).sqrt()
    product = norm[..., None] * length[:, None]
    # An estimate of exactly 0 makes no progress in any direction: cosine 0. A zero reference gives NaN later.
    cosine = torch.where(product > 0, inner / product, torch.zeros_like(product))
    return torch.cat([square[..., None], along, cosine], dim=-1)


def _trace_square(gram: Tensor, m: int) -> Tensor:
    """tr Σ², unbiased: averages of x₁₂², x₁₂x₁₃ and x₁₂x₃₄ over distinct draws, x = ⟨D − M, D − M⟩."""
    to_mean = gram[:, :m, m]
    x = gram[:, :m, :m] - to_mean[:, :, None] - to_mean[:, None, :] + gram[:, m, m, None, None]
    # A draw with itself has ‖D − M‖⁴, not tr Σ²: only products of different draws are unbiased.
    x = x - torch.diag_embed(x.diagonal(dim1=1, dim2=2))
    squares, rows, everything = x.square().sum((1, 2)), x.sum(2).square().sum(1), x.sum((1, 2)).square()
    two = squares / (m * (m - 1))
    three = (rows - squares) / (m * (m - 1) * (m - 2))
    four = (everything - 4 * rows + 2 * squares) / (m * (m - 1) * (m - 2) * (m - 3))
    return two - 2 * three + four


def _apart(gram: Tensor, m: int, before: int) -> Tensor:
    """Squared distance of each draw to the mean of all so far, to the mean's own law: E = tr Σ [layers, draws]."""
    # The mean of D and k others is nearer to D than E ĝ is, by k/(k + 1) in square: the factor at the end.
    numbers = before + m
    weights = gram.new_tensor([1.0] * m + [float(before)]) / numbers
    to_mean = gram[:, : m + 1, : m + 1] @ weights
    square = gram[:, :m, :m].diagonal(dim1=1, dim2=2) - 2 * to_mean[:, :m] + (to_mean @ weights)[:, None]
    return square * (numbers / (numbers - 1))


def _about_mean(gram: Tensor, m: int) -> Tensor:
    """[layers, draws, 4]: ‖D − M‖² and ⟨D, M + target − r⟩ for r = target, backprop, 0."""
    along = gram[:, :m, m:]
    square = gram[:, :m, :m].diagonal(dim1=1, dim2=2) - 2 * along[..., 0] + gram[:, m, m, None]
    to_target, target, backprop = along.unbind(-1)
    return torch.stack([square, to_target, to_target + target - backprop, to_target + target], dim=-1)


def _require_finite(references: References, squares: Tensor, before: int) -> None:
    if squares.is_meta or bool(squares.isfinite().all()):
        return
    layer, draw = (~squares.isfinite()).nonzero()[0].tolist()
    raise NonFiniteError(
        f"layer {references.layers[layer]!r}: the estimate of draw {before + draw} holds NaN or infinity"
    )
