"""Structures: tensors, and tuples, lists and dicts of them (torch's pytrees), as inputs, targets and outputs are."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_leaves, tree_map


def arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """How a module takes its inputs: module(x), module(*x) for a tuple or list, module(**x) for a dict."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def leaves(structure: Any) -> list[Tensor]:
    """Its tensors."""
    return [leaf for leaf in tree_leaves(structure) if isinstance(leaf, Tensor)]


def activity(output: Any) -> Tensor | None:
    """The tensor of a module's output that sites perturb and local heads read: itself, or the first of a tuple."""
    # Attention returns (values, weights), recurrent layers (outputs, state): the first tensor is the activity.
    # Subclasses, such as named tuples, have none: a plain tuple would come back to whoever asks for fields by name.
    parts = output if type(output) is tuple else (output,)
    return next((part for part in parts if isinstance(part, Tensor)), None)


def with_activity(output: Any, value: Tensor) -> Any:
    """A module's output with ``value`` in the place of its `activity`."""
    if isinstance(output, Tensor):
        return value
    first = next(index for index, part in enumerate(output) if isinstance(part, Tensor))
    return (*output[:first], value, *output[first + 1 :])


def named(what: str, structure: Any) -> dict[str, Any]:
    """Its leaves, tensors or not, by where they are: "inputs", "inputs['ids']", "targets[1]"."""
    try:
        found = tree_flatten_with_path(structure)[0]
    except ValueError:  # a class that torch can take apart, and whose places have no names
        return {f"{what}, leaf {number}": leaf for number, leaf in enumerate(tree_leaves(structure))}
    return {what + keystr(path): leaf for path, leaf in found}


def cast(structure: Any, dtype: torch.dtype) -> Any:
    """The structure in another precision; class numbers, token ids and masks stay what they are."""
    return tree_map(lambda leaf: leaf.to(dtype) if leaf.is_floating_point() else leaf, structure)


def count_rows(tensors: Mapping[str, Tensor]) -> int:
    """The number of examples that all of these named tensors have along their first axis.

    Raises:
        ValueError: none, or numbers that differ.
    """
    counts = {leaf.shape[0] if leaf.ndim else 0 for leaf in tensors.values()}
    if len(counts) > 1 or 0 in counts:
        shapes = " and ".join(f"{name} {tuple(leaf.shape)}" for name, leaf in tensors.items())
        one = "; what is one for all is repeated by .expand(batch, …)" if 1 in counts and 0 not in counts else ""
        raise ValueError(f"{shapes} need the same, nonzero number of examples along the first axis{one}")
    return int(counts.pop())
