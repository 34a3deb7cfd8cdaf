"""Estimators of public bug reports whose fault is in which examples, or in which loss."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fgvar.estimators.noise import Gaussian, Rademacher
from fgvar.estimators.protocol import Estimate
from fgvar.estimators.randomness import Leaf, Randomness
from fgvar.nn.heads import blank_linear
from fgvar.problem import Problem
from fgvar.testing.black_box import from_function
from fgvar.testing.mutants.published_gradients import mean, times
from fgvar.testing.polynomials import Gradients
from fgvar.testing.problems import randn, randomise

REST = 1e-3  # a priority that no example falls below


def weights_drawn(module: nn.Module, seed: int) -> nn.Module:
    """The module in float64 with weights that do not come from the global generator."""
    randomise(module.double(), seed)
    return module


# ---- which examples -------------------------------------------------------------------------------------------


def prioritised(weighted: bool) -> Any:
    """Two examples by their loss, weighted by 1/(N p); wrong: unweighted."""

    def replay(problem: Problem, generator: torch.Generator) -> Gradients:
        loss = problem.losses(problem.run(problem.params)[0]) + REST
        p = loss / loss.sum()
        at = torch.multinomial(p, 2, replacement=True, generator=generator)
        w = 1 / (len(p) * p[at])
        w = w if weighted else torch.ones_like(w)
        each = problem.rows(at).per_example(lambda one, w: times(w, one.backprop()), w)
        return {name: g.mean(0) for name, g in each.items()}

    return from_function(replay)


@dataclass(frozen=True)
class Poisson:
    """Each example is in with probability ½; the sum over the expected size; wrong: over the actual one."""

    actual: bool = False

    def randomness(self, problem: Problem) -> Randomness:
        return Randomness({"in": Leaf((problem.batch_size,), Rademacher())})

    def estimate(self, problem: Problem, noise: Any) -> Estimate:
        kept = (noise["in"] > 0).to(problem.dtype)
        size = kept.sum().clamp_min(1) if self.actual else problem.batch_size / 2
        each = problem.per_example(lambda one, k: times(k, one.backprop()), kept / size)
        return Estimate({name: g.sum(0) for name, g in each.items()})

    def target(self, problem: Problem) -> Gradients:
        return problem.backprop()


@dataclass(frozen=True)
class MicroBatches:
    """Parts of two examples, and of the one that is left over, averaged equally: right where they are shuffled."""

    shuffled: bool = True

    def randomness(self, problem: Problem) -> Randomness:
        return Randomness({"order": Leaf((problem.batch_size,), Gaussian())})

    def estimate(self, problem: Problem, noise: Any) -> Estimate:
        order = noise["order"].argsort() if self.shuffled else torch.arange(problem.batch_size)
        return Estimate(mean([problem.rows(part).backprop() for part in order.split(2)]))

    def target(self, problem: Problem) -> Gradients:
        return problem.backprop()


LENGTHS = torch.tensor([1, 2, 3, 6])


def tokens() -> Problem:
    """A language model's loss over 12 tokens of four sequences, as the mean of shares of a known number of tokens."""
    net = weights_drawn(nn.Sequential(blank_linear(3, 2), nn.Tanh(), blank_linear(2, 3)), 0)
    y = torch.randint(0, 3, (4, 6), generator=torch.Generator().manual_seed(1))
    y[torch.arange(6) >= LENGTHS[:, None]] = -100

    def shares(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none", ignore_index=-100)
        return loss.sum(1) * 4 / 12

    return Problem(net, shares, (randn(4, 6, 3, seed=2), y))


def accumulated(by_tokens: bool) -> Any:
    """Micro-batches of two sequences, each a mean over its own tokens; wrong: averaged equally."""

    def steps(problem: Problem, generator: torch.Generator) -> Gradients:
        total = {k: torch.zeros_like(p) for k, p in problem.params.items()}
        for part in torch.randperm(4, generator=generator).split(2):
            own = float(LENGTHS[part].sum())
            mean_of_part = times(12 / (2 * own), problem.rows(part).backprop())
            total = {k: v + mean_of_part[k] * (own / 12 if by_tokens else 0.5) for k, v in total.items()}
        return total

    return from_function(steps)


class Residual(nn.Module):
    """u'' + sin x of a small network u."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = blank_linear(1, 3), blank_linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        def second(t: Tensor) -> Tensor:
            z = torch.tanh(self.a(t))
            return (-2 * z * (1 - z**2) * self.a.weight[:, 0] ** 2) @ self.b.weight[0][:, None] + 0 * self.b.bias

        return second(x) + torch.sin(x)


def collocation() -> Problem:
    x = torch.linspace(-3, 3, 8, dtype=torch.float64)[:, None]
    return Problem(weights_drawn(Residual(), 0), "mse", (x, torch.zeros_like(x)))


# ---- losses of their own -------------------------------------------------------------------------------------


class Posterior(nn.Module):
    """A normal q over three weights: outputs are all that its exact bound needs."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -1.0, 0.5]))
        self.log_std = nn.Parameter(torch.tensor([-0.5, -0.2, -0.8]))

    def forward(self, x: Tensor) -> Tensor:
        spread = (x**2) @ (2 * self.log_std).exp()
        return torch.stack([x @ self.mean, spread, self.log_std.sum().expand(len(x))], 1)


def posterior() -> Problem:
    x, y = torch.arange(12.0, dtype=torch.float64).reshape(4, 3).sin(), torch.arange(4.0, dtype=torch.float64).cos()
    return Problem(Posterior().double(), lambda out, y: 0.5 * ((y - out[:, 0]) ** 2 + out[:, 1]) - out[:, 2], (x, y))


@dataclass(frozen=True)
class Variational:
    """The path gradient of the bound, or the score's less a baseline of the others; wrong: by std, or of them all."""

    kind: str = "path"
    samples: int = 2

    def randomness(self, problem: Problem) -> Randomness:  # noqa: ARG002
        return Randomness({"eps": Leaf((self.samples, 3), Gaussian())})

    def estimate(self, problem: Problem, noise: Any) -> Estimate:
        eps, q = noise["eps"], problem.params

        def cost(w: Tensor) -> Tensor:
            return 0.5 * (problem.targets - w @ problem.inputs.T).square().mean(1)

        def path(own: Gradients) -> Tensor:
            return (cost(own["mean"] + own["log_std"].exp() * eps) - own["log_std"].sum()).mean()

        drawn = (q["mean"] + q["log_std"].exp() * eps).detach()
        found = cost(drawn)
        mean_of = found.mean() if self.kind == "leave-none" else (found.sum() - found) / (self.samples - 1)

        def score(own: Gradients) -> Tensor:
            log_q = -0.5 * ((drawn - own["mean"]) / own["log_std"].exp()) ** 2 - own["log_std"]
            return (log_q.sum(1) * (found - mean_of)).mean() - own["log_std"].sum()

        g = torch.func.grad(path if self.kind in ("path", "std") else score)(q)
        if self.kind == "std":
            g["log_std"] = g["log_std"] / q["log_std"].exp()
        return Estimate(g)

    def target(self, problem: Problem) -> Gradients:
        return problem.backprop()


SHARES = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64)


