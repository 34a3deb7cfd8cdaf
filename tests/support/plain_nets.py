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
