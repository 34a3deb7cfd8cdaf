"""Terms: the terms of a sum inside a network, of which some can be looked at and weighed."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Terms(nn.Module):
    """The identity on the terms of a sum: z ↦ z · tap, or, of their logarithms, z ↦ z + tap, with the tap log ω.

    The last axis is the population, and every row, of whichever example and position, a sum of its own. A sampler
    (``fgvar.sampling.Draw(…, over="terms")``) gives each term its factor ω, 0 where it is not drawn: what follows
    has to add the terms up, or take ``logsumexp`` of their logarithms, of which −∞ is then one. Until then the tap
    is a scalar, which nobody adds. Like that of a `Site` it is a buffer outside of ``state_dict``.

    Shapes: ``[batch, …, terms]`` → the same.

    Args:
        log: what comes are logarithms of the terms.

    Example:
        >>> terms, z = Terms(), torch.tensor([[1.0, 2.0, 3.0]])
        >>> torch.func.functional_call(terms, {"tap": torch.tensor([[0.0, 3.0, 0.0]])}, z).sum(1)
        tensor([6.])
    """

    tap: Tensor

    def __init__(self, *, log: bool = False) -> None:
        super().__init__()
        self.register_buffer("tap", torch.zeros(()) if log else torch.ones(()), persistent=False)
        self.log = log

    def forward(self, z: Tensor) -> Tensor:
        if not self.tap.ndim:
            return z
        return z + self.tap if self.log else z * self.tap

    def tap_of(self, omega: Tensor, beside: Tensor | None = None) -> Tensor:
        """The tap that weighs the terms by ω ≥ 0, ``beside`` another tap's: ω of several samplers multiply."""
        omega = omega if beside is None else omega * self.omega_of(beside)
        return omega.log() if self.log else omega

    def omega_of(self, tap: Tensor) -> Tensor:
        """The ω of a tap: the other way round."""
        return tap.exp() if self.log else tap

    def sizes(self, z: Tensor) -> Tensor:
        """|terms|, of logarithms in proportion: each row's softmax."""
        return z.softmax(-1) if self.log else z.abs()

    def extra_repr(self) -> str:
        return "log=True" if self.log else ""


def terms_of(modules: Mapping[str, nn.Module]) -> dict[str, Terms]:
    """Those of the modules that are `Terms`."""
    return {name: child for name, child in modules.items() if isinstance(child, Terms)}
