"""References: hold the gradients that estimates are compared with, and project on fixed random signs.

A projection Σ_k s_k (ĝ − r)_k has mean 0 for every choice of signs s where ĝ is unbiased for r: 16 of them with
disjoint supports test a bias in any direction, by numbers that are kept as sums.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fgvar.estimators.random_streams import Stream

BUCKETS = 16  # random projections a layer, for the z of the bias
GROUPS = ("perturbed", "total")  # layers that are sums over parameters


@dataclass(frozen=True)
class References:
    """What estimates are compared with: two gradients, and the signs of the random projections.

    Attributes:
        target, backprop: flat float64 tensor of every parameter.
        signs: fixed random signs of every parameter, the same on every device.
        members: which parameters each of `GROUPS` sums, 0/1 [2, parameters].
    """

    target: dict[str, Tensor]
    backprop: dict[str, Tensor]
    signs: dict[str, Tensor]
    members: Tensor

    @staticmethod
    def of(target: Mapping[str, Tensor], backprop: Mapping[str, Tensor], perturbed: tuple[str, ...]) -> "References":
        device = next(iter(target.values())).device
        cpu = torch.device("cpu")
        members = [[float(name in perturbed) for name in target], [1.0] * len(target)]
        # Float64 whatever the network computes in: of 10⁵ draws a bias is sought far below one draw's rounding.
        return References(
            target={k: v.detach().double().flatten() for k, v in target.items()},
            backprop={k: v.detach().double().flatten() for k, v in backprop.items()},
            # Made on the CPU for every device, by a stream of no run's seed: z-scores of two runs can be compared.
            signs={
                k: Stream(0, f"projection of {k}", 0).signs((v.numel(),), torch.float64, cpu).to(device)
                for k, v in target.items()
            },
            members=torch.tensor(members, dtype=torch.float64, device=device),
        )

    @property
    def layers(self) -> tuple[str, ...]:
        return (*self.target, *GROUPS)

    def grouped(self, by_parameter: list[Tensor]) -> Tensor:
        """Additive numbers of every parameter, [layers, …]: the parameters', then the groups' sums."""
        stacked = torch.stack(by_parameter)
        return torch.cat([stacked, torch.tensordot(self.members, stacked, dims=1)])

    def projected(self, name: str, rows: Tensor, at: slice = slice(None)) -> Tensor:
        """Signed sums of every 16th entry (of a piece), [rows, BUCKETS]: projections with disjoint supports."""
        signed = rows * self.signs[name][at]
        even = signed.shape[1] // BUCKETS * BUCKETS
        sums = signed[:, :even].reshape(len(rows), -1, BUCKETS).sum(1)
        sums[:, : signed.shape[1] - even] += signed[:, even:]  # the last entries, which fill no row of 16
        return sums
