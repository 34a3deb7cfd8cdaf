"""A plain multilayer perceptron with a site at every hidden layer."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fgvar.errors import unknown
from fgvar.nn.heads import ReadOut, blank_linear, initialise
from fgvar.nn.sites import Site

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "linear": nn.Identity}


class MLP(nn.Module):
    """``depth`` hidden layers of ``width`` units and a linear read-out, which learns exactly.

    Hidden layer i is ``layer{i}`` (a linear map), ``site{i}`` (its pre-activations) and ``act{i}``. Square
    hidden layers (``in_features = width``) are where the predicted growth of variance with width is cleanest
    (Werfel, Xie, Seung 2003: slope 1 for activity, 2 for weight perturbation).

    Shapes: ``[batch, …]`` with ``in_features`` numbers an example → ``[batch, classes]``.

    Args:
        in_features: numbers an example, or an image shape.
        width: units of each hidden layer.
        depth: number of hidden layers.
        classes: outputs.
        activation: "relu", "tanh", "gelu" or "linear".
        init: "kaiming" or "constant", as in LocalMixer.
        head_init: of the read-out: "kaiming", "constant" or "zero".
        seed: of the weights.

    Raises:
        ValueError: an unknown activation or initialisation.

    Example:
        >>> MLP(64, width=32, depth=2, classes=10)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        *,
        width: int,
        depth: int,
        classes: int,
        activation: str = "relu",
        init: str = "kaiming",
        head_init: str = "kaiming",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if activation not in ACTIVATIONS:
            raise ValueError(unknown("activation", activation, ACTIVATIONS))
        size = in_features if isinstance(in_features, int) else math.prod(in_features)
        for what, number in (("in_features", size), ("width", width), ("depth", depth), ("classes", classes)):
            if number < 1:
                raise ValueError(f"{what} is {number}, expected at least 1")
        self.depth = depth
        generator = torch.Generator().manual_seed(seed)
        for index in range(depth):
            layer = blank_linear(size if index == 0 else width, width)
            initialise(layer, init, generator)
            self.add_module(f"layer{index}", layer)
            self.add_module(f"site{index}", Site(relu=f"act{index}" if activation == "relu" else None))
            self.add_module(f"act{index}", ACTIVATIONS[activation]())
        self.readout = ReadOut(width, classes, norm=False)
        initialise(self.readout.linear, head_init, generator)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1)
        for index in range(self.depth):
            x = getattr(self, f"layer{index}")(x)
            x = getattr(self, f"act{index}")(getattr(self, f"site{index}")(x))
        logits: Tensor = self.readout(x)
        return logits
