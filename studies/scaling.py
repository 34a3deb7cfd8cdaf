"""Scaling: how do noise and direction of forward gradients grow with width, depth and the number of channel groups?

Question   In weights and in activities, with the global loss and with local ones: which power of the size is lost?
Claim      Weight perturbation has a relative variance of d + 1 for d weights, whatever they are: in square layers it
           grows with the square of the width, and with the depth. Activity perturbation grows with the number of
           activities, with the width and the depth themselves, in networks whose layers keep norms forward and
           backward. With losses of their own, blocks do not see the noise of others.
Shown      Relative variance and SNR, given one batch, exact; mean cosines to the target and to backprop, drawn. LG:
           one loss a block, on LocalMixers for every patch and group. At initialisation (heads not zero), and after a
           little backprop. MLPs have square layers of weights N(0, 2/width), which keep norms at first; their inputs
           are digits carried to as many numbers as there are units, by a fixed random matrix. LocalMixers start from
           weights N(0, min(2/√fan-in, 0.1)²) as in the paper's code. Slopes are least squares in logarithms, with
           95 % intervals over seeds.
Predicted  Slopes of d + 1, counted, for FG-W, and of the number of activities for FG-A. On MLPs, whose blocks are all
           alike, the same of one block for LG-FG-W and LG-FG-A. Nothing predicts how replicas on LocalMixers grow
           with width and groups; with depth LG schemes should not, but for the first block, which differs.
Cost       Six minutes on one core, half of it on two (--workers 2); --smoke: seconds.
Run        python studies/scaling.py            writes results/scaling.nc, .pdf and .png
Full size  python studies/scaling.py --width 64 128 256 512 1024 --depth 1 2 4 8 16 --batch 128   (not done here)
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

SCHEMES = ("FG-W", "FG-A", "LG-FG-W", "LG-FG-A")
ALONG = {"mixer": ("width", "depth", "groups"), "mlp": ("width", "depth")}
SHORT = {"mixer": ("groups",), "mlp": ("depth",)}


@dataclass(frozen=True)
class Config:
    """Measure networks of growing size; each axis starts from --base."""

    width: tuple[int, ...] = (32, 64, 128, 256)
    depth: tuple[int, ...] = (1, 2, 3, 4, 6)
    groups: tuple[int, ...] = (1, 2, 4, 8, 16)
    base: tuple[int, int, int] = (64, 2, 4)
    """Width, depth and groups where another axis grows."""
    epochs: tuple[int, ...] = (0, 5)
    """Of backprop before measuring; 22 steps each."""
    batch: int = 32
    draws: int = 32
    """For cosines; the rest is exact."""
    run: Run = Options(RESULTS / "scaling.nc", seed=(0, 1, 2, 3, 4))


def main(config: Config) -> None:
    import xarray as xr

    from figures import scaling

    if config.run.smoke:
        run = replace(config.run, seed=config.run.seed[:1])
        config = replace(config, width=(8, 16), depth=(1, 2), groups=(1, 2), base=(8, 1, 2), epochs=(0,), run=run)
        config = replace(config, batch=4, draws=4)
    common.place(config)
    found = []
    for network, axes in (SHORT if config.run.smoke else ALONG).items():
        for along in axes:
            at = dict(zip(("width", "depth", "groups"), config.base, strict=True))
            del at[along]
            settings = {"network": network, **at, "batch": config.batch, "draws": config.draws}
            grid = {along: getattr(config, along), "epochs": config.epochs}
            swept = common.sweep(cell, grid, settings, config.run, f"{network}_{along}")
            found.append(common.by_point(swept, along).expand_dims(place=[f"{network}, {along}"]))
    dataset = xr.concat(found, "place", join="outer", combine_attrs="drop_conflicts")
    common.publish(dataset, config, scaling)


def cell(*, network: str, width: int, depth: int, groups: int, epochs: int, batch: int, draws: int, seed: int) -> Any:
    """All schemes on one network: exact variances, drawn cosines, and what the laws count."""
    import torch

    import fgvar
    from fgvar.measurement import ENDS

    images, test = (fgvar.data.load("digits", split) for split in ("train", "test"))
    x, y = images.sample(batch, seed=seed + 1)
    model = mixer(width, depth, groups, seed) if network == "mixer" else mlp(width, depth, seed, x)
    params = dict(model.named_parameters())
    if epochs:
        backprop = fgvar.scheme("BP", losses=fgvar.GlobalLoss(heads=True))
        schedule = fgvar.Schedule(epochs=epochs, lr=0.05)
        params = fgvar.train(model, backprop, (images, test), schedule, seed=seed, device="cpu").params
    # In double precision the exact route is sure of itself on ill-conditioned networks, too.
    problem = fgvar.Problem(model, "cross_entropy", (x, y)).at(params).to(torch.float64)
    schemes = {name: fgvar.scheme(name, oracle=fgvar.oracles.Replay()) for name in SCHEMES}
    exact = fgvar.measure(schemes, problem, route="exact")
    drawn = fgvar.measure(schemes, problem, draws=draws, seed=seed)
    numbers = {
        "weights": sum(problem.params[name].numel() for name in problem.perturbed),
        "activities": sum(math.prod(shape[1:]) for shape in problem.trace.sites.values()),
    }
    found = exact[["relative_variance", "snr"]].merge(
        drawn[["cosine", *(f"cosine{end}" for end in ENDS), "cosine_null"]]
    )
    found = found.sel(layer="perturbed", drop=True).drop_vars("layer", errors="ignore")
    for name, number in numbers.items():
        found[name] = (), number, {"long_name": f"perturbed {name} of an example"}
    return found.assign_attrs(drawn.attrs)


def mixer(width: int, depth: int, groups: int, seed: int) -> Any:
    """A LocalMixer with so many channels and blocks."""
    import fgvar

    return fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=depth, patches=2, channels=width, groups=groups, seed=seed)


def mlp(width: int, depth: int, seed: int, x: Any) -> Any:
    """An MLP of square layers that keep norms (He et al. 2015), with a local head behind each."""
    import torch

    import fgvar

    class Lift(torch.nn.Module):
        """Images as ``width`` numbers, by a matrix that nobody learns."""

        matrix: torch.Tensor

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("matrix", torch.randn(64, width, generator=generator) / 8)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1) @ self.matrix

    generator = torch.Generator().manual_seed(seed)
    net = torch.nn.Sequential(Lift(), fgvar.networks.MLP(width, width=width, depth=depth, classes=10, seed=seed))
    with torch.no_grad():
        for layer in range(depth):
            weight = net.get_parameter(f"1.layer{layer}.weight")
            weight.copy_(torch.randn(width, width, generator=generator) * (2 / width) ** 0.5)
    after = [f"1.act{layer}" for layer in range(depth)]
    return fgvar.with_local_heads(net, after=after, classes=10, inputs=x, seed=seed)


if __name__ == "__main__":
    common.main(main, Config, __doc__)
