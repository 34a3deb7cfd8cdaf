"""Recurrent layers as time loops: the functions and derivatives of torch's own, and those that its kernels lack."""

import copy
import itertools
import pickle
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import torch
from cases import labels, randn
from derivatives import DERIVATIVES
from nets import assert_unbiased, fixed
from torch import Tensor, nn
from torch.func import functional_call, jvp, vmap
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils._pytree import tree_flatten, tree_map

import fgvar
from fgvar.measurement.cost import Flops
from fgvar.nn.instrumented import Network
from fgvar.nn.layers import LINEAR_JVP, use_linear_jvp

KINDS = MappingProxyType(
    {
        "LSTM": nn.LSTM,
        "projected LSTM": lambda *sizes, **options: nn.LSTM(*sizes, proj_size=2, **options),
        "GRU": nn.GRU,
        "tanh": nn.RNN,
        "relu": lambda *sizes, **options: nn.RNN(*sizes, nonlinearity="relu", **options),
    }
)
kinds = pytest.mark.parametrize("kind", KINDS)
sizes = pytest.mark.parametrize(("layers", "both_ways"), list(itertools.product([1, 2], [False, True])))
# Torch's own float32 kernel has none, and takes a slower one.
no_projections = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")


def ours(layer: nn.Module) -> nn.Module:
    found = copy.deepcopy(layer)
    use_linear_jvp(found)
    assert type(found) is LINEAR_JVP[type(layer)]
    return found


READS = MappingProxyType(
    {
        "last step": lambda outputs, _: outputs[:, -1],
        "mean": lambda outputs, _: outputs.mean(1),
        "last state": lambda _, states: torch.cat(tuple(states[0] if isinstance(states, tuple) else states), -1),
    }
)


class Classifier(nn.Module):
    """Of sequences [batch, time, 3], by what is read of a recurrent layer's outputs and last states."""

    def __init__(self, rnn: nn.RNNBase, read: str = "last step") -> None:
        super().__init__()
        self.rnn, self.read = rnn, READS[read]
        self.fc = nn.Linear((rnn.proj_size or rnn.hidden_size) * (1 + rnn.bidirectional), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.read(*self.rnn(x)))


def problem(net: nn.Module, dtype: torch.dtype = torch.float64) -> fgvar.Problem:
    batch = randn(2, 3, 3).to(dtype), labels(2, 3)
    return fgvar.Problem(fgvar.with_sites(fixed(net, train=net.training).to(dtype)), "cross_entropy", batch)


# ---- torch's own functions ---------------------------------------------------------------------------------


@no_projections
@kinds
@sizes
@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_outputs_states_and_gradients(
    kind: str, layers: int, both_ways: bool, dtype: torch.dtype, allowed: float
) -> None:
    """Of batches and of single sequences, from zeros and from states."""
    for bias, batch_first in itertools.product([True, False], repeat=2):
        options = {"num_layers": layers, "bidirectional": both_ways, "bias": bias, "batch_first": batch_first}
        plain = KINDS[kind](3, 4, **options).to(dtype)
        own = ours(plain)
        for shape in [(2, 5, 3), (5, 3)]:
            x = randn(*shape, seed=1).to(dtype)
            zeros = plain(x)[1]
            for states in (None, tree_map(lambda state: randn(*state.shape, seed=2).to(dtype), zeros)):
                both = [results(layer, x, states) for layer in (own, plain)]
                torch.testing.assert_close(*both, rtol=allowed, atol=allowed)


def results(layer: nn.Module, x: Tensor, states: Any) -> list[Tensor]:
    """Outputs, last states, and the mean square's gradients by parameters, inputs and first states."""
    leaves = [x, *(() if states is None else tree_flatten(states)[0])]
    for leaf in leaves:
        leaf.requires_grad_()
    found = tree_flatten(layer(x, states))[0]
    mean = torch.cat([y.flatten() for y in found]).square().mean()
    return [*found, *torch.autograd.grad(mean, [*leaves, *layer.parameters()])]


def test_structure_of_what_is_returned() -> None:
    for kind in (nn.LSTM, nn.GRU, nn.RNN):
        plain = kind(3, 4)
        found, expected = ours(plain)(torch.ones(5, 2, 3)), plain(torch.ones(5, 2, 3))
        assert tree_flatten(found)[1] == tree_flatten(expected)[1]


def test_dropout_is_between_layers_and_in_train_mode_alone() -> None:
    """All of it is dropped: no luck."""
    plain, x = nn.LSTM(3, 4, num_layers=2, dropout=1.0), torch.randn(5, 2, 3)
    for layer in (plain.train(), plain.eval()):
        torch.testing.assert_close(ours(layer)(x), layer(x), rtol=1e-6, atol=1e-6)
    assert not torch.allclose(ours(plain.train())(x)[0], ours(plain.eval())(x)[0])