def classes() -> Problem:
    return Problem(
        weights_drawn(blank_linear(3, 6), 0), "cross_entropy", (randn(3, 3, seed=1), torch.tensor([0, 2, 5]))
    )


def sampled_softmax(sign: int) -> Any:
    """Logits less log(m q) of sampled negatives, which only many samples make right; wrong: plus it."""

    def estimate(problem: Problem, generator: torch.Generator, m: int = 3) -> Gradients:
        negative = torch.multinomial(SHARES, m, replacement=True, generator=generator)

        def loss(params: Gradients) -> Tensor:
            s = problem.run(params)[0]
            right = s.gather(1, problem.targets[:, None])
            others = s[:, negative] + sign * torch.log(m * SHARES[negative])
            others = torch.where(negative[None] == problem.targets[:, None], -1e9, others)
            return (torch.logsumexp(torch.cat([right, others], 1), 1) - right[:, 0]).mean()

        return torch.func.grad(loss)(problem.params)

    return from_function(estimate)


def exact_softmax() -> Any:
    """All classes, in an order drawn anew."""

    def estimate(problem: Problem, generator: torch.Generator) -> Gradients:
        order = torch.randperm(6, generator=generator)

        def loss(params: Gradients) -> Tensor:
            s = problem.run(params)[0]
            return (torch.logsumexp(s[:, order], 1) - s.gather(1, problem.targets[:, None])[:, 0]).mean()

        return torch.func.grad(loss)(problem.params)

    return from_function(estimate)


NODES, WEIGHTS = (torch.from_numpy(v) for v in np.polynomial.hermite_e.hermegauss(20))
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def log_weight(out: Tensor, y: Tensor, eps: Tensor) -> Tensor:
    """log p(y, z) − log q(z) of z = m + s·eps, for outputs m, log s and the decoder's a, b: [batch, samples]."""
    m, log_s, a, b = (out[:, i : i + 1] for i in range(4))
    z = m + log_s.exp() * eps
    return -2 * (y - a * z - b) ** 2 - 0.5 * z**2 + 0.5 * eps**2 + log_s


class Coder(nn.Module):
    """Encoder and decoder of one latent number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = blank_linear(2, 2), blank_linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = [self.decoder.weight.expand(len(x), 1), self.decoder.bias.expand(len(x), 1)]
        return torch.cat([self.encoder(x), *both], 1)


def coder() -> Problem:
    """The bound of two samples, by quadrature over both."""
    one, two = (e.flatten()[None] for e in torch.meshgrid(NODES, NODES, indexing="ij"))
    weights = torch.outer(WEIGHTS, WEIGHTS).flatten()

    def bound(out: Tensor, y: Tensor) -> Tensor:
        both = torch.stack([log_weight(out, y, one), log_weight(out, y, two)])
        return -(torch.logsumexp(both, 0) - np.log(2)) @ weights

    return Problem(weights_drawn(Coder(), 8), bound, (randn(2, 2, seed=1), randn(2, 1, seed=2)))


def iwae(detached: bool) -> Any:
    """Σ w̃ log w of normalised importance weights w̃; wrong: w̃ is differentiated, too."""

    def estimate(problem: Problem, generator: torch.Generator) -> Gradients:
        eps = torch.randn(problem.batch_size, 2, generator=generator, dtype=problem.dtype)

        def loss(params: Gradients) -> Tensor:
            log_w = log_weight(problem.run(params)[0], problem.targets, eps)
            share = log_w.softmax(1)
            return -((share.detach() if detached else share) * log_w).sum(1).mean()

        return torch.func.grad(loss)(problem.params)

    return from_function(estimate)
