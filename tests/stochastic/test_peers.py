"""Peers: gradients that other libraries and papers take, as rows in fgvar's words, held against plain loops."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import pytest
import torch
from cases import labels, randn
from torch import Tensor, nn

import fgvar
from fgvar import points, sampling, streams, transforms
from fgvar.testing import covariance, expectation

N, RATE, CLIP, SIGMA = 4, 0.3, 0.5, 1.5


@pytest.fixture(scope="module")
def problem() -> fgvar.Problem:
    net = nn.Linear(3, 2).double()
    with torch.no_grad():
        for p, seed in ((net.weight, 1), (net.bias, 2)):
            p.copy_(randn(*p.shape, seed=seed))
    return fgvar.Problem(net, "cross_entropy", (randn(N, 3), labels(N, 2)))


def flat(gradient: Mapping[str, Tensor]) -> Tensor:
    return torch.cat([g.flatten() for g in gradient.values()])


def per_example(problem: fgvar.Problem) -> Tensor:
    """Gradients of the examples' own losses, by plain backprop: [examples, weights]."""
    return torch.stack([flat(problem.example(n).backprop()) for n in range(problem.batch_size)])


def clipped(g: Tensor, norm: float) -> Tensor:
    return g * min(1.0, norm / float(g.norm()))


def estimate(estimator: fgvar.GradientEstimator, problem: fgvar.Problem, noise: Mapping[str, Tensor]) -> Tensor:
    return flat(estimator.estimate(problem, noise).gradient)


def close(found: Tensor, expected: Tensor, allowed: float = 1e-12) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=allowed * max(1.0, float(expected.abs().max())))


# ---- DP-SGD ------------------------------------------------------------------------------------------------------

DP_SGD = fgvar.Stochastic(
    sample=sampling.Poisson(RATE),
    each=(transforms.Clip(CLIP),),
    then=(transforms.AddNoise(SIGMA * CLIP / (RATE * N)),),
)


def test_dp_sgd_is_the_law_of_opacus(problem: fgvar.Problem) -> None:
    """Each example with probability q, clipped to C, summed, plus N(0, σ²C²), divided by the expected size qN."""
    g = torch.stack([clipped(one, CLIP) for one in per_example(problem)])
    names = [name for name in DP_SGD.randomness(problem).leaves if name.startswith("then")]
    z = {name: randn(*DP_SGD.randomness(problem).leaves[name].shape, seed=7) for name in names}
    for kept in itertools.product((0.0, 1.0), repeat=N):
        mask = torch.tensor(kept, dtype=torch.float64)
        naive = (mask @ g + SIGMA * CLIP * torch.cat([u.flatten() for u in z.values()])) / (RATE * N)
        close(estimate(DP_SGD, problem, {**z, "sample": mask}), naive)
    mean, variance = g.mean(0), (1 - RATE) / RATE * g.square().sum(0) / N**2 + (SIGMA * CLIP / (RATE * N)) ** 2
    close(flat(fgvar.theory.mean(DP_SGD, problem)), mean)
    close(flat(fgvar.theory.variance(DP_SGD, problem)), variance)


# ---- torch's clipping --------------------------------------------------------------------------------------------


def test_clip_grad_norm_is_biased_by_so_much(problem: fgvar.Problem) -> None:
    """Of a minibatch's mean gradient, as torch.nn.utils.clip_grad_norm_ does; its bias by enumeration."""
    m, norm = 2, 0.4
    row = fgvar.Stochastic(sample=sampling.Draw(m), then=(transforms.Clip(norm),))
    net = nn.Linear(3, 2).double()
    total = torch.zeros(8, dtype=torch.float64)
    for chosen in itertools.product(range(N), repeat=m):
        net.load_state_dict(problem.params)
        net.zero_grad()
        some = list(chosen)
        nn.functional.cross_entropy(net(problem.inputs[some]), problem.targets[some]).backward()
        nn.utils.clip_grad_norm_(net.parameters(), norm)
        by_torch = torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])
        # It divides by the norm plus 1e-6.
        close(estimate(row, problem, {"sample": torch.tensor(chosen)}), by_torch, 1e-5)
        total += by_torch / N**m
    bias = expectation(row, problem, method="support")
    close(flat(bias), total, 1e-5)
    share = float((total - flat(problem.backprop())).norm() / flat(problem.backprop()).norm())
    assert share == pytest.approx(0.568, abs=1e-3)
    assert "shortened" in row.bias_reason


