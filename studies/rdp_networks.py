"""Networks and laws of `studies.rdp`: chains and trees of potentials, the released draws, and their exact means."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import fgvar
from fgvar import sampling, theory
from fgvar.measurement import ranges
from fgvar.testing.mutants import PublishedDraw

RANGE = 10.0  # from the smallest log-potential to the largest
Gradient = dict[str, Tensor]


class Chain(nn.Module):
    """log Z of a linear chain, like `fgvar.networks.LinearChain`, by products of matrices, not of logarithms.

    Emissions are parameters, so that the gradient of log Z is the marginals p(s_t = s). States are preferred by
    softmax(emissions) + prior. Log-potentials within ±10 or so need no logarithm in float64.

    Shapes: ``[batch, 1]``, whatever it holds → log Z ``[batch]``.

    Args:
        emissions: log-potentials [steps, states].
        transitions: log-potentials [states, states], from and to.
        prior: [states].
    """

    transitions: Tensor
    prior: Tensor

    def __init__(self, emissions: Tensor, transitions: Tensor, prior: Tensor) -> None:
        super().__init__()
        self.emissions = nn.Parameter(emissions)
        self.register_buffer("transitions", transitions)
        self.register_buffer("prior", prior)
        self.terms, self.proposal = fgvar.Terms(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        emissions = self.emissions.expand(len(x), -1, -1)
        self.proposal(emissions.softmax(-1) + self.prior)
        first, *later = self.terms(emissions.exp()).unbind(1)
        psi, alpha = self.transitions.exp(), first
        for term in later:
            alpha = (alpha @ psi) * term
        return alpha.sum(1).log()


def peaked(states: int, steps: int, hidden: int, seed: int) -> Chain:
    """Potentials by the law of the paper's notebook: inner products of words and states with uniform entries.

    Of emissions and of transitions (inner products of states) 10 is the range. The prior is the softmax of the
    states' absolute sums.
    """
    words, each = _uniform([(steps, hidden), (states, hidden)], seed)
    emissions, transitions = words @ each.T, each @ each.T
    emissions = RANGE * (emissions - emissions.mean(1, keepdim=True)) / _range(emissions, 1)
    transitions = RANGE * (transitions - transitions.mean()) / _range(transitions.flatten(), 0)
    return Chain(emissions, transitions, each.sum(1).softmax(0))


def flat(states: int, steps: int, hidden: int, seed: int) -> Chain:
    """Potentials of a new `fgvar.networks.LinearChain`, of normal inputs: they differ little. No prior."""
    chain = fgvar.networks.LinearChain(hidden, states, seed=seed).double()
    x = torch.randn(steps, hidden, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    with torch.no_grad():
        return Chain(chain.emission(x), chain.transition.clone(), torch.zeros(states).double())


class Tree(nn.Module):
    """log Z of binary trees over T words, by the inside recursion: of every span a state's potential.

    The notebook's log-potentials of a span are sums of the entries of its first word, its last word and the state,
    carried to 0 … 10 over the states: words fall out, and all spans have the same. So Z = C_{T−1} w^{2T−1}, w the
    sum of a span's potentials and C Catalan's number. Here they are over w, and a span's sum is 1 without sampling.

    Shapes: ``[batch, 1]``, whatever it holds → log Z ``[batch]``.
    """

    norms: Tensor

    def __init__(self, states: int, steps: int, hidden: int, seed: int) -> None:
        super().__init__()
        norms = _uniform([(states, hidden)], seed)[0].sum(1)
        self.potentials = nn.Parameter(RANGE * (norms - norms.min()) / _range(norms, 0))
        self.register_buffer("norms", norms)
        self.steps = steps
        self.terms, self.proposal = fgvar.Terms(), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        spans = self.steps * (self.steps + 1) // 2
        share = self.potentials.softmax(0)
        self.proposal((share + self.norms.softmax(0)).expand(len(x), spans, -1))
        sums = self.terms(share.expand(len(x), spans, -1)).sum(2)
        return inside(sums, self.steps).log() + (2 * self.steps - 1) * self.potentials.logsumexp(0)


def inside(sums: Tensor, steps: int) -> Tensor:
    """Σ over binary trees of the product over their spans [batch, spans], which lie by length and then by start."""
    by_length = sums.split([steps - length + 1 for length in range(1, steps + 1)], 1)
    beta = [by_length[0]]
    for length in range(2, steps + 1):
        starts = steps - length + 1
        split = [beta[k - 1][:, :starts] * beta[length - k - 1][:, k : k + starts] for k in range(1, length)]
        beta.append(by_length[length - 1] * torch.stack(split).sum(0))
    return beta[-1][:, 0]


@dataclass(frozen=True)
class Attached(fgvar.Stochastic):
    """The proposal in ω = 1/(m p) is differentiated, too, as it is not detached in the released code."""

    def estimate(self, problem: fgvar.Problem, noise: Mapping[str, Tensor]) -> fgvar.Estimate:
        seen = self.seen(problem, noise)
        law = self.sample.law(problem, "terms")
        filled = self.sample.FILLED if self.sample.refilled else 0.0

        def loss(params: Gradient) -> Tensor:
            proposal = problem.run(params, watch=["proposal"])[1]["proposal"].scatter(-1, law.top, filled)
            p = (proposal / proposal.sum(-1, keepdim=True)).where(law.others > 0, 1.0)
            return seen.tapped("terms", seen.taps["terms"] * (p.detach() / p)).loss(params)

        return fgvar.Estimate(dict(torch.func.grad(loss)(problem.params)))


def problem_of(network: nn.Module) -> fgvar.Problem:
    """log Z is the loss of the only example."""
    return fgvar.Problem(network, lambda outputs, _: outputs, (torch.zeros(1, 1).double(), torch.zeros(1)))


# ---- laws ------------------------------------------------------------------------------------------------------


def released(top: int, budget: int, *, as_put_back: bool = False, refilled: bool = False) -> PublishedDraw:
    """Draws of the released code with these of its faults; with none, those of Des Raj's weights."""
    by = sampling.Outputs("proposal")
    return PublishedDraw(
        budget - top, top, by, replace=False, over="terms", as_put_back=as_put_back, refilled=refilled
    )


