"""The curves of a run: loss and error on whole splits."""

from collections.abc import Mapping

import torch
from torch import Tensor

from fgvar.experiments.data import Images
from fgvar.experiments.distributed import summed, world
from fgvar.problem import Problem

BATCH = 1024

CURVES = {
    "loss": ("mean loss on the train split", "loss"),
    "train_error": ("error on the train split", "1"),
    "test_error": ("error on the test split", "1"),
}


def evaluate(problem: Problem, params: Mapping[str, Tensor], train: Images, test: Images) -> tuple[float, ...]:
    """A row of the curves: mean training loss, training error and test error. Processes share the work."""
    (loss, error), (_, test_error) = (_means(problem, params, split) for split in (train, test))
    return float(loss), float(error), float(test_error)


def _means(problem: Problem, params: Mapping[str, Tensor], split: Images) -> Tensor:
    """Loss and error (NaN where targets are no classes) of a split, [2]."""
    rank, processes = world()
    found = [torch.zeros(2, dtype=torch.float64, device=problem.device)]
    for start in range(rank * BATCH, len(split), processes * BATCH):
        numbers = torch.arange(start, min(start + BATCH, len(split)))
        here = problem.at(params, split.batch(numbers, device=problem.device, dtype=problem.dtype))
        with torch.no_grad():
            outputs = here.run(params)[0]
            loss, right = here.losses(outputs).double().sum(), here.right(outputs)
        wrong = loss * torch.nan if right is None else (~right).double().sum()
        found.append(torch.stack([loss, wrong]))
    return summed(torch.stack(found).sum(0)) / len(split)
