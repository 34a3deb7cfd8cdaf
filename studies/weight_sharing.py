"""Weight sharing: how many positions may share a weight before perturbing activities loses to perturbing weights?

Question   Activity perturbation has fewer numbers to perturb, unless a weight is shared by many tokens or pixels.
           From how many on is its gradient noisier than that of weight perturbation?
Claim      From where ρ = ‖X‖² ‖∂L/∂Z‖² / ‖G‖² exceeds the fan-in (`fgvar.theory.activity_ratio`): the exact
           variances of the two schemes cross where ρ crosses the fan-in, for a linear layer over tokens and for a
           convolution. What grows with the number of positions is ρ, and only as far as their credits disagree:
           it does with a loss at each position, and levels off where all share one loss of their mean.
Shown      Exact values (closed forms, Gaussian noise), given one example: no draws, hence no errors.
Cost       Half a minute on one core; --smoke: two seconds.
Run        python studies/weight_sharing.py            writes results/weight_sharing.nc, .pdf and .png
"""

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from studies import common
from studies.common import RESULTS

KINDS = ("linear", "convolution")
LOSSES = ("each position", "pooled")
PATCH, KERNEL, DIGIT = 4, 3, 8  # pixels along a side
CLASSES = 10


@dataclass(frozen=True)
class Config:
    """Sweep the number of positions that share the weights of one layer, at digits."""

    positions: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256)
    """Tokens or pixels of one example: powers of two up to 256."""
    fan_out: int = 32
    examples: int = 8
    """Examples, each with its own weights: each is a problem of its own."""
    seed: int = 0
    out: Path = field(default=RESULTS / "weight_sharing.nc")
    """Where the dataset goes; the figure stands beside it."""
    smoke: bool = False
    """Two seconds: few positions and examples, whose numbers mean nothing."""


def main(config: Config) -> None:
    import numpy as np
    import torch
    import xarray as xr

    import fgvar  # after the command line is parsed: --help needs no torch
    from fgvar.measurement import provenance
    from figures import weight_sharing

    common.place(config)
    wrong = [count for count in config.positions if not 1 <= count <= 256 or count & (count - 1)]
    if wrong or not config.positions:
        raise ValueError(f"positions are {list(config.positions)}, expected powers of two from 1 to 256")
    if config.examples < 1 or config.fan_out < 2:
        raise ValueError(
            f"examples is {config.examples} and fan_out {config.fan_out}, expected at least 1 and at least 2"
        )
    if config.smoke:
        config = replace(config, positions=config.positions[:5:4], examples=1, fan_out=4)
    shape = (len(KINDS), len(LOSSES), len(config.positions), config.examples)
    ratio, variances, fan_in = np.empty(shape), np.empty(shape), np.empty(len(KINDS))
    for i, j, k, example in np.ndindex(shape):
        its = problem(KINDS[i], LOSSES[j], config.positions[k], config.fan_out, config.seed + example)
        (found,) = fgvar.theory.activity_ratio(its).values()
        weights, activities = (
            float(torch.stack(list(fgvar.theory.trace(fgvar.scheme(name), its).values())).sum())
            for name in ("FG-W", "FG-A")
        )
        ratio[i, j, k, example], fan_in[i] = found.ratio, found.fan_in
        variances[i, j, k, example] = activities / weights
    dims = ("kind", "loss", "positions", "example")
    dataset = xr.Dataset(
        {
            "ratio": (dims, ratio, {"long_name": "ρ = ‖X‖² ‖∂L/∂Z‖² / ‖G‖²", "units": "1"}),
            "variance_ratio": (dims, variances, {"long_name": "tr Cov of FG-A over that of FG-W", "units": "1"}),
            "fan_in": ("kind", fan_in, {"long_name": "inputs of one position", "units": "1"}),
        },
        coords={"kind": list(KINDS), "loss": list(LOSSES), "positions": list(config.positions)},
        attrs={"route": "exact", "data": "digits", "fan_out": config.fan_out}
        | provenance(torch.device("cpu"), torch.float64),
    )
    common.publish(dataset, config, weight_sharing, report(dataset))


def problem(kind: str, loss: str, positions: int, fan_out: int, seed: int) -> Any:
    """One example: a layer that so many positions share, a ReLU, a layer norm and a read-out that learns exactly.

    Tokens are patches of 4 × 4 pixels of consecutive digits. Pixels are cut from the middle of a digit, and beyond
    8 × 8 from four digits side by side. A position's class is that of its digit; pooled, that of the first.
    """
    import torch
    from torch import nn
    from torch.nn import functional

    import fgvar
    from fgvar.networks import ReadOut

    images, labels = fgvar.data.load("digits").sample(64, seed=seed, dtype=torch.float64)
    if kind == "linear":
        x = images[:, 0].unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).reshape(-1, PATCH**2)[None, :positions]
        y = labels.repeat_interleave((DIGIT // PATCH) ** 2)[None, :positions]
        layer: nn.Module = nn.Linear(PATCH**2, fan_out, bias=False)
    else:
        height = 2 ** (int(math.log2(positions)) // 2)
        rows, columns = _middle(height), _middle(positions // height)
        four = images[:4, 0].reshape(2, 2, DIGIT, DIGIT).transpose(1, 2).reshape(2 * DIGIT, 2 * DIGIT)
        classes = labels[:4].reshape(2, 2).repeat_interleave(DIGIT, 0).repeat_interleave(DIGIT, 1)
        x, y = four[rows, columns][None, None], classes[rows, columns].reshape(1, -1)
        layer = nn.Conv2d(1, fan_out, KERNEL, padding=KERNEL // 2, bias=False)

    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.readout = layer, ReadOut(fan_out, CLASSES)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            z = self.layer(x)
            z = (z.flatten(2).transpose(1, 2) if z.ndim == 4 else z).relu()
            z = z.mean(1, keepdim=True) if loss == "pooled" else z
            logits: torch.Tensor = self.readout(z.flatten(0, 1)).unflatten(0, z.shape[:2])
            return logits

    def mean_over_positions(logits: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        each = functional.cross_entropy(
            logits.flatten(0, 1), classes[:, : logits.shape[1]].flatten(), reduction="none"
        )
        return each.reshape(logits.shape[:2]).mean(1)

    network, generator = Shared().double(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in network.parameters():
            scale = math.prod(weight.shape[1:]) ** -0.5
            weight.copy_(scale * torch.randn(weight.shape, generator=generator, dtype=weight.dtype))
    return fgvar.Problem(fgvar.with_sites(network, sites=["layer"]), mean_over_positions, (x, y))


def _middle(length: int) -> slice:
    """So many pixels from the middle of a digit, or from the edge of two."""
    start = (DIGIT - length) // 2 if length <= DIGIT else 0
    return slice(start, start + length)


def report(dataset: "xr.Dataset") -> str:  # type: ignore[name-defined]  # noqa: F821
    """Medians over the examples."""
    lines = ["", "medians over examples, exact: ρ / fan-in, and variance of FG-A over that of FG-W"]
    middle = dataset.median("example")
    for kind in dataset["kind"].values:
        for loss in dataset["loss"].values:
            its = middle.sel(kind=kind, loss=loss)
            cells = [
                f"{count}: {r / its['fan_in'].item():.2f} {v:.2f}"
                for count, r, v in zip(its["positions"].values, its["ratio"], its["variance_ratio"], strict=True)
            ]
            lines.append(f"{kind}, loss {loss}:  " + "   ".join(cells).replace("nan", "–"))
    return "\n".join(lines)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
