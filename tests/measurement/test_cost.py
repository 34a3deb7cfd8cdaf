"""Cost is counted: torch's own FlopCounterMode counts the same."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import labels, mixer, randn
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import fgvar
from fgvar import sampling
from fgvar.measurement import cost as counting

SCHEMES = ("BP", "L-BP", "LG-BP", "FG-W", "FG-A", "LG-FG-W", "LG-FG-A")
# FlopCounterMode's module hooks do not run under torch.func.grad of losses at cuts: these are written by hand.
BY_HAND = ("LG-FG-W", "LG-FG-A")


def convolutional() -> fgvar.Problem:
    net = nn.Sequential(nn.Conv2d(2, 6, 3), nn.Tanh(), nn.Conv2d(6, 6, 3), nn.Flatten(), nn.Linear(96, 3)).double()
    return fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(3, 2, 8, 8), labels(3, 3)))


def multilayer(batch: int = 6) -> fgvar.Problem:
    net = fgvar.networks.MLP(20, width=32, depth=3, classes=5, seed=1).double()
    return fgvar.Problem(net, "cross_entropy", (randn(batch, 20), labels(batch, 5)))


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


def passes(estimator: fgvar.GradientEstimator, problem: fgvar.Problem) -> float:
    return counting.cost(estimator, problem, estimator.randomness(problem))


@pytest.mark.parametrize("name", ["BP", "FG-W", "FG-A", "FA"])
def test_a_sampled_gradient_costs_what_it_looks_at(name: str) -> None:
    """Draws of 2 of 8 examples a quarter, of 4 a half; whole batches that are weighed, all."""
    problem, of = multilayer(batch=8), fgvar.scheme(name)
    whole = passes(of, problem)
    assert passes(fgvar.Stochastic(of=of, sample=sampling.Draw(2)), problem) == pytest.approx(whole / 4, rel=1e-12)
    assert passes(fgvar.Stochastic(of=of, sample=sampling.Draw(2, top=2)), problem) == pytest.approx(
        whole / 2, rel=1e-12
    )
    assert passes(fgvar.Stochastic(of=of, sample=sampling.Poisson(0.25)), problem) == pytest.approx(whole, rel=1e-12)


def test_terms_that_are_shaped_one_by_one_cost_their_vmap() -> None:
    """Those of backprop as many products as the batch; those of weight perturbation what noise of their own takes.

    A sum that weighs all terms, Σ ω_n ĝ_n, is a product, too.
    """
    problem, clip = multilayer(batch=8), (fgvar.transforms.Clip(1.0),)
    whole, own = passes(fgvar.scheme("BP"), problem), passes(fgvar.scheme("FG-W", shared=False), problem)
    numbers = sum(p.numel() for p in problem.params.values())
    weighing = 2 * 8 * numbers / counted(problem.loss)
    for sample, expected in (
        (sampling.Everything(), whole),
        (sampling.Draw(2), whole / 4),
        (sampling.Poisson(0.25), whole + weighing),
    ):
        found = passes(fgvar.Stochastic(sample=sample, each=clip), problem)
        assert found == pytest.approx(expected, rel=1e-12), sample
    assert passes(fgvar.Stochastic(of=fgvar.scheme("FG-W"), each=clip), problem) == pytest.approx(own, rel=1e-12)


def test_scores_points_and_workers_cost_their_own_passes() -> None:
    problem = multilayer(batch=8)
    backprop = passes(fgvar.scheme("BP"), problem)
    quarter = backprop / 4
    by = {sampling.Losses(): 1.0, sampling.Outputs(): 1.0, sampling.GradientNorms(): backprop}
    for score, more in by.items():
        found = passes(fgvar.Stochastic(sample=sampling.Draw(2, by=score)), problem)
        assert found == pytest.approx(quarter + more, rel=1e-12), score
    assert passes(fgvar.Stochastic(sample=sampling.Draw(2), workers=3), problem) == pytest.approx(
        3 * quarter, rel=1e-12
    )
    ahead = fgvar.points.Ahead(by=fgvar.ExactGradient(), step=0.1)
    assert passes(fgvar.Stochastic(sample=sampling.Draw(2), at=ahead), problem) == pytest.approx(
        backprop + quarter, rel=1e-12
    )


class Idle:
    """A transform whose repr is an address, which another one may have after it."""

    linear, bias_reason = True, ""

    def __init__(self, passes: int) -> None:
        self.passes = passes

    def leaves(self, *_: object) -> dict[str, fgvar.Leaf]:
        return {}

    def __call__(self, gradient: dict[str, Tensor], problem: fgvar.Problem, noise: object) -> dict[str, Tensor]:  # noqa: ARG002
        for _ in range(self.passes):
            problem.loss()
        return gradient


def test_a_word_that_does_not_say_what_it_is_is_counted_anew() -> None:
    problem = multilayer(batch=8)
    backprop = passes(fgvar.scheme("BP"), problem)
    for count in range(3):  # one at a time, as an address is given again
        found = passes(fgvar.Stochastic(then=(Idle(count),)), problem)
        assert found == pytest.approx(backprop + count, rel=1e-12)
    assert not any(" at 0x" in key for key in problem.network.costs)


def test_two_classes_of_one_name_have_their_own_costs() -> None:
    """As a class that is edited and run again in a notebook."""

    def passes(number: int) -> type:
        @dataclass(frozen=True)
        class Mine:
            def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
                return fgvar.Randomness({})

            def estimate(self, problem: fgvar.Problem, noise: object) -> fgvar.Estimate:  # noqa: ARG002
                each = [problem.backprop() for _ in range(number)]
                return fgvar.Estimate(each[0])

            def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
                return problem.backprop()

        return Mine

    found = fgvar.measure({"one": passes(1)(), "ten": passes(10)()}, multilayer(), draws=2)["cost"]
    assert found.sel(estimator="ten").item() == pytest.approx(10 * found.sel(estimator="one").item())
