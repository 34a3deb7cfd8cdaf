"""Objectives: a `Task` makes a problem of a batch of images, and evaluates the curves by which a run is judged.

`Supervised` learns labels by any loss; `SelfSupervised` tells by InfoNCE each image's two views from all others'.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fgvar.contrastive import Contrastive, InfoNCE
from fgvar.data.augmentation import Views, generator
from fgvar.data.images import Images
from fgvar.loss_functions import Loss
from fgvar.problem import Problem
from fgvar.training.distributed import world
from fgvar.training.evaluation import Batch, mean_loss_and_error
from fgvar.training.identity import described

Curves = dict[str, tuple[str, str]]  # name → long name, units

EVALUATED = 512  # images of each split in the curves of a contrastive run
# Independent streams of views, all of the run's seed.
TRAINING, EVALUATION, PROBE = range(3)


class Task(Protocol):
    """What is learned from images and labels."""

    @property
    def curves(self) -> Curves:
        """What `evaluate` returns: the first is the training loss, the last an error on the test split."""

    @property
    def identity(self) -> dict[str, str]:
        """What tells it from others, in a checkpoint."""

    def problem(self, module: nn.Module, batch: Batch) -> Problem:
        """The network and loss on such a batch."""

    def train_batch(self, batch: Batch, draw: int) -> Batch:
        """What problems take of a batch of images and labels, in the update with this number."""

    def eval_batch(self, batch: Batch) -> Batch:
        """The same of a batch that stays."""

    def evaluate(
        self, problem: Problem, params: Mapping[str, Tensor], train: Images, test: Images
    ) -> tuple[float, ...]:
        """A row of the curves. Processes share the work."""


@dataclass(frozen=True)
class Supervised:
    """Images with their labels; judged on whole splits."""

    loss: str | Loss

    BATCH: ClassVar[int] = 1024  # of evaluation
    curves: ClassVar[Curves] = {
        "loss": ("mean loss on the train split", "loss"),
        "train_error": ("error on the train split", "1"),
        "test_error": ("error on the test split", "1"),
    }

    @property
    def identity(self) -> dict[str, str]:
        return {"loss": described(self.loss)}

    def problem(self, module: nn.Module, batch: Batch) -> Problem:
        return Problem(module, self.loss, batch)

    def train_batch(self, batch: Batch, draw: int) -> Batch:  # noqa: ARG002
        return batch

    def eval_batch(self, batch: Batch) -> Batch:
        return batch

    def evaluate(
        self, problem: Problem, params: Mapping[str, Tensor], train: Images, test: Images
    ) -> tuple[float, ...]:
        (loss, error), (_, test_error) = (
            mean_loss_and_error(problem, params, self._batches(problem, split)) for split in (train, test)
        )
        return float(loss), float(error), float(test_error)

    def _batches(self, problem: Problem, split: Images) -> Iterator[Batch]:
        rank, processes = world()  # every process takes each n-th batch, and `mean_loss_and_error` adds them up
        for start in range(rank * self.BATCH, len(split), processes * self.BATCH):
            numbers = torch.arange(start, min(start + self.BATCH, len(split)))
            yield split.batch(numbers, device=problem.device, dtype=problem.dtype)


@dataclass(frozen=True)
class SelfSupervised:
    """Pairs of views of images, without labels; judged by fixed views of a part of each split.

    The views of update n depend on (seed, n) alone, as its noise does, so that a run that goes on from a checkpoint
    sees those that it would have seen. Curves are means over batches of the size of training's, since InfoNCE grows
    with the number of keys.
    """

    loss: InfoNCE
    views: Views
    seed: int
    batch: int

    @property
    def curves(self) -> Curves:
        part = f"fixed views of {EVALUATED} images of the {{}} split, in batches of {self.batch}"
        return {
            "loss": (f"mean InfoNCE, {part.format('train')}", "loss"),
            "test_loss": (f"mean InfoNCE, {part.format('test')}", "loss"),
            "train_retrieval_error": (f"queries most like another's key, {part.format('train')}", "1"),
            "test_retrieval_error": (f"queries most like another's key, {part.format('test')}", "1"),
        }

    @property
    def identity(self) -> dict[str, str]:
        return {"loss": repr(self.loss), "views": repr(self.views)}

    def problem(self, module: nn.Module, batch: Batch) -> Problem:
        return Contrastive(module, self.loss, batch)

    def train_batch(self, batch: Batch, draw: int) -> Batch:
        return self._views(batch, TRAINING, draw)

    def eval_batch(self, batch: Batch) -> Batch:
        return self._views(batch, PROBE)

    def evaluate(
        self, problem: Problem, params: Mapping[str, Tensor], train: Images, test: Images
    ) -> tuple[float, ...]:
        (loss, error), (test_loss, test_error) = (
            mean_loss_and_error(problem, params, self._batches(problem, split)) for split in (train, test)
        )
        return float(loss), float(test_loss), float(error), float(test_error)

    def _batches(self, problem: Problem, split: Images) -> Iterator[Batch]:
        """The same images and views in every evaluation, whatever the run's seed."""
        # Not the run's seed: curves of different runs are then over the same pairs.
        images = split.sample(min(EVALUATED, len(split)), seed=0, device=problem.device, dtype=problem.dtype)[0]
        rank, processes = world()
        size = min(self.batch, len(images))
        for number in range(rank, len(images) // size, processes):
            part = slice(number * size, (number + 1) * size)
            yield self.views.pair(images[part], generator(0, EVALUATION, number, device=problem.device))

    def _views(self, batch: Batch, *key: int) -> Batch:
        return self.views.pair(batch[0], generator(self.seed, *key, device=batch[0].device))


def task_of(loss: str | Loss, views: Views | None, seed: int, batch: int) -> Task:
    """The task of this loss: InfoNCE is of views, every other one of labels."""
    if isinstance(loss, InfoNCE) != (views is not None):
        raise ValueError(
            f"loss={described(loss)} and views={views!r} do not belong together: InfoNCE compares two views of each "
            "image (views=fgvar.data.Views(…)), and no other loss has any"
        )
    if isinstance(loss, InfoNCE):
        assert views is not None
        if batch < 2:
            raise ValueError(f"InfoNCE tells examples apart, so that a batch needs at least 2; it has {batch}")
        return SelfSupervised(loss, views, seed, batch)
    return Supervised(loss)