# ---- derivatives -------------------------------------------------------------------------------------------

SHAPE_KEEPING = MappingProxyType(
    {
        "LSTM": lambda: nn.LSTM(6, 6, batch_first=True),
        "GRU both ways": lambda: nn.GRU(6, 3, 2, batch_first=True, bidirectional=True),
        "RNN without bias": lambda: nn.RNN(6, 6, batch_first=True, bias=False),
    }
)
# Torch's own has no rule for these. Examples go their own ways, so that others say the same.
EQUAL = {"vmap over both": "along", "vmap inside": "along", "vmap on both sides": "vmap over directions"}


@pytest.mark.parametrize("name", SHAPE_KEEPING)
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_up_to_the_second(name: str, derivative: str) -> None:
    plain = fixed(SHAPE_KEEPING[name]()).requires_grad_(False)
    own = ours(plain)
    found = DERIVATIVES[derivative](lambda x: own(x)[0])
    expected = DERIVATIVES[EQUAL.get(derivative, derivative)](lambda x: plain(x)[0])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@kinds
def test_derivatives_along_parameters(kind: str) -> None:
    """One direction, several at once, and parameters of each example's own."""
    plain = fixed(KINDS[kind](3, 4, batch_first=True)).requires_grad_(False)
    own, x = ours(plain), randn(2, 5, 3, seed=1)
    params = dict(plain.named_parameters())
    stacked = {name: torch.stack([p, 2 * p + 1]) for name, p in params.items()}
    directions = [{name: p[i] for name, p in stacked.items()} for i in range(2)]

    def along(layer: nn.Module, u: dict[str, Tensor]) -> Any:
        return jvp(lambda p: functional_call(layer, p, (x,)), (params,), (u,))

    expected = [tree_flatten(along(plain, u))[0] for u in directions]
    torch.testing.assert_close(tree_flatten(along(own, directions[0]))[0], expected[0], rtol=1e-12, atol=1e-12)
    many = tree_flatten(vmap(lambda u: along(own, u))(stacked))[0]
    torch.testing.assert_close(
        many, [torch.stack(pair) for pair in zip(*expected, strict=True)], rtol=1e-12, atol=1e-12
    )
    each = vmap(lambda p, sequence: functional_call(own, p, (sequence,))[0])(stacked, x)
    one_by_one = [functional_call(plain, p, (sequence,))[0] for p, sequence in zip(directions, x, strict=True)]
    torch.testing.assert_close(each, torch.stack(one_by_one), rtol=1e-12, atol=1e-12)


@kinds
def test_a_tangent_costs_no_products_by_zeros(kind: str) -> None:
    """Where inputs move alone, each product is made for the value and for the tangent, but for the first state's."""
    layer, x = ours(fixed(KINDS[kind](3, 4, batch_first=True))), randn(2, 5, 3)
    with Flops() as forward:
        layer(x)
    with Flops() as tangent:
        jvp(lambda x: layer(x)[0], (x,), (x,))
    of_zeros = 2 * 2 * layer.weight_hh_l0.numel()
    assert tangent.count == 2 * forward.count - of_zeros


# ---- estimators --------------------------------------------------------------------------------------------


@kinds
@sizes
@pytest.mark.parametrize("scheme", ["FG-W", "FG-A"])
def test_estimators_are_unbiased(kind: str, layers: int, both_ways: bool, scheme: str) -> None:
    rnn = KINDS[kind](3, 3, num_layers=layers, bidirectional=both_ways, batch_first=True)
    assert_unbiased(fgvar.scheme(scheme), problem(Classifier(rnn, "mean")))


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "tanh"])
@pytest.mark.parametrize("read", READS)
def test_activities_of_any_classifier(kind: str, read: str) -> None:
    """Directions come in from a layer before. What goes past the site, by states, is credited at the next one."""
    net = nn.Sequential(nn.Linear(3, 3), nn.Tanh(), Classifier(KINDS[kind](3, 3, batch_first=True), read))
    assert_unbiased(fgvar.scheme("FG-A"), problem(net))


@pytest.mark.parametrize("scheme", ["FG-W", "FG-A"])
def test_exact_route(scheme: str) -> None:
    """d + 1 for weights; for both the trace of the enumerated covariance."""
    small = problem(nn.Sequential(nn.Linear(3, 2), Classifier(nn.LSTM(2, 2, batch_first=True))))
    estimator = fgvar.scheme(scheme)
    found = fgvar.measure({scheme: estimator}, small, route="exact").sel(layer="perturbed").squeeze()
    square = sum(g.square().sum() for g in small.backprop().values())
    enumerated = sum(c.trace() for c in fgvar.testing.covariance(estimator, small).values()) / square
    assert float(found["relative_variance"]) == pytest.approx(float(enumerated), rel=1e-9)
    assert found["sq_bias"].values == pytest.approx(0, abs=1e-15)
    if scheme == "FG-W":
        d = sum(p.numel() for p in small.params.values())
        assert float(found["relative_variance"]) == pytest.approx(d + 1, rel=1e-9)


