"""Cost is counted: torch's own FlopCounterMode counts the same."""

from collections.abc import Callable

import pytest
import torch
from cases import labels, mixer, randn
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import fgvar

SCHEMES = ("BP", "L-BP", "LG-BP", "FG-W", "FG-A", "LG-FG-W", "LG-FG-A")
# FlopCounterMode's module hooks do not run under torch.func.grad of losses at cuts: these are written by hand.
BY_HAND = ("LG-FG-W", "LG-FG-A")


def convolutional() -> fgvar.Problem:
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 3)).double()
    return fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(3, 2, 8, 8), labels(3, 3)))


def multilayer() -> fgvar.Problem:
    net = fgvar.networks.MLP(20, width=32, depth=3, classes=5, seed=1).double()
    return fgvar.Problem(net, "cross_entropy", (randn(6, 20), labels(6, 5)))


@pytest.fixture(scope="module")
def local_mixer() -> fgvar.Problem:
    return mixer(channels=32, groups=4, batch=4)


def counted(work: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def cost(name: str, problem: fgvar.Problem) -> float:
    return fgvar.measure({name: fgvar.scheme(name)}, problem, draws=2)["cost"].item()


def estimated(name: str, problem: fgvar.Problem) -> Callable[[], object]:
    estimator = fgvar.scheme(name)
    randomness = estimator.randomness(problem)
    noise = randomness.sample(0, [0], dtype=problem.dtype) if randomness.size else {}
    one = {k: u[0] for k, u in noise.items()}
    return lambda: estimator.estimate(problem, one)


def total(problem: fgvar.Problem, params: dict[str, Tensor], taps: dict[str, Tensor], cut: tuple[str, ...]) -> Tensor:
    """The losses of all heads and of the read-out, and the values at the cuts, behind which gradients stop."""
    outputs, values = problem.run(params, taps, cut=(*cut, *problem.trace.ends))
    local = [problem.local_losses(params, end, values[end]).mean() for end in problem.trace.ends]
    return problem.losses(outputs).mean() + torch.stack([*local, *(values[site].sum() for site in cut)]).sum()


def by_hand(name: str, problem: fgvar.Problem) -> None:
    """One forward-mode pass along the noise, and one pass with gradients: of the heads, and from sites to weights.

    The two share the unperturbed pass.
    """
    sites = tuple(problem.trace.sites)
    with forward_ad.dual_level(), torch.no_grad():
        if name.endswith("W"):
            moved = {k: forward_ad.make_dual(p, torch.ones_like(p)) for k, p in problem.params.items()}
            perturbed = {k: v if k in problem.perturbed else problem.params[k] for k, v in moved.items()}
            total(problem, perturbed, {}, ())
        else:
            zeros = {site: torch.zeros(shape, dtype=problem.dtype) for site, shape in problem.trace.sites.items()}
            taps = {site: forward_ad.make_dual(z, torch.ones_like(z)) for site, z in zeros.items()}
            total(problem, problem.params, taps, ())
    heads = name.endswith("W")
    params = {k: p.clone().requires_grad_(not heads or k in problem.network.exact) for k, p in problem.params.items()}
    total(problem, params, {}, () if heads else sites).backward()


@pytest.mark.parametrize("name", SCHEMES)
def test_torch_counts_the_same_on_local_mixer(local_mixer: fgvar.Problem, name: str) -> None:
    """Within 20 %: to the FLOP where its counter runs on the estimate itself."""
    forward = counted(local_mixer.loss)
    if name in BY_HAND:
        expected = counted(lambda: by_hand(name, local_mixer)) / forward - 1
    else:
        expected = counted(estimated(name, local_mixer)) / forward
    found = cost(name, local_mixer)
    assert found == pytest.approx(expected, rel=0.2 if name in BY_HAND else 1e-12)


@pytest.mark.parametrize("build", [multilayer, convolutional])
@pytest.mark.parametrize("name", ["BP", "FG-W", "FG-A"])
def test_torch_counts_the_same_on_other_networks(build: Callable[[], fgvar.Problem], name: str) -> None:
    problem = build()
    expected = counted(estimated(name, problem)) / counted(problem.loss)
    assert cost(name, problem) == pytest.approx(expected, rel=0.2)
