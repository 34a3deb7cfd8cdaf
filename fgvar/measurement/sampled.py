"""The drawn route: estimates in blocks, whatever the chunk, and what is kept of them."""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from fgvar.errors import NonFiniteError
from fgvar.estimators.estimator import GradientEstimator
from fgvar.estimators.oracles import Replay
from fgvar.estimators.randomness import Randomness
from fgvar.estimators.spaces import WeightSpace
from fgvar.measurement import moments as streaming
from fgvar.measurement.draws import PlainCalls, estimates, ranges
from fgvar.measurement.intervals import Array, Estimated
from fgvar.measurement.lending import Loan, gradient_in
from fgvar.measurement.moments import BLOCK, References
from fgvar.measurement.statistics import statistics
from fgvar.problem import Problem

BUDGET = 1 << 30  # bytes that one chunk of estimates may take
LARGEST_CHUNK = 64


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
    loan: Loan,
    estimator: GradientEstimator,
    references: References,
    randomness: Randomness,
    draws: int,
    seed: int,
    chunk: int,
    plain: PlainCalls,
    noise_device: torch.device | str | None,
    keep_draws: bool,
    keep_grams: bool,
) -> Drawn:
    """Statistics of an estimator's draws; of the one estimate of an estimator without randomness, for all draws."""
    name, moments = loan.name, streaming.init(references)
    kept: list[Array] = []
    grams: list[Tensor] = []
    noiseless = randomness.size == 0
    for block in (
        _only(loan, estimator)
        if noiseless
        else _blocks(loan, estimator, randomness, draws, seed, chunk, plain, noise_device)
    ):
        require_like(f"the estimate of {name!r}", loan.problem, {k: g[0] for k, g in block.items()})
        try:
            one = streaming.block(moments, references, block)
        except NonFiniteError as error:
            raise NonFiniteError(f"estimator {name!r}, {error}") from None
        moments, features = streaming.absorb(moments, one)
        if keep_draws or keep_grams or not kept:
            kept.append(features[:, : None if keep_draws or keep_grams else 0].cpu().numpy())
        if keep_grams:
            grams.append(one.gram)
    scalars = np.concatenate(kept, axis=1)
    if noiseless:  # two equal draws have the statistics of a constant, but no noise to test a bias against
        moments = streaming.merge(moments, moments)
        scalars = np.repeat(scalars, draws, axis=1)
        grams = [_repeated(gram, numbers) for gram in grams for numbers in ranges(0, draws, BLOCK)]
    values = statistics(moments, references)
    if noiseless:
        values = {
            name: Estimated.alone(one.value * np.nan) if name.startswith("bias") else Estimated.exact(one.value)
            for name, one in values.items()
        }
        # Exactly none, where the mean of squares less the square of the mean leaves rounding.
        none = np.zeros_like(values["variance"].value)
        values |= {"variance": Estimated.exact(none), "snr": Estimated.exact(none * np.nan)}
    return Drawn(values, scalars, grams)


def _repeated(gram: Tensor, numbers: range) -> Tensor:
    """Of the Gram matrix of (D, 0, target, backprop), that of equal draws of these numbers, about those before."""
    rows = torch.tensor([*[0] * len(numbers), 0 if numbers.start else 1, 2, 3], device=gram.device)
    return gram[:, rows][:, :, rows]


def _only(loan: Loan, estimator: GradientEstimator) -> Iterator[dict[str, Tensor]]:
    """The one estimate of an estimator that needs no noise."""
    found = gradient_in(estimator.estimate(loan.problem, {}))
    loan.require_unchanged(range(1))
    yield {k: g[None] for k, g in found.items()}


def _blocks(
    loan: Loan,
    estimator: GradientEstimator,
    randomness: Randomness,
    draws: int,
    seed: int,
    chunk: int,
    plain: PlainCalls,
    noise_device: torch.device | str | None,
) -> Iterator[dict[str, Tensor]]:
    """Estimates in blocks of 16 draws (the last may be shorter), whatever the chunk."""
    problem = loan.problem

    def piece(numbers: range) -> dict[str, Tensor]:
        noise = randomness.sample(
            seed, numbers, dtype=problem.dtype, device=problem.device, noise_device=noise_device
        )
        found = estimates(estimator, problem, noise)
        loan.require_unchanged(numbers)
        return found

    # A black box says that it is none for vmap.
    chunk = 1 if getattr(estimator, "opaque", False) else min(chunk, draws)
    what = f"estimator {loan.name!r}"
    first = None if chunk == 1 else plain.together(what, lambda: piece(range(chunk)), lambda: piece(range(1)))
    size = chunk if first else 1
    with tqdm(total=draws, desc=loan.name, unit="draw", delay=1, leave=False, disable=None) as bar:
        for window in ranges(0, draws, max(size, BLOCK)):
            whole: dict[str, Tensor] = {}
            for numbers in ranges(window.start, window.stop, size):
                found, first = first or piece(numbers), None
                bar.update(len(numbers))
                if len(numbers) == len(window):
                    whole = found
                    break
                for k, g in found.items():
                    whole.setdefault(k, g.new_empty(len(window), *g.shape[1:]))
                    whole[k][numbers.start - window.start : numbers.stop - window.start] = g
            for block in ranges(0, len(window), BLOCK):
                yield {k: g[block.start : block.stop] for k, g in whole.items()}


def default_chunk(estimator: GradientEstimator, problem: Problem, randomness: Randomness, budget: int) -> int:
    """The largest chunk of draws within the budget.

    A draw takes its noise and the direction of it (of weights, itself), its gradient (as it is made, in its block and
    centred), and activations of its own, through which its credit is pulled back or its tangents pass; not where
    directions of weights are replayed. References, a block and one backward pass are there anyway.
    """
    activities, parameters = _sizes(problem)
    weights = isinstance(getattr(estimator, "space", None), WeightSpace)
    noise = randomness.size if weights else 2 * randomness.size
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


def require_like(what: str, problem: Problem, gradient: Mapping[str, Tensor]) -> None:
    """Raise where a gradient is not a dict with the parameters' names, shapes, dtype and device."""
    for name, parameter in problem.params.items():
        got = tuple(gradient[name].shape) if name in gradient else "nothing"
        if got != tuple(parameter.shape):
            raise ValueError(
                f"{what} has {got} for {name!r}, expected {tuple(parameter.shape)}, as in problem.params"
            )
        for kind in ("dtype", "device"):
            found, wanted = getattr(gradient[name], kind), getattr(parameter, kind)
            if found != wanted:
                raise ValueError(f"{what} has {kind} {found} for {name!r}, expected {wanted}, that of the parameter")
    if more := [name for name in gradient if name not in problem.params]:
        raise ValueError(f"{what} has {more[0]!r} beside problem.params; give every parameter an entry, and no more")
