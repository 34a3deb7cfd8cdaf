"""Noise ahead: that of a run's next updates is drawn by a thread, while this one is made."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor

Noise = dict[str, Tensor]

AHEAD = 1 << 20  # random numbers that are drawn at once, for several updates where each needs few


class NoiseAhead:
    """The noise of consecutive updates. Small draws come several at once, from as many threads as large ones.

    Always the same several, from wherever a run goes on: matrix products may round by where their factors lie.

    Args:
        sample: noise of some updates, stacked along a first axis.
        size: random numbers of one update.
        total: updates of the whole run.
        device: where they are drawn.
    """

    def __init__(self, sample: Callable[[range], Noise], size: int, total: int, device: torch.device) -> None:
        self.sample, self.total = sample, total
        self.several = min(max(AHEAD // max(size, 1), 1), 16)
        self.small = 0 < size <= AHEAD and device.type == "cpu"
        self.drawn: dict[int, Noise] = {}  # update → its noise
        self.thread: ThreadPoolExecutor | None = None
        self.next: dict[int, Future[dict[int, Noise]]] = {}  # first of several updates → theirs, being made

    @contextmanager
    def in_thread(self) -> Iterator[None]:
        """Within, a thread makes the next small draws, the same numbers: NumPy lets the interpreter go on meanwhile.

        Large draws take all cores themselves, and other devices make them beside the CPU anyway. What the thread
        raises is raised by the update that needs its noise.
        """
        if not self.small:
            yield
            return
        with ThreadPoolExecutor(1, "noise") as self.thread:
            try:
                yield
            finally:
                self.thread, self.next = None, {}  # the pool waits for what it has begun

    def of(self, step: int) -> Noise:
        """Of this update, and no other one of it."""
        if step not in self.drawn:
            first = step - step % self.several
            made = self.next.pop(first, None)
            self.drawn = self._several(first) if made is None else made.result()
            if self.thread is not None and (after := first + self.several) < self.total:
                self.next = {after: self.thread.submit(self._several, after)}
        return self.drawn.pop(step)

    def _several(self, first: int) -> dict[int, Noise]:
        steps = range(first, first + self.several)
        noise = self.sample(steps)
        return {step: {key: u[i] for key, u in noise.items()} for i, step in enumerate(steps)}
