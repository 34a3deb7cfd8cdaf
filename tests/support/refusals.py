"""What the tests of refusals share: a small network, a problem of anything, and what being right means."""

from collections.abc import Callable

import torch
from cases import labels, randn
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.testing import expectation

X, Y = randn(4, 3), labels(4, 2)


def says(*parts: str) -> str:
    """A pattern of texts that must all occur, in any order: what was got, what was expected, what to do."""
    return "(?s)" + "".join(f"(?=.*(?:{part}))" for part in parts)


class Calls(nn.Module):
    """A function of (module, input), and the modules that it uses."""

    def __init__(self, function: Callable[..., object], **modules: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function
        self.double()

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


def net() -> nn.Sequential:
    """A network whose weights are always the same."""
    module = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    for index, p in enumerate(module.parameters()):
        p.data = randn(*p.shape, seed=index)
    return module


def problem(module: object = None, loss: object = "cross_entropy", batch: object = (X, Y)) -> fgvar.Problem:
    return fgvar.Problem(net() if module is None else module, loss, batch)


def with_sites(**words) -> fgvar.Problem:
    return problem(fgvar.with_sites(net(), **words))


def activities(where: fgvar.Problem, **words) -> fgvar.Randomness:
    """What a user meets first, before anything is computed."""
    return fgvar.Estimator(fgvar.ActivitySpace(**words)).randomness(where)


def of_each(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def assert_measured(module: nn.Module, *names: str, batch: tuple[Tensor, Tensor] = (X, Y)) -> None:
    """The gradient is autograd's, and the enumerated mean of each scheme is it."""
    where = fgvar.Problem(module, "cross_entropy", batch)
    by_torch = torch.autograd.grad(
        functional.cross_entropy(module(batch[0].clone()), batch[1]), list(module.parameters())
    )
    for (name, found), expected in zip(where.backprop().items(), by_torch, strict=True):
        torch.testing.assert_close(found, expected, msg=lambda m, n=name: f"{n}: {m}")
    for scheme in names:
        estimator = fgvar.scheme(scheme)
        for name, mean in expectation(estimator, where).items():
            torch.testing.assert_close(mean, where.backprop()[name], rtol=0, atol=1e-9)
