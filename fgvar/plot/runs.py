"""Runs: the curves and probes of training runs, along one dim that tells them apart."""

from dataclasses import dataclass

import numpy as np
import xarray as xr

from fgvar.plot import datasets

CURVES = {"error": ("train_error", "test_error"), "loss": ("loss", "test_loss")}
KNOWN = ("epoch", "update", "step", "estimator", "reference", "layer", "seed", "draw")  # dims with a meaning
PROBE = {"cosine": ("step", "estimator", "reference"), "relative_variance": ("step", "estimator")}


@dataclass(frozen=True)
class Runs:
    """Training runs as they are drawn.

    Attributes:
        data: of one layer.
        along: the dim that tells runs apart; empty of one run.
        curves: "error" or "loss" → its variables.
        probed: are there probes?
    """

    data: xr.Dataset
    along: str
    curves: dict[str, tuple[str, ...]]
    probed: bool

    @property
    def labels(self) -> list[str]:
        """Names of the runs."""
        return datasets.names(self.data, self.along) if self.along else [""]

    @property
    def quantities(self) -> list[str]:
        """What is drawn."""
        probes = ["cosine, target", "cosine, backprop", "relative variance"] if self.probed else []
        return [*self.curves, *probes]

    def of(self, label: str) -> xr.Dataset:
        """One run."""
        return self.data.isel({self.along: self.labels.index(label)}) if self.along else self.data

    def probes(self, label: str | None) -> xr.Dataset:
        """The probes of one run, or of all; over seeds their means."""
        data = self.data if label is None else self.of(label)
        kept = [name for name, its in data.items() if not {"epoch", "update"} & {*its.dims}]
        return datasets.across_seeds(data[kept])

    def named(self, label: str) -> str:
        """A run in a legend or a sentence: a number says of what."""
        return f"{self.along} {label}" if self.along and self.data[self.along].dtype.kind not in "OUST" else label

    def called(self, label: str | None) -> str:
        """How a run is named beside its panels."""
        if not label:
            return ""
        return f"trained by {label}" if self.along in ("algorithm", "scheme") else f"{self.along} {label}"


def of(dataset: xr.Dataset, layer: str = "perturbed") -> Runs:
    """The runs in a dataset.

    Raises:
        TypeError: no dataset.
        ValueError: neither curves nor probes, several runs along two dims, or no such layer.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(f"got a {type(dataset).__name__}, expected a dataset: run.dataset of one of fgvar.train")
    curves = _curves(dataset)
    probed = not datasets.missing_from(dataset, PROBE)
    if not curves and not probed:
        raise ValueError(
            "the dataset is of no training run: it has neither train_error, test_error or loss over epochs, nor "
            "cosine and relative_variance of probes over steps; give run.dataset of fgvar.train"
        )
    shown = [name for its in curves.values() for name in its] + (list(PROBE) if probed else [])
    datasets.require_layer(dataset, layer)
    data = datasets.of_layer(dataset, layer if probed else None)
    data = data.squeeze([dim for dim in _others(data, shown) if data.sizes[dim] == 1])
    others = _others(data, shown)
    if len(others) > 1:
        choice = ", ".join(f"{dim}=0" for dim in others[1:])
        raise ValueError(
            f"the dataset is of several runs, along {', '.join(map(repr, others))}; choose along all but one, as "
            f"dataset.isel({choice})"
        )
    if others and others[0] not in data.coords:
        data = data.assign_coords({others[0]: np.arange(data.sizes[others[0]])})
    return Runs(data, others[0] if others else "", curves, probed)


def _curves(dataset: xr.Dataset) -> dict[str, tuple[str, ...]]:
    """Errors where there are some; else losses."""
    for kind, variables in CURVES.items():
        there = tuple(
            name for name in variables
            if name in dataset and "epoch" in dataset[name].dims and dataset[name].dtype.kind in "fiub"
        )  # fmt: skip
        if there and dataset.sizes["epoch"]:
            return {kind: there}
    return {}


def _others(dataset: xr.Dataset, shown: list[str]) -> list[str]:
    every = dict.fromkeys(str(dim) for name in shown for dim in dataset[name].dims)
    return [dim for dim in every if dim not in KNOWN]
