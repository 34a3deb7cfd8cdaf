"""Networks of which a part is frozen: LoRA by hand, one of all sorts, and the same with constants in buffers."""

import copy

import torch
from cases import labels, randn
from torch import Tensor, nn

import fgvar


class LoRA(nn.Module):
    """W x + B A x with W frozen; A of normal numbers and B of zeros, as fine-tuning starts."""

    def __init__(self, base: nn.Linear, rank: int, seed: int = 0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        like = base.weight
        self.A = nn.Parameter(randn(rank, base.in_features, seed=seed).to(like.dtype) / base.in_features**0.5)
        self.B = nn.Parameter(torch.zeros(base.out_features, rank, dtype=like.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.A.T @ self.B.T


def fixed(net: nn.Module) -> nn.Module:
    for index, p in enumerate(net.parameters()):
        p.data = 0.6 * randn(*p.shape, seed=index + 3)
    return net.double()


def lora(width: int = 6, rank: int = 1) -> nn.Module:
    """Two LoRA layers around a frozen norm."""
    first, norm, last = fixed(nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 2)))
    return nn.Sequential(LoRA(first, rank, 1), norm.requires_grad_(False), nn.Tanh(), LoRA(last, rank, 2))


def partly_frozen() -> nn.Module:
    """Local heads and a read-out; a frozen layer, a frozen bias of another, and a frozen weight of a head."""
    net = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)
    )  # fmt: skip
    net = fixed(fgvar.with_local_heads(net, after=("1", "5"), classes=2, readout="6"))
    for name in ("0.bias", "2.weight", "2.bias", "1.local.head.linear.weight"):
        net.get_parameter(name).requires_grad_(False)
    return fgvar.with_sites(net)


def in_buffers(net: nn.Module) -> nn.Module:
    """The same network whose frozen parameters are buffers."""
    twin = copy.deepcopy(net)
    for module in twin.modules():
        for name, p in list(module.named_parameters(recurse=False)):
            if not p.requires_grad:
                delattr(module, name)
                module.register_buffer(name, p.detach())
    return twin


def problem_of(net: nn.Module, batch: int = 3) -> fgvar.Problem:
    return fgvar.Problem(net, "cross_entropy", (randn(batch, 3, seed=50), labels(batch, 2)))
