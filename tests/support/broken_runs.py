"""Training runs that are broken off, to be gone on with from their checkpoint."""

from collections.abc import Callable

import pytest

from fgvar.training.train import Checkpointer, TrainingLoop


def stopped_at(step: int, monkeypatch: pytest.MonkeyPatch, run: Callable[[], object]) -> None:
    """The run, stored after every update and broken off in this one."""
    update = TrainingLoop.update

    def breaking(self: TrainingLoop, batch: tuple) -> None:
        if self.step == step:
            raise ZeroDivisionError
        update(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "maybe_save", Checkpointer.store)
        patch.setattr(TrainingLoop, "update", breaking)
        with pytest.raises(ZeroDivisionError):
            run()
