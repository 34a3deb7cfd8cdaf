"""Hypothesis strategies for networks, problems and estimators, in float64 and small enough to enumerate.

They draw structure, never luck: weights and batches come from drawn seeds. Everything shrinks to one linear
layer, a batch of one, Gaussian noise in the weights and the global loss.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fgvar.errors import needs_extra
from fgvar.estimators.activity_space import ActivitySpace
from fgvar.estimators.estimator import Estimator
from fgvar.estimators.laws import Law
from fgvar.estimators.losses import GlobalLoss, LocalLosses, Losses
from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.oracles import Jvp, Oracle
from fgvar.estimators.spaces import Space
from fgvar.estimators.weight_space import WeightSpace
from fgvar.problem import Loss, Problem
from fgvar.testing import small
from fgvar.testing.problems import randn

with needs_extra("fgvar.testing.strategies", "testing"):
    from hypothesis import strategies as st

Strategy = st.SearchStrategy

NARROWEST_NORM = 3  # the layer norm of 1 or 2 numbers is a constant or a sign, with next to no gradient
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.Tanh, nn.ReLU, nn.GELU)
SEEDS = st.integers(0, 999)


def logistic(outputs: Tensor, targets: Tensor) -> Tensor:
    """A loss given as a callable: Σ log(1 + exp(−output·sign(target))) over the outputs of an example."""
    return functional.softplus(-outputs * targets.sign()).sum(1)


LOSSES: tuple[str | Loss, ...] = ("cross_entropy", "mse", logistic)


def networks(
    *, max_width: int = 6, max_depth: int = 2, max_patches: int = 2, local_heads: bool | None = None
) -> Strategy[nn.Module]:
    """Networks with sites and random, nonzero weights and biases: `nn.Module` in float64.

    `with_sites` of one linear layer, of multilayer perceptrons (tanh, ReLU, GELU), of networks with grouped
    layers and of convolutional ones; `MLP`; and `LocalMixer`. Inputs are vectors or images of shape (1, 4, 4).

    Args:
        max_width: units, or channels, of a layer.
        max_depth: hidden layers, or blocks.
        max_patches: along each side of a LocalMixer's image: 1 or 2.
        local_heads: LocalMixers alone (True), everything else (False), or both (None).

    Raises:
        ValueError: a bound below 1; local heads with less than 3 units (the layer norm of 2 is a sign).

    Example:
        >>> from hypothesis import given
        >>> @given(networks(max_depth=1))
        ... def test_double(network):
        ...     assert all(p.dtype == torch.float64 for p in network.parameters())
    """
    _check_bounds(max_width=max_width, max_depth=max_depth, max_patches=max_patches)
    if local_heads and max_width < NARROWEST_NORM:
        raise ValueError(
            f"max_width is {max_width}, expected at least {NARROWEST_NORM} with local heads: the layer norm of "
            "fewer channels has no gradient"
        )
    width, depth, act = st.integers(1, max_width), st.integers(1, max_depth), st.sampled_from(ACTIVATIONS)
    inputs, classes = st.integers(1, max(max_width, 2)), st.integers(2, 3)
    plain = [
        st.builds(small.linear, inputs, classes, SEEDS),
        st.builds(small.perceptron, inputs, st.lists(width, min_size=1, max_size=max_depth), classes, act, SEEDS),
        st.builds(small.mlp, inputs, width, depth, classes, st.sampled_from(["tanh", "relu", "gelu"]), SEEDS),
        st.builds(small.convolutional, st.integers(1, min(max_width, 3)), classes, act, SEEDS),
    ]
    if max_width >= 2:
        plain.append(
            st.builds(small.grouped, inputs, _groups(2, min(max_width, 3), 1, max_width), classes, act, SEEDS)
        )
    mixers = []
    if max_width >= NARROWEST_NORM:
        sizes = _groups(1, max_width // NARROWEST_NORM, NARROWEST_NORM, max_width)
        mixers.append(st.builds(small.local_mixer, depth, st.integers(1, min(max_patches, 2)), sizes, classes, SEEDS))
    return st.one_of(*(mixers if local_heads else plain if local_heads is False else plain + mixers))


def losses(*, local: bool | None = None) -> Strategy[Losses]:
    """The word for loss terms: `GlobalLoss` and `LocalLosses` in all combinations that are unbiased.

    Args:
        local: local losses alone (True; they need local heads), the global loss alone (False), or both (None).

    Example:
        >>> from hypothesis import find
        >>> find(losses(local=True), lambda word: word.block)
        LocalLosses(block=True, patch=False, group=False, stop=False, credit='unbiased')
    """
    everywhere = st.builds(GlobalLoss, heads=st.sampled_from([True, False]))
    switch = st.booleans()
    locally = st.builds(LocalLosses, block=switch, patch=switch, group=switch, stop=switch)
    return locally if local else everywhere if local is False else st.one_of(everywhere, locally)


def noises() -> Strategy[Law]:
    """The word for noise: `Gaussian` and `Rademacher`.

    Example:
        >>> from hypothesis import find
        >>> find(noises(), lambda law: law.kurtosis == 1)
        Rademacher()
    """
    return st.sampled_from([Gaussian(), Rademacher()])


def spaces() -> Strategy[Space]:
    """The word for what is perturbed: `WeightSpace`, and `ActivitySpace` with and without masks.

    Example:
        >>> from hypothesis import find
        >>> find(spaces(), lambda word: word.per_example).mask_inactive
        True
    """
    return st.one_of(st.just(WeightSpace()), st.builds(ActivitySpace, mask_inactive=st.sampled_from([True, False])))


def problems(*, max_batch: int = 3, network: Strategy[nn.Module] | None = None) -> Strategy[Problem]:
    """Problems in float64: a network, a loss (cross entropy, mean squares or `logistic`) and a random batch.

    Args:
        max_batch: examples of a batch.
        network: a strategy for networks; default `networks()`. Others than those need an attribute
            ``input_shape``, of one example, unless they begin with a linear layer.

    Raises:
        ValueError: a batch below 1; a network whose input shape is unknown.

    Example:
        >>> from hypothesis import given
        >>> @given(problems(network=networks(local_heads=True)))
        ... def test_every_local_mixer_has_local_ends(problem):
        ...     assert problem.trace.ends
    """
    _check_bounds(max_batch=max_batch)
    chosen = networks() if network is None else network
    return st.builds(_problem, chosen, st.integers(1, max_batch), st.sampled_from(LOSSES), SEEDS)


def estimators(
    *,
    space: Strategy[Space] | None = None,
    noise: Strategy[Law] | None = None,
    losses: Strategy[Losses] | None = None,
    oracle: Strategy[Oracle] | None = None,
    max_directions: int = 2,
) -> Strategy[Estimator]:
    """Composed, unbiased estimators, noise shared or not, antithetic or not. They fit every problem of `problems`.

    Args:
        space, noise, losses, oracle: strategies for the words; default `spaces()`, `noises()`,
            ``losses(local=False)`` and the exact derivative, `Jvp`. Local losses need problems with local
            heads: `pairs` draws both.
        max_directions: directions of one estimate.

    Raises:
        ValueError: fewer than 1 direction.

    Example:
        >>> from hypothesis import find
        >>> find(estimators(), lambda estimator: True) == Estimator()
        True
    """
    _check_bounds(max_directions=max_directions)
    return st.builds(
        Estimator,
        spaces() if space is None else space,
        noises() if noise is None else noise,
        _losses(local=False) if losses is None else losses,
        st.just(Jvp()) if oracle is None else oracle,
        shared=st.sampled_from([None, True, False]),
        directions=st.integers(1, max_directions),
        antithetic=st.booleans(),
    )


def pairs(
    *,
    problem: Strategy[Problem] | None = None,
    noise: Strategy[Law] | None = None,
    oracle: Strategy[Oracle] | None = None,
) -> Strategy[tuple[Estimator, Problem]]:
    """An estimator and a problem that it fits: its losses are local or global where there are local heads.

    Args:
        problem, noise, oracle: strategies; default `problems()`, `noises()` and the exact derivative.

    Example:
        >>> from hypothesis import given
        >>> from fgvar.testing import expectation
        >>> @given(pairs())
        ... def test_unbiased(pair):
        ...     estimator, problem = pair
        ...     mean, target = expectation(estimator, problem), estimator.target(problem)
        ...     assert all(torch.allclose(mean[name], target[name], rtol=0, atol=1e-10) for name in target)
    """

    def fitting(problem: Problem) -> Strategy[tuple[Estimator, Problem]]:
        words = _losses(local=None if problem.trace.ends else False)
        return st.tuples(estimators(noise=noise, losses=words, oracle=oracle), st.just(problem))

    return (problems() if problem is None else problem).flatmap(fitting)


_losses = losses  # which is an argument's name, too


def _problem(network: nn.Module, batch: int, loss: str | Loss, seed: int) -> Problem:
    inputs = randn(batch, *_input_shape(network), seed=2 * seed)
    with torch.no_grad():
        outputs = network(inputs)
    if loss == "cross_entropy":
        targets = torch.arange(seed, seed + batch) % outputs.shape[1]
    else:
        targets = randn(*outputs.shape, seed=2 * seed + 1)
    return Problem(network, loss, (inputs, targets))


def _input_shape(network: nn.Module) -> tuple[int, ...]:
    shape: Any = getattr(network, "input_shape", None)
    if shape is not None:
        return tuple(shape)
    first = next((child for child in network.modules() if list(child.parameters(recurse=False))), None)
    if isinstance(first, nn.Linear):
        return (first.in_features,)
    raise ValueError(f"{type(network).__name__} begins with no linear layer; give it the attribute input_shape")


def _groups(fewest: int, most: int, narrowest: int, width: int) -> Strategy[tuple[int, int]]:
    """Numbers of groups and of channels in each."""

    def sizes(groups: int) -> Strategy[tuple[int, int]]:
        return st.tuples(st.just(groups), st.integers(narrowest, width // groups))

    return st.integers(fewest, most).flatmap(sizes)


def _check_bounds(**bounds: int) -> None:
    for name, bound in bounds.items():
        if bound < 1:
            raise ValueError(f"{name} is {bound}, expected at least 1")
