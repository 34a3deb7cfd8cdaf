"""Every scheme's expectation equals its target: enumerated jointly over all sites, weights and examples."""

import pytest
import torch
from cases import CASES, has_gradient, mixer, randn
from hypothesis import assume, given
from torch import nn

import fgvar
from fgvar.testing import expectation, strategies

TOLERANCE = 1e-10
NAMES = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")


def assert_unbiased(
    estimator: fgvar.Estimator, problem: fgvar.Problem, *, method: str = "nodes", nonzero: bool = True
) -> None:
    target = estimator.target(problem)
    assert has_gradient(estimator, problem) == nonzero, "0 would be compared with 0"
    mean = expectation(estimator, problem, method=method)
    assert set(mean) == set(problem.params)
    for name, value in target.items():
        torch.testing.assert_close(mean[name], value, rtol=0, atol=TOLERANCE, msg=lambda m, n=name: f"{n}: {m}")


@given(
    strategies.pairs(
        problem=strategies.problems(network=strategies.networks(local_heads=True, max_width=12, max_depth=3))
    )
)
def test_every_composition_on_local_mixer(pair):
    assume(has_gradient(*pair))  # all units of a tiny network can be inactive
    assert_unbiased(*pair)


@given(strategies.pairs(problem=strategies.problems(network=strategies.networks(local_heads=False, max_depth=4))))
def test_every_space_and_noise_on_plain_networks(pair):
    assume(has_gradient(*pair))
    assert_unbiased(*pair)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", ["mixer_tiny", "batch_of_one"])
def test_named_schemes(name: str, case: str) -> None:
    assert_unbiased(fgvar.scheme(name), CASES[case]())


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
@pytest.mark.parametrize("case", [name for name in CASES if name != "one_class"])
def test_global_schemes_on_every_case(name: str, case: str) -> None:
    assert_unbiased(fgvar.scheme(name), CASES[case]())


@pytest.mark.parametrize("name", ["FG-W", "FG-A"])
def test_a_zero_gradient_has_a_zero_mean(name: str) -> None:
    """The one case where 0 is compared with 0, on purpose."""
    problem = CASES["one_class"]()
    assert all(not g.any() for g in fgvar.scheme(name).target(problem).values())
    assert_unbiased(fgvar.scheme(name), problem, nonzero=False)


@pytest.mark.parametrize("space", [fgvar.WeightSpace(), fgvar.ActivitySpace()], ids=["weights", "activities"])
@pytest.mark.parametrize("shared", [True, False])
def test_sign_vectors_agree_with_nodes(space: fgvar.WeightSpace, shared: bool) -> None:
    """The nodes assume a quadratic estimator; all sign vectors assume nothing."""
    net = fgvar.with_sites(nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 2)).double())
    batch = 1 if isinstance(space, fgvar.WeightSpace) and not shared else 2
    problem = fgvar.Problem(net, "cross_entropy", (randn(batch, 2), torch.arange(batch)))
    assert_unbiased(fgvar.Estimator(space, fgvar.Rademacher(), shared=shared), problem, method="signs")


def test_batch_mean_derivative_with_shared_activity_noise_would_be_caught() -> None:
    """The trap of Table 1: shared noise needs per-example derivatives. A planted twin must be refuted."""

    class BatchMean(fgvar.Jvp):
        def terms(self, here, direction):
            terms, loss = super().terms(here, direction)
            return {k: t.mean(0, keepdim=True).expand_as(t) for k, t in terms.items()}, loss

    problem = CASES["mlp_relu"]()
    planted = fgvar.Estimator(fgvar.ActivitySpace(), shared=True, oracle=BatchMean())
    with pytest.raises(AssertionError, match="not close"):
        assert_unbiased(planted, problem)


def test_missing_credit_between_groups_would_be_caught() -> None:
    with pytest.raises(AssertionError, match=r"channel\.weight"):
        assert_unbiased(fgvar.scheme("LG-FG-W", credit="published"), CASES["mixer_tiny"]())


def test_published_credit_is_unbiased_with_one_group() -> None:
    assert_unbiased(fgvar.scheme("LG-FG-W", credit="published"), mixer(groups=1, channels=4))


def test_conv_and_layer_norm_without_a_subclass() -> None:
    """Sites after any module that owns parameters: convolution, norm with gain, shared weight positions."""
    net = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.GroupNorm(1, 2), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 3)
    ).double()  # fmt: skip
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(2, 1, 4, 4), torch.arange(2)))
    for name in ("FG-W", "FG-A"):
        assert_unbiased(fgvar.scheme(name), problem)


def test_a_subset_of_sites_credits_what_lies_upstream() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(2, 3), torch.arange(2)))
    assert_unbiased(fgvar.Estimator(fgvar.ActivitySpace(sites=("2.site",))), problem)


def test_masking_needs_no_declaration_to_stay_unbiased_elsewhere() -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()
    problem = fgvar.Problem(fgvar.with_sites(net), "cross_entropy", (randn(3, 3), torch.arange(3) % 2))
    masked = fgvar.ActivitySpace(relu_after={"0.site": "1"})
    assert_unbiased(fgvar.Estimator(masked), problem)
    leaves = fgvar.Estimator(masked).randomness(problem).leaves
    u = {name: torch.ones(leaf.shape, dtype=torch.float64) for name, leaf in leaves.items()}
    direction = masked.linearise(problem, fgvar.GlobalLoss()).direction(u)["0.site"]
    active = problem.run(problem.params, watch=("1",))[1]["1"] > 0
    assert torch.equal(direction != 0, active)
    assert not active.all()
