"""Factors: an estimate as coefficients of its noise, ĝ = Σ_k c_k ⊙ u_k, and tensors that are made when asked for."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class LazyTensors(Mapping[str, Tensor]):
    """Tensors by name, each of which is made anew whenever it is asked for, so that none is held.

    Example:
        >>> import torch
        >>> LazyTensors(["a", "b"], lambda name: torch.zeros(2))["b"]
        tensor([0., 0.])
    """

    names: Collection[str]
    make: Callable[[str], Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True)
class Factors:
    """One estimate as what it is made of: ĝ = Σ_k c_k ⊙ u_k of the directions u_k that its noise holds.

    Attributes:
        credit: perturbed parameter → c [directions, rows or 1, 1, …], to broadcast with it.
        exact: parameter that learns exactly → its gradient, whatever the noise.
        loss: the batch-mean output loss, where it is told.
    """

    credit: dict[str, Tensor]
    exact: dict[str, Tensor]
    loss: Tensor | None = None

    def gradient(self, name: str, noise: Mapping[str, Tensor]) -> Tensor:
        """The estimate of one parameter, which needs the noise of its name alone."""
        if name in self.exact:
            return self.exact[name]
        c, u = self.credit[name], noise[name]
        return sum_directions(c, u if u.ndim == c.ndim else u[None])


def sum_directions(credit: Tensor, directions: Tensor) -> Tensor:
    """Σ c·u over the directions; of one alone its product, without a pass that adds nothing."""
    # A loss may be in higher precision than the parameters, and its derivative with it.
    found = credit[0] * directions[0] if len(directions) == 1 else (credit * directions).sum(0)
    return found.to(directions.dtype)
