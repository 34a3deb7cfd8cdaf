"""The token count that decides between weight and activity perturbation: against the closed forms of both."""

import math

import pytest
import torch
from cases import labels, mixer, randn
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fgvar
from fgvar import theory
from fgvar.networks.local_mixer import GroupedLinear


class Transposed(nn.Module):
    """A linear layer whose weight is stored [fan-in, fan-out], as Conv1D of Hugging Face is."""

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(fan_in, fan_out)), nn.Parameter(torch.zeros(fan_out))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


class OwnNorm(nn.Module):
    """A norm of a class that torch does not know, as Llama's is."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * x.square().mean(-1, keepdim=True).add(1e-6).rsqrt()


class One(nn.Module):
    """One trainable layer; what comes before and after it is fixed."""

    def __init__(self, layer: nn.Module, after: nn.Module | None = None, size: int = 1) -> None:
        super().__init__()
        self.layer = layer
        self.act = after or nn.Identity()
        self.register_buffer("last", randn(size, 3, seed=7))

    def forward(self, x: Tensor) -> Tensor:
        z = self.act(self.layer(x)).flatten(1)
        return torch.tanh(z @ self.last)


def single(kind: str, sizes: tuple[int, int, int], batch: int, bias: bool, seed: int) -> fgvar.Problem:
    """One layer over tokens, groups or pixels, behind a fixed nonlinear read-out."""
    p, q, side = sizes
    layer: nn.Module
    if kind == "tokens":
        layer, x, size = nn.Linear(p, q, bias=bias), randn(batch, side, p, seed=seed), side * q
    elif kind == "grouped":
        layer, x, size = GroupedLinear(2, p, q), randn(batch, side, 2, p, seed=seed), side * 2 * q
    elif kind == "embedding":
        layer, side, bias = nn.Embedding(p, q), max(side, 2), False
        x, size = torch.randint(p, (batch, side), generator=torch.Generator().manual_seed(seed)), side * q
    elif kind == "transposed":
        layer, x, size = Transposed(p, q), randn(batch, side, p, seed=seed), side * q
    elif kind in ("layer norm", "own norm"):
        layer = nn.LayerNorm(p + 1, bias=bias) if kind == "layer norm" else OwnNorm(p + 1)
        x, size = randn(batch, side, p + 1, seed=seed), side * (p + 1)
    elif kind == "group norm":
        layer, x, size = nn.GroupNorm(1, p), randn(batch, p, side, 2, seed=seed), 2 * p * side
    elif kind == "grouped conv":
        layer = nn.Conv2d(2 * p, 2 * q, 2, padding=1, groups=2, bias=bias)
        x, size = randn(batch, 2 * p, side, side, seed=seed), 2 * q * (side + 1) ** 2
    else:
        layer = nn.Conv2d(p, q, 3, padding=1, stride=2, bias=bias)
        x, size = randn(batch, p, side, side, seed=seed), q * math.ceil(side / 2) ** 2
    net = One(layer, nn.Tanh(), size).double()
    with torch.no_grad():
        for index, value in enumerate(layer.parameters()):
            value.copy_(0.5 * randn(*value.shape, seed=seed + index + 1))
    return fgvar.Problem(fgvar.with_sites(net, sites=["layer"]), "cross_entropy", (x, labels(batch, 3)))


def total(scheme: fgvar.Estimator, problem: fgvar.Problem) -> float:
    return float(torch.stack(list(theory.trace(scheme, problem).values())).sum())


KINDS = [
    "tokens",
    "grouped",
    "conv",
    "grouped conv",
    "embedding",
    "transposed",
    "layer norm",
    "own norm",
    "group norm",
]
singles = st.builds(
    single,
    st.sampled_from(KINDS),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 5)),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)


@settings(max_examples=30, deadline=None)
@given(problem=singles)
def test_the_ratio_decides_which_scheme_has_the_smaller_variance(problem: fgvar.Problem) -> None:
    """Both variances follow from it: the exact closed forms are q‖G‖²(ρ or p) + ‖G‖²."""
    ((_, found),) = theory.activity_ratio(problem).items()
    assume(math.isfinite(found.ratio))
    weights, activities = (total(fgvar.scheme(name), problem) for name in ("FG-W", "FG-A"))
    assert found.activity_wins == (activities < weights) or math.isclose(activities, weights, rel_tol=1e-9)
    square = float(torch.stack([g.square().sum() for g in problem.backprop().values()]).sum())
    size = sum(p.numel() for p in problem.params.values())
    outputs = size / found.fan_in
    assert weights == pytest.approx((size + 1) * square, rel=1e-9)
    assert activities == pytest.approx((outputs * found.per_example + 1) * square, rel=1e-7)
    if problem.batch_size == 1:
        assert found.ratio == pytest.approx(found.per_example, rel=1e-12)


class Whole(nn.Module):
    """A batch of token sequences as the positions of one example, with one loss."""

    def __init__(self, one: nn.Module, batch: int) -> None:
        super().__init__()
        self.one, self.batch = one, batch

    def forward(self, x: Tensor) -> Tensor:
        z = self.one.act(self.one.layer(x)).reshape(self.batch, -1)
        return torch.tanh(z @ self.one.last)[None]


@settings(max_examples=10, deadline=None)
@given(sizes=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)), seed=st.integers(0, 1000))
def test_credited_with_the_loss_of_the_whole_batch_examples_are_positions(sizes, seed: int) -> None:
    x, net = randn(3, sizes[2], sizes[0], seed=seed), One(nn.Linear(*sizes[:2]), nn.Tanh(), sizes[1] * sizes[2])
    with torch.no_grad():
        for index, value in enumerate(net.layer.parameters()):
            value.copy_(0.5 * randn(*value.shape, seed=seed + index + 1))
    net, y = net.double(), labels(3, 3)
    ((_, found),) = theory.activity_ratio(fgvar.Problem(net, "cross_entropy", (x, y))).items()
    assume(math.isfinite(found.ratio))
    whole = fgvar.Problem(
        fgvar.with_sites(Whole(net, 3), sites=["one.layer"]),
        lambda outputs, targets: nn.functional.cross_entropy(outputs[0], targets[0])[None],
        (x.reshape(1, -1, sizes[0]), y[None]),
    )
    weights, activities = (total(fgvar.scheme(name), whole) for name in ("FG-W", "FG-A"))
    assert (found.ratio < found.fan_in) == (activities < weights) or math.isclose(activities, weights, rel_tol=1e-9)
    assert activities / weights == pytest.approx(
        (sizes[1] * found.ratio + 1) / (sizes[1] * found.fan_in + 1), rel=1e-7
    )


def frozen(net: nn.Module, name: str) -> nn.Module:
    """The network with this module's parameters as constants."""
    module = net.get_submodule(name)
    for key, value in list(module.named_parameters()):
        delattr(module, key)
        module.register_buffer(key, value.detach())
    return net


