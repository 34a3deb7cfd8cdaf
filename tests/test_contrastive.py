"""Contrastive problems: the value, the stop, and unbiased credit with and without it, by enumeration."""

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from cases import randn
from torch import Tensor, nn

import fgvar
from fgvar.testing import expectation

TOLERANCE = 1e-9
NAMES = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")


def network(blocks: int = 2) -> nn.Module:
    return fgvar.networks.LocalMixer(
        (1, 4, 4), 3, blocks=blocks, patches=2, channels=8, groups=2, seed=0, init="constant"
    ).double()


def views(batch: int = 3) -> tuple[Tensor, Tensor]:
    return randn(batch, 1, 4, 4, seed=1), randn(batch, 1, 4, 4, seed=2)


def contrastive(*, batch: int = 3, **settings: Any) -> fgvar.contrastive.Contrastive:
    return fgvar.contrastive.Contrastive(network(), fgvar.contrastive.InfoNCE(**settings), views(batch))


def naive(queries: Tensor, keys: Tensor, temperature: float = 0.1) -> Tensor:
    """InfoNCE from its definition, by a double loop."""
    losses = []
    for i, query in enumerate(queries):
        logits = [(query @ key) / query.norm() / key.norm() / temperature for key in keys]
        losses.append(-torch.log(logits[i].exp() / sum(logit.exp() for logit in logits)))
    return torch.stack(losses)


def represented(model: nn.Module, images: Tensor) -> Tensor:
    """What the read-out would classify."""
    seen: list[Tensor] = []
    handle = model.readout.linear.register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    model(images)
    handle.remove()
    return seen[0]


