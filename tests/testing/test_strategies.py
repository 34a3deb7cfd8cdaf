"""The public strategies: what they draw, what they shrink to, and what they refuse."""

import subprocess
import sys

import pytest
import torch
from hypothesis import Phase, find, given, settings
from torch import nn

import fgvar
from fgvar.nn.traits import traits_of
from fgvar.testing import strategies

QUICK = settings(database=None, phases=(Phase.generate, Phase.shrink))


def smallest(strategy, condition=lambda _: True):
    return find(strategy, condition, settings=QUICK)


def test_a_network_shrinks_to_one_linear_layer_with_a_site() -> None:
    network = smallest(strategies.networks())
    assert isinstance(network, nn.Linear)
    assert len([*network.children()]) == 1
    assert all(isinstance(child, fgvar.networks.Site) for child in network.children())


def test_a_problem_shrinks_to_one_linear_layer_and_one_example() -> None:
    problem = smallest(strategies.problems())
    assert problem.batch_size == 1
    assert {name: tuple(p.shape) for name, p in problem.params.items()} == {"weight": (2, 1), "bias": (2,)}


def test_a_pair_shrinks_to_gaussian_weight_perturbation_of_the_global_loss() -> None:
    estimator, problem = smallest(strategies.pairs())
    assert estimator == smallest(strategies.estimators()) == fgvar.Estimator()
    assert problem.batch_size == 1


def test_local_mixers_shrink_to_one_block_of_three_channels() -> None:
    network = smallest(strategies.networks(local_heads=True))
    assert isinstance(network, fgvar.networks.LocalMixer)
    assert network.block_names == ["block0"]
    assert network.block0.grouped.weight.shape == (1, 3, 3)


KINDS = {
    "tanh": lambda net: any(isinstance(child, nn.Tanh) for child in net.modules()),
    "ReLU": lambda net: any(isinstance(child, nn.ReLU) for child in net.modules()),
    "GELU": lambda net: any(isinstance(child, nn.GELU) for child in net.modules()),
    "masked": lambda net: any(isinstance(child, fgvar.networks.Site) and child.relu for child in net.modules()),
    "grouped": lambda net: any(traits_of(child).group_rows for child in net.modules()),
    "convolutional": lambda net: any(isinstance(child, nn.Conv2d) for child in net.modules()),
    "two hidden layers": lambda net: isinstance(net, nn.Sequential) and len(net) == 5,
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_plain_network_occurs(kind: str) -> None:
    find(strategies.networks(local_heads=False), KINDS[kind], settings=settings(QUICK, phases=(Phase.generate,)))


@pytest.mark.parametrize("loss", ["cross_entropy", "mse", "logistic"])
def test_every_loss_occurs(loss: str) -> None:
    smallest(strategies.problems(), lambda problem: loss in problem.loss_function.__name__)


@given(strategies.pairs())
def test_pairs_fit_and_are_double(pair) -> None:
    estimator, problem = pair
    assert problem.dtype == problem.inputs.dtype == torch.float64
    assert all(bool(p.any()) for p in problem.params.values()), "a parameter of zeros hides what it should show"
    noise = estimator.randomness(problem).sample(0, [0], dtype=torch.float64)
    gradient = estimator.estimate(problem, {name: u[0] for name, u in noise.items()}).gradient
    assert {name: g.shape for name, g in gradient.items()} == {name: p.shape for name, p in problem.params.items()}


@given(strategies.estimators(), strategies.problems())
def test_estimators_fit_every_problem(estimator, problem) -> None:
    assert estimator.randomness(problem).size > 0


def test_local_losses_are_drawn_where_there_are_heads() -> None:
    problems = strategies.problems(network=strategies.networks(local_heads=True))
    estimator, _ = smallest(
        strategies.pairs(problem=problems), lambda pair: isinstance(pair[0].losses, fgvar.LocalLosses)
    )
    assert estimator.space == fgvar.WeightSpace()


def test_words_stay_within_their_bounds() -> None:
    @given(strategies.estimators(max_directions=1), strategies.losses(local=True), strategies.losses(local=False))
    def check(estimator, local, everywhere) -> None:
        assert estimator.directions == 1
        assert isinstance(local, fgvar.LocalLosses)
        assert isinstance(everywhere, fgvar.GlobalLoss)

    check()


def test_the_global_random_state_is_not_moved() -> None:
    before = torch.get_rng_state()

    @settings(max_examples=10)
    @given(strategies.problems())
    def check(problem) -> None:
        assert problem.loss().isfinite()
        assert torch.equal(torch.get_rng_state(), before)

    check()


def test_a_network_of_one_s_own() -> None:
    plain = strategies.problems(
        network=strategies.st.just(fgvar.networks.MLP(2, width=2, depth=1, classes=2).double())
    )
    assert smallest(plain).inputs.shape == (1, 2)
    unknown = strategies.problems(network=strategies.st.just(nn.Conv2d(1, 1, 1, dtype=torch.float64)))
    with pytest.raises(ValueError, match="Conv2d begins with no linear layer; give it the attribute input_shape"):
        smallest(unknown)


@pytest.mark.parametrize(
    ("strategy", "bounds", "sentence"),
    [
        (strategies.networks, {"max_width": 0}, "max_width is 0, expected at least 1"),
        (strategies.networks, {"max_depth": -1}, "max_depth is -1, expected at least 1"),
        (strategies.networks, {"max_patches": 0}, "max_patches is 0, expected at least 1"),
        (
            strategies.networks,
            {"max_width": 2, "local_heads": True},
            "max_width is 2, expected at least 3 with local",
        ),
        (strategies.estimators, {"max_directions": 0}, "max_directions is 0, expected at least 1"),
        (strategies.problems, {"max_batch": 0}, "max_batch is 0, expected at least 1"),
    ],
)
def test_bad_bounds_are_refused_at_once(strategy, bounds, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        strategy(**bounds)


def test_importing_the_kit_imports_neither_hypothesis_nor_pytest() -> None:
    code = (
        "import sys, fgvar.testing; print([m for m in ('hypothesis', 'pytest') if m in sys.modules]);"
        "fgvar.testing.strategies; print('hypothesis' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\nTrue\n"
    )