# ---- compression -------------------------------------------------------------------------------------------------


def test_top_k_with_error_feedback(problem: fgvar.Problem) -> None:
    """What is left out of a step is added to the next: e ← e + g − top-k(e + g) (Stich et al. 2018)."""
    k, steps = 2, 5
    feed = fgvar.Stochastic(sample=sampling.Draw(1))
    row = fgvar.History(feed, streams.ErrorFeedback(transforms.TopK(k)), steps=steps)
    g = per_example(problem)
    for chosen in ((0, 1, 2, 3, 0), (3, 3, 3, 1, 1)):
        left = torch.zeros(8, dtype=torch.float64)
        for n in chosen:
            whole = left + g[n]
            out = torch.zeros_like(whole)
            kept = whole.abs().topk(k).indices
            out[kept] = whole[kept]
            left = whole - out
        close(estimate(row, problem, {"sample": torch.tensor(chosen)[:, None]}), out)


def test_qsgd(problem: fgvar.Problem) -> None:
    """‖g‖ sign(g_i) ⌊s|g_i|/‖g‖⌉ / s, rounded at random: unbiased, variance f(1 − f)‖g‖²/s² (Alistarh 2017)."""
    levels, g = 4, flat(problem.backprop())
    row = fgvar.Stochastic(then=(transforms.Quantise(levels),))
    f = (levels * g.abs() / g.norm()).frac()
    close(flat(fgvar.theory.mean(row, problem)), g)
    close(flat(fgvar.theory.variance(row, problem)), (g.norm() / levels) ** 2 * f * (1 - f))


# ---- score functions ---------------------------------------------------------------------------------------------


class Latent(nn.Module):
    """Σ_z q(z) f(z) of a categorical latent z, as the sum of its terms q(z)(f(z) − b), and b."""

    def __init__(self, baseline: float = 0.0) -> None:
        super().__init__()
        self.logits, self.values = nn.Linear(3, 4), nn.Linear(3, 4)
        self.q, self.latent, self.baseline = nn.Softmax(-1), fgvar.Terms(), baseline
        with torch.no_grad():
            for i, p in enumerate(self.parameters()):
                p.copy_(randn(*p.shape, seed=i))

    def forward(self, x: Tensor) -> Tensor:
        f = self.values(x).square() + 2
        return self.latent(self.q(self.logits(x)) * (f - self.baseline)).sum(-1) + self.baseline


def cost(outputs: Tensor, _targets: Tensor) -> Tensor:
    return outputs


def latent_problem(baseline: float = 0.0) -> fgvar.Problem:
    return fgvar.Problem(Latent(baseline).double(), cost, (randn(1, 3, seed=5), torch.zeros(1)))


SCORE_FUNCTION = fgvar.Stochastic(sample=sampling.Draw(1, by=sampling.Outputs("q"), over="latent"))


def score_function(problem: fgvar.Problem, z: int, baseline: float) -> Tensor:
    """∇ log q(z) (f(z) − b) + ∇ f(z), with autograd alone."""
    net = Latent()
    net.double().load_state_dict(problem.params)
    x = problem.inputs
    f, q = (net.values(x).square() + 2)[0, z], net.q(net.logits(x))[0, z]
    (q.log() * (f.detach() - baseline) + f).backward()
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


@pytest.mark.parametrize("baseline", [0.0, 3.0])
def test_reinforce_with_a_baseline(baseline: float) -> None:
    """Draw for draw the score function's estimate (Williams 1992); its mean is the gradient of the whole sum."""
    problem = latent_problem(baseline)
    for z in range(4):
        close(
            estimate(SCORE_FUNCTION, problem, {"sample.latent": torch.tensor([[z]])}),
            score_function(problem, z, baseline),
        )
    close(flat(expectation(SCORE_FUNCTION, problem, method="support")), flat(problem.backprop()))


def test_a_baseline_lowers_the_variance() -> None:
    def trace(baseline: float) -> float:
        found = covariance(SCORE_FUNCTION, latent_problem(baseline), method="support")
        return sum(float(c.trace()) for c in found.values())

    assert trace(3.0) < 0.5 * trace(0.0)