def assert_unbiased(estimator: fgvar.Estimator, problem: fgvar.Problem) -> None:
    target = estimator.target(problem)
    assert max(float(g.abs().max()) for g in target.values()) > 1e-3, "0 would be compared with 0"
    for name, mean in expectation(estimator, problem).items():
        torch.testing.assert_close(mean, target[name], rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stop", [True, False])
def test_value_and_gradient_are_those_of_a_double_loop(stop: bool) -> None:
    model, (one, two) = network(), views()
    keys = represented(copy.deepcopy(model).requires_grad_(False) if stop else model, two)
    loss = naive(represented(model, one), keys).mean()
    loss.backward()
    problem = contrastive(stop_gradient=stop)
    torch.testing.assert_close(problem.loss(), loss.detach())
    trunk = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    found = problem.backprop()
    assert set(trunk) == set(found) - {name for name in found if "linear" in name}
    for name, gradient in trunk.items():
        torch.testing.assert_close(found[name], gradient, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_unbiased(name: str, stop: bool) -> None:
    assert_unbiased(fgvar.scheme(name), contrastive(stop_gradient=stop))


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("name", ["FG-A", "LG-FG-A"])
def test_replay_repeats_jvp(name: str, stop: bool) -> None:
    assert_unbiased(fgvar.scheme(name, oracle=fgvar.oracles.Replay()), contrastive(stop_gradient=stop))


@pytest.mark.parametrize("patch", [True, False])
@pytest.mark.parametrize("group", [True, False])
def test_copies_sum_to_the_ordinary_gradient(patch: bool, group: bool) -> None:
    """Replicated or not, each block's InfoNCE of its pooled features has one gradient; L-BP's flows on."""
    problem, model, (one, two) = contrastive(), network(), views()
    losses = fgvar.LocalLosses(patch=patch, group=group)
    found = fgvar.Estimator(fgvar.ActivitySpace(), losses=losses).target(problem)
    features = {name: pooled(model, name, one) for name in model.block_names}
    total = sum(
        naive(features[name], pooled(copy.deepcopy(model), name, two).detach()).mean() for name in model.block_names
    )
    last = torch.autograd.grad(total, model.block1.channel.weight, retain_graph=True)[0]
    torch.testing.assert_close(found["block1.channel.weight"], last)
    through = fgvar.scheme("L-BP").target(problem)["block0.channel.weight"]
    torch.testing.assert_close(through, torch.autograd.grad(total, model.block0.channel.weight)[0])
    assert_unbiased(fgvar.Estimator(fgvar.ActivitySpace(), losses=losses), problem)


def pooled(model: nn.Module, block: str, images: Tensor) -> Tensor:
    """A block's features, normalised within each group, averaged over tokens, groups side by side."""
    seen: list[Tensor] = []
    handle = model.get_submodule(f"{block}.head.end").register_forward_hook(
        lambda _m, _i, output: seen.append(output)
    )
    model(images)
    handle.remove()
    x = seen[0] - seen[0].mean(3, keepdim=True)
    return (x / (x.square().mean(3, keepdim=True) + 1e-5).sqrt()).mean(1).flatten(1)


@dataclass(frozen=True)
class OwnTermsOnly(fgvar.ActivitySpace):
    """Planted: activities are credited with the term of their own example, though the others move, too."""

    def linearise(self, problem, losses):
        uncoupled = copy.copy(problem)
        uncoupled._pair = problem._pair
        uncoupled.coupled = False
        return super().linearise(uncoupled, losses)


def test_credit_by_its_own_term_alone_would_be_caught() -> None:
    assert_unbiased(fgvar.Estimator(OwnTermsOnly()), contrastive())
    planted = fgvar.Estimator(OwnTermsOnly())
    with pytest.raises(AssertionError, match="not close"):
        assert_unbiased(planted, contrastive(stop_gradient=False))


def test_examples_keep_all_keys() -> None:
    """The mean over the problems of single examples is the whole problem: data variance is of these."""
    problem = contrastive()
    each = [problem.example(n) for n in range(3)]
    torch.testing.assert_close(torch.stack([one.loss() for one in each]).mean(), problem.loss())
    for name in ("BP", "LG-BP"):
        target = fgvar.scheme(name).target
        at_once = problem.per_example(target)
        for key, gradient in target(problem).items():
            torch.testing.assert_close(torch.stack([target(one)[key] for one in each]).mean(0), gradient)
            torch.testing.assert_close(at_once[key].mean(0), gradient)


@pytest.mark.parametrize("stop", [True, False])
def test_other_parameters_or_views_bring_new_keys(stop: bool) -> None:
    """As a problem made anew has them; passing parameters to `loss` leaves the keys where they are."""
    problem, params = contrastive(stop_gradient=stop), contrastive().params
    moved = {name: p + 0.1 * randn(*p.shape, seed=5) for name, p in params.items()}
    other, model = (randn(4, 1, 4, 4, seed=8), randn(4, 1, 4, 4, seed=9)), network()
    model.load_state_dict(moved, strict=False)
    anew = fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(stop_gradient=stop), other)
    for name in ("BP", "LG-BP"):
        for key, gradient in fgvar.scheme(name).target(problem.at(moved, other)).items():
            torch.testing.assert_close(gradient, fgvar.scheme(name).target(anew)[key])
    assert torch.equal(problem.at(moved).loss(moved), problem.loss(moved)) != stop


@pytest.mark.parametrize("stop", [True, False])
def test_another_batch_leaves_the_factors_of_the_old_one_behind(stop: bool) -> None:
    plain = contrastive(stop_gradient=stop)
    old = plain.weighted(torch.arange(1.0, plain.batch_size + 1).double())
    site = next(iter(plain.trace.sites))
    tapped = old.tapped(site, randn(*plain.trace.sites[site]))
    for batch in (views(), views(2)):
        assert torch.equal(tapped.at(batch=batch).loss(), plain.at(batch=batch).loss())
    if stop:
        queries = (plain.inputs[1:], plain.targets[1:])
        assert torch.equal(tapped.with_queries(*queries).loss(), plain.with_queries(*queries).loss())


def test_other_queries_keep_the_keys() -> None:
    """Those of some rows, and images of their own."""
    problem = contrastive()
    some = problem.with_queries(problem.inputs[1:], problem.targets[1:])
    assert torch.equal(some.loss(), problem.rows(slice(1, 3)).loss())
    model, images = network(), randn(2, 1, 4, 4, seed=7)
    keys, numbers = represented(model, views()[1]), torch.tensor([2, 0])
    order = [[2, 0, 1], [0, 1, 2]]  # of the keys, each query's own one first
    each = [naive(query[None], keys[own])[0] for query, own in zip(represented(model, images), order, strict=True)]
    torch.testing.assert_close(problem.with_queries(images, numbers).loss(), torch.stack(each).mean())


@pytest.mark.parametrize("stop", [True, False])
def test_a_query_is_correct_whose_own_key_is_most_like_it(stop: bool) -> None:
    problem, model, (one, two) = contrastive(stop_gradient=stop), network(), views()
    queries, keys = represented(model, one), represented(model, two)
    cosines = torch.stack([torch.stack([q @ k / q.norm() / k.norm() for k in keys]) for q in queries])
    expected = cosines.argmax(1) == torch.arange(3)
    expected = expected if stop else expected.repeat(2)
    assert torch.equal(problem.correct(problem.run(problem.params)[0]), expected)
    same = fgvar.contrastive.Contrastive(network(), fgvar.contrastive.InfoNCE(stop_gradient=stop), (one, one))
    assert bool(same.correct(same.run(same.params)[0]).all())


@pytest.mark.parametrize("stop", [True, False])
def test_measure(stop: bool) -> None:
    estimators = {name: fgvar.scheme(name) for name in ("FG-W", "LG-FG-A")}
    problem = contrastive(stop_gradient=stop)
    ds = fgvar.measure(estimators, problem, draws=64, seed=0)
    assert float(ds["loss"]) == pytest.approx(float(problem.loss()))
    assert float(ds["accuracy"]) == pytest.approx(
        float(problem.correct(problem.run(problem.params)[0]).double().mean())
    )
    assert ds["relative_variance"].sel(layer="total").min() > 1
    assert ds["bias_p"].sel(layer="total", reference="target").min() > 1e-6
    assert bool(ds["data_variance"].sel(layer="total").isnull().all()) != stop


@pytest.mark.parametrize("name", NAMES)
def test_closed_forms_of_the_variance(name: str) -> None:
    problem = fgvar.contrastive.Contrastive(network(blocks=1), fgvar.contrastive.InfoNCE(), views(2))
    exact = fgvar.theory.variance(fgvar.scheme(name), problem)
    for key, enumerated in fgvar.testing.covariance(fgvar.scheme(name), problem).items():
        largest = float(enumerated.diagonal().max())
        torch.testing.assert_close(
            exact[key].flatten(), enumerated.diagonal(), rtol=0, atol=1e-9 * max(largest, 1e-6)
        )


def test_the_contract_of_estimators_holds() -> None:
    report = fgvar.testing.check_estimator(fgvar.scheme("LG-FG-A"), {"contrastive": contrastive()})
    assert report.passed, report


@pytest.mark.parametrize("stop", [True, False])
def test_single_precision(stop: bool) -> None:
    double = contrastive(stop_gradient=stop)
    found = fgvar.scheme("LG-BP").target(double.to(torch.float32))
    for name, gradient in fgvar.scheme("LG-BP").target(double).items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name].double(), gradient, rtol=1e-3, atol=1e-2)