@pytest.mark.parametrize("tokens", [1, 4, 16])
def test_each_of_several_layers_perturbed_alone(tokens: int) -> None:
    def network() -> nn.Module:
        net = nn.Sequential(
            nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3, bias=False), nn.LayerNorm(3, elementwise_affine=False),
            nn.Flatten(),
        ).double()  # fmt: skip
        with torch.no_grad():
            for index, value in enumerate(net.parameters()):
                value.copy_(randn(*value.shape, seed=index))
        return net

    batch = randn(2, tokens, 3), randn(2, 3 * tokens, seed=1)
    found = theory.activity_ratio(fgvar.Problem(fgvar.with_sites(network()), "mse", batch))
    assert list(found) == ["0.weight", "2.weight"]
    for name, other in (("0.weight", "2"), ("2.weight", "0")):
        alone = fgvar.Problem(fgvar.with_sites(frozen(network(), other)), "mse", batch)
        weights, activities = (total(fgvar.scheme(scheme), alone) for scheme in ("FG-W", "FG-A"))
        its = found[name]
        assert theory.activity_ratio(alone)[name].ratio == pytest.approx(its.ratio, rel=1e-9)
        assert its.activity_wins == (activities < weights)
        assert its.positions == tokens


def test_the_definition_without_a_bias() -> None:
    """‖X‖² ‖∂L/∂Z‖² / ‖G‖², by hand."""
    layer = nn.Linear(3, 2, bias=False).double()
    x, y = randn(2, 5, 3), randn(2, 5, 2, seed=1)
    z = layer(x).detach().requires_grad_()
    (delta,) = torch.autograd.grad((z - y).square().mean(), z)
    gradient = torch.einsum("nti,nto->oi", x, delta)
    expected = x.square().sum() * delta.square().sum() / gradient.square().sum()
    found = theory.activity_ratio(fgvar.Problem(layer, "mse", (x, y)))["weight"]
    assert found.ratio == pytest.approx(float(expected))
    assert (found.fan_in, found.positions) == (3, 5)


