"""Layers that are recognised, against their Jacobians."""

from collections.abc import Callable

import pytest
import torch
from cases import labels, randn
from exact import assert_exact, assert_same
from torch import Tensor, nn

import fgvar
from fgvar import theory
from fgvar.networks.local_mixer import GroupedLinear
from fgvar.theory import perturbation as implementation
from fgvar.theory import site_jacobians


class Stack(nn.Module):
    """A module, what lies between it and its site, and a nonlinear rest."""

    def __init__(self, module: nn.Module, between: Callable[[Tensor], Tensor] = lambda y: y) -> None:
        super().__init__()
        self.module, self.between = module.double(), between
        self.site = fgvar.networks.Site()

    def forward(self, x: Tensor) -> Tensor:
        z = torch.tanh(self.site(self.between(self.module(x))))
        return (z.flatten(1).cumsum(1) ** 2)[:, :3]


def norm(*axes: int, eps: float = 1e-5) -> Callable[[Tensor], Tensor]:
    def between(y: Tensor) -> Tensor:
        centred = y - y.mean(axes, keepdim=True)
        return centred / (centred.square().mean(axes, keepdim=True) + eps).sqrt()

    return between


def grouped(y: Tensor) -> Tensor:
    return nn.functional.group_norm(y, 2)


gain = randn(6, seed=5)
STRUCTURES: dict[str, tuple[nn.Module, Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "linear": (nn.Linear(4, 6), lambda y: y, (4,)),
    "linear, tokens": (nn.Linear(4, 6), lambda y: y.transpose(1, 2).flatten(2), (5, 4)),
    "linear, then elementwise": (nn.Linear(4, 6), torch.tanh, (4,)),
    "linear, norm": (nn.Linear(4, 6), norm(-1), (4,)),
    "linear, norm with gain": (
        nn.Linear(4, 6),
        lambda y: nn.functional.layer_norm(y, (6,), gain, gain, 1e-6),
        (3, 4),
    ),
    "linear, norm, residual": (nn.Linear(6, 6), lambda y: norm(-1)(y) + 1, (3, 6)),
    "token layer": (nn.Linear(5, 5), lambda y: norm(1)(y).transpose(1, 2), (4, 5)),
    "norm over everything": (nn.Linear(4, 6), norm(1, 2), (3, 4)),
    "grouped": (GroupedLinear(2, 3, 4), lambda y: y, (5, 2, 3)),
    "grouped, norm": (GroupedLinear(2, 3, 4), norm(-1), (5, 2, 3)),
    "grouped, norm over groups": (GroupedLinear(2, 3, 4), norm(-1, -2), (5, 2, 3)),
    "conv": (nn.Conv2d(2, 4, 3, stride=2, padding=1, groups=2), lambda y: y, (2, 5, 4)),
    "conv, group norm": (nn.Conv2d(2, 4, 3, dilation=2, padding=2, padding_mode="circular"), grouped, (2, 4, 4)),
    "conv, norm over channels": (nn.Conv2d(2, 4, 2), norm(1), (2, 4, 4)),
    "conv, norm over all": (nn.Conv1d(2, 4, 3), norm(1, 2), (2, 7)),
    "conv 3d": (nn.Conv3d(1, 2, 2), lambda y: y.flatten(1), (1, 3, 3, 3)),
    "gain of a layer norm": (nn.LayerNorm((3, 4)), lambda y: y, (2, 3, 4)),
    "gain of a group norm": (nn.GroupNorm(2, 4), torch.tanh, (4, 3, 2)),
    "gain of a batch norm": (nn.BatchNorm1d(4).eval(), lambda y: y, (4, 3)),
}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("name", STRUCTURES)
def test_recognised_layers_equal_their_jacobians(name: str, shared: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    module, between, shape = STRUCTURES[name]
    for index, p in enumerate(module.parameters()):
        p.data = 0.5 * randn(*p.shape, seed=index)
    problem = fgvar.Problem(Stack(module, between), "cross_entropy", (randn(3, *shape), labels(3, 3)))
    estimator = fgvar.Estimator(fgvar.ActivitySpace(), fgvar.Rademacher(), shared=shared)
    with monkeypatch.context() as patch:
        patch.setattr(site_jacobians, "local_jacobian", None)  # the recognised path asks for none
        recognised = theory.variance(estimator, problem)
    monkeypatch.setattr(implementation, "recognise", lambda *_: {})
    assert_same(recognised, theory.variance(estimator, problem))


def test_layers_of_networks_that_with_sites_made_are_recognised() -> None:
    """What a module returns is watched ahead of the site that stands in its own output."""
    net = nn.Sequential(nn.Conv1d(2, 4, 2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(12, 3)).double()
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(2, 2, 4), labels(2, 3)))
    sites = tuple(problem.trace.sites)
    found = implementation.recognise(problem, sites, site_jacobians.links(problem, sites))
    assert {name: layer.site for name, layer in found.items()} == {k: f"{k}.site" for k in ("0", "1", "3")}
    assert_exact(fgvar.Estimator(fgvar.ActivitySpace()), problem)


def test_a_layer_that_reaches_its_site_otherwise_is_not_recognised() -> None:
    softmax = Stack(nn.Linear(4, 6), lambda y: torch.softmax(y, -1))
    problem = fgvar.Problem(softmax, "cross_entropy", (randn(2, 4), labels(2, 3)))
    sites = tuple(problem.trace.sites)
    assert not implementation.recognise(problem, sites, site_jacobians.links(problem, sites))
    assert_exact(fgvar.Estimator(fgvar.ActivitySpace()), problem)


@pytest.mark.parametrize("name", ["FG-A", "LG-FG-A"])
def test_a_larger_mixer_needs_no_jacobian_and_equals_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=32, groups=8).double()
    problem = fgvar.Problem(model, "cross_entropy", (randn(16, 1, 8, 8), labels(16, 10)))
    with monkeypatch.context() as patch:
        patch.setattr(site_jacobians, "local_jacobian", None)
        theory.variance(fgvar.scheme(name), problem)
        few = problem.at(batch=(problem.inputs[:1], problem.targets[:1]))
        recognised = theory.variance(fgvar.scheme(name), few)
    found = implementation.recognise
    skipped = ("block0.channel", "block1.token")
    monkeypatch.setattr(
        implementation, "recognise", lambda *a: {k: v for k, v in found(*a).items() if k not in skipped}
    )
    assert_same(theory.variance(fgvar.scheme(name), few), recognised)