def test_features_are_what_the_read_out_sees() -> None:
    torch.testing.assert_close(contrastive().features(views()[0]), represented(network(), views()[0]).detach())


def test_any_network_with_local_heads() -> None:
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 5)).double()
    blocks = fgvar.with_sites(fgvar.with_local_heads(net, after=("1", "3"), classes=3, groups=2))
    problem = fgvar.contrastive.Contrastive(blocks, fgvar.contrastive.InfoNCE(), (randn(3, 4), randn(3, 4, seed=1)))
    for name in NAMES:
        assert_unbiased(fgvar.scheme(name), problem)


def test_meta_device() -> None:
    images = torch.empty(3, 1, 4, 4, device="meta", dtype=torch.float64)
    for stop in (True, False):
        problem = fgvar.contrastive.Contrastive(
            network().to("meta"), fgvar.contrastive.InfoNCE(stop_gradient=stop), (images, images)
        )
        estimator = fgvar.scheme("LG-FG-A")
        noise = estimator.randomness(problem).sample(0, [0], dtype=torch.float64, device="meta")
        found = estimator.estimate(problem.at(problem.params, (images, images)), {k: u[0] for k, u in noise.items()})
        assert all(g.is_meta for g in found.gradient.values())


class SpoilsKeys:
    """Backpropagation that writes into what it was lent."""

    def __init__(self, name: str) -> None:
        self.name = name

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
        return fgvar.Randomness({"u": fgvar.Leaf((), fgvar.Gaussian())})

    def estimate(self, problem: fgvar.Problem, noise: dict[str, Tensor]) -> fgvar.Estimate:
        gradient = problem.backprop()
        problem.tensors()[self.name].mul_(2)
        return fgvar.Estimate({name: g + 0 * noise["u"] for name, g in gradient.items()})

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()