def test_one_position_has_ratio_1_and_activities_win() -> None:
    found = theory.activity_ratio(single("tokens", (3, 2, 1), 1, False, 0))["layer.weight"]
    assert found.ratio == pytest.approx(1)
    assert found.activity_wins


def test_signs_move_the_threshold_by_two_over_the_outputs() -> None:
    """Rademacher noise: the exact difference is q‖X‖²‖Δ‖² − 2Σ‖x_t‖²‖δ_t‖² − (pq − 2)‖G‖², as the docstring says."""
    problem = single("tokens", (3, 2, 4), 1, False, 5)
    ((_, found),) = theory.activity_ratio(problem).items()
    rademacher = fgvar.Rademacher()
    weights, activities = (total(fgvar.scheme(name, noise=rademacher), problem) for name in ("FG-W", "FG-A"))
    square = float(problem.backprop()["layer.weight"].square().sum())
    assert weights == pytest.approx((3 * 2 - 1) * square)
    shortfall = (2 * found.ratio + 1) * square - activities  # 2Σ‖x_t‖²‖δ_t‖²
    assert 0 < shortfall <= 2 * found.ratio * square


def test_a_gradient_of_0_has_no_ratio() -> None:
    found = theory.activity_ratio(
        fgvar.Problem(nn.Linear(3, 1).double(), "cross_entropy", (randn(2, 3), labels(2, 1)))
    )
    assert math.isnan(found["weight"].ratio)
    assert not found["weight"].activity_wins


def test_heads_and_modules_that_are_no_linear_map_have_no_ratio() -> None:
    names = theory.activity_ratio(mixer())
    assert set(names) == {name for name in mixer().perturbed if name.endswith("weight")}

    class Square(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).square()

    half = nn.Sequential(nn.Linear(3, 3), nn.PReLU(3), Square(3, 3)).double()
    assert set(theory.activity_ratio(fgvar.Problem(half, "mse", (randn(2, 3), randn(2, 3))))) == {"0.weight"}


