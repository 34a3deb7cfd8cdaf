"""The named problems of the tests: float64, with few enough perturbed numbers to enumerate."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import fgvar

CASES: dict[str, Callable[[], fgvar.Problem]] = {}


def case(build: Callable[[], fgvar.Problem]) -> Callable[[], fgvar.Problem]:
    CASES[build.__name__] = build
    return build


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def labels(n: int, classes: int) -> Tensor:
    return torch.arange(n) % classes


def mixer(
    *, blocks: int = 2, patches: int = 2, channels: int = 8, groups: int = 2, batch: int = 2, seed: int = 0,
    loss: object = "cross_entropy", targets: object = None,
) -> fgvar.Problem:  # fmt: skip
    """A LocalMixer on images of 4 by 4 pixels with random, nonzero biases."""
    model = fgvar.networks.LocalMixer(
        (1, 4, 4), 3, blocks=blocks, patches=patches, channels=channels, groups=groups, seed=seed
    ).double()
    with torch.no_grad():
        for index, (name, p) in enumerate(model.named_parameters()):
            if name.endswith("bias"):
                p.copy_(0.3 * randn(*p.shape, seed=seed + index))
    targets = labels(batch, 3) if targets is None else targets
    return fgvar.Problem(model, loss, (randn(batch, 1, 4, 4, seed=seed + 99), targets))


@case
def linear() -> fgvar.Problem:
    return fgvar.Problem(fgvar.with_sites(nn.Linear(3, 2).double()), "mse", (randn(4, 3), randn(4, 2, seed=1)))


@case
def mlp_relu() -> fgvar.Problem:
    model = fgvar.networks.MLP(5, width=6, depth=2, classes=3, seed=1).double()
    return fgvar.Problem(model, "cross_entropy", (randn(4, 5), labels(4, 3)))


@case
def mixer_tiny() -> fgvar.Problem:
    return mixer()


@case
def dead_relu() -> fgvar.Problem:
    """Half of the first layer's units are inactive on every example."""
    model = fgvar.networks.MLP(5, width=6, depth=2, classes=3, seed=2).double()
    with torch.no_grad():
        model.layer0.bias[:3] = -100
    return fgvar.Problem(model, "cross_entropy", (randn(4, 5), labels(4, 3)))


@case
def one_class() -> fgvar.Problem:
    """A classifier without a choice: every loss and gradient is exactly 0."""
    model = fgvar.networks.MLP(5, width=4, depth=1, classes=1).double()
    return fgvar.Problem(model, "cross_entropy", (randn(3, 5), labels(3, 1)))


@case
def batch_of_one() -> fgvar.Problem:
    return mixer(batch=1)


class Tied(nn.Module):
    """Two layers that share one weight, with their own biases."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.two(torch.tanh(self.one(x)))))


@case
def shared_weights() -> fgvar.Problem:
    torch.manual_seed(0)
    return fgvar.Problem(fgvar.with_sites(Tied().double()), "cross_entropy", (randn(3, 4), labels(3, 3)))


def has_gradient(estimator: fgvar.Estimator, problem: fgvar.Problem) -> bool:
    """Is anything but 0 compared with it?"""
    target = estimator.target(problem)
    return max(float(target[name].abs().max()) for name in problem.perturbed) > 1e-4
