"""Sites and the network's map: same function, same names, nothing left on the user's module."""

import contextlib
import copy
import pickle

import pytest
import torch
from cases import Tied, labels, mixer, randn
from torch import Tensor, nn
from torch.func import functional_call, jvp

import fgvar
from fgvar.nn.heads import LocalHead
from fgvar.nn.reach import OUTPUT
from fgvar.testing import expectation


class Scaled(nn.Module):
    """Own parameters around other modules that own some."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.ModuleDict({"inner": nn.Linear(5, 3)})["inner"])
        self.scale = nn.Parameter(torch.tensor([0.5, -1.0, 2.0]))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.body(x)


class Repeated(nn.Module):
    """One linear map, applied twice."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(self.map(torch.tanh(self.map(x)))))


class Functional(nn.Module):
    """A module whose weight is used without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.tanh(nn.functional.linear(x, self.map.weight, self.map.bias)))


class Across(nn.Module):
    """Two blocks with local heads that share one linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.last = nn.Linear(4, 4), nn.Linear(4, 3)
        self.head0, self.head1 = LocalHead(4, 3), LocalHead(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        for head in (self.head0, self.head1):
            x = head.end(torch.tanh(self.map(x))[:, None, None, :]).flatten(1)
        return self.last(x)


def plain(build=None) -> nn.Module:
    """A network in float64 with fixed weights."""
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)) if build is None else build()
    net = net.double()
    for index, p in enumerate(net.parameters()):
        p.data = 0.6 * randn(*p.shape, seed=index)
    return net


def conv() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 2)), nn.Conv2d(1, 3, 2), nn.GroupNorm(1, 3), nn.Flatten(), nn.LayerNorm(3)
    )


def normed() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)).eval()


BUILDS = [None, conv, normed, Scaled, Tied, Repeated, Functional]
builds = pytest.mark.parametrize("build", BUILDS, ids=lambda b: getattr(b, "__name__", "mlp"))


def sites_of(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, fgvar.networks.Site)]


def problem_of(net: nn.Module, batch: int = 3) -> fgvar.Problem:
    return fgvar.Problem(net, "cross_entropy", (randn(batch, 4, seed=50), labels(batch, 3)))


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


def test_derivatives_by_taps_are_those_by_the_activities() -> None:
    net = plain()
    problem = problem_of(fgvar.with_sites(net))
    u = randn(3, 5, seed=9)
    function = lambda tap: problem.run(problem.params, {"0.site": tap})[0]  # noqa: E731
    ours = jvp(function, (torch.zeros_like(u),), (u,))[1]
    z = net[0](problem.inputs)
    by_hand = (u * (z > 0)) @ net[2].weight.T
    torch.testing.assert_close(ours, by_hand, rtol=0, atol=1e-14)


def test_a_cut_stops_the_gradient_but_not_the_value() -> None:
    problem = problem_of(fgvar.with_sites(plain()))
    whole = problem.run(problem.params)[0]
    weights = {name: p.clone().requires_grad_() for name, p in problem.params.items()}
    outputs, values = problem.run(weights, cut=("0.site",))
    assert torch.equal(outputs, whole)
    names = list(weights)
    after = torch.autograd.grad(outputs.sum(), list(weights.values()), allow_unused=True, retain_graph=True)
    assert [name for name, g in zip(names, after, strict=True) if g is not None] == ["2.weight", "2.bias"]
    # The value is handed out uncut, so that the local VJP runs through it.
    before = torch.autograd.grad(values["0.site"].sum(), list(weights.values()), allow_unused=True)
    assert [name for name, g in zip(names, before, strict=True) if g is not None] == ["0.weight", "0.bias"]


def test_a_cut_stops_the_tangent() -> None:
    problem = problem_of(fgvar.with_sites(plain()))

    def run(weight: Tensor) -> tuple[Tensor, Tensor]:
        outputs, values = problem.run({**problem.params, "0.weight": weight}, cut=("0.site",))
        return outputs, values["0.site"]

    weight = problem.params["0.weight"]
    _, (outputs, value) = jvp(run, (weight,), (torch.ones_like(weight),))
    assert not outputs.any()
    assert value.any()


