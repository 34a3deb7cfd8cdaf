"""Cost: how do time and memory of a measurement grow with draws, batch, parameters and channel groups?

Question   What does `fgvar.measure` cost, on larger and larger problems?
Claim      Time grows in proportion to draws, batch and parameters, or less while fixed costs weigh, and not at all
           with the number of channel groups, each with a loss of its own. Memory does not grow with draws beyond the
           64 that are worked on at a time.
Shown      Wall time of `measure` by forward-mode differentiation, medians and quartiles of repeats that take turns
           between schemes, on one thread. Memory: largest sum of tensors that were allocated at a time, beyond those
           before, as torch's allocator reports it. Slopes are least squares in logarithms of medians.
Cost       About three minutes on one core (leave --workers at 0: they would disturb each other); --smoke: seconds.
Run        python studies/cost.py            writes results/cost.nc, .pdf and .png
Full size  python studies/cost.py --draws 256 1024 4096 --batch 32 128 512 --width 256 512 1024   (not done here)
"""

from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

SCHEMES = ("FG-W", "LG-FG-A")
ALONG = ("draws", "batch", "width", "groups")


@dataclass(frozen=True)
class Config:
    """Time measurements on LocalMixers; each axis starts from --base."""

    draws: tuple[int, ...] = (64, 128, 256, 512)
    batch: tuple[int, ...] = (8, 16, 32, 64)
    width: tuple[int, ...] = (64, 128, 256, 512)
    """Channels; the figure shows the numbers of parameters that come of them."""
    groups: tuple[int, ...] = (1, 2, 4, 8, 16)
    base: tuple[int, int, int, int] = (64, 16, 128, 4)
    """Draws, batch, width and groups where another axis grows."""
    repeats: int = 5
    run: Run = Options(RESULTS / "cost.nc")


def main(config: Config) -> None:
    import xarray as xr

    from figures import cost

    if config.run.smoke:
        config = replace(
            config, draws=(16, 32), batch=(2, 4), width=(8, 16), groups=(1, 2), base=(16, 2, 8, 2), repeats=1
        )
    common.place(config)
    found = []
    for along in ALONG:
        settings = dict(zip(ALONG, config.base, strict=True)) | {"repeats": config.repeats}
        del settings[along]
        swept = common.sweep(cell, {along: getattr(config, along)}, settings, config.run, along)
        found.append(common.by_point(swept, along).expand_dims(along=[along]))
    dataset = xr.concat(found, "along", join="outer", combine_attrs="drop_conflicts")
    common.publish(dataset, config, cost)


def cell(*, draws: int, batch: int, width: int, groups: int, repeats: int, seed: int) -> Any:
    """Seconds of each scheme's measurement in each repeat, in turn, and its peak memory."""
    import functools
    import time

    import torch
    import xarray as xr

    import fgvar
    from fgvar.measurement import provenance
    from studies.fused_losses import peak

    model = fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=4, channels=width, groups=groups, seed=seed)
    problem = fgvar.Problem(model, "cross_entropy", fgvar.data.load("digits").sample(batch, seed=seed))
    works = {
        name: functools.partial(fgvar.measure, {name: fgvar.scheme(name)}, problem, draws=draws, seed=seed)
        for name in SCHEMES
    }
    peaks = [peak(work) for work in works.values()]  # which warms them up, too
    seconds = []
    for _ in range(repeats):
        row = []
        for work in works.values():
            started = time.perf_counter()
            work()
            row.append(time.perf_counter() - started)
        seconds.append(row)
    return xr.Dataset(
        {
            "time": (("repeat", "estimator"), seconds, {"long_name": "wall time", "units": "s"}),
            "peak": ("estimator", peaks, {"long_name": "peak memory", "units": "B"}),
            "parameters": ((), sum(p.numel() for p in problem.params.values())),
        },
        coords={"estimator": list(SCHEMES), "repeat": range(repeats)},
        attrs=provenance(torch.device("cpu"), torch.float32),
    )


if __name__ == "__main__":
    common.main(main, Config, __doc__)
