"""Sampling: statistics of an estimator's draws, made in fixed blocks whatever the chunk.

Draw i depends on (seed, i) alone and every block holds the same 16 draws, so that the sums, and their rounding, do
not depend on how many draws are computed at once.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fgvar.errors import NonFiniteError
from fgvar.estimators.estimator import GradientEstimator
from fgvar.estimators.oracles import Replay
from fgvar.estimators.randomness import Randomness
from fgvar.estimators.weight_space import WeightSpace
from fgvar.measurement import moments as streaming
from fgvar.measurement.arguments import Settings
from fgvar.measurement.draws import estimates, ranges
from fgvar.measurement.intervals import Array, Estimated
from fgvar.measurement.moments import BLOCK
from fgvar.measurement.mutation_guard import MutationGuard
from fgvar.measurement.protocol_checks import gradient_in, require_like
from fgvar.measurement.references import References
from fgvar.measurement.statistics import statistics
from fgvar.problem import Problem

LARGEST_CHUNK = 64  # beyond it vmap gains nothing, and takes memory


@dataclass(frozen=True)
class Drawn:
    """What is known of an estimator's draws.

    Attributes:
        values: `fgvar.measurement.statistics.statistics`.
        features: per-draw `FEATURES` [layers, draws, FEATURES]; of no draw where they are not asked for.
        grams: where asked for, the Gram matrix of every `fgvar.measurement.moments.Block`: 23 numbers a draw and
            layer, whatever the size of the layer.
    """

    values: dict[str, Estimated]
    features: Array
    grams: list[Tensor]


def drawn_statistics(
    guard: MutationGuard,
    estimator: GradientEstimator,
    references: References,
    randomness: Randomness,
    settings: Settings,
) -> Drawn:
    """Statistics of an estimator's draws; of the one estimate of an estimator without randomness, for all draws."""
    moments, feature_blocks, grams = streaming.init(references), list[Array](), list[Tensor]()
    noiseless = randomness.size == 0
    keeps_features = settings.keep_draws or settings.paired
    blocks = _single_estimate(guard, estimator) if noiseless else _blocks(guard, estimator, randomness, settings)
    for gradients in blocks:
        require_like(f"the estimate of {guard.name!r}", guard.problem, {k: g[0] for k, g in gradients.items()})
        try:
            block = streaming.block(moments, references, gradients)
        except NonFiniteError as error:
            raise NonFiniteError(f"estimator {guard.name!r}, {error}") from None
        moments, features = streaming.absorb(moments, block)
        if keeps_features or not feature_blocks:
            feature_blocks.append(features[:, : None if keeps_features else 0].cpu().numpy())
        if settings.paired:
            grams.append(block.gram)
    scalars = np.concatenate(feature_blocks, axis=1)
    if not noiseless:
        return Drawn(statistics(moments, references), scalars, grams)
    grams = [_repeated(gram, numbers) for gram in grams for numbers in ranges(0, settings.draws, BLOCK)]
    return Drawn(_constant_statistics(moments, references), np.repeat(scalars, settings.draws, axis=1), grams)


def _constant_statistics(moments: streaming.Moments, references: References) -> dict[str, Estimated]:
    """Statistics of one estimate that every draw would repeat: exact, with no noise to test a bias against."""
    # Two equal draws have the statistics of a constant, for which one is too few.
    found = statistics(streaming.merge(moments, moments), references)
    values = {
        name: Estimated.without_error(one.value * np.nan) if name.startswith("bias") else Estimated.exact(one.value)
        for name, one in found.items()
    }
    # Exactly none, where the mean of squares less the square of the mean leaves rounding.
    none = np.zeros_like(values["variance"].value)
    return values | {"variance": Estimated.exact(none), "snr": Estimated.exact(none * np.nan)}


def _repeated(gram: Tensor, numbers: range) -> Tensor:
    """Of the Gram matrix of (D, 0, target, backprop), that of equal draws of these numbers, about those before."""
    # The mean of the draws before is 0 for the first block, and D itself for all later ones.
    rows = torch.tensor([*[0] * len(numbers), 0 if numbers.start else 1, 2, 3], device=gram.device)
    return gram[:, rows][:, :, rows]


