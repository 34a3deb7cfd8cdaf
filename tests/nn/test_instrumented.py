"""Network: one call of a module, watched and cut; nothing of it stays, on the network or on the user's module."""

import contextlib
import copy
import pickle

import pytest
import torch
from cases import Tied, labels, randn
from plain_nets import Scaled, builds, conv, normed, plain, problem_of
from torch import Tensor, nn
from torch.func import jvp

import fgvar

# ---- one call ----------------------------------------------------------------------------------------------


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


def test_what_a_call_has_seen_is_its_own() -> None:
    """Of one call nothing changes when another one follows, and no pass is on when a call has failed."""
    problem = problem_of(fgvar.with_sites(plain()))
    _, first = problem.run(problem.params, watch=("0.site", "1"))
    before = {name: value.clone() for name, value in first.items()}
    moved = {name: p + 1 for name, p in problem.params.items()}
    assert set(problem.run(moved, watch=("1",))[1]) == {"1"}
    with pytest.raises(RuntimeError):
        problem.run({**problem.params, "2.weight": torch.ones(7, dtype=torch.float64)}, cut=("1",))
    relu, x = problem.network.modules["1"], randn(3, 5).requires_grad_()
    assert relu(x).requires_grad, "a cut is still on"
    assert set(first) == set(before)
    assert all(torch.equal(value, before[name]) for name, value in first.items())


def test_shifts_are_added_ahead_of_the_site() -> None:
    problem, shift = problem_of(fgvar.with_sites(plain())), randn(3, 5, seed=9)
    values, calls = problem.shift_outputs(problem.params, {"0": shift}, cut=("0.site",))
    x, own = calls["0"]
    assert torch.equal(x, problem.inputs)
    assert torch.equal(values["0.site"], own + shift)
    assert torch.equal(own, problem.run(problem.params, watch=("0.site",))[1]["0.site"])


def test_feedback_belongs_to_one_problem() -> None:
    """Two problems of one network, one with feedback, in turns: each has its own way back, and the same values."""
    problem = problem_of(fgvar.with_sites(plain()))
    weights = {"2": {"weight": randn(3, 5, seed=7), "bias": torch.zeros(3, dtype=torch.float64)}}
    by_feedback, exact = problem.with_feedback(weights), problem.backprop()
    z = problem.run(problem.params, watch=("0.site",))[1]["0.site"]
    error = (problem.run(problem.params)[0].softmax(1) - nn.functional.one_hot(problem.targets, 3)) / 3
    by_hand = ((error @ weights["2"]["weight"]) * (z > 0)).T @ problem.inputs
    for _ in range(2):
        found = by_feedback.backprop()
        torch.testing.assert_close(found["0.weight"], by_hand, rtol=0, atol=1e-14)
        assert torch.equal(found["2.weight"], exact["2.weight"])
        assert torch.equal(by_feedback.loss(), problem.loss())
        assert all(torch.equal(value, exact[name]) for name, value in problem.backprop().items())


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
