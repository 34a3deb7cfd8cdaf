"""Fused losses: what do the copies of a local loss cost, one by one and fused? (Fig. 5 of Ren et al. 2023)

Question   How do time and memory of the directional derivatives of all copies of a block's loss grow with the number
           of channel groups?
Claim      Copies that are made (the pooled features again for every patch and group, with a stop-gradient on all but
           their own) take time and memory in proportion to the groups; the fused form, one gradient and an inner
           product for each copy, costs about as much as the ordinary loss, whatever their number.
Shown      The same derivatives of one block's loss in both ways (they agree to rounding), and of the ordinary loss in
           one copy. Wall time on one thread while other jobs may run, so that ways take turns in every repeat and
           ratios are taken within repeats: medians and quartiles. Memory: largest sum of tensors that were allocated
           at a time, beyond the inputs, as torch's allocator reports it.
Cost       About a minute on one core (leave --workers at 0: they would disturb each other); --smoke: seconds.
Run        python studies/fused_losses.py            writes results/fused_losses.nc, .pdf and .png
Full size  python studies/fused_losses.py --batch 128 --patches 64 --repeats 5      (more than 4 GB; not done here)
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from studies import common
from studies.common import RESULTS, Options, Run

WAYS = ("naive", "fused", "ordinary")


@dataclass(frozen=True)
class Config:
    """Time and memory of naive and fused replicated losses."""

    groups: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Divisors of the channels, and fewer."""
    batch: int = 32
    patches: int = 16
    """In all."""
    channels: int = 512
    classes: int = 10
    repeats: int = 31
    """Of all ways in turn."""
    run: Run = Options(RESULTS / "fused_losses.nc")


def main(config: Config) -> None:
    from figures import fused_losses

    if config.run.smoke:
        config = replace(config, groups=config.groups[1:4:2], batch=4, patches=4, channels=32, repeats=3)
    settings = {name: getattr(config, name) for name in ("batch", "patches", "channels", "classes", "repeats")}
    dataset = common.sweep(cell, {"groups": config.groups}, settings, config.run)
    common.publish(dataset, config, fused_losses, report(dataset))


def cell(*, groups: int, seed: int, batch: int, patches: int, channels: int, classes: int, repeats: int) -> Any:
    """Seconds of each way in each repeat, in turn, and their peak memory."""
    import time

    import torch
    import xarray as xr

    from fgvar.measurement import provenance

    its = ways(groups, seed, batch, patches, channels, classes)
    peaks = [peak(way) for way in its.values()]  # which warms them up, too
    seconds = []
    for _ in range(repeats):
        row = []
        for way in its.values():
            started = time.perf_counter()
            way()
            row.append(time.perf_counter() - started)
        seconds.append(row)
    naive, fused = its["naive"](), its["fused"]()
    return xr.Dataset(
        {
            "time": (("repeat", "way"), seconds, {"long_name": "wall time", "units": "s"}),
            "peak": ("way", peaks, {"long_name": "peak memory beyond the inputs", "units": "B"}),
            "difference": (
                (),
                float((naive - fused).norm() / fused.norm()),
                {"long_name": "naive − fused, relative"},
            ),
        },
        coords={"way": list(WAYS), "repeat": range(repeats)},
        attrs=provenance(torch.device("cpu"), torch.float32),
    )


def ways(
    groups: int, seed: int, batch: int, patches: int, channels: int, classes: int, *, double: bool = False
) -> dict[str, Callable[[], Any]]:
    """How each copy's loss moves along a direction of the features [batch, patches, groups]; of one copy [batch]."""
    import torch

    import fgvar
    from fgvar.networks import OUTPUT, LocalHead, ReadOut, initialise

    class End(torch.nn.Module):
        """The end of a block, whose features are the inputs."""

        def __init__(self) -> None:
            super().__init__()
            self.head, self.readout = LocalHead(channels, classes), ReadOut(channels, classes)

        def forward(self, x: Any) -> Any:
            return self.readout(self.head.end(x).flatten(2))

    generator, dtype = torch.Generator().manual_seed(seed), torch.float64 if double else torch.float32
    net = End()
    for module in (net.head, net.readout):
        initialise(module.linear, "kaiming", generator)
    shape = (batch, patches, groups, channels // groups)
    x, direction = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    y = torch.randint(classes, (batch,), generator=generator)
    problem = fgvar.Problem(net.to(dtype), "cross_entropy", (x, y))
    end, losses, nothing = "head.end", fgvar.LocalLosses(), torch.zeros(batch, dtype=dtype)
    linear = functools.partial(torch.nn.functional.linear, weight=problem.params["head.linear.weight"])

    def naive() -> Any:
        return torch.func.jvp(
            lambda z: replicated(z, linear, problem.params["head.linear.bias"], y), (x,), (direction,)
        )[1]

    def fused() -> Any:
        return losses.terms(problem, {end: x, OUTPUT: nothing}, {end: direction, OUTPUT: nothing})[end]

    def ordinary() -> Any:
        return torch.func.jvp(lambda z: problem.local_losses(problem.params, end, z), (x,), (direction,))[1]

    return {"naive": naive, "fused": fused, "ordinary": ordinary}


def replicated(x: Any, linear: Callable[..., Any], bias: Any, y: Any) -> Any:
    """A loss for each patch and group [batch, patches, groups], which passes gradient to its own features alone."""
    import torch
    from torch.nn import functional

    from fgvar.networks import layer_norm

    batch, patches, groups, _ = x.shape
    adds = layer_norm(x) / patches  # to the pooled features
    mask = torch.eye(groups, dtype=x.dtype)[:, :, None]
    own = adds[:, :, :, None] * mask  # copy (p, g): its features at their place, 0 elsewhere
    copies = (adds.sum(1)[:, None, None] - own).detach() + own
    logits = linear(copies.flatten(3), bias=bias)
    return functional.cross_entropy(
        logits.movedim(3, 1), y[:, None, None].expand(batch, patches, groups), reduction="none"
    )


def peak(way: Callable[[], Any]) -> int:
    """Largest sum of bytes that torch had allocated at a time, beyond those before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        way()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return max(itertools.accumulate(sizes), default=0)  # what is freed counts as negative


def report(dataset: Any) -> str:
    """A line for each number of groups: medians."""
    lines = ["", f"{'groups':>6}" + "".join(f"{way:>12}" for way in WAYS) + f"{'naive/fused':>13}   peak memory, MB"]
    for groups in dataset["groups"].values:
        its = dataset.sel(groups=groups).stack(each=("seed", "repeat"))
        medians = its["time"].median("each")
        ratio = (its["time"].sel(way="naive") / its["time"].sel(way="fused")).median().item()
        peaks = dataset["peak"].sel(groups=groups).max("seed")
        lines.append(
            f"{groups:>6}"
            + "".join(f"{1e3 * medians.sel(way=way).item():>9.2f} ms" for way in WAYS)
            + f"{ratio:>13.3g}  "
            + "".join(f"{peaks.sel(way=way).item() / 1e6:>9.1f}" for way in WAYS)
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    common.main(main, Config, __doc__)
