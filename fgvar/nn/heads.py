"""Heads: linear classifiers of features, which learn from their exact gradient in every scheme (Ren et al. 2023)."""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from fgvar.errors import unknown
from fgvar.nn.forward_mode import layer_norm
from fgvar.nn.sites import Site, copied, require_module
from fgvar.nn.traits import Traits, traits_of


def blank_linear(fan_in: int, fan_out: int) -> nn.Linear:
    """A linear layer whose weights are yet to be set: nn.Linear itself draws them from the global generator."""
    layer: nn.Linear = skip_init(nn.Linear, fan_in, fan_out, device=torch.get_default_device())
    return layer


class ReadOut(nn.Module):
    """The linear classifier of a whole network, after a layer norm of the token mean.

    Shapes: ``[batch, tokens, channels]`` or ``[batch, channels]`` → ``[batch, classes]``.

    Example:
        >>> ReadOut(8, 3)(torch.zeros(2, 4, 8)).shape
        torch.Size([2, 3])
    """

    fgvar_traits = Traits(learns_exactly=True)

    def __init__(self, channels: int, classes: int, *, norm: bool = True) -> None:
        super().__init__()
        self.norm = norm
        self.linear = blank_linear(channels, classes)  # by this name `headless` finds it

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 3:
            x = x.mean(1)  # over tokens, ahead of the norm: features of the whole image have unit variance
        if self.norm:
            x = layer_norm(x)
        logits: Tensor = self.linear(x)
        return logits


class LocalHead(nn.Module):
    """The linear classifier of one block, and the ``end`` at which the block's features are read.

    A network calls ``head.end(features)`` on the way (the identity; gradients are cut here for local
    losses), and whoever wants the local loss calls ``head(features)``.

    Shapes: features ``[batch, patches, groups, channels / groups]`` → ``[batch, classes]``: layer norm
    within each group, average over patches, groups side by side, linear. With ``pool=False`` there is no average:
    → ``[batch, patches, classes]``, for losses of positions.

    Example:
        >>> head = LocalHead(channels=8, classes=3)
        >>> head(torch.ones(2, 4, 2, 4)).shape
        torch.Size([2, 3])
    """

    fgvar_traits = Traits(learns_exactly=True)

    def __init__(self, channels: int, classes: int, *, pool: bool = True) -> None:
        super().__init__()
        self.pool = pool
        self.end = Site()  # watched and cut, never perturbed: it lies in a module that learns exactly
        self.linear = blank_linear(channels, classes)

    def forward(self, features: Tensor) -> Tensor:
        normed = layer_norm(features)
        logits: Tensor = self.linear((normed.mean(1) if self.pool else normed).flatten(-2))
        return logits


def headless(module: nn.Module) -> nn.Module:
    """A copy of ``module`` whose heads, and what else learns exactly, return the features that they would classify.

    `ReadOut` and `LocalHead` lose the linear layer alone; any other becomes the identity.

    Example:
        >>> headless(nn.Sequential(nn.Linear(4, 8), ReadOut(8, 3)))(torch.ones(2, 4)).shape
        torch.Size([2, 8])
    """
    require_module(module)
    return _headless(copied(module))


def _headless(module: nn.Module) -> nn.Module:
    if isinstance(module, ReadOut | LocalHead):
        module.add_module("linear", nn.Identity())
    elif traits_of(module).learns_exactly:
        return nn.Identity()
    else:
        # With duplicates, where named_children lists a shared module under its first name alone.
        for name, child in list(module._modules.items()):
            module.add_module(name, None if child is None else _headless(child))
    return module


def initial_std(fan_in: int) -> float:
    """Standard deviation of an initial weight (Ren et al. 2023, code)."""
    return min(2 / fan_in**0.5, 0.1)


def initialise(layer: nn.Module, how: str, generator: torch.Generator) -> None:
    """Weights N(0, min(2/√fan-in, 0.1)²) ("kaiming"), N(0, 0.1²) ("constant") or 0 ("zero"); biases 0.

    Args:
        layer: a linear layer, which is changed.
        how: "kaiming", "constant" or "zero".
        generator: of the CPU, whatever the layer's device.

    Raises:
        ValueError: an unknown initialisation.

    Example:
        >>> layer = nn.Linear(3, 2)
        >>> initialise(layer, "zero", torch.Generator())
        >>> layer.weight.abs().sum().item()
        0.0
    """
    weight, bias, fan_in = layer.weight, layer.bias, layer.in_features
    assert isinstance(weight, Tensor)
    assert isinstance(bias, Tensor)
    assert isinstance(fan_in, int)
    stds = {"kaiming": initial_std(fan_in), "constant": 0.1, "zero": 0.0}
    if how not in stds:
        raise ValueError(unknown("initialisation", how, stds))
    with torch.no_grad():
        # Drawn on the CPU, from a generator of one's own: the same weights on every device, and nobody's draws moved.
        weight.copy_(torch.randn(weight.shape, generator=generator, dtype=weight.dtype) * stds[how])
        bias.zero_()
