"""Coordinates that are left alone: Sparse-MeZO's small weights."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

import fgvar
from studies.published.directional import Moments, Tensors, of_gaussian


@dataclass(frozen=True)
class Small:
    """Keeps the smallest |w|, this share of each tensor; all of what is no matrix, as `fgvar.transforms.Magnitude`.

    As a ``keep`` of `fgvar.WeightSpace` it is Sparse-MeZO, E ĝ = M∇; `fgvar.transforms.Magnitude` keeps the largest.

    Args:
        share: of the weights of each matrix that stay live.

    Source: Liu et al. 2024 (arXiv 2402.15751), held against public summaries: a mask [|w| ≤ h] with a threshold h of
    each layer. Its shares were not read; what becomes of vectors neither.

    Example:
        >>> net = torch.nn.Linear(4, 1)
        >>> with torch.no_grad():
        ...     _ = net.weight.copy_(torch.tensor([[3.0, 1.0, -2.0, 4.0]]))
        >>> Small(0.5).mask(fgvar.Problem(net, "mse", (torch.ones(1, 4), torch.ones(1, 1))))["weight"]
        tensor([[0., 1., 1., 0.]])
    """

    share: float

    of_parameters: ClassVar[bool] = True

    def mask(self, problem: fgvar.Problem) -> dict[str, Tensor]:
        found = {}
        for name, w in problem.params.items():
            sizes = w.detach().abs()
            kept = max(1, round(self.share * w.numel()))
            threshold = sizes.flatten().sort().values[kept - 1] if w.ndim > 1 else sizes.max()
            found[name] = (sizes <= threshold).to(w.dtype)
        return found


def of_masked(gradient: Tensors, mask: Tensors) -> Moments:
    """Of noise on live weights: E ĝ = M∇, E‖ĝ_k‖² = d_k,live‖M∇‖² + 2‖M∇_k‖²."""
    kept = {name: mask[name] * g for name, g in gradient.items()}
    return Moments(kept, of_gaussian(kept, {name: int(m.sum()) for name, m in mask.items()}))