class Tied(nn.Module):
    """An embedding that is the read-out, too; with a bias there."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.embed, self.map, self.head = nn.Embedding(5, 3), nn.Linear(3, 3), nn.Linear(3, 5, bias=bias)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.map(self.embed(ids))))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("seed", range(3))
def test_a_tied_weight_has_one_ratio_of_all_its_uses(bias: bool, seed: int) -> None:
    net, ids = Tied(bias).double(), torch.tensor([[0, 1, 4, 1], [2, 2, 3, 1]])
    with torch.no_grad():
        for index, value in enumerate(net.parameters()):
            value.copy_(randn(*value.shape, seed=10 * seed + index))
    for value in net.map.parameters():
        value.requires_grad_(False)
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (ids, ids.roll(-1, 1)))
    ((_, found),) = theory.activity_ratio(problem).items()
    weights, activities = (total(fgvar.scheme(name), problem) for name in ("FG-W", "FG-A"))
    square = float(torch.stack([g.square().sum() for g in problem.backprop().values()]).sum())
    numbers = sum(p.numel() for p in problem.params.values())
    assert found.activity_wins == (activities < weights)
    assert (found.fan_in, found.positions) == (5, 4)
    assert weights == pytest.approx((numbers + 1) * square)
    assert activities == pytest.approx((numbers / 5 * found.per_example + 1) * square)


def test_a_token_that_occurs_once_has_a_position_of_its_own() -> None:
    net, ids = nn.Embedding(7, 2).double(), torch.tensor([[0, 3, 5], [1, 6, 2]])
    found = theory.activity_ratio(fgvar.Problem(net, "mse", (ids, randn(2, 3, 2))))["weight"]
    assert found.ratio == pytest.approx(6)
    assert found.fan_in == 7


def coupled(seed: int) -> fgvar.Problem:
    """Two views without a stopped gradient, whose loss couples all examples; one layer."""
    net = nn.Sequential(nn.Linear(2, 3, bias=False), Cubed()).double()
    with torch.no_grad():
        net[0].weight.copy_(randn(3, 2, seed=seed))
    loss = fgvar.contrastive.InfoNCE(stop_gradient=False, temperature=0.5)
    views = randn(3, 2, seed=seed + 1), randn(3, 2, seed=seed + 2)
    return fgvar.contrastive.Contrastive(fgvar.with_sites(net, sites=["0"]), loss, views)


class Cubed(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(x) ** 3


@pytest.mark.parametrize("seed", range(2))
def test_examples_of_a_coupled_loss_are_credited_with_the_sum(seed: int) -> None:
    """Var of activities q‖G‖²ρ + ‖G‖², of weights q‖G‖²p + ‖G‖²: by polarisation."""
    problem = coupled(seed)
    found = theory.activity_ratio(problem)["0.weight"]
    square = float(problem.backprop()["0.weight"].square().sum())
    weights, activities = (
        float(fgvar.testing.covariance(fgvar.scheme(name), problem)["0.weight"].trace()) for name in ("FG-W", "FG-A")
    )
    assert weights == pytest.approx((3 * found.fan_in + 1) * square)
    assert activities == pytest.approx((3 * found.per_example + 1) * square)
    assert found.activity_wins == (activities < weights)


@pytest.mark.parametrize("by_module", [True, False])
def test_a_weight_that_a_function_uses_has_no_ratio(by_module: bool) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.into, self.out = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
            self.out.weight = self.into.weight

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.into(x))
            return self.out(h) if by_module else nn.functional.linear(h, self.into.weight)

    net = Twice().double()
    if not by_module:
        del net.out
    problem = fgvar.Problem(net, "mse", (randn(1, 2), randn(1, 2, seed=1)))
    assert list(theory.activity_ratio(problem)) == (["into.weight"] if by_module else [])


@pytest.mark.parametrize("batch", [3, 4])
def test_examples_have_to_come_first(batch: int) -> None:
    """A layer that runs sequence-first, of as many tokens as examples: what looks like the batch are the tokens."""

    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x.transpose(0, 1)).transpose(0, 1).square()

    problem = fgvar.Problem(Turned().double(), "mse", (randn(batch, 3, 2), randn(batch, 3, 2, seed=1)))
    assert theory.activity_ratio(problem) == {}


def test_a_part_of_the_batch_has_its_own_ratio() -> None:
    x, y, net = randn(4, 5, 3), randn(4, 5, 2, seed=1), nn.Linear(3, 2).double()
    some = fgvar.Problem(net, "mse", (x, y)).rows(slice(1, 3))
    assert theory.activity_ratio(some) == theory.activity_ratio(fgvar.Problem(net, "mse", (x[1:3], y[1:3])))


def test_modules_that_are_no_map_of_one_tensor_to_one_have_no_ratio() -> None:
    class Router(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            z = super().forward(x)
            return z, z.softmax(-1)

    class Gated(nn.RMSNorm):
        def forward(self, x: Tensor, gate: Tensor) -> Tensor:
            return super().forward(x * gate.sigmoid())

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.router, self.norm, self.both = Router(2, 2), Gated(2), nn.Bilinear(2, 2, 2)

        def forward(self, x: Tensor) -> Tensor:
            z, p = self.router(x)
            return self.both(self.norm(z, p), z)

    problem = fgvar.Problem(fgvar.with_sites(Net().double()), "mse", (randn(2, 2), randn(2, 2, seed=1)))
    assert theory.activity_ratio(problem) == {}
    exact = fgvar.testing.covariance(fgvar.scheme("FG-A"), problem)
    for name, found in theory.variance(fgvar.scheme("FG-A"), problem).items():
        torch.testing.assert_close(found.flatten(), exact[name].diagonal(), rtol=1e-9, atol=1e-15)
