"""Several processes: average gradients, add up sums and broadcast parameters, with independent noise."""

import os
from collections.abc import Mapping

import torch
from torch import Tensor
from torch import distributed as dist

EVERY = 16  # steps between the questions that several processes ask each other


def join() -> None:
    """Join the processes that torchrun has started this one among, if it has and nobody has joined them yet.

    Example:
        >>> join()  # alone
        >>> world()
        (0, 1)
    """
    if not dist.is_available() or not dist.is_torchelastic_launched() or dist.is_initialized():
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("nccl" if cuda else "gloo")


def local_rank() -> int:
    """The number of this process on its machine, by torchrun's count."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def world() -> tuple[int, int]:
    """(rank, number of processes): (0, 1) outside of ``torch.distributed``.

    Example:
        >>> world()
        (0, 1)
    """
    return (dist.get_rank(), dist.get_world_size()) if dist.is_available() and dist.is_initialized() else (0, 1)


def averaged(gradient: Mapping[str, Tensor], weight: Tensor | None = None) -> dict[str, Tensor]:
    """The mean over processes, in one message. With independent noise its variance falls as one over their number.

    With a ``weight`` of each process it is Σ weight · gradient / Σ weight.
    """
    _, processes = world()
    if processes == 1 or not gradient:
        return dict(gradient)
    # One message for all tensors: most of a small one's time would be latency.
    flat = torch.cat([g.flatten() for g in gradient.values()])
    if weight is None:
        dist.all_reduce(flat)
        flat = flat / processes
    else:
        weight = weight.to(flat.dtype)
        flat = torch.cat([weight * flat, weight[None]])
        dist.all_reduce(flat)
        flat = flat[:-1] / flat[-1]
    pieces = flat.split([g.numel() for g in gradient.values()])
    return {name: piece.view_as(g).to(g.dtype) for (name, g), piece in zip(gradient.items(), pieces, strict=True)}


def summed(values: Tensor) -> Tensor:
    """The sum over processes."""
    if world()[1] > 1:
        dist.all_reduce(values)
    return values


def broadcast_params(params: Mapping[str, Tensor]) -> None:
    """Give every process the first one's values, in place."""
    if world()[1] > 1:
        for value in params.values():
            dist.broadcast(value, 0)


def broadcast_bytes(content: bytes | None) -> bytes | None:
    """The first process's bytes (or None), on all: what it alone has read.

    Args:
        content: what the first process has; of others it is not looked at.

    Example:
        >>> broadcast_bytes(b"alone")
        b'alone'
    """
    rank, processes = world()
    if processes == 1:
        return content
    # A leading byte says whether there is anything.
    own = b"" if content is None else b"\1" + content
    size = torch.tensor(len(own), device=_device())
    dist.broadcast(size, 0)
    if not int(size):
        return None
    empty = torch.empty(int(size), dtype=torch.uint8)
    buffer = (torch.frombuffer(bytearray(own), dtype=torch.uint8) if rank == 0 else empty).to(_device())
    dist.broadcast(buffer, 0)
    return buffer.cpu().numpy().tobytes()[1:]


def any_rank(asks: bool, device: torch.device) -> bool:
    """Does any process ask? All have to call this at the same step."""
    if world()[1] == 1:
        return asks
    return bool(summed(torch.tensor(float(asks), device=device)) > 0)


def any_rank_now(asks: bool, step: int, device: torch.device) -> bool:
    """Does any process ask? Of several all get the same answer, which is no but for every 16th step."""
    return (world()[1] == 1 or step % EVERY == 0) and any_rank(asks, device)


def _device() -> torch.device:
    """Where the backend's messages have to lie."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
