"""Sites and heads of networks that are frozen in part."""

import pytest
import torch
from exact import assert_exact
from frozen import fixed, problem_of
from torch import nn

import fgvar


def sites(net: nn.Module, **words: object) -> list[str]:
    return [k for k, v in fgvar.with_sites(net, **words).named_modules() if isinstance(v, fgvar.networks.Site)]


def test_frozen_modules_get_no_site_unless_named() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2)).double()
    net[0].requires_grad_(False)
    net[2].weight.requires_grad_(False)
    assert sites(net) == sites(net, types=(nn.Linear,)) == ["2.site", "3.site"]
    assert sites(net, types=(nn.Linear, nn.ReLU)) == ["1.site", "2.site", "3.site"]
    assert sites(net, sites=["0", "3"]) == ["0.site", "3.site"]
    net[2].requires_grad_(False)
    assert_exact(fgvar.scheme("FG-A"), problem_of(fgvar.with_sites(net, sites=["0", "2", "3"])))
    with pytest.raises(ValueError, match="found no module to follow"):
        fgvar.with_sites(net.requires_grad_(False))


def test_a_module_owns_what_it_uses_itself() -> None:
    """Attention the weights of its projection, a parametrized layer those that its weight is made of."""
    attention = nn.MultiheadAttention(4, 2)
    attention.in_proj_weight.requires_grad_(False)
    attention.in_proj_bias.requires_grad_(False)
    made = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    made.bias.requires_grad_(False)
    net = nn.ModuleDict({"attention": attention, "made": made, "last": nn.Linear(4, 2)})
    assert sites(net) == ["attention.site", "made.site", "last.site"]
    attention.requires_grad_(False)
    made.requires_grad_(False)
    assert sites(net) == ["last.site"]


def test_parameters_past_the_sites_are_named_where_they_train() -> None:
    net = fixed(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))
    net[2].bias.requires_grad_(False)
    first = fgvar.with_sites(net, sites=["0"])
    with pytest.raises(ValueError, match=r"parameters \['2\.weight'\] reach the loss past the sites"):
        fgvar.scheme("FG-A").randomness(problem_of(first))
    first[2].requires_grad_(False)
    assert_exact(fgvar.scheme("FG-A"), problem_of(first))


def test_heads_of_a_frozen_network_train_in_the_precision_of_what_trains() -> None:
    net = nn.Sequential(nn.Linear(3, 4).bfloat16().requires_grad_(False), nn.ReLU(), nn.Linear(4, 2))
    heads = fgvar.with_local_heads(net, after=("1",), classes=2)
    own = heads.get_submodule("1.local.head.linear")
    assert all(p.requires_grad and p.dtype == torch.float32 for p in own.parameters())