@pytest.mark.parametrize("stop", [True, False])
def test_a_copy_shares_no_tensor(stop: bool) -> None:
    problem = contrastive(stop_gradient=stop)
    for (name, own), copied in zip(problem.tensors().items(), problem.clone().tensors().values(), strict=True):
        assert torch.equal(own, copied), name
        assert own.data_ptr() != copied.data_ptr(), name


@pytest.mark.parametrize(("stop", "name"), [(True, "keys at 'output'"), (True, "the second view"), (False, "inputs")])
def test_who_spoils_what_it_was_lent_is_named(stop: bool, name: str) -> None:
    problem = contrastive(stop_gradient=stop)
    with pytest.raises(ValueError, match=rf"(?s)'mine'.*changed.*{name}"):
        fgvar.measure({"mine": SpoilsKeys(name)}, problem, draws=32, chunk=1)


def test_settings_are_checked() -> None:
    model, (one, two) = network(), views()
    with pytest.raises(ValueError, match="temperature is 0, expected a positive number"):
        fgvar.contrastive.InfoNCE(temperature=0)
    with pytest.raises(TypeError, match=r"is str, expected fgvar\.contrastive\.InfoNCE"):
        fgvar.contrastive.Contrastive(model, "cross_entropy", (one, two))
    with pytest.raises(TypeError, match="views is Tensor, expected a pair of tensors"):
        fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), one)
    with pytest.raises(TypeError, match="expected floating-point images"):
        fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), (one, torch.arange(3)))
    with pytest.raises(ValueError, match=r"views have shapes \(3, 1, 4, 4\) and \(2, 1, 4, 4\), expected the same"):
        fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), (one, two[:2]))
    with pytest.raises(ValueError, match="needs at least 2; with one its loss is always 0"):
        fgvar.contrastive.Contrastive(model, fgvar.contrastive.InfoNCE(), (one[:1], two[:1]))
    flat = nn.Sequential(nn.Linear(4, 1), nn.Flatten(0)).double()
    with pytest.raises(ValueError, match=r"needs features \[batch, width, …\], the network returned \(3,\)"):
        fgvar.contrastive.Contrastive(flat, fgvar.contrastive.InfoNCE(), (randn(3, 4), randn(3, 4)))
    dead = nn.Linear(4, 2).double()
    nn.init.zeros_(dead.weight)
    nn.init.zeros_(dead.bias)
    with pytest.raises(fgvar.NonFiniteError, match="features of the second view at 'output' are zero"):
        fgvar.contrastive.Contrastive(dead, fgvar.contrastive.InfoNCE(), (randn(3, 4), randn(3, 4)))


def test_coupled_examples_are_told_from_others() -> None:
    coupled = contrastive(stop_gradient=False)
    with pytest.raises(ValueError, match="none has a problem of its own"):
        coupled.example(0)
    with pytest.raises(ValueError, match="none has a problem of its own"):
        coupled.with_queries(*views())
    with pytest.raises(TypeError, match=r"the second view is torch\.int64, expected images.*with_queries"):
        contrastive().at(batch=(views()[0], torch.arange(3)))
    for name, shared in (("FG-W", False), ("FG-A", True)):
        estimator = fgvar.scheme(name, shared=shared)
        with pytest.raises(ValueError, match=f"use shared={not shared}"):
            estimator.randomness(coupled)
    with pytest.raises(ValueError, match="no closed form: the loss couples the examples"):
        fgvar.theory.variance(fgvar.scheme("LG-FG-A"), coupled)
