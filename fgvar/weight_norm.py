"""Weight norm in plain operations: torch's own is one operation without a forward-mode derivative."""

from torch import Tensor, nn
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm


def normed(length: Tensor, along: Tensor, dim: int) -> Tensor:
    """g·v/‖v‖, with a norm for each index of axis ``dim`` (-1: one for all).

    Example:
        >>> import torch
        >>> normed(torch.tensor([[2.0]]), torch.tensor([[3.0, 4.0]]), 0)
        tensor([[1.2000, 1.6000]])
    """
    if dim == -1:
        return along * (length / along.norm())
    norms = along.movedim(dim, 0).reshape(along.shape[dim], -1).norm(dim=1)
    return along * (length / norms.reshape(length.shape))


class _Parametrization(_WeightNorm):
    def forward(self, weight_g: Tensor, weight_v: Tensor) -> Tensor:
        return normed(weight_g, weight_v, self.dim)


class _Hook(WeightNorm):
    def compute_weight(self, module: nn.Module) -> Tensor:
        return normed(getattr(module, f"{self.name}_g"), getattr(module, f"{self.name}_v"), self.dim)


def norm_plainly(module: nn.Module) -> None:
    """Let torch's weight norm in ``module``, by parametrization or by the older hook, compute by `normed`."""
    for child in module.modules():
        if type(child) is _WeightNorm:
            child.__class__ = _Parametrization
        for hook in child._forward_pre_hooks.values():
            if type(hook) is WeightNorm:
                hook.__class__ = _Hook
