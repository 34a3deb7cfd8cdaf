"""References: hold the gradients that estimates are compared with, and project on fixed random signs.

A projection Σ_k s_k (ĝ − r)_k has mean 0 for every choice of signs s where ĝ is unbiased for r: 16 of them with
disjoint supports test a bias in any direction, by numbers that are kept as sums.
"""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fgvar.estimators.noise import Rademacher
from fgvar.estimators.randomness import Leaf

PIECE = 1 << 14  # numbers of every draw that are worked on at a time: float64 rows of a block stay in the CPU's cache
KEPT = 1 << 20  # signs of a parameter, a byte each; of a larger one they are drawn again piece by piece
BUCKETS = 16  # random projections a layer, for the z of the bias
GROUPS = ("perturbed", "total")  # layers that are sums over parameters


@dataclass(frozen=True)
class References:
    """What estimates are compared with: two gradients, and the signs of the random projections.

    Attributes:
        target, backprop: flat tensor of every parameter, backprop's for both where they are equal.
        signs: fixed random signs of every parameter that is not large, in bytes, the same on every device.
        members: which parameters each of `GROUPS` sums, 0/1 [2, parameters].

    Example:
        >>> gradient = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}
        >>> its = References.of(gradient, gradient, perturbed=("weight",))
        >>> its.layers
        ('weight', 'bias', 'perturbed', 'total')
        >>> its.grouped([its.squares(name) for name in its.target])[:, 0].tolist()
        [6.0, 2.0, 6.0, 8.0]
    """

    target: dict[str, Tensor]
    backprop: dict[str, Tensor]
    signs: dict[str, Tensor]
    members: Tensor

    @staticmethod
    def of(target: Mapping[str, Tensor], backprop: Mapping[str, Tensor], perturbed: tuple[str, ...]) -> "References":
        device = next(iter(target.values())).device
        members = [[float(name in perturbed) for name in target], [1.0] * len(target)]
        other = {k: v.detach().flatten() for k, v in backprop.items()}
        # Backprop's, which the measurement of all estimators holds: that of each target would be one copy more.
        same = {k for k, v in target.items() if v is backprop[k] or _equal(v, other[k])}
        own = {k: other[k] if k in same else v.detach().flatten() for k, v in target.items()}
        signs = {k: _signs(k, v, 0, v.numel()).to(torch.int8) for k, v in own.items() if v.numel() <= KEPT}
        return References(own, other, signs, torch.tensor(members, dtype=torch.float64, device=device))

    @property
    def layers(self) -> tuple[str, ...]:
        return (*self.target, *GROUPS)

    def grouped(self, by_parameter: list[Tensor]) -> Tensor:
        """Additive numbers of every parameter, [layers, …]: the parameters', then the groups' sums."""
        stacked = torch.stack(by_parameter)
        return torch.cat([stacked, torch.tensordot(self.members, stacked, dims=1)])

    def pieces(
        self, name: str, first: int = 0, last: int | None = None
    ) -> Iterator[tuple[slice, tuple[Tensor, Tensor]]]:
        """Of a parameter's numbers (or some of them) piece by piece where it lies: target and backprop in float64.

        Float64 whatever the network computes in: of 10⁵ draws a bias is sought far below one draw's rounding.
        """
        for at in self.cuts(name, first, self.target[name].numel() if last is None else last):
            yield at, (self.target[name][at].double(), self.backprop[name][at].double())

    def cuts(self, name: str, first: int, last: int) -> Iterator[slice]:
        """Where a parameter's numbers from ``first`` to ``last`` are cut into pieces."""
        step = PIECE if self.target[name].device.type == "cpu" else max(last - first, 1)
        for start in range(first, last, step):
            yield slice(start, min(start + step, last))

    def squares(self, name: str) -> Tensor:
        """‖target‖² and ‖backprop‖² of a parameter, [2]."""
        total = self.members.new_zeros(2)
        for _, pair in self.pieces(name):
            total = total + torch.stack([one @ one for one in pair])
        return total

    def batches(self) -> Iterator[tuple[str, ...]]:
        """The parameters: small ones that are worked on together, and each larger one alone."""
        batch, numbers = list[str](), 0
        for name, value in self.target.items():
            own = padded(value.numel())
            if batch and numbers + own > PIECE:
                yield tuple(batch)
                batch, numbers = [], 0
            batch, numbers = [*batch, name], numbers + own
        yield tuple(batch)

    def signs_at(self, name: str, at: slice) -> Tensor:
        """Signs of some of a parameter's numbers."""
        first, last, _ = at.indices(self.target[name].numel())
        return self.signs[name][at].double() if name in self.signs else _signs(name, self.target[name], first, last)

    def projected(self, name: str, rows: Tensor, at: slice = slice(None)) -> Tensor:
        """Signed sums of every 16th entry, […, rows, BUCKETS]: projections with disjoint supports.

        Of a piece, which begins at a multiple of 16, its part of them.
        """
        return bucket_sums(rows * self.signs_at(name, at))


def require_layer_names(params: Collection[str]) -> None:
    """Raise where a parameter has the name of one of `GROUPS`: two layers of one name could not be told apart."""
    if taken := [name for name in GROUPS if name in params]:
        raise ValueError(
            f"parameter {taken[0]!r} has the name of a layer that every measurement has, a sum over parameters "
            f"({', '.join(GROUPS)}); rename it in the module, as {taken[0]}_"
        )


def padded(numbers: int) -> int:
    """The next multiple of `BUCKETS`."""
    return -(-numbers // BUCKETS) * BUCKETS


def bucket_sums(signed: Tensor) -> Tensor:
    """Sums of every 16th entry, […, BUCKETS]."""
    if missing := padded(signed.shape[-1]) - signed.shape[-1]:
        signed = functional.pad(signed, (0, missing))
    return signed.unflatten(-1, (-1, BUCKETS)).sum(-2)


def _equal(one: Tensor, other: Tensor) -> bool:
    """Are they the same numbers? Elsewhere than on the CPU that would have to be waited for: taken for two."""
    return one.device.type == "cpu" and torch.equal(one.flatten(), other)


def _signs(name: str, target: Tensor, first: int, last: int) -> Tensor:
    """Signs of the numbers of a parameter from ``first`` to ``last``, made on the CPU for every device.

    By streams of no run's seed: z-scores of two runs can be compared.
    """
    out = torch.empty(1, last - first, dtype=torch.float64)
    for task in Leaf((target.numel(),), Rademacher()).tasks(0, f"projection of {name}", [0], out, first):
        task()
    return out[0].to(target.device)
