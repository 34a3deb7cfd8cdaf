"""Sampling: statistics of an estimator's draws, made in fixed blocks whatever the chunk.

Draw i depends on (seed, i) alone and every block holds the same 16 draws, so that the sums, and their rounding, do
not depend on how many draws are computed at once.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_map
from tqdm.auto import tqdm

from fgvar.errors import NonFiniteError
from fgvar.estimators.estimator import Estimator
from fgvar.estimators.factors import Factors
from fgvar.estimators.protocol import GradientEstimator
from fgvar.estimators.randomness import Randomness
from fgvar.measurement import moments as streaming
from fgvar.measurement.arguments import Settings
from fgvar.measurement.budget import default_chunk, draws_anew
from fgvar.measurement.draws import estimates, factors, ranges
from fgvar.measurement.intervals import Array, Estimated
from fgvar.measurement.moments import BLOCK
from fgvar.measurement.mutation_guard import MutationGuard
from fgvar.measurement.protocol_checks import gradient_in, require_like
from fgvar.measurement.references import References
from fgvar.measurement.stacks import Dense, Drawing, Factored, Stack
from fgvar.measurement.statistics import statistics


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
    first: list[streaming.Block] | None = None

    def stacks() -> Iterator[Stack]:
        return _single_estimate(guard, estimator) if noiseless else _stacks(guard, estimator, randomness, settings)

    for stack in stacks():
        try:
            moments, blocks, features = streaming.update(moments, references, stack)
        except NonFiniteError as error:
            raise NonFiniteError(f"estimator {guard.name!r}, {error}") from None
        first = blocks if first is None else first
        if keeps_features or not feature_blocks:
            feature_blocks.append(features[:, : None if keeps_features else 0].cpu().numpy())
        if settings.paired:
            grams.extend(gram for block in blocks for gram in block.gram)
    if guard.is_needed:
        again = streaming.update(streaming.init(references), references, next(stacks()))[1]
        guard.require_repeated(first or (), again)
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


def _single_estimate(guard: MutationGuard, estimator: GradientEstimator) -> Iterator[Stack]:
    """The one estimate of an estimator that needs no noise, as a stack."""
    found = {k: g[None] for k, g in gradient_in(estimator.estimate(guard.problem, {})).items()}
    guard.require_unchanged(range(1))
    yield _dense(guard, found)


def _dense(guard: MutationGuard, gradients: dict[str, Tensor]) -> Dense:
    require_like(f"the estimate of {guard.name!r}", guard.problem, {k: g[0] for k, g in gradients.items()})
    return Dense(gradients)


def _stacks(
    guard: MutationGuard,
    estimator: GradientEstimator,
    randomness: Randomness,
    settings: Settings,
) -> Iterator[Stack]:
    """Estimates in stacks of whole blocks of 16 draws (the last may be shorter), whatever the chunk.

    Those of weights are kept as factors, with their noise, or with the numbers of the draws that it is drawn by.
    """
    problem, draws, chunk = guard.problem, settings.draws, settings.chunk
    if chunk is None:
        chunk = default_chunk(estimator, guard.original, randomness, settings.budget)
    factored = isinstance(estimator, Estimator) and estimator.factored
    anew = factored and draws_anew(randomness, problem.dtype, settings.budget)

    def piece(numbers: range) -> tuple[dict[str, Tensor], ...]:
        noise = randomness.sample(
            settings.seed, numbers, dtype=problem.dtype, device=problem.device, noise_device=settings.noise_device
        )
        if not factored:
            found = estimates(estimator, problem, noise, name=what)
            guard.require_unchanged(numbers)
            return (found,)
        made = factors(cast(Estimator, estimator), problem, noise, name=what)
        exact.update(made.exact)
        return (made.credit, {} if anew else noise)

    def stack(parts: tuple[dict[str, Tensor], ...], numbers: range) -> Stack:
        if not factored:
            return _dense(guard, *parts)
        credit, noise = parts
        again = Drawing(randomness, settings.seed, numbers, settings.noise_device)
        return Factored(Factors(credit, exact), again if anew else noise)

    exact, what = dict[str, Tensor](), f"estimator {guard.name!r}"
    # A black box says that it is none for vmap.
    chunk = 1 if getattr(estimator, "opaque", False) else min(chunk, draws)
    with tqdm(total=draws, desc=guard.name, unit="draw", delay=1, leave=False, disable=None) as bar:
        for window in ranges(0, draws, max(chunk, BLOCK)):
            rows: tuple[dict[str, Tensor], ...] = ()
            for numbers in ranges(window.start, window.stop, chunk):
                found = piece(numbers)
                bar.update(len(numbers))
                # One chunk that fills the window: without a copy.
                rows = found if len(numbers) == len(window) else _written(rows, found, window, numbers)
                del found
            yield stack(rows, window)
            del rows


def _written(rows: Any, found: Any, window: range, numbers: range) -> Any:
    """``rows``, tensors of a window of draws, made where there are none yet, with what was found of some of them."""
    rows = rows or tree_map(lambda part: part.new_empty(len(window), *part.shape[1:]), found)
    at = slice(numbers.start - window.start, numbers.stop - window.start)
    tree_map(lambda whole, part: whole[at].copy_(part), rows, found)
    return rows