def test_cut_and_watch_last_for_one_run_and_survive_an_error() -> None:
    problem = problem_of(fgvar.with_sites(plain()))
    _, values = problem.run(problem.params, watch=("1",), cut=("0.site",))
    assert set(values) == {"1", "0.site"}
    with pytest.raises(RuntimeError, match="shape"):
        problem.at(batch=(randn(3, 7), labels(3, 3))).run(problem.params, watch=("1",), cut=("0.site",))
    assert problem.run(problem.params)[1] == {}
    assert problem.backprop()["0.weight"].any()


# ---- the map: what reaches which end -----------------------------------------------------------------------

ENDS = ("block0.head.end", "block1.head.end", "block2.head.end")


@pytest.fixture(scope="module")
def three_blocks() -> fgvar.Problem:
    return mixer(blocks=3, channels=6)


def test_map_lists_sites_and_ends_in_the_order_of_their_calls(three_blocks: fgvar.Problem) -> None:
    found = three_blocks.trace
    kinds = [("channel", "grouped")] + 2 * [("token", "channel", "grouped")]
    assert list(found.sites) == [f"block{b}.{kind}_site" for b in range(3) for kind in kinds[b]]
    assert found.sites["block1.token_site"] == found.sites["block1.channel_site"] == (2, 4, 6)
    assert found.sites["block1.grouped_site"] == (2, 4, 2, 3)
    assert found.ends == {end: end.removesuffix(".end") for end in ENDS}
    assert found.batch_size == 2


@pytest.mark.parametrize(
    ("name", "cuts", "ends", "own"),
    [
        # no stop: every later end
        ("block0.grouped_site", (), (*ENDS, OUTPUT), ENDS[0]),
        ("block1.token_site", (), (*ENDS[1:], OUTPUT), ENDS[1]),
        ("block2.channel", (), (ENDS[2], OUTPUT), ENDS[2]),
        # stops between the blocks, and before the read-out: the own end alone
        ("block0.channel", ENDS, ENDS[:1], ENDS[0]),
        ("block1.token_site", ENDS, ENDS[1:2], ENDS[1]),
        ("block2.grouped_site", ENDS, ENDS[2:], ENDS[2]),
        # only the last block's: all ends, but not the read-out
        ("block0.channel_site", ENDS[-1:], ENDS, ENDS[0]),
        ("block1.grouped", ENDS[-1:], ENDS[1:], ENDS[1]),
        # a stop behind does not matter
        ("block2.token", ENDS[:1], (ENDS[2], OUTPUT), ENDS[2]),
        # after all ends there is the output
        ("readout", ENDS, (OUTPUT,), OUTPUT),
        ("readout.linear", (), (OUTPUT,), OUTPUT),
        # a module that encloses an end has parameters before it and, perhaps, after it
        ("block1", (), (*ENDS[1:], OUTPUT), None),
        ("block1", ENDS, ENDS[1:], None),
        ("block2", ENDS, (ENDS[2], OUTPUT), None),
        ("block1.head.linear", ENDS, ENDS[1:], None),  # not called in the forward pass: counts as its parent
        ("", ENDS, (*ENDS, OUTPUT), None),
    ],
)
def test_ends_that_a_module_reaches(three_blocks, name: str, cuts: tuple, ends: tuple, own: str | None) -> None:
    assert three_blocks.trace.ends_after(name, cuts) == (ends, own)


@pytest.mark.parametrize("cuts", [(), ENDS, ENDS[-1:], ENDS[:1]])
def test_reached_ends_are_those_that_move(three_blocks: fgvar.Problem, cuts: tuple[str, ...]) -> None:
    """Against a derivative along each site's tap and each module's weight, exactly zero or not."""
    problem = three_blocks
    taps = {f"{site}.tap": torch.zeros(shape, dtype=torch.float64) for site, shape in problem.trace.sites.items()}
    for key, value in {**taps, **{k: p for k, p in problem.params.items() if ".head." not in k}}.items():
        if key.endswith("token.bias"):
            continue  # dead: the layer norm after it cancels what it moves

        def observe(moved: Tensor, key=key) -> dict[str, Tensor]:
            tensors = {**problem.buffers, **problem.params, key: moved}
            outputs, values = problem.network.run(tensors, problem.inputs, watch=ENDS, cut=cuts)
            return {**{end: values[end] for end in ENDS}, OUTPUT: outputs}

        tangents = jvp(observe, (value,), (randn(*value.shape, seed=3),))[1]
        moving = tuple(end for end, tangent in tangents.items() if tangent.any())
        assert problem.trace.ends_after(key.rpartition(".")[0], cuts)[0] == moving, key


