"""Interrupt: ends a run by Ctrl-C after the step that it is making, so that no checkpoint holds half of one."""

import signal
import threading
import time
from typing import Any

import torch

from fgvar.training.distributed import any_rank, any_rank_now

TWICE = 1.0  # seconds in which further signals count as the same: torchrun and the terminal may both send one


class Interrupt:
    """While entered, the first Ctrl-C asks for an end and a later one forces it.

    Raises:
        KeyboardInterrupt: on leaving, where one was asked for and no step was left to end at.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.asked: float | None = None
        self.before: Any = None

    def __enter__(self) -> "Interrupt":
        # Only the main thread may handle signals; a background job that ignores Ctrl-C goes on ignoring it.
        main = threading.current_thread() is threading.main_thread()
        if main and callable(signal.getsignal(signal.SIGINT)):
            self.before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if self.before is not None:
            signal.signal(signal.SIGINT, self.before)
        if error is None and any_rank(self.asked is not None, self.device):
            raise KeyboardInterrupt

    def ends(self, step: int) -> bool:
        """Is this step the last? All processes get the same answer."""
        return any_rank_now(self.asked is not None, step, self.device)

    def _ask(self, *_: object) -> None:
        now = time.monotonic()
        if self.asked is not None and now - self.asked > TWICE:
            raise KeyboardInterrupt
        self.asked = self.asked or now
