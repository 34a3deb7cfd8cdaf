"""Moments: sum up a stream of estimates in float64, at a size that does not grow with draws.

Draws come in fixed blocks of the draw index. Of each block the Gram matrix, layer by layer, of its deviations
D = ĝ − target, of the mean M of all earlier blocks and of the two references holds every scalar that the
statistics need. Blocks add, and so do moments of different draws (`merge`).
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fgvar.errors import NonFiniteError
from fgvar.measurement.references import BUCKETS, References, bucket_sums
from fgvar.measurement.stacks import Stack
from fgvar.measurement.strips import strips

# Draws a block. Fixed, so that no sum depends on how many draws are computed at once; enough for an unbiased tr Σ² of
# each block, and few enough that its Gram matrix costs less than the estimates.
BLOCK = 16
FEATURES = ("square", "along_target", "along_backprop", "cosine_target", "cosine_backprop")
# In units of tr Σ²/(draws before), what the noise of M adds to the covariances `within` a block.
LAG = torch.tensor([2.0, -1.0, -1.0, -1.0], dtype=torch.float64)
F = len(FEATURES)
SHAPES = {
    "first": (F,),
    "second": (F, F),
    "third": (F, F, F),
    "projected": (BUCKETS,),
    "projected_square": (BUCKETS,),
    "projected_cube": (BUCKETS,),
    "apart": (3,),
    "trace_square": (),
    "within": (4, 4),
}
"""Of the sums that every layer has, by name."""
WEIGHTS = ("share", "excess", "trace_weight", "dof", "lag")


@dataclass(frozen=True)
class Moments:
    """Additive sums over draws.

    Attributes:
        sums: of every layer (parameters, then `GROUPS`), one beside the other [layers, numbers of `SHAPES`]:

            - first, second, third: Σf, Σf⊗f and Σf⊗f⊗f of the per-draw `FEATURES` ‖D‖², ⟨D, target⟩, ⟨D, backprop⟩
              and cosines;
            - projected, projected_square, projected_cube: Σ, Σ² and Σ³ of the random projections of D;
            - apart: Σw, Σw² and Σw³ of w = (k + 1)/k · ‖D − P‖², P the mean of D and of k other draws, all of the
              block and of those before: E w = tr Σ, Var w = (Var‖ĝ − E ĝ‖² + (4/k + 2/k²) tr Σ²) (k/(k + 1))²;
            - trace_square: Σ over blocks of (draws × an unbiased estimate of tr Σ²), Σ = Cov ĝ;
            - within: Σ over blocks, weighted by the draws before, of the scatter matrix of ‖D − M‖², ⟨D, M⟩ and
              ⟨D, M + target − r⟩ for r = backprop and 0.
        count: draws.
        share, excess: Σ (k/(k + 1))² and Σ (4/k + 2/k²)(k/(k + 1))² over the same draws as ``apart``.
        trace_weight: Σ of the draws of ``trace_square``.
        dof, lag: Σ (draws before)(draws − 1) and Σ (draws − 1), over the blocks of ``within``.
        deviation: ΣD, a flat tensor for every parameter, which later blocks are added to in place.
    """

    sums: Tensor
    count: int = 0
    share: float = 0.0
    excess: float = 0.0
    trace_weight: float = 0.0
    dof: int = 0
    lag: int = 0
    deviation: dict[str, Tensor] = field(default_factory=dict)

    def of(self, name: str) -> Tensor:
        """The sums of this name, [layers, …]."""
        names, sizes = list(SHAPES), [math.prod(shape) for shape in SHAPES.values()]
        index = names.index(name)
        start = sum(sizes[:index])
        return self.sums[:, start : start + sizes[index]].reshape(-1, *SHAPES[name])


@dataclass(frozen=True)
class Block:
    """Up to `BLOCK` consecutive draws, or several full ones of those, which have an axis of their own.

    Attributes:
        gram: Gram matrix of (D₁ … D_m, M, target, backprop), [blocks, layers, m + 3, m + 3].
        projected: random projections of each D [blocks, layers, m, BUCKETS].
        before: draws before each of the blocks.
    """

    gram: Tensor
    projected: Tensor
    before: Sequence[int]


def init(references: References) -> Moments:
    """Moments of no draw.

    Example:
        >>> gradient = {"weight": torch.ones(2, 3)}
        >>> none = init(References.of(gradient, gradient, perturbed=("weight",)))
        >>> none.count, none.of("first").shape == (3, F)  # the layers weight, perturbed and total
        (0, True)
    """
    deviation = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in references.target.items()}
    return replace(blank(len(references.layers), references.members.device), deviation=deviation)


def blank(layers: int, device: torch.device) -> Moments:
    """Moments of no draw that know of no parameter."""
    numbers = sum(math.prod(shape) for shape in SHAPES.values())
    return Moments(torch.zeros(layers, numbers, dtype=torch.float64, device=device))


def update(moments: Moments, references: References, stack: Stack) -> tuple[Moments, list[Block], Tensor]:
    """Moments with the next estimates; their blocks, and per-draw features [layers, draws, FEATURES].

    Estimates that begin with a new block are expected. ``moments`` is used up: its deviation is added to.

    Raises:
        NonFiniteError: naming the layer and the draw.
    """
    blocks, features = [], []
    full = stack.draws - stack.draws % BLOCK
    for first, last in ((0, full), (full, stack.draws)):
        if first < last:
            block = _block(moments, references, stack, range(first, last))
            moments, found = absorb(moments, block)
            blocks.append(block)
            features.append(found)
    return moments, blocks, torch.cat(features, dim=1)


def _block(moments: Moments, references: References, stack: Stack, draws: range) -> Block:
    """The next draws, full blocks or less than one, each centred about the mean of those before it."""
    m = min(len(draws), BLOCK)
    count = len(draws) // m
    before = [moments.count + index * m for index in range(count)]
    grams = {name: value.new_zeros(count, m + 3, m + 3) for name, value in moments.deviation.items()}
    projections = {name: gram.new_zeros(count, m, BUCKETS) for name, gram in grams.items()}
    for strip in strips(references, stack, draws):
        places, signs = strip.places(), strip.lay(references.signs_at)
        for some, frame in strip.frames(references, moments.deviation, before, m):
            signed = frame[:, :m] * signs
            for name, place in places.items():
                own = frame[:, :, place]
                grams[name][some] += torch.bmm(own, own.mT)
                projections[name][some] += bucket_sums(signed[:, :, place])
    gram, projected = (references.grouped([*each.values()]).movedim(0, 1) for each in (grams, projections))
    _require_finite(references, gram[:, :, :m, :m].diagonal(dim1=2, dim2=3), moments.count)
    return Block(gram, projected, before)


def absorb(moments: Moments, block: Block) -> tuple[Moments, Tensor]:
    """Moments with the sums of some more blocks, and their features [layers, draws, FEATURES]."""
    layers, projected = block.gram.shape[1], block.projected
    features = _features(block.gram.flatten(0, 1), draws_in(block.gram)).unflatten(0, (-1, layers))
    own = {
        "first": features.sum(2),
        "second": features.mT @ features,
        "third": torch.einsum("blni,blnj,blnk->blijk", features, features, features),
        "projected": projected.sum(2),
        "projected_square": projected.square().sum(2),
        "projected_cube": projected.pow(3).sum(2),
    }
    pairs, weights = _scatter(block.gram, block.before)
    found = _added(moments, {**own, **pairs}, weights)
    draws = features.shape[0] * features.shape[2]
    return replace(found, count=moments.count + draws), features.movedim(0, 1).reshape(layers, draws, F)


def scatter(moments: Moments, gram: Tensor, before: int) -> Moments:
    """Moments with what one more block, of this Gram matrix, says about pairs of draws, and nothing else of it."""
    return _added(moments, *_scatter(gram[None], [before]))


def _scatter(gram: Tensor, before: Sequence[int]) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Of blocks after so many draws, all that is about pairs of draws, and how it is weighted."""
    m, weights = draws_in(gram), dict[str, float]()
    found: dict[str, Tensor] = {}
    others = [draws + m - 1 for draws in before]
    if all(others):
        found["apart"] = (_apart(gram, m, before)[..., None] ** torch.arange(1, 4, device=gram.device)).sum(2)
        shares = [(k / (k + 1)) ** 2 for k in others]
        weights["share"] = m * sum(shares)
        weights["excess"] = m * sum(s * (4 / k + 2 / k**2) for s, k in zip(shares, others, strict=True))
    # Four different draws are needed for x₁₂x₃₄, and a mean of earlier draws for what is about it.
    if m >= 4:
        found["trace_square"] = m * _trace_square(gram.flatten(0, 1), m).unflatten(0, gram.shape[:2])
        weights["trace_weight"] = float(m * len(before))
    if m >= 2:
        spread = _about_mean(gram.flatten(0, 1), m).unflatten(0, gram.shape[:2])
        spread = spread - spread.mean(2, keepdim=True)
        # Later blocks are centred better and weigh more: in proportion to the draws before them.
        found["within"] = gram.new_tensor(before)[:, None, None, None] * (spread.mT @ spread)
        weights["dof"] = sum(before) * (m - 1)
        weights["lag"] = sum(1 for draws in before if draws) * (m - 1)
    return found, weights


