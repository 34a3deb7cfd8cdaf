"""Estimators of public bug reports and shipped code, in a few lines each, with the fault as a switch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import fgvar
from fgvar.testing import from_function

Gradients = dict[str, Tensor]
REST = 1e-3  # a priority that no example falls below


def randn(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def linear() -> fgvar.Problem:
    return fgvar.testing.default_problems()["linear"]


def along(problem: fgvar.Problem, v: Mapping[str, Tensor], step: float = 1e-4) -> Tensor:
    """A central difference."""
    ahead, behind = (problem.loss({k: p + s * v[k] for k, p in problem.params.items()}) for s in (step, -step))
    return (ahead - behind) / (2 * step)


def signs(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
    return {k: torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1 for k, p in problem.params.items()}


def normal(problem: fgvar.Problem, generator: torch.Generator, dtype: torch.dtype | None = None) -> Gradients:
    draw = {k: torch.randn(p.shape, generator=generator, dtype=dtype or p.dtype) for k, p in problem.params.items()}
    return {k: u.to(problem.dtype) for k, u in draw.items()}


def times(c: Any, v: Mapping[str, Tensor]) -> Gradients:
    return {k: c * u for k, u in v.items()}


def mean(parts: list[Gradients]) -> Gradients:
    return {k: torch.stack([part[k] for part in parts]).mean(0) for k in parts[0]}


# ---- perturbations ---------------------------------------------------------------------------------------------


def several(again: bool) -> Any:
    """The mean over four directions; wrong: the sampler is seeded anew for each."""

    def spsa(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        seed, own, parts = int(torch.randint(2**31, (), generator=generator)), torch.Generator(), []
        own.manual_seed(seed)
        for _ in range(4):
            v = signs(problem, own.manual_seed(seed) if again else own)
            parts.append(times(along(problem, v), v))
        return mean(parts)

    return from_function(spsa, directions=4, step=1e-4)


def from_three(kind: str) -> Any:
    """Signs out of −1, 0 and 1: zeros kept, or replaced by what nobody divides by."""

    def spsa(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        if kind == "signs":
            v = signs(problem, generator)
            return {k: along(problem, v) / u for k, u in v.items()}
        v = {k: torch.randint(-1, 2, p.shape, generator=generator).to(p) for k, p in problem.params.items()}
        if kind == "zeros":
            return times(along(problem, v), v)
        v = {k: u + 1e-8 for k, u in v.items()}
        return {k: along(problem, v) / u for k, u in v.items()}

    return from_function(spsa, step=1e-4)


def paired(same: bool) -> Any:
    """One-sided differences along u and −u; wrong: the partner gets u again."""

    def pair(problem: fgvar.Problem, generator: torch.Generator, step: float = 1e-4) -> Gradients:
        u, here, parts = normal(problem, generator), problem.loss(), []
        for sign in (1, 1 if same else -1):
            moved = problem.loss({k: p + sign * step * u[k] for k, p in problem.params.items()})
            parts.append(times(sign * (moved - here) / step, u))
        return mean(parts)

    return from_function(pair, antithetic=True, step=1e-4)


@dataclass(frozen=True)
class Halved:
    """Normal numbers by way of bfloat16."""

    kurtosis: float = 3.0

    def sample(self, stream: Any, shape: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
        found: Tensor = stream.normal(shape, torch.float32, device).bfloat16().to(dtype)
        return found


@dataclass(frozen=True)
class Forward:
    """Weight perturbation by a law of one's own."""

    law: Any

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness({k: fgvar.Leaf(tuple(p.shape), self.law) for k, p in problem.params.items()})

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        c = torch.func.jvp(problem.loss, (problem.params,), (dict(noise),))[1]
        return fgvar.Estimate(times(c, noise))

    def target(self, problem: fgvar.Problem) -> Gradients:
        return problem.backprop()


