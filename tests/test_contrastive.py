"""Contrastive problems: the value, the stop, and unbiased credit with and without it, by enumeration."""

import copy

import pytest
import torch
from cases import randn
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.testing import expectation

TOLERANCE = 1e-9
NAMES = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")


def network(seed: int = 0) -> nn.Module:
    return fgvar.networks.LocalMixer(
        (1, 4, 4), 3, blocks=2, patches=2, channels=8, groups=2, seed=seed, init="constant"
    ).double()


def views(batch: int = 3) -> tuple[Tensor, Tensor]:
    return randn(batch, 1, 4, 4, seed=1), randn(batch, 1, 4, 4, seed=2)


def contrastive(*, batch: int = 3, **settings: object) -> fgvar.Problem:
    return fgvar.Contrastive(network(), fgvar.InfoNCE(**settings), views(batch))


def naive(queries: Tensor, keys: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE from its definition, by a double loop."""
    losses = []
    for i, query in enumerate(queries):
        logits = [(query @ key) / query.norm() / key.norm() / temperature for key in keys]
        losses.append(-torch.log(logits[i].exp() / sum(logit.exp() for logit in logits)))
    return torch.stack(losses)


def represented(model: nn.Module, images: Tensor) -> Tensor:
    """What the read-out would classify."""
    seen: list[Tensor] = []
    handle = model.readout.linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(images)
    handle.remove()
    return seen[0]


def assert_unbiased(estimator: fgvar.Estimator, problem: fgvar.Problem) -> None:
    target = estimator.target(problem)
    assert max(float(g.abs().max()) for g in target.values()) > 1e-3, "0 would be compared with 0"
    for name, mean in expectation(estimator, problem).items():
        torch.testing.assert_close(mean, target[name], rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stop", [True, False])
def test_value_and_gradient_are_those_of_a_double_loop(stop: bool) -> None:
    model, (one, two) = network(), views()
    keys = represented(copy.deepcopy(model).requires_grad_(False) if stop else model, two)
    loss = naive(represented(model, one), keys).mean()
    loss.backward()
    problem = contrastive(stop_gradient=stop)
    torch.testing.assert_close(problem.loss(), loss.detach())
    trunk = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = problem.backprop()
    assert set(trunk) == set(found) - {name for name in found if "linear" in name}
    for name, gradient in trunk.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_unbiased(name: str, stop: bool) -> None:
    assert_unbiased(fgvar.scheme(name), contrastive(stop_gradient=stop))


@pytest.mark.parametrize("name", ["FG-A", "LG-FG-A"])
def test_replay_repeats_jvp(name: str) -> None:
    for stop in (True, False):
        assert_unbiased(fgvar.scheme(name, oracle=fgvar.Replay()), contrastive(stop_gradient=stop))
