"""Sites: same function, same names, and credit for every parameter."""

import copy
import pickle

import pytest
import torch
from cases import Tied, labels, randn
from nets import assert_unbiased
from plain_nets import Across, Functional, Repeated, Scaled, builds, conv, plain, problem_of, sites_of
from torch import Tensor, nn
from torch.func import functional_call

import fgvar
from fgvar.testing import expectation

# ---- with_sites --------------------------------------------------------------------------------------------


@builds
def test_with_sites_keeps_the_function_and_every_name(build) -> None:
    net = plain(build)
    wrapped = fgvar.with_sites(net)
    x = randn(3, 4)
    assert torch.equal(wrapped(x), net(x))
    assert [name for name, _ in wrapped.named_parameters()] == [name for name, _ in net.named_parameters()]
    assert list(wrapped.state_dict()) == list(net.state_dict())
    again = fgvar.with_sites(plain(build))
    again.load_state_dict(net.state_dict())
    assert torch.equal(again(x), net(x))
    assert [type(m) for m in wrapped.modules() if not isinstance(m, fgvar.networks.Site)] == [
        type(m) for m in net.modules()
    ]


@builds
def test_with_sites_leaves_the_original_alone(build) -> None:
    net = plain(build)
    before, described = {name: p.clone() for name, p in net.named_parameters()}, repr(net)
    wrapped = fgvar.with_sites(net)
    with torch.no_grad():
        for p in wrapped.parameters():
            p.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert repr(net) == described
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(
    ("build", "sites"),
    [
        (None, ["0.site", "2.site"]),
        (conv, ["1.site", "2.site", "4.site"]),
        (Scaled, ["body.0.site", "body.2.site", "site"]),
        (Tied, ["one.site", "two.site", "last.site"]),
    ],
)
def test_every_module_that_owns_parameters_gets_a_site(build, sites: list[str]) -> None:
    assert sites_of(fgvar.with_sites(plain(build))) == sites


def test_sites_and_types_choose() -> None:
    net = plain(conv)
    assert sites_of(fgvar.with_sites(net, sites=["4", "0"])) == ["0.site", "4.site"]
    assert sites_of(fgvar.with_sites(net, sites={"3"})) == ["3.site"]  # also without parameters
    assert sites_of(fgvar.with_sites(net, types=(nn.Conv2d, nn.LayerNorm))) == ["1.site", "4.site"]
    assert sites_of(fgvar.with_sites(plain(Scaled), types=(nn.Module,))) == [
        "body.0.site", "body.1.site", "body.2.site", "body.site", "site",
    ]  # fmt: skip
    assert torch.equal(fgvar.with_sites(net, sites=["4"])(randn(3, 4)), net(randn(3, 4)))


def test_a_site_stands_after_its_whole_module() -> None:
    wrapped = fgvar.with_sites(plain(Scaled))
    problem = problem_of(wrapped)
    outputs, values = problem.run(problem.params, watch=("site", "body.2.site", "body.2"))
    assert torch.equal(values["site"], outputs)
    assert torch.equal(problem.params["scale"] * values["body.2.site"], outputs)
    assert torch.equal(values["body.2"], values["body.2.site"])  # a module's output includes its site
    assert problem.trace.sites == {"body.0.site": (3, 5), "body.2.site": (3, 3), "site": (3, 3)}


def test_wrapped_networks_can_be_copied_and_pickled() -> None:
    wrapped, x = fgvar.with_sites(plain(Scaled)), randn(3, 4)
    for twin in (copy.deepcopy(wrapped), pickle.loads(pickle.dumps(wrapped))):
        assert torch.equal(twin(x), wrapped(x))
        assert sites_of(twin) == sites_of(wrapped)
        moved = functional_call(twin, {"site.tap": torch.ones(3, 3, dtype=torch.float64)}, (x,))
        assert torch.equal(moved, wrapped(x) + 1)


# ---- one site: the tap, and the cut ------------------------------------------------------------------------


def test_a_tap_is_added() -> None:
    net, x, u = plain(), randn(3, 4), randn(3, 5, seed=9)
    problem = problem_of(fgvar.with_sites(net)).at(batch=(x, labels(3, 3)))
    ours = problem.run(problem.params, {"0.site": u})[0]
    by_hand = (x @ net[0].weight.T + net[0].bias + u).clamp(min=0) @ net[2].weight.T + net[2].bias
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-14)
    assert torch.equal(problem.run(problem.params, {"0.site": torch.zeros_like(u)})[0], net(x))


def test_an_untouched_site_is_the_identity() -> None:
    z = randn(3)
    site = fgvar.networks.Site()
    assert site(z) is z
    assert list(site.state_dict()) == []
    assert repr(site) == "Site()"
    assert repr(fgvar.networks.Site(relu="act", group_axis=2)) == "Site(relu='act', group_axis=2)"


# ---- names and children of the user's own ------------------------------------------------------------------