def _single_estimate(guard: MutationGuard, estimator: GradientEstimator) -> Iterator[dict[str, Tensor]]:
    """The one estimate of an estimator that needs no noise, as a block."""
    found = gradient_in(estimator.estimate(guard.problem, {}))
    guard.require_unchanged(range(1))
    yield {k: g[None] for k, g in found.items()}


def _blocks(
    guard: MutationGuard,
    estimator: GradientEstimator,
    randomness: Randomness,
    settings: Settings,
) -> Iterator[dict[str, Tensor]]:
    """Estimates in blocks of 16 draws (the last may be shorter), whatever the chunk."""
    problem, draws, chunk = guard.problem, settings.draws, settings.chunk
    if chunk is None:
        chunk = default_chunk(estimator, guard.original, randomness, settings.budget)

    def piece(numbers: range) -> dict[str, Tensor]:
        noise = randomness.sample(
            settings.seed, numbers, dtype=problem.dtype, device=problem.device, noise_device=settings.noise_device
        )
        found = estimates(estimator, problem, noise, name=f"estimator {guard.name!r}")
        guard.require_unchanged(numbers)
        return found

    # A black box says that it is none for vmap.
    chunk = 1 if getattr(estimator, "opaque", False) else min(chunk, draws)
    with tqdm(total=draws, desc=guard.name, unit="draw", delay=1, leave=False, disable=None) as bar:
        for window in ranges(0, draws, max(chunk, BLOCK)):
            rows: dict[str, Tensor] = {}
            for numbers in ranges(window.start, window.stop, chunk):
                found = piece(numbers)
                bar.update(len(numbers))
                if len(numbers) == len(window):  # one chunk fills the window: without a copy
                    rows = found
                    break
                for k, g in found.items():
                    rows.setdefault(k, g.new_empty(len(window), *g.shape[1:]))
                    rows[k][numbers.start - window.start : numbers.stop - window.start] = g
            for block in ranges(0, len(window), BLOCK):
                yield {k: g[block.start : block.stop] for k, g in rows.items()}


def default_chunk(estimator: GradientEstimator, problem: Problem, randomness: Randomness, budget: int) -> int:
    """The largest chunk of draws within the budget.

    A draw takes its noise and the direction of it (of weights, itself), its gradient (as it is made, in its block and
    centred), and activations of its own, through which its credit is pulled back or its tangents pass; not where
    directions of weights are replayed. References, a block and one backward pass are there anyway.
    """
    activities, parameters = _sizes(problem)
    weights = isinstance(getattr(estimator, "space", None), WeightSpace)
    noise = randomness.size if weights else 2 * randomness.size
    # Replayed, all draws meet the same gradients of the loss terms: inner products, and no pass of a draw's own.
    own = 0 if weights and isinstance(getattr(estimator, "oracle", None), Replay) else activities
    each = noise + 3 * parameters + own
    return _fitting(problem, budget, (6 + BLOCK) * parameters + 2 * activities, each)


def examples_at_once(problem: Problem, budget: int) -> int:
    """Of as many examples a gradient each keeps to the budget, with a backward pass."""
    activities, parameters = _sizes(problem)
    return _fitting(problem, budget, 6 * parameters, 2 * parameters + 2 * activities // problem.batch_size)


def _sizes(problem: Problem) -> tuple[int, int]:
    """Numbers of activations, at every layer of the network, and of parameters."""
    visits = itertools.chain.from_iterable(problem.trace.visits.values())
    activities = sum(int(np.prod(visit.shape)) for visit in visits if visit.shape)
    return activities, sum(p.numel() for p in problem.params.values())


def _fitting(problem: Problem, budget: int, once: int, each: int) -> int:
    """How many things of ``each`` numbers fit beside ``once``: 1, 2, 4, 8 or a multiple of 16."""
    numbers = budget // (torch.finfo(problem.dtype).bits // 8) - once
    fits = min(max(numbers // max(each, 1), 1), LARGEST_CHUNK)
    return int(fits // BLOCK * BLOCK if fits >= BLOCK else 2 ** int(np.log2(fits)))
