"""LocalMixer: the network of Ren et al. 2023 (Sec. 5, Figs 1-2, Table 2)."""

from typing import Any

import torch
from torch import Tensor, nn

from fgvar.errors import unknown
from fgvar.nn.forward_mode import layer_norm, linear_jvp
from fgvar.nn.heads import LocalHead, ReadOut, blank_linear, initialise
from fgvar.nn.sites import Site
from fgvar.nn.traits import Traits, declare

PRESETS: dict[str, dict[str, Any]] = {
    "S/1/1": {"image_shape": (1, 28, 28), "classes": 10, "blocks": 1, "patches": 1, "channels": 256, "groups": 1},
    "M/1/16": {"image_shape": (1, 28, 28), "classes": 10, "blocks": 1, "patches": 1, "channels": 512, "groups": 16},
    "M/8/16": {"image_shape": (3, 32, 32), "classes": 10, "blocks": 4, "patches": 8, "channels": 512, "groups": 16},
    "L/8/64": {"image_shape": (3, 32, 32), "classes": 10, "blocks": 4, "patches": 8, "channels": 2048, "groups": 64},
    "L/32/64": {
        "image_shape": (3, 224, 224), "classes": 1000, "blocks": 4, "patches": 32, "channels": 2048, "groups": 64,
    },
}  # fmt: skip


