"""Traits: what a user's own module declares counts as a built-in one's does."""

import copy
import pickle

import pytest
import torch
from cases import labels, randn
from nets import assert_unbiased, fixed
from torch import Tensor, nn

import fgvar
from fgvar.networks import Traits
from fgvar.nn.heads import ReadOut, headless
from fgvar.nn.traits import declare, traits_of


class Classifier(nn.Linear):
    """One's own classifier, which learns exactly."""

    fgvar_traits = Traits(learns_exactly=True)


class PerGroup(nn.Module):
    """[batch, 4] → [batch, 6] by a map of 3 × 2 for each half."""

    fgvar_traits = Traits(group_rows=True)

    def __init__(self) -> None:
        super().__init__()
        self.out_features = 6
        self.weight = nn.Parameter(torch.zeros(2, 3, 2))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("ngi,goi->ngo", x.unflatten(1, (2, 2)), self.weight).flatten(1)


def problem(net: nn.Module) -> fgvar.Problem:
    for index, p in enumerate(net.double().parameters()):
        p.data = 0.6 * randn(*p.shape, seed=index)
    return fgvar.Problem(net, "cross_entropy", (randn(3, 4), labels(3, 3)))


def test_a_module_that_declares_nothing_has_no_trait() -> None:
    assert traits_of(nn.Linear(2, 2)) == traits_of(None) == Traits()


def test_own_classifiers_learn_exactly() -> None:
    net = problem(fgvar.with_sites(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), Classifier(4, 3))))
    assert net.network.exact == {"2.weight", "2.bias"}
    assert list(net.trace.sites) == ["0.site"]
    found, target = fgvar.scheme("FG-A").target(net), net.backprop()
    assert torch.equal(found["2.weight"], target["2.weight"])


def with_heads() -> nn.Module:
    net = nn.Sequential(PerGroup(), nn.Tanh(), nn.Linear(6, 3))
    return fgvar.with_local_heads(net, after=("1",), classes=3, groups=2, readout="2")


def test_a_network_that_learns_exactly_is_perturbed_nowhere() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    declare(net, learns_exactly=True)
    found = problem(net)
    assert found.network.exact == found.params.keys()
    assert found.perturbed == ()
    with pytest.raises(ValueError, match="found no module to follow"):
        fgvar.with_sites(net)


def declared() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Sequential(nn.Linear(6, 5), ReadOut(5, 3)))
    declare(net[2], learns_exactly=True)
    return net


@pytest.mark.parametrize(
    "build", [with_heads, declared, lambda: nn.Sequential(PerGroup(), nn.Tanh(), Classifier(6, 3))]
)
def test_features_are_what_those_that_learn_exactly_would_see(build) -> None:
    net, x = fixed(build()), randn(3, 4)
    found = headless(net)(x)
    torch.testing.assert_close(found, net[:2](x), rtol=0, atol=0)
    contrastive = fgvar.contrastive.Contrastive(net, fgvar.contrastive.InfoNCE(), (x, -x))
    torch.testing.assert_close(contrastive.features(x), found, rtol=0, atol=1e-12)


@pytest.mark.parametrize("root", [ReadOut(4, 3, norm=False), Classifier(4, 3)])
def test_features_of_a_network_that_is_a_head_are_its_inputs(root: nn.Module) -> None:
    x = randn(2, 4)
    assert torch.equal(headless(nn.Sequential(root).double())(x), headless(root)(x))
    assert torch.equal(headless(root)(x), x)


def test_declared_rows_are_credited_by_their_own_group() -> None:
    """Without bias, and with less noise: the variance of a row leaves out the other group's copy of the loss."""
    traces = []
    for declared in (False, True):
        net = with_heads()
        declare(net.get_submodule("0"), group_rows=declared)
        assert_unbiased(fgvar.scheme("LG-FG-W"), problem(net))
        traces.append(float(fgvar.theory.trace(fgvar.scheme("LG-FG-W"), problem(net))["0.weight"]))
    assert traces[1] < 0.9 * traces[0]


def test_local_heads_void_a_declaration_of_other_groups() -> None:
    assert not traits_of(with_heads().get_submodule("0")).group_rows
    assert traits_of(PerGroup()).group_rows


def test_a_declaration_is_of_one_module_and_goes_with_its_copies() -> None:
    one, other = nn.Linear(2, 2), nn.Linear(2, 2)
    declare(one, learns_exactly=True)
    declare(one, published_group_rows=True)
    for layer in (one, copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert traits_of(layer) == Traits(learns_exactly=True, published_group_rows=True)
    assert traits_of(other) == Traits()


def test_a_declaration_that_is_none_is_refused() -> None:
    net = nn.Linear(2, 2)
    net.fgvar_traits = {"learns_exactly": True}
    with pytest.raises(TypeError, match=r"fgvar_traits of Linear is dict, expected fgvar\.networks\.Traits"):
        fgvar.with_sites(net)