class Named(nn.Module):
    """A linear map with something of its own by the name of a site."""

    def __init__(self, *, child: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        self.site = nn.Linear(4, 3) if child else "here"

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.weight
        return self.site(x) if isinstance(self.site, nn.Module) else x


class ResidualSequential(nn.Sequential):
    """Calls all of its children, and goes on from there."""

    def __init__(self, *children: nn.Module) -> None:
        super().__init__(*children)
        self.gain = nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * super().forward(x)


class Chain(nn.Module):
    """Calls all of its children, whoever hung them there."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.gain, self.two = nn.Linear(4, 3), nn.Parameter(torch.zeros(3)), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            x = child(x)
        return self.gain * x


def residual() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), ResidualSequential(nn.Linear(3, 3), nn.Tanh()))


@pytest.mark.parametrize(
    ("build", "sites"),
    [
        (lambda: nn.Sequential(Named(child=True)), ["0.site.site", "0.site1"]),
        (lambda: nn.Sequential(nn.Linear(4, 4), Named(child=False)), ["0.site", "1.site1"]),
        (residual, ["0.site", "1.0.site", "1.site"]),
        (Chain, ["one.site", "site"]),
    ],
    ids=["child named site", "attribute named site", "subclass of Sequential", "calls its children"],
)
def test_what_the_user_named_or_calls_stays(build, sites: list[str]) -> None:
    net, x = plain(build), randn(2, 4)
    for wrapped in (fgvar.with_sites(net), fgvar.with_sites(net, inputs=x)):
        assert sorted(sites_of(wrapped)) == sites
        assert list(wrapped.state_dict()) == list(net.state_dict())
        assert torch.equal(wrapped(x), net(x))
        last = randn(*net(x).shape, seed=5)
        moved = functional_call(wrapped, {f"{sites[-1]}.tap": last}, (x,))
        torch.testing.assert_close(moved, net(x) + last, rtol=0, atol=1e-14)
        assert_unbiased(fgvar.scheme("FG-A"), problem_of(wrapped, batch=2))


def test_both_orders_of_heads_and_sites_keep_copies_apart_behind_a_sequential() -> None:
    net = plain(lambda: nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, 3)))
    heads = {"after": ("0",), "classes": 3, "groups": 2, "inputs": randn(2, 4)}
    for both in (
        fgvar.with_sites(fgvar.with_local_heads(net, **heads), sites=["0"]),
        fgvar.with_local_heads(fgvar.with_sites(net, sites=["0"]), **heads),
    ):
        assert both.get_submodule("0.site").group_axis == 1


# ---- tied weights, repeated modules, raw parameters --------------------------------------------------------


def test_a_tied_weight_is_one_parameter_with_two_owners() -> None:
    net = plain(Tied)
    problem = problem_of(fgvar.with_sites(net))
    assert list(problem.params) == ["one.weight", "one.bias", "two.bias", "last.weight", "last.bias"]
    assert problem.network.owners["one.weight"] == ("one", "two")
    assert problem.network.owners["two.bias"] == ("two",)
    net.zero_grad()
    nn.functional.cross_entropy(net(problem.inputs), problem.targets).backward()
    for name, gradient in problem.backprop().items():
        torch.testing.assert_close(gradient, net.get_parameter(name).grad, rtol=0, atol=1e-14)


def test_a_tied_weight_moves_both_of_its_uses() -> None:
    net = plain(Tied)
    problem = problem_of(net)
    moved = {**problem.params, "one.weight": problem.params["one.weight"] + 1}
    with torch.no_grad():
        net.one.weight.add_(1)
        torch.testing.assert_close(problem.run(moved)[0], net(problem.inputs), rtol=0, atol=1e-14)


def test_with_sites_keeps_weights_tied() -> None:
    wrapped = fgvar.with_sites(plain(Tied))
    assert wrapped.one.weight is wrapped.two.weight


@pytest.mark.parametrize("build", [Repeated, Functional, Scaled, Tied], ids=lambda b: b.__name__)
@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_odd_parameters_get_all_of_their_credit(build, name: str) -> None:
    """Used twice, used without a call, or owned by a module around others: the exact mean is the gradient."""
    sites = {Repeated: ["last"], Functional: ["last"]}.get(build)
    problem = problem_of(fgvar.with_sites(plain(build), sites=sites), batch=2)
    mean = expectation(fgvar.scheme(name), problem)
    for key, gradient in problem.backprop().items():
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(mean[key], gradient, rtol=0, atol=1e-12)


@pytest.mark.parametrize("stop", [True, False])
def test_a_module_shared_by_two_blocks_is_credited_by_both(stop: bool) -> None:
    problem = problem_of(plain(Across), batch=2)
    estimator = fgvar.scheme("LG-FG-W", losses=fgvar.LocalLosses(stop=stop))
    mean, target = expectation(estimator, problem), estimator.target(problem)
    assert target["map.weight"].abs().max() > 1e-3
    for key in target:
        torch.testing.assert_close(mean[key], target[key], rtol=0, atol=1e-12)


def test_torch_s_transformer_with_a_padding_mask_shows_its_batch_axis() -> None:
    """Without a gradient torch takes a fast path there, by nested tensors, which have no shape."""

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0, batch_first=True)
            self.body, self.last = nn.TransformerEncoder(layer, 1), nn.Linear(4, 3)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            return self.last(self.body(x, src_key_padding_mask=padding)[:, 0])

    inputs = randn(4, 5, 4), torch.arange(5).expand(4, 5) >= torch.tensor([5, 4, 3, 5])[:, None]
    net = plain(Encoder).eval()
    assert sites_of(fgvar.with_sites(net, inputs=inputs)) == sites_of(fgvar.with_sites(net))


def test_a_site_without_a_batch_axis_is_refused_where_sizes_coincide_too() -> None:
    """As many rows as examples, but one number moves all of them: crediting it by example would be biased."""

    class Made(nn.Module):
        """A layer whose weight another layer makes, row by row, of a constant."""

        def __init__(self) -> None:
            super().__init__()
            self.maker, self.last = nn.Linear(2, 4), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.maker(torch.eye(3, 2, dtype=x.dtype))
            return self.last(torch.tanh(x @ weight.T))

    problem = problem_of(fgvar.with_sites(plain(Made)), batch=3)
    assert problem.trace.sites["maker.site"] == (3, 4)
    with pytest.raises(ValueError, match=r"maker\.site.*batch axis"):
        fgvar.scheme("FG-A").randomness(problem)
