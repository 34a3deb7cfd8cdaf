"""Batch axis: which modules return activities with a row for each example, seen by passes of two batch sizes."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from fgvar.nn.forward_mode import plain_operations, use_plain_experts
from fgvar.nn.purity import undisturbed
from fgvar.nn.structures import activity, arguments, count_rows, leaves, named


class BatchAxis:
    """What two passes show of each module's activity: of a batch, and of it with its first example once more.

    Position embeddings [1, positions, channels] and routers of flattened tokens [batch × positions, experts] have no
    axis that follows the number of examples, though one may equal it by chance.

    Args:
        module: a copy of the network that nobody else uses: passes may write into its buffers.
        inputs: of one example or more, as a `Problem` has them.

    Raises:
        TypeError: inputs that are no tensors.
        ValueError: inputs of different numbers of examples, or that the network does not take.
    """

    def __init__(self, module: nn.Module, inputs: Any) -> None:
        self.module, self.inputs, self.count = module, inputs, count_examples(inputs)
        use_plain_experts(module)  # passes are those of a `Problem`: kernels that it leaves out may refuse, or hide
        with torch.no_grad():
            calls = self._pass(inputs, _shape)
            self._longer = dict(self._pass(tree_map(lambda leaf: torch.cat([leaf, leaf[:1]]), inputs), _shape))
        names = [name for name, _ in calls]
        self._shapes, self._calls = dict(calls), {name: names.count(name) for name in names}

    def lacking(self, name: str) -> str:
        """Why a module has not one activity with one row an example, as the end of a sentence; "" if it has."""
        calls, shape = self._calls.get(name, 0), self._shapes.get(name)
        if calls != 1:
            return "is never called" if not calls else f"is called {calls} times in one forward pass"
        if shape is None:
            return "returns neither a tensor nor a tuple with one"
        # The first axis may be as long as the batch by chance: it has to follow the batch.
        if shape[:1] != (self.count,) or self._longer.get(name) != (self.count + 1, *shape[1:]):
            return f"returns shape {shape}, whose first axis is not the batch's ({self.count} examples)"
        return ""

    def first_after(self, owned: Mapping[str, list[nn.Parameter]], candidates: Collection[str]) -> set[str]:
        """For each of the parameters the first of the modules to return such an activity that depends on it, if any.

        Of an owner that is called again, the first one after each further call, too. The parameters are those of
        ``module``, of which no others require a gradient afterwards.
        """
        self.module.requires_grad_(False)
        for parameter in (p for parameters in owned.values() for p in parameters):
            parameter.requires_grad_(True)
        with torch.enable_grad():
            # The sum is made at once: what follows may write into the activity, and make it depend on more.
            sums = self._pass(self.inputs, lambda z: z.sum() if z.requires_grad else None)
        places = [z if name in candidates and not self.lacking(name) else None for name, z in sums]
        found = set()
        for owner, parameters in owned.items():
            again = [index + 1 for index, (name, _) in enumerate(sums) if name == owner][1:]
            for start in (0, *again):
                found |= {_first_from(p, places[start:], start) for p in parameters}
        return {sums[index][0] for index in found if index is not None}

    def _pass(self, inputs: Any, look: Callable[[Tensor], Any]) -> list[tuple[str, Any]]:
        """What ``look`` sees in modules' activities (None where there is none), in the order in which calls end."""
        seen: list[tuple[str, Any]] = []

        def note(name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
            found = activity(output)
            seen.append((name, None if found is None else look(found)))

        hooks = [m.register_forward_hook(partial(note, name)) for name, m in self.module.named_modules()]
        args, keywords = arguments(inputs)
        try:
            with undisturbed(leaves(inputs)[0].device), plain_operations():
                self.module(*args, **keywords)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            line = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ValueError(
                f"{type(self.module).__name__} does not take inputs of {len(leaves(inputs)[0])} examples ({line}); "
                "give inputs= as the problem's batch has them, to a network that takes any number of examples"
            ) from error
        finally:
            for hook in hooks:
                hook.remove()
        return seen


def count_examples(inputs: Any) -> int:
    """The number of examples of inputs, if these are tensors that all have as many."""
    found = named("inputs", inputs)
    other = next((name for name, leaf in found.items() if not isinstance(leaf, Tensor)), "")
    if other or not found:
        got = f"{other} is {type(found[other]).__name__}" if other else "inputs hold no tensor"
        raise TypeError(
            f"{got}, expected a tensor of examples, or a tuple or dict of such: torch.as_tensor makes one"
        )
    return count_rows(found)


def _shape(z: Tensor) -> tuple[int, ...]:
    return tuple(z.shape)


def _first_from(parameter: nn.Parameter, numbers: Sequence[Tensor | None], start: int) -> int | None:
    """The index, counted from ``start``, of the first number whose graph leads to the parameter, if any does."""
    for index, z in enumerate(numbers, start):
        if z is not None:
            found = torch.autograd.grad(z, parameter, torch.ones_like(z), allow_unused=True, retain_graph=True)
            if found[0] is not None:
                return index
    return None
