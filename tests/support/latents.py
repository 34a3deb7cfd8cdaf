"""Networks with sums inside: the mean over a latent variable, and what is made of it."""

import torch
from cases import randn
from torch import Tensor, nn

import fgvar


class Latent(nn.Module):
    """Σ_z q_θ(z|x) f_θ(z, x) of four values z, by terms or their logarithms; a baseline leaves the sum alone."""

    def __init__(self, *, log: bool = False, baseline: float = 0.0) -> None:
        super().__init__()
        self.logits, self.q, self.f = nn.Linear(3, 4), nn.Softmax(-1), nn.Linear(3, 4)
        self.latent, self.log, self.baseline = fgvar.Terms(log=log), log, baseline

    def forward(self, x: Tensor) -> Tensor:
        q, f = self.q(self.logits(x)), self.f(x).square()
        if self.log:
            return self.latent((q * f).log()).exp().sum(-1)
        return self.latent(q * (f - self.baseline)).sum(-1) + self.baseline


def own(outputs: Tensor, targets: Tensor) -> Tensor:  # noqa: ARG001
    return outputs


def latent(batch: int = 2, **words: object) -> fgvar.Problem:
    torch.manual_seed(3)
    return fgvar.Problem(Latent(**words).double(), own, (randn(batch, 3), torch.zeros(batch)))
