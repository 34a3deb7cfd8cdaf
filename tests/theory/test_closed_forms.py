"""Closed forms of mean and variance: against enumeration, textbooks, general Jacobians and draws."""

import itertools

import numpy as np
import pytest
import torch
from cases import CASES, has_gradient, labels, mixer, randn
from exact import TOLERANCE, assert_exact, assert_same
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fgvar
from fgvar import theory
from fgvar.measurement.dataset import FLAGS
from fgvar.measurement.draws import estimates
from fgvar.nn.heads import LocalHead, ReadOut
from fgvar.testing import expectation
from fgvar.testing.statistical import mean_test
from fgvar.testing.strategies import pairs
from fgvar.theory import credit_vectors

ENUMERABLE = 130  # random numbers


noises = st.sampled_from([fgvar.Gaussian(), fgvar.Rademacher()])
sharing = st.sampled_from([None, True, False])
local_losses = st.builds(
    fgvar.LocalLosses,
    block=st.booleans(),
    patch=st.booleans(),
    group=st.booleans(),
    stop=st.booleans(),
    credit=st.sampled_from(["unbiased", "published"]),
)
losses = st.one_of(st.builds(fgvar.GlobalLoss, heads=st.booleans()), local_losses)
spaces = st.one_of(st.just(fgvar.WeightSpace()), st.builds(fgvar.ActivitySpace, mask_inactive=st.booleans()))


# ---- against enumeration -----------------------------------------------------------------------------------


@settings(max_examples=15)
@given(
    space=spaces,
    noise=noises,
    shared=sharing,
    losses=losses,
    blocks=st.integers(1, 2),
    patches=st.sampled_from([1, 2]),
    groups=st.integers(1, 2),
    batch=st.integers(1, 2),
    seed=st.integers(0, 100),
)
def test_every_composition_on_local_mixer(space, noise, shared, losses, blocks, patches, groups, batch, seed) -> None:
    problem = mixer(blocks=blocks, patches=patches, channels=3 * groups, groups=groups, batch=batch, seed=seed)
    estimator = fgvar.Estimator(space, noise, losses, shared=shared)
    assume(estimator.randomness(problem).size <= ENUMERABLE)
    assume(has_gradient(estimator, problem))
    # The norm after a 1 × 1 token layer cancels its only weight all but for eps: a small difference of large numbers.
    assert_exact(estimator, problem, 1e-6 if blocks > 1 and patches == 1 else TOLERANCE)


