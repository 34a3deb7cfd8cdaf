"""Lengths of gradients, and gradients of another length, in numbers that hold them."""

from collections.abc import Mapping

import torch
from torch import Tensor


def length(gradient: Mapping[str, Tensor]) -> Tensor:
    """‖g‖ over all tensors, in float64: smaller floats hold neither squares of small numbers nor sums of many."""
    each = [torch.linalg.vector_norm(g, dtype=torch.float64) for g in gradient.values()]
    found: Tensor = torch.linalg.vector_norm(torch.stack(each))
    return found


def rescaled(gradient: Mapping[str, Tensor], factor: Tensor) -> dict[str, Tensor]:
    """factor · g, by 32 bits at least: of 16 there is no factor for every length."""
    wide = {name: g.to(torch.promote_types(g.dtype, torch.float32)) for name, g in gradient.items()}
    return {name: (factor.to(g.dtype) * g).to(gradient[name].dtype) for name, g in wide.items()}
