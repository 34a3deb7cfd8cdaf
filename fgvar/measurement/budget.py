"""Budget: how many draws and examples are computed at once, and a word where even one takes more than the budget."""

import itertools
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from fgvar.estimators.estimator import Estimator
from fgvar.estimators.oracles import Replay
from fgvar.estimators.protocol import GradientEstimator
from fgvar.estimators.randomness import Randomness
from fgvar.estimators.weight_space import WeightSpace
from fgvar.measurement.arguments import Settings
from fgvar.measurement.moments import BLOCK
from fgvar.measurement.protocol_checks import require_randomness
from fgvar.measurement.references import PIECE
from fgvar.problem import Problem
from fgvar.stochastic.history import History
from fgvar.stochastic.sampling import looks_at_all
from fgvar.stochastic.sentence import Stochastic, of_terms
from fgvar.theory.applicability import estimates_of

LARGEST_CHUNK = 64  # beyond it vmap gains nothing, and takes memory
# Of draws so small that Python and the calls of kernels take the time: as many as hold so many numbers together.
LARGEST_SMALL_CHUNK, SMALL = 256, 1 << 23


@dataclass(frozen=True)
class Needs:
    """Numbers that a measurement holds beside the network: ``once``, and for ``each`` draw of a chunk."""

    once: int
    each: int


def needs(estimator: GradientEstimator, problem: Problem, randomness: Randomness, budget: int) -> Needs:
    """What the draws of an estimator take.

    A draw takes its noise and the direction of it, its gradient (as it is made, in its block and centred), and
    activations of its own, through which its credit is pulled back or its tangents pass. Of weights a draw's
    coefficients are enough: it takes its noise, the moved weights, and a piece of them centred; and where directions
    are replayed, no activations. References, sums, a block of estimates (of weights, of noise that is not drawn anew)
    and one backward pass are there anyway.
    """
    activities, parameters = sizes(problem)
    weights = isinstance(getattr(estimator, "space", None), WeightSpace)
    noise = randomness.size if weights else 2 * randomness.size
    # Replayed, all draws meet the same gradients of the loss terms: inner products, and no pass of a draw's own.
    own = 0 if weights and isinstance(getattr(estimator, "oracle", None), Replay) else activities
    estimated = estimates_of(estimator)
    if isinstance(estimated, Stochastic):
        return _needs_of_sentence(estimated, problem, randomness, moves=bool(estimated.at.leaves(problem)))
    if isinstance(estimated, History):
        return _needs_of_history(estimated, problem, randomness, budget)
    if not (isinstance(estimator, Estimator) and estimator.factored):
        return Needs((6 + BLOCK) * parameters + 2 * activities, noise + 3 * parameters + own)
    held = 0 if draws_anew(randomness, problem.dtype, budget) else BLOCK * noise
    return Needs(6 * parameters + held + 2 * activities, 2 * noise + own + 2 * min(PIECE, parameters))


def _needs_of_sentence(estimator: Stochastic, problem: Problem, randomness: Randomness, moves: bool) -> Needs:
    """Activations of each worker's examples; where terms are shaped, a gradient of each, as it is and shaped.

    ``moves``: each draw takes them at another point.
    """
    activities, parameters = sizes(problem)
    examples = estimator.sample.batch_size(problem)
    terms = 2 * examples * parameters if estimator.each else 0
    # Terms that no draw changes are there once, under vmap: all examples, at one point, without noise of their own.
    own = moves or of_terms(randomness.leaves) or not looks_at_all(estimator.sample)
    one = 3 * parameters + activities * examples // problem.batch_size + (terms if own else 0)
    once = (6 + BLOCK) * parameters + 2 * activities + (0 if own else terms)
    return Needs(once, 2 * randomness.size + estimator.workers * one)


def _needs_of_history(history: History, problem: Problem, randomness: Randomness, budget: int) -> Needs:
    """One estimate at a time; beside it all noise, parameters, output and a state as large as Adam's."""
    of, own = estimates_of(history.of), history.of.randomness(problem)
    if isinstance(of, Stochastic) and history.lr and history.steps > 1:
        one = _needs_of_sentence(of, problem, own, moves=True)
    else:
        one = needs(of, problem, own, budget)
    activities, parameters = sizes(problem)
    once = max(one.once, (6 + BLOCK) * parameters + 2 * activities)
    return Needs(once, one.each + 2 * (randomness.size - own.size) + 6 * parameters)


def default_chunk(estimator: GradientEstimator, problem: Problem, randomness: Randomness, budget: int) -> int:
    """The largest chunk of draws within the budget; 1 where noise is drawn anew, and vmap gains nothing."""
    if isinstance(estimator, Estimator) and estimator.factored and draws_anew(randomness, problem.dtype, budget):
        return 1
    return _fitting(problem, budget, needs(estimator, problem, randomness, budget))


def examples_at_once(problem: Problem, budget: int) -> int:
    """Of as many examples a gradient each keeps to the budget, with a backward pass."""
    activities, parameters = sizes(problem)
    return _fitting(problem, budget, Needs(6 * parameters, 2 * parameters + 2 * activities // problem.batch_size))


def draws_anew(randomness: Randomness, dtype: torch.dtype, budget: int) -> bool:
    """Is the noise of a block of draws too large to be held until the moments have seen it?

    Then it is drawn again piece by piece; of a joint law no piece can be drawn alone.
    """
    joint = any(hasattr(leaf.noise, "couple") for leaf in randomness.leaves.values())
    return not joint and 2 * BLOCK * randomness.size * dtype.itemsize > budget


def announce(estimators: Mapping[str, GradientEstimator], problem: Problem, settings: Settings) -> None:
    """Warn, before anything is drawn, of an estimator whose draws take more bytes than the budget."""
    most = 0
    for name, estimator in estimators.items():
        randomness = require_randomness(estimator.randomness(problem), name)
        found = needs(estimator, problem, randomness, settings.budget)
        chunk = settings.chunk or default_chunk(estimator, problem, randomness, settings.budget)
        taken = (found.once + min(chunk, settings.draws) * found.each) * problem.dtype.itemsize
        if randomness.size and taken > max(settings.budget, most):
            most, worst = taken, name
    if most:
        warnings.warn(
            f"measuring {worst!r} takes about {most / 1e9:.1f} GB beside the network, more than the budget of "
            f"{settings.budget / 1e9:.1f} GB; budget= at least as large says that this is meant",
            stacklevel=3,
        )


def sizes(problem: Problem) -> tuple[int, int]:
    """Numbers of activations, at every layer of the network, and of parameters."""
    visits = itertools.chain.from_iterable(problem.trace.visits.values())
    activities = sum(int(np.prod(visit.shape)) for visit in visits if visit.shape)
    return activities, sum(p.numel() for p in problem.params.values())


def _fitting(problem: Problem, budget: int, found: Needs) -> int:
    """How many draws fit: 1, 2, 4, 8 or a multiple of 16."""
    numbers = budget // problem.dtype.itemsize - found.once
    each = max(found.each, 1)
    fits = min(max(numbers // each, 1), max(LARGEST_CHUNK, min(SMALL // each, LARGEST_SMALL_CHUNK)))
    return int(fits // BLOCK * BLOCK if fits >= BLOCK else 2 ** int(np.log2(fits)))