@dataclass(frozen=True)
class LeaveOneOut:
    """RLOO: K draws of a latent, each with the mean of the others' values for baseline (Kool et al. 2019)."""

    draws: int

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        q = problem.run(problem.params, watch=["q"])[1]["q"].detach()
        return fgvar.Randomness({"z": fgvar.Leaf((1, self.draws), fgvar.noise.Choice(q, adapted=True))})

    def estimate(self, problem: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:
        def surrogate(params: Mapping[str, Tensor]) -> Tensor:
            seen = problem.run(params, watch=["q", "values"])[1]
            f, q = (tensor.gather(1, noise["z"]) for tensor in (seen["values"].square() + 2, seen["q"]))
            others = (f.sum(1, keepdim=True) - f) / (self.draws - 1)
            return (q.log() * (f - others).detach() + f).mean()

        return fgvar.Estimate(torch.func.grad(surrogate)(problem.params))

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()


def test_leave_one_out() -> None:
    """Unbiased by enumeration, and of less variance than the plain score function at as many draws."""
    problem, draws = latent_problem(), 3
    row = LeaveOneOut(draws)
    close(flat(expectation(row, problem, method="support")), flat(problem.backprop()))
    plain = fgvar.Stochastic(sample=sampling.Draw(draws, by=sampling.Outputs("q"), over="latent"))
    traces = [sum(float(c.trace()) for c in covariance(e, problem, method="support").values()) for e in (row, plain)]
    assert traces[0] < 0.5 * traces[1], traces


# ---- SAM ---------------------------------------------------------------------------------------------------------


def test_sam(problem: fgvar.Problem) -> None:
    """∇L(θ + ρ g/‖g‖) (Foret et al. 2021)."""
    rho, g = 0.05, problem.backprop()
    norm = flat(g).norm()
    there = problem.at({name: p + rho * g[name] / norm for name, p in problem.params.items()})
    row = fgvar.Stochastic(at=points.Ahead(by=fgvar.ExactGradient(), step=-rho, unit=True))
    close(estimate(row, problem, {}), flat(there.backprop()))


# ---- gradient accumulation ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Accumulated:
    """The mean of the gradients of micro-batches of so many sequences, each the mean over its own tokens.

    What several trainers did until 2024; ``by_tokens`` weighs each micro-batch by its tokens, as they do since.
    """

    sizes: tuple[int, ...]
    by_tokens: bool = False

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        even = torch.full((problem.batch_size,), 1 / problem.batch_size)
        law = fgvar.noise.Choice(even, replace=False, even=True)
        return fgvar.Randomness({"order": fgvar.Leaf((problem.batch_size,), law)})

    def estimate(self, problem: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:
        parts = noise["order"].split(self.sizes)
        tokens = torch.stack([(problem.targets[part][:, 1:] >= 0).sum() for part in parts])
        share = (tokens if self.by_tokens else torch.ones_like(tokens)).double()
        each = [problem.at(batch=(problem.inputs[part], problem.targets[part])).backprop() for part in parts]
        return fgvar.Estimate(
            {k: sum(s * g[k] for s, g in zip(share / share.sum(), each, strict=True)) for k in problem.params}
        )

    def target(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        return problem.backprop()


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.out = nn.Embedding(5, 3), nn.Linear(3, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(torch.tanh(self.embedding(ids)))


@pytest.fixture(scope="module")
def sequences() -> fgvar.Problem:
    """Four sequences of 1, 2, 4 and 5 tokens to predict."""
    net = Words().double()
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):
            p.copy_(randn(*p.shape, seed=i))
    ids = torch.arange(24).reshape(4, 6) * 7 % 5
    targets = ids.clone()
    for row, length in enumerate((1, 2, 4, 5)):
        targets[row, length + 1 :] = -100
    return fgvar.Problem(net, "causal_lm", (ids, targets))


def test_a_mean_of_means_is_biased_by_so_much(sequences: fgvar.Problem) -> None:
    """Over all 24 orders: the mean over micro-batches of the mean over tokens is not the mean over tokens."""
    target = flat(sequences.backprop())

    def off(row: Accumulated) -> float:
        mean = flat(expectation(row, sequences, method="support"))
        return float((mean - target).norm() / target.norm())

    assert off(Accumulated((2, 2), by_tokens=True)) < 1e-12
    assert off(Accumulated((2, 2))) == pytest.approx(0.071, abs=1e-3)
    assert off(Accumulated((1, 1, 1, 1))) == pytest.approx(0.329, abs=1e-3)
