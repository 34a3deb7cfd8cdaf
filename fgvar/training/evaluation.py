"""Evaluation: loss and error over many batches, Σ w ℓ / Σ w over all their examples, without a gradient."""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fgvar.allocator import LARGEST_MMAP_THRESHOLD
from fgvar.data.split import Batch
from fgvar.loss_functions import losses_and_weights
from fgvar.problem import Problem
from fgvar.training.distributed import summed


def sums_of(problem: Problem, params: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Σ w ℓ, Σ w, wrong answers (NaN where targets are no classes) and examples of a batch, [4]."""
    batch_problem = problem.at(params, batch)
    with torch.no_grad():
        outputs = batch_problem.run(params)[0]
        losses, weights = losses_and_weights(batch_problem.raw_losses(outputs))
        losses, correct = losses.double(), batch_problem.correct(outputs)
    weights = torch.ones_like(losses) if weights is None else weights.double()
    wrong = losses.sum() * torch.nan if correct is None else (~correct).double().sum()
    count = torch.full_like(wrong, len(losses))
    return torch.stack([(weights * losses).sum(), weights.sum(), wrong, count])


def mean_loss_and_error(problem: Problem, params: Mapping[str, Tensor], batches: Iterable[Batch]) -> Tensor:
    """Loss and error (NaN where targets are no classes), [2], over the batches of all processes.

    Raises:
        ValueError: no example counts.
    """
    sums = [torch.zeros(4, dtype=torch.float64, device=problem.device)]
    sums += [sums_of(problem, params, batch) for batch in batches]
    # Sums, not means, cross the processes: batches differ in size, and in the weights of their examples.
    loss, weight, wrong, count = summed(torch.stack(sums).sum(0))
    if not weight:
        raise ValueError(
            "the loss's weights sum to 0 over all examples of the train or test set, so that their mean loss is not "
            "defined; are all targets ignored (−100)? Give some that count"
        )
    return torch.stack([loss / weight, wrong / count])


def evaluation_batch(problem: Problem, most: int) -> int:
    """Examples to evaluate at once: on a CPU no more than keep their widest activity below 16 MB.

    Memory of larger tensors goes back to the system whenever one is freed, and faulting its pages in again takes as
    long as computing what stands in them.
    """
    if problem.device.type != "cpu":
        return most
    shapes = [visit.activity or () for visits in problem.trace.visits.values() for visit in visits]
    widest = max((math.prod(shape) for shape in shapes), default=0) * problem.dtype.itemsize / problem.batch_size
    return max(1, min(most, int(LARGEST_MMAP_THRESHOLD / 2 / widest))) if widest else most
