"""Linear layers whose input moves alone: the derivatives of torch's own, by half of the products."""

import copy
import pickle
from types import MappingProxyType

import pytest
import torch
from derivatives import DERIVATIVES, U, X
from torch import Tensor, nn
from torch.func import functional_call, grad, jvp, vmap

import fgvar
from fgvar.measurement.cost import Flops
from fgvar.networks.local_mixer import GroupedLinear
from fgvar.nn.instrumented import Network
from fgvar.nn.layers import LINEAR_JVP, use_linear_jvp


def drawn(layer: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    for parameter in layer.parameters():
        parameter.data = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
    return layer.requires_grad_(False)


def ours(layer: nn.Module) -> nn.Module:
    found = copy.deepcopy(layer)
    use_linear_jvp(found)
    return found


class PlainGrouped(GroupedLinear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...gi,goi->...go", x, self.weight) + self.bias


LAYERS = MappingProxyType(
    {
        "linear": (drawn(nn.Linear(6, 6)), None),
        "without bias": (drawn(nn.Linear(6, 6, bias=False)), None),
        "convolution": (drawn(nn.Conv1d(3, 3, 3, padding="same", padding_mode="circular")), None),
        "grouped": (drawn(PlainGrouped(3, 6, 6)), drawn(GroupedLinear(3, 6, 6))),
    }
)
layers = pytest.mark.parametrize("name", LAYERS)


def both(name: str) -> tuple[nn.Module, nn.Module]:
    plain, own = LAYERS[name]
    return plain, own or ours(plain)


@layers
@pytest.mark.parametrize("derivative", DERIVATIVES)
def test_derivatives_up_to_the_second(name: str, derivative: str) -> None:
    """The slow twin."""
    plain, own = both(name)
    torch.testing.assert_close(DERIVATIVES[derivative](own), DERIVATIVES[derivative](plain), rtol=1e-12, atol=1e-12)


@layers
def test_derivatives_by_parameters(name: str) -> None:
    """Alone, beside the input's, and of the input's tangent."""
    plain, own = both(name)
    params = dict(plain.named_parameters())
    along = {key: torch.full_like(value, 0.5) for key, value in params.items()}

    def found(layer: nn.Module) -> list[Tensor]:
        def f(p: dict[str, Tensor], x: Tensor) -> Tensor:
            return functional_call(layer, p, (x,))

        of_tangent = grad(lambda p: (jvp(lambda x: f(p, x), (X,), (U,))[1] ** 3).sum())(params)
        moved = jvp(lambda p: jvp(lambda x: f(p, x), (X,), (U,))[1], (params,), (along,))[1]
        back = jvp(lambda x: jvp(lambda p: f(p, x), (params,), (along,))[1], (X,), (U,))[1]
        stacked = {key: torch.stack([value, 2 * value]) for key, value in along.items()}
        many = vmap(lambda d: jvp(lambda p: f(p, X), (params,), (d,))[1])(stacked)
        both = jvp(f, (params, X), (along, U))[1]
        return [jvp(lambda p: f(p, X), (params,), (along,))[1], both, moved, back, many, *of_tangent.values()]

    for one, other in zip(found(own), found(plain), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@layers
@pytest.mark.parametrize("vmapped", [False, True])
def test_a_tangent_costs_one_product(name: str, vmapped: bool) -> None:
    plain, own = both(name)

    def products(layer: nn.Module) -> int:
        with Flops() as flops:
            if vmapped:
                vmap(lambda u: jvp(layer, (X,), (u,))[1])(U[None])
            else:
                jvp(layer, (X,), (U,))
        return flops.count

    with Flops() as forward:
        own(X)
    assert products(own) == 2 * forward.count
    assert products(plain) == 3 * forward.count, "torch multiplies by no zeros any more: linear_jvp is not needed"


@pytest.mark.parametrize("dimensions", [1, 2, 3])
def test_convolutions_of_all_dimensions(dimensions: int) -> None:
    plain = drawn((nn.Conv1d, nn.Conv2d, nn.Conv3d)[dimensions - 1](4, 2, 2, groups=2, stride=2))
    x, u = torch.randn(2, 3, 4, *[4] * dimensions, dtype=torch.float64)
    found, expected = jvp(ours(plain), (x,), (u,)), jvp(plain, (x,), (u,))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert type(ours(plain)) is LINEAR_JVP[type(plain)]


def test_layers_of_other_types_stay() -> None:
    class Mine(nn.Linear):
        pass

    network = nn.Sequential(nn.Linear(2, 2), Mine(2, 2), nn.Conv2d(1, 1, 1))
    kept = pickle.loads(pickle.dumps(ours(network[0])))
    assert type(kept) is LINEAR_JVP[nn.Linear]
    assert [type(each) for each in Network(network).skeleton] == [LINEAR_JVP[nn.Linear], Mine, LINEAR_JVP[nn.Conv2d]]
    assert [type(each) for each in network] == [nn.Linear, Mine, nn.Conv2d], "the user's own is left alone"


def test_anybody_s_activities_are_pushed_by_one_product_a_layer() -> None:
    """Forward, along and by weights: three products of every layer, of the first two that nothing moves into."""
    net = fgvar.with_sites(nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)))
    problem = fgvar.Problem(net, "cross_entropy", (torch.randn(4, 6), torch.arange(4)))
    estimator = fgvar.scheme("FG-A")
    noise = {name: u[0] for name, u in estimator.randomness(problem).sample(0, [0]).items()}
    with Flops() as one:
        estimator.estimate(problem, noise)
    assert one.count == 8 * 2 * 4 * 6 * 6
