"""Networks whose layers have exact statistics: per-layer laws of estimates, and draws of all layers at once."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import fgvar
from fgvar.measurement import estimates
from studies.calibration.laws import Law

Array = Any
NETWORKS = {
    "LG-FG-A, LocalMixer": ("LG-FG-A", "mixer"),
    "FG-A, LocalMixer": ("FG-A", "mixer"),
    "FG-W, MLP": ("FG-W", "mlp"),
}


def problem(kind: str) -> fgvar.Problem:
    """Four digits before a network of some hundred weights, at its initialisation."""
    inputs, labels = fgvar.data.load("digits").sample(4, seed=0)
    model = (
        fgvar.networks.LocalMixer((1, 8, 8), 10, blocks=2, patches=2, channels=16, groups=2, seed=0)
        if kind == "mixer"
        else fgvar.networks.MLP((1, 8, 8), width=12, depth=2, classes=10, seed=0)
    )
    return fgvar.Problem(model.double(), "cross_entropy", (inputs.double(), labels))


def network(name: str, seed: int) -> tuple[dict[str, Law], Callable[[int, int], dict[str, Array]]]:
    """Laws of every layer with noise and a gradient, and of "perturbed", and (first, number) → their estimates."""
    scheme, kind = NETWORKS[name]
    estimator, its = fgvar.scheme(scheme), problem(kind)
    exact = fgvar.measure({"it": estimator}, its, route="exact").isel(estimator=0)
    target, backprop = estimator.target(its), its.backprop()
    members = {k: [k] for k in its.perturbed} | {"perturbed": list(its.perturbed)}
    flags = fgvar.measurement.FLAGS
    live = [k for k in members if not (exact["flag"].sel(layer=k).values & (flags["dead"] | flags["no_noise"])).any()]

    def flat(gradient: dict[str, torch.Tensor], layer: str, start: int) -> Array:
        return torch.cat([gradient[k].flatten(start) for k in members[layer]], -1).numpy()

    def draw(first: int, number: int) -> dict[str, Array]:
        noise = estimator.randomness(its).sample(seed, range(first, first + number), dtype=torch.float64)
        found = estimates(estimator, its, noise)
        return {layer: flat(found, layer, 1) for layer in live}

    laws = {}
    for layer in live:
        one = exact.sel(layer=layer)
        sizes = flat(target, layer, 0).size
        names = ("variance", "slope", "sq_bias", *(("snr", "efficiency") if sizes > 1 else ()))
        truth = {k: np.asarray(one[k].values) for k in names}
        laws[layer] = Law(_not_sampled, (flat(target, layer, 0), flat(backprop, layer, 0)), truth)
    return laws, draw


def _not_sampled(_runs: int, _draws: int) -> Array:
    raise NotImplementedError("layers of a network share their draws: see draw")