def test_measured_in_float32_by_the_default_chunk() -> None:
    """The same draws, hence the same numbers but for rounding. A plain call in place of a stack would warn.

    In train mode, too, as no rate is set.
    """
    schemes = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A", "EGGROLL")}
    single, double = (
        fgvar.measure(schemes, problem(Classifier(nn.LSTM(3, 4, 2, batch_first=True)).train(), dtype), draws=32)
        for dtype in (torch.float32, torch.float64)
    )
    for name in ("cosine", "relative_variance"):
        assert single[name].values == pytest.approx(double[name].values, rel=0.05)


@pytest.mark.parametrize("scheme", ["FG-W", "FG-A"])
def test_every_check_passes(scheme: str) -> None:
    """False alarms of the drawn ones: 1e-6 in total, by fixed seeds."""
    report = fgvar.testing.check_estimator(fgvar.scheme(scheme), problem(Classifier(nn.LSTM(3, 1, batch_first=True))))
    assert report.passed, report


# ---- the swap ----------------------------------------------------------------------------------------------


def test_names_and_representation_stay() -> None:
    class Mine(nn.GRU):
        pass

    net = nn.Sequential(nn.LSTM(3, 4, 2, proj_size=2), nn.GRU(4, 4), nn.RNN(4, 4, nonlinearity="relu"), Mine(4, 4))
    swapped = Network(net).skeleton
    assert [type(layer) for layer in swapped] == [*(LINEAR_JVP[kind] for kind in (nn.LSTM, nn.GRU, nn.RNN)), Mine]
    assert [type(layer) for layer in net] == [nn.LSTM, nn.GRU, nn.RNN, Mine], "the user's own is left alone"
    assert repr(swapped) == repr(net)
    assert [*swapped.state_dict()] == [*net.state_dict()]
    layer = ours(net[0])
    again, x = pickle.loads(pickle.dumps(layer)), torch.randn(5, 2, 3)
    torch.testing.assert_close(again(x), layer(x), rtol=0, atol=0)


def test_weights_that_a_hook_makes() -> None:
    """The old weight norm puts a plain attribute in the parameter's place, and users flatten parameters."""

    class Normed(Classifier):
        def forward(self, x: Tensor) -> Tensor:
            self.rnn.flatten_parameters()
            return super().forward(x)

    rnn = nn.LSTM(3, 3, batch_first=True)
    with pytest.warns(FutureWarning, match="weight_norm"):
        nn.utils.weight_norm(rnn, "weight_hh_l0")
    assert_unbiased(fgvar.scheme("FG-W"), problem(Normed(rnn)))


# ---- refusals ----------------------------------------------------------------------------------------------


class Padded(nn.Module):
    """The last outputs of sequences of several lengths: inputs are [batch, time, features and "is its last step"]."""

    def __init__(self, read: Callable[["Padded", Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.rnn, self.fc, self.read = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 3), read

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.read(self, x[..., :3], x[..., 3:]))


def test_packed_sequences_are_refused_and_padded_ones_do_the_same() -> None:
    lengths = torch.tensor([4, 2, 1])
    last = nn.functional.one_hot(lengths - 1, 4)[..., None]
    x = torch.cat([randn(3, 4, 3), last], -1)
    packed = Padded(lambda m, x, _: m.rnn(pack_padded_sequence(x, lengths, batch_first=True))[1][0])
    with pytest.raises(TypeError, match=r"GRU got a PackedSequence.*expected a tensor; pad .* and mask .* backward"):
        fgvar.Problem(fixed(packed), "cross_entropy", (x, labels(3, 3)))
    padded = Padded(lambda m, x, last: (m.rnn(x)[0] * last).sum(1))
    small = fgvar.Problem(fgvar.with_sites(fixed(padded)), "cross_entropy", (x, labels(3, 3)))
    torch.testing.assert_close(small.run(small.params)[0], packed(x), rtol=1e-12, atol=1e-12)
    assert_unbiased(fgvar.scheme("FG-A"), small)


@pytest.mark.parametrize("shape", [(3,), (2, 5, 1, 3)])
def test_inputs_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"LSTM got inputs of shape \[.*expected \[batch, time, features\]"):
        ours(nn.LSTM(3, 4))(torch.ones(shape))


def test_a_state_for_one_example_is_not_broadcast() -> None:
    layer, x, state = ours(nn.LSTM(3, 4)), torch.ones(5, 2, 3), torch.zeros(1, 2, 4)
    with pytest.raises(RuntimeError, match=r"Expected hidden size \(1, 2, 4\), got \[1, 1, 4\]"):
        layer(x, (state, state[:, :1]))