def seeded(constant: bool) -> Any:
    """Weight perturbation; wrong: a seed that is always 0."""

    def forward(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        u = normal(problem, torch.Generator().manual_seed(0) if constant else generator)
        return times(along(problem, u), u)

    return from_function(forward, step=1e-4)


def mezo(in_place: bool) -> Any:
    """Two evaluations from one seed; wrong: weights are moved, and moved back by arithmetic."""

    def estimate(problem: fgvar.Problem, generator: torch.Generator, step: float = 1e-3) -> Gradients:
        u = normal(problem, generator)
        if not in_place:
            return times(along(problem, u, step), u)

        def moved(by: float) -> Tensor:
            for k, p in problem.params.items():
                p.add_(u[k], alpha=by * step)
            return problem.loss()

        ahead, behind = moved(1), moved(-2)
        moved(1)
        return times((ahead - behind) / (2 * step), u)

    return from_function(estimate, step=1e-3)


def ranked(permuted: bool) -> Any:
    """An evolution strategy whose candidates have the leave-one-out loss; wrong: in another's place."""

    def strategy(problem: fgvar.Problem, generator: torch.Generator, n: int = 4, sigma: float = 1e-3) -> Gradients:
        u = [normal(problem, generator) for _ in range(n)]
        f = torch.stack([problem.loss({k: p + sigma * v[k] for k, p in problem.params.items()}) for v in u])
        weights = (f - f.mean()) * n / (n - 1) / sigma
        weights = weights[f.argsort()] if permuted else weights
        return mean([times(w, v) for w, v in zip(weights, u, strict=True)])

    return from_function(strategy, step=1e-3)


# ---- what is done to gradients ---------------------------------------------------------------------------------


def rounded(bits: int | None) -> Any:
    """Stochastic rounding to an eighth of the largest entry, by a continuous threshold or by so many random bits."""

    def rounding(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        out = {}
        for k, g in problem.backprop().items():
            step = max(float(g.abs().max()), 1e-9) / 8
            low = (g.abs() / step).floor()
            threshold = torch.rand(g.shape, generator=generator, dtype=g.dtype)
            if bits is not None:
                threshold = (threshold * 2**bits).floor() / 2**bits
            out[k] = g.sign() * (low + (g.abs() / step - low > threshold)) * step
        return out

    return from_function(rounding)


def random_k(scaled: bool) -> Any:
    """Half of the entries, twice as large; wrong: as they are."""

    def sparse(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        out = {}
        for k, g in problem.backprop().items():
            kept = torch.randperm(g.numel(), generator=generator).reshape(g.shape) < g.numel() // 2
            out[k] = g * kept * (2 if scaled else 1)
        return out

    return from_function(sparse)


@dataclass(frozen=True)
class Private:
    """The mean gradient with noise of σ on the sum of examples; wrong: on the mean."""

    at_mean: bool = False
    sigma: float = 0.1

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness({k: fgvar.Leaf(tuple(p.shape), fgvar.Gaussian()) for k, p in problem.params.items()})

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        size = self.sigma / (1 if self.at_mean else problem.batch_size)
        return fgvar.Estimate({k: g + size * noise[k] for k, g in problem.backprop().items()})

    def variance(self, problem: fgvar.Problem) -> Gradients:
        return {k: torch.full_like(p, (self.sigma / problem.batch_size) ** 2) for k, p in problem.params.items()}

    def target(self, problem: fgvar.Problem) -> Gradients:
        return problem.backprop()


# ---- which examples --------------------------------------------------------------------------------------------


def prioritised(weighted: bool) -> Any:
    """Two examples by their loss, weighted by 1/(N p); wrong: unweighted."""

    def replay(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        loss = problem.losses(problem.run(problem.params)[0]) + REST
        p = loss / loss.sum()
        at = torch.multinomial(p, 2, replacement=True, generator=generator)
        w = 1 / (len(p) * p[at])
        return problem.rows(at).weighted(w if weighted else torch.ones_like(w)).backprop()

    return from_function(replay)


@dataclass(frozen=True)
class Poisson:
    """Each example is in with probability ½; the sum over the expected size; wrong: over the actual one."""

    actual: bool = False

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness({"in": fgvar.Leaf((problem.batch_size,), fgvar.Rademacher())})

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        kept = (noise["in"] > 0).to(problem.dtype)
        size = kept.sum().clamp_min(1) if self.actual else problem.batch_size / 2
        return fgvar.Estimate(problem.weighted(kept * problem.batch_size / size).backprop())

    def target(self, problem: fgvar.Problem) -> Gradients:
        return problem.backprop()


@dataclass(frozen=True)
class MicroBatches:
    """Parts of two examples, and of the one that is left over, averaged equally: right where they are shuffled."""

    shuffled: bool = True

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:
        return fgvar.Randomness({"order": fgvar.Leaf((problem.batch_size,), fgvar.Gaussian())})

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
        order = noise["order"].argsort() if self.shuffled else torch.arange(problem.batch_size)
        return fgvar.Estimate(mean([problem.rows(part).backprop() for part in order.split(2)]))

    def target(self, problem: fgvar.Problem) -> Gradients:
        return problem.backprop()


LENGTHS = torch.tensor([1, 2, 3, 6])


def tokens() -> fgvar.Problem:
    """A language model's loss over 12 tokens of four sequences, as the mean of shares of a known number of tokens."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), nn.Tanh(), nn.Linear(2, 3)).double()
    y = torch.randint(0, 3, (4, 6), generator=torch.Generator().manual_seed(1))
    y[torch.arange(6) >= LENGTHS[:, None]] = -100

    def shares(outputs: Tensor, targets: Tensor) -> Tensor:
        loss = functional.cross_entropy(outputs.transpose(1, 2), targets, reduction="none", ignore_index=-100)
        return loss.sum(1) * 4 / 12

    return fgvar.Problem(net, shares, (randn(4, 6, 3, seed=2), y))


def accumulated(by_tokens: bool) -> Any:
    """Micro-batches of two sequences, each a mean over its own tokens; wrong: averaged equally."""

    def steps(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
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
        self.a, self.b = nn.Linear(1, 3), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        def second(t: Tensor) -> Tensor:
            z = torch.tanh(self.a(t))
            return (-2 * z * (1 - z**2) * self.a.weight[:, 0] ** 2) @ self.b.weight[0][:, None] + 0 * self.b.bias

        return second(x) + torch.sin(x)


def collocation() -> fgvar.Problem:
    torch.manual_seed(0)
    x = torch.linspace(-3, 3, 8, dtype=torch.float64)[:, None]
    return fgvar.Problem(Residual().double(), "mse", (x, torch.zeros_like(x)))


# ---- losses of their own ---------------------------------------------------------------------------------------


class Posterior(nn.Module):
    """A normal q over three weights: outputs are all that its exact bound needs."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor([0.3, -1.0, 0.5]))
        self.log_std = nn.Parameter(torch.tensor([-0.5, -0.2, -0.8]))

    def forward(self, x: Tensor) -> Tensor:
        spread = (x**2) @ (2 * self.log_std).exp()
        return torch.stack([x @ self.mean, spread, self.log_std.sum().expand(len(x))], 1)


def posterior() -> fgvar.Problem:
    x, y = torch.arange(12.0, dtype=torch.float64).reshape(4, 3).sin(), torch.arange(4.0, dtype=torch.float64).cos()
    return fgvar.Problem(
        Posterior().double(), lambda out, y: 0.5 * ((y - out[:, 0]) ** 2 + out[:, 1]) - out[:, 2], (x, y)
    )


@dataclass(frozen=True)
class Variational:
    """The path gradient of the bound, or the score's less a baseline of the others; wrong: by std, or of them all."""

    kind: str = "path"
    samples: int = 2

    def randomness(self, problem: fgvar.Problem) -> fgvar.Randomness:  # noqa: ARG002
        return fgvar.Randomness({"eps": fgvar.Leaf((self.samples, 3), fgvar.Gaussian())})

    def estimate(self, problem: fgvar.Problem, noise: Any) -> fgvar.Estimate:
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
        return fgvar.Estimate(g)

    def target(self, problem: fgvar.Problem) -> Gradients:
        return problem.backprop()


SHARES = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], dtype=torch.float64)


def classes() -> fgvar.Problem:
    torch.manual_seed(0)
    return fgvar.Problem(nn.Linear(3, 6).double(), "cross_entropy", (randn(3, 3, seed=1), torch.tensor([0, 2, 5])))


def sampled_softmax(sign: int) -> Any:
    """Logits less log(m q) of sampled negatives, which only many samples make right; wrong: plus it."""

    def estimate(problem: fgvar.Problem, generator: torch.Generator, m: int = 3) -> Gradients:
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

    def estimate(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
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
        self.encoder, self.decoder = nn.Linear(2, 2), nn.Linear(1, 1)

    def forward(self, x: Tensor) -> Tensor:
        both = [self.decoder.weight.expand(len(x), 1), self.decoder.bias.expand(len(x), 1)]
        return torch.cat([self.encoder(x), *both], 1)


def coder() -> fgvar.Problem:
    """The bound of two samples, by quadrature over both."""
    torch.manual_seed(8)
    one, two = (e.flatten()[None] for e in torch.meshgrid(NODES, NODES, indexing="ij"))
    weights = torch.outer(WEIGHTS, WEIGHTS).flatten()

    def bound(out: Tensor, y: Tensor) -> Tensor:
        both = torch.stack([log_weight(out, y, one), log_weight(out, y, two)])
        return -(torch.logsumexp(both, 0) - np.log(2)) @ weights

    return fgvar.Problem(Coder().double(), bound, (randn(2, 2, seed=1), randn(2, 1, seed=2)))


def iwae(detached: bool) -> Any:
    """Σ w̃ log w of normalised importance weights w̃; wrong: w̃ is differentiated, too."""

    def estimate(problem: fgvar.Problem, generator: torch.Generator) -> Gradients:
        eps = torch.randn(problem.batch_size, 2, generator=generator, dtype=problem.dtype)

        def loss(params: Gradients) -> Tensor:
            log_w = log_weight(problem.run(params)[0], problem.targets, eps)
            share = log_w.softmax(1)
            return -((share.detach() if detached else share) * log_w).sum(1).mean()

        return torch.func.grad(loss)(problem.params)

    return from_function(estimate)


Builder = Callable[[], fgvar.Problem]
