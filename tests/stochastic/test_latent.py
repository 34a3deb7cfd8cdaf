"""REINFORCE, with a baseline, without putting back, and sum-and-sample: a sampler over a latent variable's terms."""

import pytest
import torch
from fgvar.sampling import Draw, Outputs, TermSizes
from latents import latent
from torch import Tensor, nn

import fgvar
from fgvar.testing import expectation
from fgvar.testing.enumeration import variances


def score_function(at: fgvar.Problem, z: int) -> dict[str, Tensor]:
    """f(z) ∇log q(z) + ∇f(z) of the one example, by autograd."""
    params = {name: p.clone().requires_grad_() for name, p in at.params.items()}
    x = at.inputs[0]
    log_q = nn.functional.log_softmax(nn.functional.linear(x, params["logits.weight"], params["logits.bias"]), 0)[z]
    f = nn.functional.linear(x, params["f.weight"], params["f.bias"]).square()[z]
    surrogate = f.detach() * log_q + f
    return dict(zip(params, torch.autograd.grad(surrogate, list(params.values())), strict=True))


def total(found: dict[str, Tensor]) -> float:
    return sum(float(value.sum()) for value in found.values())


def relative_variance(estimator: fgvar.Stochastic, at: fgvar.Problem) -> float:
    return total(variances(estimator, at, method="support")) / total({k: g**2 for k, g in at.backprop().items()})


def test_one_draw_by_the_latent_s_own_probabilities_is_reinforce() -> None:
    at = latent(1)
    estimator = fgvar.Stochastic(sample=Draw(1, by=Outputs("q"), over="latent"))
    for z in range(4):
        found = estimator.estimate(at, {"sample.latent": torch.tensor([[z]])}).gradient
        for name, expected in score_function(at, z).items():
            tolerance = 4e-16 * max(1.0, float(expected.abs().max()))
            torch.testing.assert_close(found[name], expected, rtol=0, atol=tolerance)
    mean, exact = expectation(estimator, at, method="support"), at.backprop()
    for name, value in exact.items():
        torch.testing.assert_close(mean[name], value, rtol=0, atol=2e-16 * max(1.0, float(value.abs().max())))


@pytest.mark.parametrize("sample", [
    Draw(1, by=Outputs("q"), over="latent"), Draw(2, by=Outputs("q"), over="latent"),
    Draw(2, by=Outputs("q"), over="latent", replace=False), Draw(1, top=2, by=Outputs("q"), over="latent"),
    Draw(1, by=TermSizes(), over="latent"),
], ids=repr)  # fmt: skip
@pytest.mark.parametrize("words", [{}, {"log": True}, {"baseline": 0.7}], ids=repr)
def test_all_of_them_are_unbiased(sample: Draw, words: dict[str, object]) -> None:
    at = latent(1, **words)
    mean = expectation(fgvar.Stochastic(sample=sample), at, method="support")
    for name, value in at.backprop().items():
        torch.testing.assert_close(mean[name], value, rtol=0, atol=1e-14)


def test_sum_and_sample_and_more_draws_vary_less() -> None:
    """Relative variance of a four-valued latent, exactly; all values but one for certain leave no variance."""
    at, own = latent(1), Outputs("q")
    one = relative_variance(fgvar.Stochastic(sample=Draw(1, by=own, over="latent")), at)
    by_top = [
        relative_variance(fgvar.Stochastic(sample=Draw(1, top=k, by=own, over="latent")), at) for k in (1, 2, 3)
    ]
    assert one > by_top[0] > by_top[1] > by_top[2]
    assert by_top[2] < 1e-25
    assert by_top[1] < one / 4
    two = relative_variance(fgvar.Stochastic(sample=Draw(2, by=own, over="latent")), at)
    assert two == pytest.approx(one / 2)
    not_back = relative_variance(fgvar.Stochastic(sample=Draw(2, by=own, over="latent", replace=False)), at)
    assert not_back < two


def test_a_baseline_changes_the_variance_alone() -> None:
    """It stands in the network's terms, Σ q (f − b) + b: that of all f's mean lowers it here from 4.68 to 3.48."""
    row = fgvar.Stochastic(sample=Draw(1, by=Outputs("q"), over="latent"))
    without, mean = (relative_variance(row, latent(1, baseline=b)) for b in (0.0, float(latent(1).loss())))
    assert without == pytest.approx(4.68, abs=0.01)
    assert mean == pytest.approx(3.48, abs=0.01)
