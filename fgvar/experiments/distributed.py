"""Several processes: gradients averaged, noise independent, parameters the same on all."""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist


def world() -> tuple[int, int]:
    """(rank, number of processes): (0, 1) outside of ``torch.distributed``."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def averaged(gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean over processes, in one message. With independent noise its variance falls as one over their number."""
    _, processes = world()
    if processes == 1:
        return dict(gradient)
    flat = torch.cat([g.flatten() for g in gradient.values()])
    dist.all_reduce(flat)
    pieces = (flat / processes).split([g.numel() for g in gradient.values()])
    return {name: piece.view_as(g) for (name, g), piece in zip(gradient.items(), pieces, strict=True)}


def from_first(params: Mapping[str, Tensor]) -> None:
    """Give every process the first one's values, in place."""
    if world()[1] > 1:
        for value in params.values():
            dist.broadcast(value, 0)
