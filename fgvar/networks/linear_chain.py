"""A linear chain: conditional random field of emissions and transitions, with its partition function."""

import torch
from torch import Tensor, nn

from fgvar.errors import require_integer
from fgvar.nn.heads import blank_linear, initialise
from fgvar.nn.terms import Terms


class LinearChain(nn.Module):
    """log Z of a linear-chain conditional random field, by the forward recursion, and its potentials.

    Z = Σ over all sequences of states s of Π_t exp(emission_t(s_t)) · exp(transition(s_{t−1}, s_t)). The states of
    every step are the terms of ``terms``: to sample some of them (``sampling.Draw(k, over="terms")``) is randomised
    dynamic programming (Fu et al. 2022), with E Ẑ = Z. Emissions are those of all states.

    Shapes: ``[batch, steps, features]`` → log Z ``[batch]``, emissions ``[batch, steps, states]``, transitions
    ``[batch, states, states]`` (from, to; the same for all examples).

    Args:
        features: numbers of each step.
        states: of the chain.
        seed: of the weights.

    Raises:
        ValueError: no features, or no states.

    Example:
        >>> log_z, emissions, transitions = LinearChain(3, states=5)(torch.zeros(2, 4, 3))
        >>> log_z.shape, emissions.shape, transitions.shape
        (torch.Size([2]), torch.Size([2, 4, 5]), torch.Size([2, 5, 5]))
    """

    def __init__(self, features: int, states: int, *, seed: int = 0) -> None:
        super().__init__()
        for what, got in (("features", features), ("states", states)):
            require_integer(what, got, 1)
        generator = torch.Generator().manual_seed(seed)
        self.emission = blank_linear(features, states)
        initialise(self.emission, "kaiming", generator)
        self.transition = nn.Parameter(torch.randn(states, states, generator=generator))
        self.terms = Terms(log=True)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        emissions = self.emission(x)
        first, *later = self.terms(emissions).unbind(1)
        alpha = first
        for emission in later:
            alpha = (alpha[:, :, None] + self.transition).logsumexp(1) + emission
        return alpha.logsumexp(1), emissions, self.transition.expand(len(x), -1, -1)


def chain_nll(outputs: tuple[Tensor, Tensor, Tensor], tags: Tensor) -> Tensor:
    """log Z minus the log-potential of the tagged states [batch, steps]: −log p(tags), [batch].

    Args:
        outputs: of `LinearChain`.
        tags: int64, the states that were seen.

    Example:
        >>> tags = torch.zeros(2, 4, dtype=torch.int64)
        >>> chain_nll(LinearChain(3, states=1)(torch.ones(2, 4, 3)), tags).round(decimals=4).abs()
        tensor([0., 0.], grad_fn=<AbsBackward0>)
    """
    log_z, emissions, transitions = outputs
    of_states = emissions.gather(2, tags[:, :, None]).sum((1, 2))
    arrived = transitions.gather(1, tags[:, :-1, None].expand(-1, -1, transitions.shape[2]))
    return log_z - of_states - arrived.gather(2, tags[:, 1:, None]).sum((1, 2))
