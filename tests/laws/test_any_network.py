"""Anybody's network: convolutions, attention, recurrence and residual connections, without a subclass."""

from collections.abc import Callable

import pytest
import torch
from cases import labels, randn
from nets import RELUS, Last, assert_unbiased, conv, encoder, fixed, inputs_of, problem_of, residual
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

import fgvar
from fgvar.nn.reach import OUTPUT

builds = pytest.mark.parametrize("build", [conv, encoder, residual], ids=lambda b: b.__name__)


def sites_of(net: nn.Module) -> list[str]:
    return [name for name, module in net.named_modules() if isinstance(module, fgvar.networks.Site)]


class Calls(nn.Module):
    """A function of modules."""

    def __init__(self, function: Callable[["Calls", Tensor], object], **modules: nn.Module) -> None:
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(self, x)


# ---- unbiased ----------------------------------------------------------------------------------------------


@builds
@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_global_schemes(build, name: str, train: bool) -> None:
    assert_unbiased(fgvar.scheme(name), problem_of(fgvar.with_sites(fixed(build(), train=train)), build))


@builds
def test_with_declared_relus(build) -> None:
    problem = problem_of(fgvar.with_sites(fixed(build())), build)
    space = fgvar.ActivitySpace(relu_after=RELUS[build])
    assert_unbiased(fgvar.scheme("FG-A", space=space), problem)
    linearised = space.linearise(problem, fgvar.GlobalLoss())
    masked = linearised.direction({site: torch.ones_like(z) for site, z in linearised.point.items()})
    assert {site for site, u in masked.items() if not u.all()} == set(RELUS[build])


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_a_recurrent_network(name: str) -> None:
    assert_unbiased(fgvar.scheme(name), problem_of(fgvar.with_sites(fixed(Last())), Last))


