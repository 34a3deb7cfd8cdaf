"""Dry run: the passes that a new problem is tried by: traces, and checks of what the network and the loss do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from fgvar import loss_functions, problem_checks
from fgvar.loss_functions import even_weights
from fgvar.nn import purity, structures
from fgvar.nn.reach import ForwardTrace

if TYPE_CHECKING:
    from fgvar.problem import Problem


def traces(problem: Problem, loss: str) -> tuple[ForwardTrace, ForwardTrace]:
    """Traces of the batch and of its first example alone, and checks of all that a pass and the loss do.

    A loss that has weights leaves them on the problem. ``loss`` is its name, or empty.
    """
    first_input = tree_map(lambda leaf: leaf[:1], problem.inputs)
    alone = problem._with(inputs=first_input)  # of its loss no weight is known yet
    tensors = {**problem.buffers, **problem.params}
    outputs, trace = _traced(problem, tensors, problem.inputs)
    try:
        first, single = _traced(problem, tensors, alone.inputs)
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(purity.batch_only(error)) from error
    purity.require_derivative("network", lambda params: alone.run(params)[0], problem.params)
    purity.refuse_foreign(outputs)
    if loss in loss_functions.TARGET_CHECKS:
        loss_functions.TARGET_CHECKS[loss](outputs, problem.targets)
        problem_checks.require_classes_of_heads(problem.network.modules, trace.ends.values(), problem.targets)
    losses = _checked_losses(problem, outputs)
    one = problem.example(0)
    if not losses.is_meta:  # without values there is nothing to compare

        def run(which: slice) -> purity.Pass:
            some = problem.rows(which)
            found = some.run(some.params)[0]
            return found, some.losses(found)

        floats = [t for t in (*problem.params.values(), *tree_leaves(outputs), losses) if _is_floating_point(t)]
        eps = max(torch.finfo(t.dtype).eps for t in floats)
        with torch.no_grad():
            purity.require_independence((outputs, losses), (first, one.losses(first)), run, eps)
    purity.require_derivative("loss", lambda params: one.losses(one.run(params)[0]), problem.params)
    if trace.ends:
        trace.direct_edges = single.direct_edges = problem.network.direct_edges(
            single, tensors, problem.params, one.inputs, one.losses
        )
    return trace, single


def _is_floating_point(leaf: object) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point()


def _traced(problem: Problem, tensors: Mapping[str, Tensor], inputs: Any) -> tuple[Any, ForwardTrace]:
    """Output and trace of a pass that draws nothing and changes nothing; a graph shows what it does not own."""
    with torch.enable_grad(), purity.unchanged("network", tensors, purity.STILL):
        return problem.network.trace(tensors, inputs)


def _checked_losses(problem: Problem, outputs: Any) -> Tensor:
    """Losses of a call that draws nothing and changes nothing; a graph shows what the loss owns."""
    given = {**structures.named("targets", problem.targets), **structures.named("outputs", outputs)}
    with torch.enable_grad(), purity.unchanged("loss", given, "torch.where makes a new tensor"):
        returned = purity.undrawn("loss", lambda: problem.raw_losses(outputs))
    losses, weights = loss_functions.require_losses(returned, problem.batch_size)
    if weights is None:
        return losses
    problem.weighs, problem.weights = True, even_weights(weights, losses)
    loss_functions.require_constant_weights(
        weights, lambda params: problem.raw_losses(problem.run(params)[0])[1], problem.params
    )
    return losses * problem.weights
