"""Resources: keep a report to one thread and a budget of bytes."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from fgvar.estimators.protocol import GradientEstimator
from fgvar.estimators.randomness import Randomness
from fgvar.measurement.arguments import BUDGET
from fgvar.measurement.budget import default_chunk
from fgvar.problem import Problem

CHUNK = 256  # estimates computed at once, where they fit


def largest_chunk(estimator: GradientEstimator, problem: Problem, randomness: Randomness) -> int:
    """Estimates that are computed at once: 256, or as many as keep to the budget of `fgvar.measure`."""
    few = default_chunk(estimator, problem, randomness, BUDGET // 4)
    # `measure` takes no more than 64, which is what its moments want; of a quarter of the budget, four times as many.
    return CHUNK if 4 * few >= CHUNK else min(CHUNK, default_chunk(estimator, problem, randomness, BUDGET))


class _OneThread:
    """How many are within `one_thread`, and the number of threads before the first of them."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.within = 0
        self.usual = 1


_one_thread = _OneThread()


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch uses one thread: tensors of small problems are too small to share.

    The number belongs to the thread that asks, and new threads begin with the last one that was set: who leaves puts
    back what it found, the last to leave what the first one found.
    """
    state = _one_thread
    with state.lock:
        found = torch.get_num_threads()
        state.usual = state.usual if state.within else found
        state.within += 1
        torch.set_num_threads(1)
    try:
        yield
    finally:
        with state.lock:
            state.within -= 1
            torch.set_num_threads(found if state.within else state.usual)
