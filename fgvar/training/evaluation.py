"""Loss and error over many batches, without a gradient."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from fgvar.problem import Problem
from fgvar.training.distributed import summed

Batch = tuple[Tensor, Tensor]


def means(problem: Problem, params: Mapping[str, Tensor], batches: Iterable[Batch]) -> Tensor:
    """Mean loss and error (NaN where targets are no classes), [2], over the batches of all processes."""
    found = [torch.zeros(3, dtype=torch.float64, device=problem.device)]
    for batch in batches:
        here = problem.at(params, batch)
        with torch.no_grad():
            outputs = here.run(params)[0]
            losses, right = here.losses(outputs).double(), here.correct(outputs)
        loss = losses.sum()
        wrong = loss * torch.nan if right is None else (~right).double().sum()
        found.append(torch.stack([loss, wrong, torch.full_like(loss, len(losses))]))
    loss, wrong, count = summed(torch.stack(found).sum(0))
    return torch.stack([loss, wrong]) / count