def code_of(
    top: int, budget: int, *, as_put_back: bool = False, refilled: bool = False, attached: bool = False
) -> fgvar.Stochastic:
    """The released code with these of its three faults."""
    sample = released(top, budget, as_put_back=as_put_back, refilled=refilled)
    return Attached(sample=sample) if attached else fgvar.Stochastic(sample=sample)


def proposal_of(at: fgvar.Problem) -> Tensor:
    """What every state is preferred by, [populations, states], as probabilities."""
    proposal = sampling.Outputs("proposal").scores(at, "terms")[0]
    return proposal / proposal.sum(-1, keepdim=True)


def highest_of(at: fgvar.Problem, count: int) -> Tensor:
    """1 for the states that are preferred most: [1, populations, states]."""
    proposal = proposal_of(at)[None]
    return torch.zeros_like(proposal).scatter(-1, proposal.topk(count).indices, 1)


def mean_weights(sample: PublishedDraw | sampling.Draw, at: fgvar.Problem, rows: int | None = None) -> Tensor:
    """E ω of what is not put back and weighed as if it were, π/(m p), 1 for the top: [1, populations, states].

    Args:
        sample: without faults.
        at: the problem.
        rows: the first so many populations alone.
    """
    choice, _, others = sample.law(at, "terms")
    found = torch.ones_like(others)[:, :rows]
    for number, p in enumerate(choice.probabilities[0, :rows]):
        drawn = p > 0
        found[0, number, drawn] = (theory.inclusion(p, sample.size) / (sample.size * p))[drawn]
    return found


def drawn_again(sample: PublishedDraw, at: fgvar.Problem) -> float:
    """How many of the top states of the first population are drawn again, in the mean, where they are refilled."""
    choice, top, _ = sample.law(at, "terms")
    return float(theory.inclusion(choice.probabilities[0, 0], sample.size)[top[0, 0]].sum())


def log_sums(row: fgvar.Stochastic, at: fgvar.Problem, draws: int, seed: int, chunk: int = 128) -> Tensor:
    """log Ẑ − log Z of so many draws."""
    randomness = row.randomness(at)

    def one(noise: Mapping[str, Tensor]) -> Tensor:
        return row.seen(at, noise).loss()

    parts = (randomness.sample(seed, window, dtype=at.dtype) for window in ranges(0, draws, chunk))
    found = torch.cat([torch.func.vmap(one)(noise) for noise in parts])
    return (found - at.loss()).detach()


def _uniform(shapes: list[tuple[int, int]], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def _range(values: Tensor, dim: int) -> Tensor:
    return values.max(dim, keepdim=True).values - values.min(dim, keepdim=True).values