@settings(max_examples=15)
@given(
    space=spaces,
    noise=noises,
    shared=sharing,
    widths=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    batch=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_every_space_and_noise_on_plain_networks(space, noise, shared, widths, batch, seed) -> None:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise([4, *widths, 3]):
        layers += [nn.Linear(fan_in, fan_out), nn.Tanh()]
    net = nn.Sequential(*layers[:-1]).double()
    for index, p in enumerate(net.parameters()):
        p.data = 0.7 * randn(*p.shape, seed=seed + index)
    problem = fgvar.Problem(fgvar.with_sites(net), "mse", (randn(batch, 4), randn(batch, 3, seed=1)))
    estimator = fgvar.Estimator(space, noise, shared=shared)
    assume(estimator.randomness(problem).size <= ENUMERABLE)
    assert_exact(estimator, problem)


@pytest.mark.parametrize(
    ("losses", "shared"),
    [
        (fgvar.LocalLosses(), True),
        (fgvar.LocalLosses(), False),
        (fgvar.LocalLosses(stop=False), False),
        (fgvar.GlobalLoss(), False),
    ],
)
def test_patches_and_groups_of_two_blocks(losses: fgvar.LocalLosses, shared: bool) -> None:
    """The widest case on purpose: token mixing, later blocks, both kinds of copies."""
    problem = mixer(blocks=2, patches=2, channels=6, groups=2, batch=1)
    assert_exact(fgvar.Estimator(fgvar.ActivitySpace(), fgvar.Rademacher(), losses, shared=shared), problem)


@pytest.mark.parametrize("space", [fgvar.WeightSpace(), fgvar.ActivitySpace()], ids=["weights", "activities"])
@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("case", ["linear", "mlp_relu", "dead_relu", "shared_weights"])
def test_cases(space: fgvar.WeightSpace, shared: bool, case: str) -> None:
    problem = CASES[case]()
    if isinstance(space, fgvar.WeightSpace):
        problem = problem.at(batch=(problem.inputs[:2], problem.targets[:2]))
    assert_exact(fgvar.Estimator(space, shared=shared), problem)


class Attention(nn.Module):
    """Softmax attention with one site for queries, keys and values together: no layer of a known form."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.end = fgvar.networks.Site(), fgvar.networks.Site()
        self.mix = nn.Parameter(randn(3, 3))
        self.gain = nn.Parameter(randn(3, seed=1))

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.mix
        h = self.site(nn.functional.gelu(torch.softmax(h @ x.mT, -1) @ h))
        return self.end((h * self.gain).mean(1))


@pytest.mark.parametrize("shared", [True, False])
def test_anything_else_by_its_jacobian(shared: bool) -> None:
    problem = fgvar.Problem(Attention(), "cross_entropy", (randn(2, 2, 3), labels(2, 3)))
    assert_exact(fgvar.Estimator(fgvar.ActivitySpace(), shared=shared), problem)


def test_a_subset_of_sites_and_masks_by_name() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(2, 3), labels(2, 2)))
    masked = fgvar.ActivitySpace(sites=("2.site", "4.site"), relu_after={"2.site": "3"})
    assert_exact(fgvar.Estimator(masked), problem)


def test_directions_divide_the_variance_and_antithetic_pairs_do_not() -> None:
    problem = CASES["mlp_relu"]()
    for space in (fgvar.WeightSpace(), fgvar.ActivitySpace()):
        one = theory.variance(fgvar.Estimator(space), problem)
        four = theory.variance(fgvar.Estimator(space, directions=4, antithetic=True), problem)
        assert_same({name: 4 * value for name, value in four.items()}, one)


def test_published_credit_has_another_mean_than_its_target() -> None:
    problem, estimator = mixer(channels=6, batch=1), fgvar.scheme("LG-FG-W", credit="published")
    mean, target = theory.mean(estimator, problem), estimator.target(problem)
    torch.testing.assert_close(mean, expectation(estimator, problem), rtol=0, atol=1e-10)
    bias = {name: float((mean[name] - value).norm() / value.norm()) for name, value in target.items()}
    assert bias["block0.channel.weight"] > 0.01
    assert bias["block0.grouped.weight"] < 1e-10


def test_exact_gradients_do_not_vary() -> None:
    problem = mixer()
    for name in ("BP", "L-BP", "LG-BP"):
        assert not any(value.any() for value in theory.variance(fgvar.scheme(name), problem).values())
        torch.testing.assert_close(theory.mean(fgvar.scheme(name), problem), fgvar.scheme(name).target(problem))


# ---- against the textbook ----------------------------------------------------------------------------------


def total(variance: dict[str, Tensor]) -> float:
    return float(sum(value.sum() for value in variance.values()))


def square(gradient: dict[str, Tensor]) -> float:
    return float(sum(value.square().sum() for value in gradient.values()))


@pytest.mark.parametrize(("noise", "excess"), [(fgvar.Gaussian(), 1), (fgvar.Rademacher(), -1)])
def test_one_loss_over_d_numbers(noise: fgvar.Gaussian, excess: int) -> None:
    """tr Cov/‖∇‖² = d + 1 and d − 1."""
    problem = CASES["mlp_relu"]()
    d = sum(problem.params[name].numel() for name in problem.perturbed)
    gradient = {name: problem.backprop()[name] for name in problem.perturbed}
    variance = theory.variance(fgvar.Estimator(fgvar.WeightSpace(), noise), problem)
    assert total(variance) / square(gradient) == pytest.approx(d + excess, rel=1e-12)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize(("space", "size"), [(fgvar.WeightSpace(), 15), (fgvar.ActivitySpace(), 3)])
def test_conditional_rows_of_table_1(space: fgvar.WeightSpace, size: int, shared: bool) -> None:
    """Given the batch, one 5 × 3 layer: (d + 1)|g|² shared, (d + 1)/N mean|G_n|² independent; d = pq or q."""
    net = nn.Linear(5, 3, bias=False).double()
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(6, 5), labels(6, 3)))
    each = square(problem.per_example(lambda one: one.backprop())) / 6
    expected = (size + 1) * (square(problem.backprop()) if shared else each / 6)
    variance = theory.variance(fgvar.Estimator(space, shared=shared), problem)
    assert total(variance) == pytest.approx(expected, rel=1e-12)


# ---- how it is computed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 1 << 30])
def test_no_number_depends_on_how_many_examples_are_worked_on_at_once(budget: int) -> None:
    problem = mixer(batch=3)
    for name in ("FG-A", "LG-FG-A"):
        estimator = fgvar.scheme(name)
        assert_same(theory.variance(estimator, problem, budget=budget), theory.variance(estimator, problem))
        mean = theory.mean(estimator, problem, budget=budget)
        torch.testing.assert_close(mean, theory.mean(estimator, problem), rtol=0, atol=1e-12)
    single = fgvar.scheme("FG-W", shared=False)
    assert_same(theory.variance(single, problem, budget=budget), theory.variance(single, problem))


def test_backward_passes_grow_with_groups_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not with width, batch, patches, or the number of draws that they replace."""
    counted: list[int] = []
    pull = credit_vectors.CreditVjp.pull

    def counting(self: credit_vectors.CreditVjp, seeds: dict[str, Tensor]) -> dict[str, Tensor]:
        counted.append(len(seeds))
        return pull(self, seeds)

    monkeypatch.setattr(credit_vectors.CreditVjp, "pull", counting)

    def passes(name: str, **sizes: int) -> int:
        counted.clear()
        theory.variance(fgvar.scheme(name), mixer(**{"blocks": 1, "channels": 12, "groups": 2, **sizes}))
        return sum(counted)

    assert passes("FG-A") == 1
    assert passes("FG-A", blocks=3) == 1
    assert passes("LG-FG-A") == 2 + 1  # and one that checks that patches are apart
    assert passes("LG-FG-A", groups=4) == 4 + 1
    assert passes("LG-FG-A", channels=24, batch=5) == passes("LG-FG-A")
    assert passes("LG-FG-A", patches=1) == 2
    assert passes("LG-FG-A", blocks=2) == 2 * (2 + 1) + (1 + 1)  # the second block has a token layer
    assert passes("FG-W") == 1
    assert passes("LG-FG-W", blocks=2, groups=4) == 2 * (4 + 1)


# ---- against draws, and in datasets ------------------------------------------------------------------------


def test_drawn_and_exact_routes_agree_within_errors() -> None:
    """5.5 standard errors of 1,024 draws, about 300 comparisons: a false alarm in 1e-5 of seeds if errors are
    normal; and a variance wrong by 40 % would be seen."""
    problem = mixer()
    estimators = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A", "LG-FG-A", "LG-BP")}
    estimators["published"] = fgvar.scheme("LG-FG-W", credit="published")
    exact = fgvar.measure(estimators, problem, route="exact")
    drawn = fgvar.measure(estimators, problem, draws=1024, seed=1)
    assert set(exact.data_vars) == set(drawn.data_vars)
    assert exact.attrs["route"] == "exact"
    live = (*problem.perturbed, "perturbed", "total")
    live = [name for name in live if name != "block1.token.bias"]  # dead: 0 by one route, rounding by the other
    for name in ("variance", "relative_variance", "snr", "slope", "efficiency"):
        assert not exact[f"{name}_se"].fillna(0).any()
        one, other = exact[name].sel(layer=live), drawn[name].sel(layer=live)
        noisy = drawn[f"{name}_se"].sel(layer=live)
        z = np.abs((other - one) / noisy.where(noisy > 0)).drop_sel(estimator="LG-BP")
        assert float(z.max()) < 5.5, name
    for name in ("gradient_norm", "data_variance", "cost", "loss", "accuracy", "size", "cosine_null"):
        np.testing.assert_array_equal(exact[name], drawn[name])
    for name in set(exact.data_vars) - {"seconds"}:  # what needs no noise is the same on both
        if "estimator" in exact[name].dims:
            np.testing.assert_array_equal(exact[name].sel(estimator="LG-BP"), drawn[name].sel(estimator="LG-BP"))
    assert float(exact["sq_bias"].sel(estimator="LG-FG-A", reference="target", layer="total")) < 1e-25
    assert float(exact["sq_bias"].sel(estimator="published", reference="target", layer="total")) > 1e-3


@settings(max_examples=6)
@given(pair=pairs())
def test_drawn_variances_agree_on_drawn_problems(pair) -> None:
    """Skewness-corrected means of 2,048 squared deviations at 1e-6 an example: `MeanTest` of the testing kit.

    Drawn once and for all (Hypothesis is derandomised). Where the noise is a single sign there is nothing to see.
    """
    estimator, problem = pair
    mean, trace = theory.mean(estimator, problem), theory.trace(estimator, problem)
    noise = estimator.randomness(problem).sample(5, range(2048), dtype=torch.float64)
    drawn = estimates(estimator, problem, noise)
    squares = torch.stack([(drawn[k] - mean[k]).flatten(1).square().sum(1) for k in trace], dim=1)
    expected = torch.stack(list(trace.values()))
    size = float(torch.stack([g.square().sum() for g in mean.values()]).sum())
    found = mean_test(squares, expected, level=1e-6, rounding=1e-20 + 1e-12 * size)
    assert found.passed, (found, squares.mean(0) / expected)


def test_what_has_no_closed_form_is_flagged() -> None:

    ds = fgvar.measure({"FG-A": fgvar.scheme("FG-A")}, mixer(), route="exact").isel(estimator=0)
    assert ds["cosine"].sel(layer="perturbed").isnull().all()
    assert (ds["flag"].sel(layer="perturbed") & FLAGS["no_closed_form"]).all()
    heads = ds.sel(layer="readout.linear.weight", reference="target")
    assert heads["cosine"].item() == pytest.approx(1)
    assert not heads["flag"].item() & FLAGS["no_closed_form"]
    assert ds["bias_z"].isnull().all()


def test_summary_of_the_exact_route() -> None:
    schemes = {"FG-A": fgvar.scheme("FG-A"), "published": fgvar.scheme("LG-FG-W", credit="published")}
    lines = fgvar.summary(fgvar.measure(schemes, mixer(), route="exact")).splitlines()
    assert lines[0] == "layer 'perturbed': exact, closed form"
    assert lines[1].split()[1:3] == ["relative", "bias"]
    assert float(lines[2].split()[1]) < 1e-12
    assert float(lines[3].split()[1]) > 0.01
    assert lines[2].split()[3:] == ["–", "–"]


def test_weight_perturbation_on_the_meta_device() -> None:
    model = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=8, groups=2).to("meta")
    batch = torch.empty(4, 1, 8, 8, device="meta"), torch.empty(4, dtype=torch.int64, device="meta")
    problem = fgvar.Problem(model, "cross_entropy", batch)
    for shared in (True, False):
        variance = theory.variance(fgvar.scheme("LG-FG-W", shared=shared), problem)
        assert all(value.is_meta and value.shape == problem.params[name].shape for name, value in variance.items())
    with pytest.raises(ValueError, match="the meta device holds none"):
        theory.variance(fgvar.scheme("FG-A"), problem)