def test_a_module_called_twice_has_no_end_of_its_own() -> None:
    problem = problem_of(plain(Across))
    ends = ("head0.end", "head1.end")
    assert list(problem.trace.ends) == list(ends)
    assert len(problem.trace.visits["map"]) == 2
    assert problem.trace.ends_after("map", ends) == (ends, None)
    assert problem.trace.ends_after("map", ()) == ((*ends, OUTPUT), None)
    assert problem.trace.ends_after("last", ends) == ((OUTPUT,), OUTPUT)


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


# ---- the user's module -------------------------------------------------------------------------------------


def hooks_of(net: nn.Module) -> list[str]:
    kinds = [name for name in vars(nn.Module()) if "hooks" in name]
    return [f"{name}.{kind}" for name, module in net.named_modules() for kind in kinds if getattr(module, kind)]


def user_hook(_module: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
    return 2 * output


def small_mixer() -> nn.Module:
    return fgvar.networks.LocalMixer((1, 4, 4), 3, blocks=2, patches=2, channels=8, groups=2)


@pytest.mark.parametrize("build", [None, conv, normed, Scaled, Tied, small_mixer])
def test_a_problem_leaves_nothing_on_the_users_module(build) -> None:
    net = plain(build)
    net.register_forward_hook(user_hook)
    x = randn(2, *getattr(net, "image_shape", (4,)))
    y = labels(2, 3)
    before, hooks, values = net(x), hooks_of(net), {name: p.clone() for name, p in net.state_dict().items()}
    problem = fgvar.Problem(net, "cross_entropy", (x, y))
    problem.backprop()
    fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=2)
    assert hooks_of(net) == hooks
    assert torch.equal(net(x), before)
    assert all(torch.equal(value, values[name]) for name, value in net.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_the_users_module_still_trains() -> None:
    """Step by step like a twin that no Problem has seen."""
    losses = []
    for used in (True, False):
        net = plain()
        x, y = randn(6, 4), labels(6, 3)
        if used:
            fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, fgvar.Problem(net, "cross_entropy", (x, y)), draws=2)
        optimiser = torch.optim.SGD(net.parameters(), lr=0.5)
        found = []
        for _ in range(5):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net(x), y)
            loss.backward()
            optimiser.step()
            found.append(loss.item())
        losses.append(found)
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0]


def test_later_changes_of_the_module_are_not_seen() -> None:
    net = plain()
    problem = problem_of(net)
    loss = problem.loss()
    with torch.no_grad():
        for p in net.parameters():
            p.mul_(2)
    net[1] = nn.Tanh()
    assert torch.equal(problem.loss(), loss)


def test_buffers_of_the_module_are_not_moved() -> None:
    """Running statistics that a forward pass updates in place are the module's own."""

    norm = nn.InstanceNorm1d(2, track_running_stats=True)
    net = plain(lambda: nn.Sequential(nn.Unflatten(1, (2, 2)), norm, nn.Flatten(), nn.Linear(4, 3)))
    before = {name: b.clone() for name, b in net.named_buffers()}
    with contextlib.suppress(ValueError):  # refusing such a network would do, too
        problem_of(net).loss()
    assert all(torch.equal(b, before[name]) for name, b in net.named_buffers())


@builds
def test_a_problem_keeps_only_params_and_buffers_on_the_device(build) -> None:
    problem = problem_of(fgvar.with_sites(plain(build)))
    skeleton = problem.network.skeleton
    assert all(t.is_meta for t in (*skeleton.parameters(), *skeleton.buffers()))
    assert not any(t.is_meta for t in (*problem.params.values(), *problem.buffers.values()))


def test_problems_are_copied_and_pickled_with_their_own_hooks() -> None:
    original = fgvar.Problem(
        fgvar.with_sites(nn.Sequential(nn.Linear(3, 2)).double()), "mse", (randn(4, 3), randn(4, 2))
    )
    for twin in (copy.deepcopy(original), pickle.loads(pickle.dumps(original))):
        _, values = twin.run(twin.params, watch=("0.site",))
        assert torch.equal(values["0.site"], original.run(original.params)[0])


def test_examples_coupled_without_a_module_are_refused() -> None:
    class Centred(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(3, 2).double()

        def forward(self, x):
            z = self.linear(x)
            return z - z.mean(0)

    with pytest.raises(ValueError, match="couples examples"):
        fgvar.Problem(Centred(), "mse", (randn(4, 3), randn(4, 2)))
