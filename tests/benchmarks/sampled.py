"""Sampled gradients: a minibatch beside a problem of just its examples, DP-SGD beside a plain vmap loop, a chain."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional

import fgvar
from fgvar import sampling, transforms
from tests.benchmarks.networks import CLASSES, mlp
from tests.benchmarks.timing import Row, Work, interleaved, ratio

EXAMPLES, DRAWN, WIDTH, INPUTS = 256, 32, 180, 64  # 45,910 numbers
RATE, CLIP, SIGMA, DRAWS = 0.1, 1.0, 1.0, 64


def sampled() -> Iterator[Row]:
    net = mlp(INPUTS, WIDTH, WIDTH)
    x, y = torch.randn(EXAMPLES, INPUTS), torch.randint(CLASSES, (EXAMPLES,))
    problem = fgvar.Problem(net, "cross_entropy", (x, y))
    yield from minibatches(problem)
    rows = {"DP-SGD": dp_sgd(problem)}
    works: dict[str, Work] = {
        "fgvar": lambda: fgvar.measure(rows, problem, draws=4 * DRAWS),
        "loop": dp_sgd_loop(problem),
    }
    what = f"DP-SGD, {sum(p.numel() for p in problem.params.values()):,} numbers, {EXAMPLES} examples, rate {RATE}"
    yield Row(f"{what}: measure / vmap loop", ratio(interleaved(works, 3), "fgvar", "loop", 1 / 4), 1.5)
    chain = fgvar.Problem(
        fgvar.networks.LinearChain(3, states=5).double(),
        lambda outputs, _: outputs[0],
        (torch.ones(1, 6, 3).double(), y[:1]),
    )
    row = fgvar.Stochastic(sample=sampling.Draw(1, by=sampling.TermSizes(), over="terms"))
    works = {"chain": lambda: fgvar.testing.expectation(row, chain, method="support", chunk=1024)}
    yield Row("all 15,625 draws of a chain of 5 states and 6 steps", interleaved(works, 3)["chain"], 5.0, unit="s")


def minibatches(problem: fgvar.Problem) -> Iterator[Row]:
    """Estimates of 32 examples of 256, drawn in each draw, beside those of a problem that has just 32."""
    few = problem.rows(slice(DRAWN))
    for name in ("BP", "FG-W"):
        of = fgvar.scheme(name)
        row = fgvar.Stochastic(of=of, sample=sampling.Draw(DRAWN))
        works: dict[str, Work] = {}
        for what, one, at in (("drawn", row, problem), ("own", of, few)):
            randomness = one.randomness(at)
            noise = {k: u[0] for k, u in randomness.sample(0, [0]).items()} if randomness.size else {}
            works[what] = lambda one=one, at=at, noise=noise: [one.estimate(at, noise) for _ in range(20)]
        times = interleaved(works, 15)
        yield Row(
            f"{name} of {DRAWN} examples drawn of {EXAMPLES} / of a problem that has them",
            ratio(times, "drawn", "own"),
            1.2,
        )


def dp_sgd(problem: fgvar.Problem) -> fgvar.Stochastic:
    noise = transforms.AddNoise(SIGMA * CLIP / (RATE * problem.batch_size))
    return fgvar.Stochastic(sample=sampling.Poisson(RATE), each=(transforms.Clip(CLIP),), then=(noise,))


def dp_sgd_loop(problem: fgvar.Problem) -> Work:
    """Clipped per-example gradients by vmap in every draw, their sum over a Poisson batch, noise, and moments."""
    params, net = problem.params, mlp(INPUTS, WIDTH, WIDTH)
    expected = RATE * problem.batch_size
    exact = problem.backprop()

    def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return functional.cross_entropy(functional_call(net, params, (x[None],)), y[None])

    def work() -> dict[str, list[Tensor]]:
        sums = {name: [torch.zeros_like(p), torch.zeros(()), torch.zeros(())] for name, p in params.items()}
        for _ in range(DRAWS):
            each = vmap(grad(loss), in_dims=(None, 0, 0))(params, problem.inputs, problem.targets)
            norms = torch.stack([g.flatten(1).norm(dim=1) for g in each.values()]).norm(dim=0)
            factors = (CLIP / norms).clamp_max(1) * (torch.rand(len(norms)) < RATE)
            for name, g in each.items():
                one = torch.tensordot(factors, g, 1) + SIGMA * CLIP * torch.randn(g.shape[1:])
                one = one / expected
                along = (one * exact[name]).sum() / (one.norm() * exact[name].norm())
                own = (one, one.square().sum(), along)
                sums[name] = [total + part for total, part in zip(sums[name], own, strict=True)]
        return sums

    return work