# ---- errors ------------------------------------------------------------------------------------------------


def test_a_jacobian_beyond_the_budget_names_site_and_module() -> None:
    problem = fgvar.Problem(Attention(), "cross_entropy", (randn(2, 2, 3), labels(2, 3)))
    with pytest.raises(ValueError, match=r"site site \(6 numbers\) by 'mix' of module ''.*raise budget="):
        theory.variance(fgvar.scheme("FG-A"), problem, budget=100)


class Own(fgvar.Estimator):
    pass


class Heavy(fgvar.Gaussian):
    kurtosis = None


@pytest.mark.parametrize(
    ("estimator", "reason"),
    [
        (fgvar.scheme("FG-A", oracle=fgvar.oracles.CentralDifference()), "CentralDifference.* is not quadratic"),
        (Own(), "Own is not a composed"),
        (fgvar.Estimator(noise=Heavy()), "Heavy noise states no kurtosis"),
    ],
)
def test_no_closed_form(estimator: fgvar.Estimator, reason: str) -> None:
    for function in (theory.mean, theory.variance, theory.trace):
        with pytest.raises(ValueError, match=f"no closed form: {reason}.*draw instead"):
            function(estimator, CASES["mlp_relu"]())
    with pytest.raises(ValueError, match=f"estimator 'x' has no closed form: {reason}"):
        fgvar.measure({"x": estimator}, CASES["mlp_relu"](), route="exact")