class GroupedLinear(nn.Module):
    """One linear map a group: ``[…, groups, fan_in] → […, groups, fan_out]``.

    Row ``g`` of weight and bias moves the features of group ``g`` alone (``group_rows`` of `Traits`), so a
    group's local loss is all the credit that it needs.
    """

    fgvar_traits = Traits(group_rows=True)

    def __init__(self, groups: int, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.in_features = fan_in
        self.weight = nn.Parameter(torch.zeros(groups, fan_out, fan_in))
        self.bias = nn.Parameter(torch.zeros(groups, fan_out))

    def forward(self, x: Tensor) -> Tensor:
        return linear_jvp(_by_group, x, self.weight, self.bias)

    def extra_repr(self) -> str:
        groups, fan_out, fan_in = self.weight.shape
        return f"groups={groups}, fan_in={fan_in}, fan_out={fan_out}"


def _by_group(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = torch.einsum("...gi,goi->...go", x, weight)
    return y if bias is None else y + bias


class Block(nn.Module):
    """One block: ``[batch, patches, features] → [batch, patches, channels]``.

    The first block has no token mixing and no residual. Layer norm stands before and after every linear
    layer; the one after it is why a channel weight moves the features of all groups.
    """

    def __init__(self, features: int, tokens: int, channels: int, groups: int, classes: int, *, first: bool) -> None:
        super().__init__()
        self.groups, self.first = groups, first
        if not first:
            self.token = blank_linear(tokens, tokens)
            self.token_site = Site(relu="token_relu", patch_axis=1)
            self.token_relu = nn.ReLU()
        self.channel = blank_linear(features, channels)
        # The paper's code credits each row of this layer with its own group's loss only, which is biased.
        declare(self.channel, published_group_rows=True)
        self.channel_site = Site(relu="channel_relu", patch_axis=1, group_axis=2)
        self.channel_relu = nn.ReLU()
        self.grouped = GroupedLinear(groups, channels // groups, channels // groups)
        self.grouped_site = Site(relu="grouped_relu", patch_axis=1, group_axis=2)
        self.grouped_relu = nn.ReLU()
        self.head = LocalHead(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = x
        if not self.first:
            mixed = self.token(layer_norm(h).transpose(1, 2)).transpose(1, 2)
            h = self.token_relu(self.token_site(layer_norm(mixed)))
        h = self.channel_relu(self.channel_site(layer_norm(self.channel(layer_norm(h)))))
        h = layer_norm(h.unflatten(2, (self.groups, -1)))
        h = self.grouped_site(layer_norm(self.grouped(h)))
        h = self.grouped_relu(h if self.first else h + x.unflatten(2, (self.groups, -1)))
        features: Tensor = self.head.end(h)
        return features.flatten(2)


class LocalMixer(nn.Module):
    """LocalMixer: images → patches → blocks with local heads → read-out.

    Blocks are called ``block0``, ``block1``, …; their sites ``block1.token_site``, ``block1.channel_site``,
    ``block1.grouped_site``. Shapes: ``[batch, *image_shape]`` → ``[batch, classes]``.

    Args:
        image_shape: channels, height, width.
        classes: number of classes.
        blocks: number of blocks.
        patches: patches along each side of the image (``patches²`` tokens).
        channels: channels of every block.
        groups: channel groups; each has its own grouped layer and its own copy of the local loss.
        init: "kaiming", std min(2/√fan-in, 0.1), or "constant", std 0.1; biases start at 0.
        head_init: "kaiming", or "zero" as in training. With zero heads every trunk gradient is 0, and a
            measurement of it compares 0 with 0.
        seed: of the weights; the global random state is neither read nor moved.

    Raises:
        ValueError: sizes that do not divide, or a layer norm over a single number (its output is constant,
            so that the network is blind).

    Source: Ren et al. 2023, Sec. 5 and Table 2 (parameter counts).

    Example:
        >>> model = LocalMixer((1, 8, 8), classes=10, blocks=2, patches=2, channels=32, groups=4)
        >>> model(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
        >>> sum(p.numel() for p in LocalMixer.preset("S/1/1").parameters())
        271892
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        blocks: int,
        patches: int,
        channels: int,
        groups: int,
        init: str = "kaiming",
        head_init: str = "kaiming",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(image_shape, classes, blocks, patches, channels, groups)
        colours, height, width = image_shape
        self.image_shape, self.patches = tuple(image_shape), patches
        features = colours * (height // patches) * (width // patches)
        self.block_names = [f"block{index}" for index in range(blocks)]
        for index, name in enumerate(self.block_names):
            inner = features if index == 0 else channels
            self.add_module(name, Block(inner, patches**2, channels, groups, classes, first=index == 0))
        self.readout = ReadOut(channels, classes)
        generator = torch.Generator().manual_seed(seed)
        for child in self.modules():
            if isinstance(child, ReadOut | LocalHead):
                initialise(child.linear, head_init, generator)
        heads = {child.linear for child in self.modules() if isinstance(child, ReadOut | LocalHead)}
        for child in self.modules():
            if isinstance(child, nn.Linear | GroupedLinear) and child not in heads:
                initialise(child, init, generator)

    @classmethod
    def preset(cls, name: str, **overrides: Any) -> "LocalMixer":
        """A network of Table 2: "S/1/1", "M/1/16", "M/8/16", "L/8/64" or "L/32/64"."""
        if name not in PRESETS:
            raise ValueError(unknown("preset", name, PRESETS))
        return cls(**{**PRESETS[name], **overrides})

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != self.image_shape:
            raise ValueError(f"images have shape {tuple(images.shape)}, expected [batch, *{self.image_shape}]")
        n, colours, height, width = images.shape
        side = self.patches
        x = images.reshape(n, colours, side, height // side, side, width // side)
        x = x.permute(0, 2, 4, 3, 5, 1).reshape(n, side**2, -1)
        for name in self.block_names:
            x = getattr(self, name)(x)
        logits: Tensor = self.readout(x)
        return logits


def _check_sizes(
    image_shape: tuple[int, int, int], classes: int, blocks: int, patches: int, channels: int, groups: int
) -> None:
    if len(image_shape) != 3:
        raise ValueError(f"image_shape is {tuple(image_shape)}, expected (channels, height, width)")
    if min(image_shape) < 1:
        raise ValueError(f"image_shape is {tuple(image_shape)}, expected numbers of at least 1")
    colours, height, width = image_shape
    sizes = {"classes": classes, "blocks": blocks, "patches": patches, "channels": channels, "groups": groups}
    for what, size in sizes.items():
        if size < 1:
            raise ValueError(f"{what} is {size}, expected at least 1")
    if height % patches or width % patches:
        raise ValueError(
            f"an image of {height}×{width} does not divide into {patches}×{patches} patches; "
            "choose patches= that divides both sides"
        )
    if channels % groups:
        raise ValueError(f"{channels} channels do not divide into {groups} groups; choose groups= that divides")
    if colours * (height // patches) * (width // patches) == 1:
        raise ValueError(
            "a patch of one number is constant after layer norm, so the network is blind; use fewer patches"
        )
    if channels == groups:
        raise ValueError(
            "one channel per group is constant after layer norm, so the network is blind; use fewer groups"
        )