def draws_in(gram: Tensor) -> int:
    """Draws of the block with this Gram matrix."""
    return int(gram.shape[-1]) - 3  # M and the two references


def merge(one: Moments, other: Moments) -> Moments:
    """Moments of the draws of both; means and variances are those of one pass, errors agree statistically."""
    weights = {name: getattr(one, name) + getattr(other, name) for name in (*WEIGHTS, "count")}
    deviation = {name: value + other.deviation[name] for name, value in one.deviation.items()}
    return Moments(one.sums + other.sums, deviation=deviation, **weights)


def _added(moments: Moments, parts: Mapping[str, Tensor], weights: Mapping[str, float]) -> Moments:
    """Moments with the sums of blocks [blocks, layers, …], one block after the other, whoever came with it."""
    blocks, layers = next(iter(parts.values())).shape[:2]
    nothing = moments.sums.new_zeros(()).expand(blocks, layers, 1)
    found = [
        parts[name].reshape(blocks, layers, -1) if name in parts else nothing.expand(-1, -1, math.prod(shape))
        for name, shape in SHAPES.items()
    ]
    sums = moments.sums
    for one in torch.cat(found, dim=2):
        sums = sums + one
    return replace(moments, sums=sums, **{name: getattr(moments, name) + weight for name, weight in weights.items()})


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


def _apart(gram: Tensor, m: int, before: Sequence[int]) -> Tensor:
    """Squared distance of draws to the mean of all so far, to the mean's own law, E = tr Σ [blocks, layers, m]."""
    # The mean of D and k others is nearer to D than E ĝ is, by k/(k + 1) in square: the factor at the end.
    numbers = gram.new_tensor([draws + m for draws in before])[:, None, None]
    shares = [[1 / (draws + m)] * m + [draws / (draws + m)] for draws in before]
    weights = gram.new_tensor(shares)[:, None, :, None]
    to_mean = (gram[..., : m + 1, : m + 1] @ weights)[..., 0]
    centre = (to_mean * weights[..., 0]).sum(-1, keepdim=True)
    square = gram[..., :m, :m].diagonal(dim1=-2, dim2=-1) - 2 * to_mean[..., :m] + centre
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
    block, layer, draw = (~squares.isfinite()).nonzero()[0].tolist()
    number = before + block * BLOCK + draw
    raise NonFiniteError(f"layer {references.layers[layer]!r}: the estimate of draw {number} holds NaN or infinity")