def test_a_space_of_ones_own_has_no_closed_form() -> None:
    class Space(fgvar.ActivitySpace):
        pass

    with pytest.raises(ValueError, match="Space is a space of its own"):
        theory.variance(fgvar.Estimator(Space()), CASES["mlp_relu"]())


def test_routes() -> None:
    with pytest.raises(ValueError, match=r"unknown route 'exakt'; did you mean 'exact'\?"):
        fgvar.measure({"BP": fgvar.scheme("BP")}, CASES["mlp_relu"](), route="exakt")
    with pytest.raises(ValueError, match="keep_draws=True"):
        fgvar.measure({"BP": fgvar.scheme("BP")}, CASES["mlp_relu"](), route="exact", keep_draws=True)


class Mixed(nn.Module):
    """A block that mixes along one axis after a site that says it does not."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.axis, self.linear = axis, nn.Linear(4, 6)
        self.site = fgvar.networks.Site(patch_axis=1 if axis == 1 else None, group_axis=2 if axis == 2 else None)
        self.head, self.readout = LocalHead(6, 3), ReadOut(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.site(self.linear(x)))
        h = h + h.flip(self.axis)
        return self.readout(self.head.end(h.unflatten(2, (2, 3))).flatten(2))


@pytest.mark.parametrize("axis", [1, 2])
def test_copies_that_are_declared_apart_and_are_not(axis: int) -> None:
    net = Mixed(axis).double()
    for index, p in enumerate(net.parameters()):
        p.data = randn(*p.shape, seed=index)
    problem = fgvar.Problem(net, "cross_entropy", (randn(2, 3, 4), labels(2, 3)))
    with pytest.raises(ValueError, match="site 'site' declares that its patches or groups influence their own copy"):
        theory.variance(fgvar.scheme("LG-FG-A"), problem)