class Attention(nn.Module):
    """One head, by the function that chooses a fused kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = nn.Linear(3, 2), nn.Linear(3, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        attended = functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        return attended.sum(1)


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_functional_attention(name: str) -> None:
    problem = fgvar.Problem(
        fgvar.with_sites(fixed(Attention())), "cross_entropy", (randn(2, 3, 3, seed=3), labels(2, 3))
    )
    # All queries' keys share a shift: the softmax does not see it.
    assert_unbiased(fgvar.scheme(name), problem, dead=("k.bias",))


def test_the_choice_of_kernels_is_the_users_again() -> None:
    problem = problem_of(fgvar.with_sites(fixed(encoder())), encoder)
    kernels = torch.backends.mha, torch.backends.cuda
    before = kernels[0].get_fastpath_enabled(), kernels[1].flash_sdp_enabled(), kernels[1].mem_efficient_sdp_enabled()
    problem.loss()
    with pytest.raises(RuntimeError, match="shape"):
        problem.at(batch=(randn(2, 2, 7), labels(2, 3))).loss()
    after = kernels[0].get_fastpath_enabled(), kernels[1].flash_sdp_enabled(), kernels[1].mem_efficient_sdp_enabled()
    assert before == after == (True, True, True)


# ---- derivatives -------------------------------------------------------------------------------------------


@builds
def test_per_example_directional_derivatives(build) -> None:
    """c = ⟨∂ℓ_n/∂z_n, u_n⟩ by reverse mode, one example at a time; masked numbers do not count."""
    wrapped = fgvar.with_sites(fixed(build()))
    problem = problem_of(wrapped, build, batch=3)
    estimator = fgvar.scheme("FG-A", space=fgvar.ActivitySpace(relu_after=RELUS[build]))
    noise = {
        name: randn(*leaf.shape, seed=i)
        for i, (name, leaf) in enumerate(estimator.randomness(problem).leaves.items())
    }
    linearised = estimator.space.linearise(problem, estimator.losses)
    found = estimator.oracle.terms(linearised, linearised.direction(noise))[0][OUTPUT].flatten()
    relus = problem.run(problem.params, watch=RELUS[build].values())[1]
    for n in range(3):
        taps = {name: torch.zeros(1, *u.shape[1:], dtype=u.dtype, requires_grad=True) for name, u in noise.items()}
        output = functional_call(
            wrapped, {f"{name}.tap": tap for name, tap in taps.items()}, (problem.inputs[n : n + 1],)
        )
        loss = functional.cross_entropy(output, problem.targets[n : n + 1])
        slopes = dict(zip(taps, torch.autograd.grad(loss, list(taps.values())), strict=True))
        seen = {name: relus[RELUS[build][name]][n] > 0 for name in RELUS[build]}
        by_hand = sum((slopes[name][0] * u[n] * seen.get(name, 1)).sum() for name, u in noise.items())
        torch.testing.assert_close(found[n], by_hand, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (conv, (1, 3, 3)),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 3)), (3,)),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.GRU(4, 2, batch_first=True)), (2, 3)),
    ],
    ids=["conv", "norm", "recurrent"],
)
def test_local_vjps_are_those_of_autograd(build, shape: tuple[int, ...]) -> None:
    """Stage by stage, each fed with a constant: what its parameters do to its own site (batch mean)."""
    net = fixed(build())
    x = randn(2, *shape, seed=3)
    problem = fgvar.Problem(
        fgvar.with_sites(net),
        lambda y, _: (y[0] if isinstance(y, tuple) else y).flatten(1).square().sum(1),
        (x, labels(2, 3)),
    )
    linearised = fgvar.ActivitySpace().linearise(problem, fgvar.GlobalLoss())
    credited = {site: randn(*z.shape, seed=i) for i, (site, z) in enumerate(linearised.point.items())}
    found = linearised.backward(credited)
    for name, stage in net.named_children():
        z = stage(x)
        z = z[0] if isinstance(z, tuple) else z
        if f"{name}.site" in credited:
            own = dict(stage.named_parameters())
            by_hand = torch.autograd.grad((z * credited[f"{name}.site"]).sum(), list(own.values()))
            for key, gradient in zip(own, by_hand, strict=True):
                torch.testing.assert_close(2 * found[f"{name}.{key}"], gradient, rtol=0, atol=1e-12)
        x = z.detach()


# ---- which modules get a site ------------------------------------------------------------------------------


def test_attention_is_one_site_as_a_whole() -> None:
    wrapped = fgvar.with_sites(fixed(encoder()))
    inner = ["1.self_attn", "1.linear1", "1.linear2", "1.norm1", "1.norm2"]
    assert sites_of(wrapped) == ["0.site", *(f"{name}.site" for name in inner), "3.site"]
    problem = problem_of(wrapped, encoder)
    assert set(problem.trace.sites) == set(sites_of(wrapped))  # all of them are called
    assert problem.trace.sites["1.self_attn.site"] == (2, 2, 4)
    assert sites_of(fgvar.with_sites(fixed(encoder()), types=(nn.Linear,))) == [
        "0.site", "1.linear1.site", "1.linear2.site", "3.site",
    ]  # fmt: skip
    assert sites_of(fgvar.with_sites(nn.MultiheadAttention(4, 2))) == ["site"]


def test_a_site_inside_attention_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'1\.self_attn\.out_proj' is never called.*'1\.self_attn' in sites="):
        fgvar.with_sites(fixed(encoder()), sites=["1.self_attn.out_proj"])


def test_a_module_that_learns_exactly_gets_no_site() -> None:
    net = nn.Sequential(nn.Linear(3, 4), fgvar.networks.MLP(4, width=4, depth=1, classes=3).readout).double()
    assert sites_of(fgvar.with_sites(net)) == ["0.site"]
    with pytest.raises(ValueError, match=r"'1\.linear' learns exactly.*leave it out of sites="):
        fgvar.with_sites(net, sites=["1.linear"])


def test_a_sequential_can_have_a_site() -> None:
    net = fixed(nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Tanh()), nn.Linear(4, 3)))
    x, u = randn(2, 3), randn(2, 4, seed=5)
    wrapped = fgvar.with_sites(net, sites=["0", "1"])
    assert torch.equal(wrapped(x), net(x))
    moved = functional_call(wrapped, {"0.site.tap": u}, (x,))
    torch.testing.assert_close(moved, net[1](net[0](x) + u), rtol=0, atol=1e-14)
    assert_unbiased(fgvar.scheme("FG-A"), fgvar.Problem(wrapped, "cross_entropy", (x, labels(2, 3))))


# ---- outputs that are not one tensor -----------------------------------------------------------------------


@pytest.mark.parametrize("index", [0, 1])
def test_the_first_tensor_of_a_tuple_is_perturbed(index: int) -> None:
    net = Calls(lambda m, x: (None, m.layer(x), x)[1 - index :], layer=nn.Linear(3, 2)).double()
    wrapped = fgvar.with_sites(Calls(lambda m, x: m.inner(x), inner=net), sites=["inner"])
    x, u = randn(4, 3), randn(4, 2, seed=5)
    before, after = wrapped(x), functional_call(wrapped, {"inner.site.tap": u}, (x,))
    assert type(after) is tuple
    assert len(after) == 2 + index
    assert torch.equal(after[index], before[index] + u)
    assert after[-1] is x


@pytest.mark.parametrize(
    ("output", "kind"), [(lambda z: {"z": z}, "dict"), (lambda z: (None, [z]), "tuple"), (lambda z: [z], "list")]
)
def test_other_structures_are_refused_by_name(output, kind: str) -> None:
    inner = Calls(lambda m, x: output(m.layer(x)), layer=nn.Linear(3, 2))
    wrapped = fgvar.with_sites(nn.Sequential(nn.Sequential(inner)), sites=["0.0"])
    with pytest.raises(TypeError, match=rf"after '0\.0' \(Calls\) got {kind}, expected a tensor.*sites="):
        wrapped(randn(4, 3).float())


def test_what_leaves_by_the_tuples_second_tensor_is_credited_at_the_next_site() -> None:
    net = Calls(lambda m, x: m.fc(m.rnn(x)[1][0]), rnn=nn.GRU(3, 4, batch_first=True), fc=nn.Linear(4, 3))
    assert_unbiased(fgvar.scheme("FG-A"), problem_of(fgvar.with_sites(fixed(net)), Last))
    bare = problem_of(fgvar.with_sites(net, sites=["rnn"]), Last)
    with pytest.raises(ValueError, match=r"'rnn\.weight_ih_l0'.* reach the loss past the sites"):
        fgvar.scheme("FG-A").randomness(bare)


def test_examples_along_another_axis_than_the_first() -> None:
    net = Calls(lambda m, x: m.fc(m.rnn(x.transpose(0, 1))[0][-1]), rnn=nn.GRU(3, 4), fc=nn.Linear(4, 3))
    problem = problem_of(fgvar.with_sites(fixed(net)), Last)
    with pytest.raises(ValueError, match=r"'rnn\.site'.*batch axis \(2\) first"):
        fgvar.scheme("FG-A").randomness(problem)


def test_inputs_stay_what_they_were() -> None:
    net, x = fixed(encoder()), inputs_of(encoder)
    before = x.clone()
    torch.testing.assert_close(fgvar.with_sites(net)(x), net(x), rtol=0, atol=1e-14)
    assert torch.equal(x, before)
