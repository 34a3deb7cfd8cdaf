"""Evaluation: means loss and error over many batches, without a gradient."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fgvar.problem import Problem
from fgvar.training.distributed import summed

Batch = tuple[Tensor, Tensor]


def mean_loss_and_error(problem: Problem, params: Mapping[str, Tensor], batches: Iterable[Batch]) -> Tensor:
    """Mean loss and error (NaN where targets are no classes), [2], over the batches of all processes."""
    sums = [torch.zeros(3, dtype=torch.float64, device=problem.device)]
    for batch in batches:
        batch_problem = problem.at(params, batch)
        with torch.no_grad():
            outputs = batch_problem.run(params)[0]
            losses, correct = batch_problem.losses(outputs).double(), batch_problem.correct(outputs)
        loss = losses.sum()
        wrong = loss * torch.nan if correct is None else (~correct).double().sum()
        sums.append(torch.stack([loss, wrong, torch.full_like(loss, len(losses))]))
    # Sums, not means, cross the processes: the last batches differ in size.
    loss, wrong, count = summed(torch.stack(sums).sum(0))
    return torch.stack([loss, wrong]) / count
