"""A linear chain: log Z against all sequences, and sampling its states: Ẑ, its gradient and its second moment."""

import itertools

import pytest
import torch
from cases import randn
from fgvar.sampling import Draw, TermSizes, Uniform
from torch import Tensor

import fgvar
from fgvar import theory
from fgvar.measurement.draws import Enumeration
from fgvar.networks import LinearChain, chain_nll
from fgvar.testing import expectation

TAGS = torch.tensor([[0, 2, 1, 1], [2, 2, 0, 1]])


def partition(outputs: tuple[Tensor, Tensor, Tensor], targets: Tensor) -> Tensor:  # noqa: ARG001
    return outputs[0].exp()


def chain(loss: object = partition, *, states: int = 3, steps: int = 3, batch: int = 1) -> fgvar.Problem:
    net = LinearChain(2, states=states, seed=1).double()
    return fgvar.Problem(net, loss, (randn(batch, steps, 2), torch.zeros(batch, steps, dtype=torch.int64)))


def values(sample: Draw, at: fgvar.Problem) -> tuple[Tensor, Tensor]:
    """Ẑ of every draw of one example, and their probabilities."""
    law = Enumeration(fgvar.Stochastic(sample=sample).randomness(at), "support")
    noise, number = law.take(range(len(law))), range(len(law))
    found = torch.func.vmap(lambda u: sample.view(at, {"terms": u}, at).loss())(noise["sample.terms"])
    return found, law.probabilities(number)


def test_log_z_is_over_all_sequences_and_the_loss_is_a_probability() -> None:
    net = LinearChain(2, states=3, seed=1).double()
    x = randn(2, 4, 2)
    log_z, emissions, transitions = net(x)
    potentials = []
    for states in itertools.product(range(3), repeat=4):
        steps = sum(emissions[:, t, s] for t, s in enumerate(states))
        potentials.append(steps + sum(net.transition[one, two] for one, two in itertools.pairwise(states)))
    torch.testing.assert_close(log_z, torch.stack(potentials).logsumexp(0))
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    log_p = torch.stack([-chain_nll((log_z, emissions, transitions), states.expand(2, -1)) for states in every])
    torch.testing.assert_close(log_p.exp().sum(0), torch.ones(2).double())
    torch.testing.assert_close(log_p, torch.stack(potentials) - log_z)
    torch.testing.assert_close(chain_nll(net(x), TAGS)[1], -log_p[int((every == TAGS[1]).all(1).nonzero()), 1])


SAMPLES = [
    Draw(1, by=TermSizes(), over="terms"), Draw(2, by=TermSizes(), over="terms"), Draw(1, over="terms"),
    Draw(1, top=1, by=TermSizes(), over="terms"), Draw(2, by=TermSizes(), replace=False, over="terms"),
    Draw(1, top=1, by=TermSizes(), replace=False, over="terms"),
]  # fmt: skip


@pytest.mark.parametrize("sample", SAMPLES, ids=repr)
def test_the_sampled_sum_and_its_gradient_are_unbiased(sample: Draw) -> None:
    at = chain()
    found, probabilities = values(sample, at)
    assert float(probabilities @ found) == pytest.approx(float(at.loss()), rel=1e-12)
    mean, exact = expectation(fgvar.Stochastic(sample=sample), at, method="support", chunk=1024), at.backprop()
    for name, value in exact.items():
        torch.testing.assert_close(mean[name], value, rtol=1e-12, atol=1e-12 * float(value.abs().max()))


@pytest.mark.parametrize(("size", "top"), [(1, 0), (2, 0), (1, 1), (2, 1)])
def test_the_second_moment_follows_the_pair_recursion(size: int, top: int) -> None:
    at, sample = chain(), Draw(size, top=top, by=TermSizes(), over="terms")
    _, emissions, transitions = at.run(at.params)[0]
    found, probabilities = values(sample, at)
    second = theory.log_second_moment(emissions[0], transitions[0], sample.products(at, "terms")[0]).exp()
    assert float(probabilities @ found**2) == pytest.approx(float(second), rel=2e-14)


def test_products_have_a_closed_form_put_back_alone() -> None:
    for sample in (Draw(1, over="terms", replace=False), Draw(1, over="terms", weigh="none")):
        with pytest.raises(ValueError, match=r"has no closed form of E\[ω_i ω_j\]; expected replace=True"):
            sample.products(chain(), "terms")


def test_all_states_for_certain_are_exact() -> None:
    at = chain(chain_nll)
    for sample in (Draw(1, top=3, by=TermSizes(), over="terms"), Draw(3, replace=False, over="terms")):
        estimator = fgvar.Stochastic(sample=sample)
        noise = {k: u[0] for k, u in estimator.randomness(at).sample(0, [0], dtype=torch.float64).items()}
        found = estimator.estimate(at, noise).gradient
        for name, value in at.backprop().items():
            torch.testing.assert_close(found[name], value, rtol=0, atol=1e-12)


def test_one_step_by_the_potentials_themselves_is_exact_for_every_draw() -> None:
    at = chain(steps=1)
    found, _ = values(Draw(1, by=TermSizes(), over="terms"), at)
    torch.testing.assert_close(found, at.loss().expand(3))
    by_chance, _ = values(Draw(1, by=Uniform(), over="terms"), at)
    assert float(by_chance.std()) > 0.05 * float(at.loss())


def test_the_logarithm_is_biased_downwards_and_so_is_its_gradient() -> None:
    """Jensen: E log Ẑ < log Z, about Var Ẑ/2Z² below it; the gradient of log Ẑ is a ratio."""
    at, sample = chain(), Draw(3, by=TermSizes(), over="terms")
    found, probabilities = values(sample, at)
    z = at.loss()
    relative = float(probabilities @ (found / z - 1).square())
    gap = float(probabilities @ found.log() - z.log())
    assert -1.2 * relative / 2 < gap < -0.6 * relative / 2
    log = chain(lambda outputs, targets: outputs[0] + 0 * targets[:, 0])
    mean, exact = expectation(fgvar.Stochastic(sample=sample), log, method="support", chunk=1024), log.backprop()
    assert max(float((mean[k] - g).abs().max() / g.abs().max()) for k, g in exact.items()) > 1e-3


def test_every_example_has_states_of_its_own() -> None:
    """Of a batch, drawn under vmap, in float32, too: finite, and near the exact gradient of many draws."""
    at = chain(chain_nll, batch=3, steps=4, states=5)
    row = fgvar.Stochastic(sample=Draw(2, top=2, by=TermSizes(), replace=False, over="terms"))
    assert row.randomness(at).leaves["sample.terms"].shape == (3, 4, 2)
    for dtype in (torch.float32, torch.float64):
        ds = fgvar.measure({"a": row}, at.to(dtype), draws=64)
        assert float(ds["cosine"].sel(layer="total").squeeze()[0]) > 0.8
