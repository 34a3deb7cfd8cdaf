"""Small networks of classification with four inputs, built in all ways in which modules can own parameters."""

import pytest
import torch
from cases import Tied, labels, randn
from torch import Tensor, nn

import fgvar
from fgvar.nn.heads import LocalHead


class Scaled(nn.Module):
    """Own parameters around other modules that own some."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.ModuleDict({"inner": nn.Linear(5, 3)})["inner"])
        self.scale = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.body(x)


class Repeated(nn.Module):
    """One linear map, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.map(torch.tanh(self.map(x)))))


class Functional(nn.Module):
    """A module whose weight is used without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(nn.functional.linear(x, self.map.weight, self.map.bias)))


class Across(nn.Module):
    """Two blocks with local heads that share one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.head0, self.head1 = LocalHead(4, 3), LocalHead(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for head in (self.head0, self.head1):
            x = head.end(torch.tanh(self.map(x))[:, None, None, :]).flatten(1)
        return self.last(x)


def plain(build=None) -> nn.Module:
    """A network in float64 with fixed weights."""
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)) if build is None else build()
    net = net.double()
    for index, p in enumerate(net.parameters()):
        p.data = 0.6 * randn(*p.shape, seed=index)
    return net


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.GroupNorm(1, 3), nn.Flatten(), nn.LayerNorm(3)
    )


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()


BUILDS = [None, conv, normed, Scaled, Tied, Repeated, Functional]
builds = pytest.mark.parametrize("build", BUILDS, ids=lambda b: getattr(b, "__name__", "mlp"))


def sites_of(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, fgvar.networks.Site)]


def problem_of(net: nn.Module, batch: int = 3) -> fgvar.Problem:
    return fgvar.Problem(net, "cross_entropy", (randn(batch, 4, seed=50), labels(batch, 3)))


class Embedded(nn.Module):
    """The first step of a vision transformer as a module of its own, which owns class token and positions."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, 2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, patches + 1, width))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed


class ViT(nn.Module):
    """A vision transformer that owns class token and positions itself, as timm's do; images [batch, 1, 4, 4]."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, width, 2, 2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, width))
        self.pos_drop = nn.Dropout(0.1)
        self.block = nn.TransformerEncoderLayer(width, 2, 6, dropout=0, batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 3)

    def embed(self, x: Tensor) -> Tensor:
        tokens = self.patch_embed(x).flatten(2).transpose(1, 2)
        return torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1) + self.pos_embed

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.pos_drop(self.embed(x)))[:, 0])


class Positions(nn.Module):
    """Embeddings of tokens, and of positions, which have no batch axis; ids [batch, positions]."""

    def __init__(self, positions: int = 3) -> None:
        super().__init__()
        self.wte, self.wpe, self.drop = nn.Embedding(5, 4), nn.Embedding(positions, 4), nn.Dropout(0.1)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, ids: Tensor) -> Tensor:
        h = self.wte(ids) + self.wpe(torch.arange(ids.shape[1], device=ids.device))
        return self.head(h + torch.tanh(self.norm(self.drop(h))))


class MixtureOfExperts(nn.Module):
    """Tokens [batch, tokens, 3], flattened, each sent to one of two experts."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.gate, self.last = nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(4, 3)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        tokens = h.flatten(0, 1)
        weights, chosen = self.gate(tokens).softmax(-1).max(-1)
        mixed = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            mixed = mixed.index_add(0, rows, weights[rows, None] * expert(tokens[rows]))
        return self.last(mixed.reshape(h.shape).mean(1))


class UNet(nn.Module):
    """Down, up, and a connection that is led around; images [batch, 1, 4, 4] → [batch, 1, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.bottom = nn.Conv2d(1, 2, 3, 2, 1), nn.Conv2d(2, 2, 3, padding=1)
        self.norm, self.up, self.last = (
            nn.GroupNorm(1, 2),
            nn.ConvTranspose2d(2, 2, 2, 2),
            nn.Conv2d(3, 1, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.silu(self.norm(self.down(x)))
        return self.last(torch.cat([x, torch.tanh(self.up(self.bottom(h)))], 1))


class LastOfLSTM(nn.Module):
    """The last output of two recurrent layers; inputs [batch, positions, 2]."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.last = nn.LSTM(2, 3, num_layers=2, batch_first=True), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.rnn(x)[0][:, -1])
