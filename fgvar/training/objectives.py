"""Objectives: a `Task` makes a problem of a batch, and evaluates the curves by which a run is judged.

`Supervised` learns targets by any loss; `SelfSupervised` tells by InfoNCE each image's two views from all others'.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from fgvar.contrastive import Contrastive, InfoNCE
from fgvar.data.augmentation import Views, generator
from fgvar.data.images import Images
from fgvar.data.split import Batch, Split
from fgvar.identity import behaviour, described
from fgvar.loss_functions import Loss, has_perplexity
from fgvar.nn.structures import leaves
from fgvar.problem import Problem
from fgvar.training.distributed import world
from fgvar.training.evaluation import evaluation_batch, mean_loss_and_error

Curves = dict[str, tuple[str, str]]  # name → long name, units

PERPLEXITY = {"loss": "train_perplexity", "test_loss": "test_perplexity"}  # curve → e to its power
EVALUATED = 512  # images of each split in the curves of a contrastive run
# Independent streams of views, all of the run's seed.
TRAINING, EVALUATION, PROBE = range(3)


class Task(Protocol):
    """What is learned from inputs and targets."""

    @property
    def curves(self) -> Curves:
        """What `evaluate` may return."""

    @property
    def identity(self) -> dict[str, str]:
        """What tells it from others, in a checkpoint."""

    def problem(self, module: nn.Module, batch: Batch) -> Problem:
        """The network and loss on such a batch."""

    def train_batch(self, batch: Batch, draw: int) -> Batch:
        """What problems take of a batch of inputs and targets, in the update with this number."""

    def eval_batch(self, batch: Batch) -> Batch:
        """The same of a batch that stays."""

    def evaluate(
        self, problem: Problem, params: Mapping[str, Tensor], splits: Mapping[str, Split]
    ) -> dict[str, float]:
        """A row of the curves of "train" and, if there is one, "test". Processes share the work."""


@dataclass(frozen=True)
class Supervised:
    """Inputs with their targets; judged on whole splits.

    By the loss; by the error, where targets are classes; by the perplexity e^loss of a language model's tokens.
    """

    loss: str | Loss

    BATCH: ClassVar[int] = 1024  # images that are evaluated at once, at most
    curves: ClassVar[Curves] = {
        "loss": ("mean loss on the train split", "loss"),
        "test_loss": ("mean loss on the test split", "loss"),
        "train_error": ("error on the train split", "1"),
        "test_error": ("error on the test split", "1"),
        "train_perplexity": ("perplexity on the train split", "1"),
        "test_perplexity": ("perplexity on the test split", "1"),
    }

    @property
    def identity(self) -> dict[str, str]:
        # A closure, or a module of another setting, has the same name.
        return {"loss": self.loss if isinstance(self.loss, str) else f"{described(self.loss)} {behaviour(self.loss)}"}

    def problem(self, module: nn.Module, batch: Batch) -> Problem:
        return Problem(module, self.loss, batch)

    def train_batch(self, batch: Batch, draw: int) -> Batch:  # noqa: ARG002
        return batch

    def eval_batch(self, batch: Batch) -> Batch:
        return batch

    def evaluate(
        self, problem: Problem, params: Mapping[str, Tensor], splits: Mapping[str, Split]
    ) -> dict[str, float]:
        batches = {name: self._batches(problem, split) for name, split in splits.items()}
        found = _evaluated(problem, params, batches, "error")
        if has_perplexity(self.loss):
            losses = {key: torch.tensor(found[key], dtype=torch.float64) for key in PERPLEXITY if key in found}
            # By torch: infinite of a run that diverges, where math.exp raises.
            found |= {PERPLEXITY[key]: float(loss.exp()) for key, loss in losses.items()}
        return found

    def _batches(self, problem: Problem, split: Split) -> Iterator[Batch]:
        # Of examples of unknown size as many as an update has: a language model's outputs may be 1 MB a token.
        size = evaluation_batch(problem, self.BATCH) if isinstance(split, Images) else problem.batch_size
        rank, processes = world()  # every process takes each n-th batch, and `mean_loss_and_error` adds them up
        for start in range(rank * size, len(split), processes * size):
            numbers = torch.arange(start, min(start + size, len(split)))
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
        self, problem: Problem, params: Mapping[str, Tensor], splits: Mapping[str, Split]
    ) -> dict[str, float]:
        batches = {name: self._batches(problem, split) for name, split in splits.items()}
        return _evaluated(problem, params, batches, "retrieval_error")

    def _batches(self, problem: Problem, split: Split) -> Iterator[Batch]:
        """The same images and views in every evaluation, whatever the run's seed."""
        # Not the run's seed: curves of different runs are then over the same pairs.
        images = split.sample(min(EVALUATED, len(split)), seed=0, device=problem.device, dtype=problem.dtype)[0]
        rank, processes = world()
        size = min(self.batch, len(images))
        for number in range(rank, len(images) // size, processes):
            part = slice(number * size, (number + 1) * size)
            yield self.views.pair(images[part], generator(0, EVALUATION, number, device=problem.device))

    def _views(self, batch: Batch, *key: int) -> Batch:
        return self.views.pair(batch[0], generator(self.seed, *key, device=leaves(batch[0])[0].device))


def _evaluated(
    problem: Problem, params: Mapping[str, Tensor], batches: Mapping[str, Iterator[Batch]], error: str
) -> dict[str, float]:
    """The loss of each split, then its error, by this name, where targets are classes."""
    means = {split: mean_loss_and_error(problem, params, some).tolist() for split, some in batches.items()}
    losses = {"loss" if split == "train" else f"{split}_loss": loss for split, (loss, _) in means.items()}
    return losses | {f"{split}_{error}": wrong for split, (_, wrong) in means.items() if not math.isnan(wrong)}


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
