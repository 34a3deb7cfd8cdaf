"""A residual network without biases, plain or with layer norms, that is initialised at one scale or by its fan-in."""

import torch
from torch import Tensor, nn

STARTS = {"constant": lambda fan_in: 0.1, "Kaiming": lambda fan_in: (2 / fan_in) ** 0.5}  # noqa: ARG005


class Block(nn.Module):
    """x + W₂ relu(W₁ norm(x))."""

    def __init__(self, width: int, norm: bool) -> None:
        super().__init__()
        self.norm = _norm(width, norm)
        self.first, self.second = (nn.Linear(width, width, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.second(torch.relu(self.first(self.norm(x))))
        return out


class Residual(nn.Module):
    """A linear map, blocks, and a linear read-out that is perturbed like all other layers.

    Norms have no scales of their own: a factor of one is a factor of the next layer's weights.
    """

    def __init__(
        self, inputs: int, width: int, blocks: int, classes: int, *, norm: bool, start: str, seed: int
    ) -> None:
        super().__init__()
        self.embedding = nn.Linear(inputs, width, bias=False)
        self.blocks = nn.Sequential(*(Block(width, norm) for _ in range(blocks)))
        self.norm, self.head = _norm(width, norm), nn.Linear(width, classes, bias=False)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=generator) * STARTS[start](p.shape[1]))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.norm(self.blocks(self.embedding(x))))
        return logits


def _norm(width: int, norm: bool) -> nn.Module:
    return nn.LayerNorm(width, elementwise_affine=False) if norm else nn.Identity()
