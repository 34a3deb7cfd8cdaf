"""Runs of a table as one dataset: their errors over (network, algorithm, seed), and their probes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from fgvar.measurement import ENDS

CURVES = ("loss", "train_error", "test_error")
# Of the probes what curves over training show; what has a closed form has no error.
PROBED = (
    "cosine",
    *(f"cosine{end}" for end in ENDS),
    "relative_variance",
    "snr",
    "data_variance",
    "gradient_norm",
    "cosine_null",
    "size",
)
Paper = Mapping[str, Mapping[str, tuple[float, float]]]  # network → algorithm → test and train error, per cent
TABLE3 = "Ren et al. 2023, Table 3"
SCHEDULE = ("batch", "momentum", "weight_decay", "decay", "warmup", "optimiser", "head_factor", "readout_factor")


def errors(
    runs: Sequence[xr.Dataset],
    order: Sequence[str],
    paper: Paper,
    *,
    curves: Sequence[str] = CURVES,
    source: str = TABLE3,
    settings: Sequence[str] = (),
) -> xr.Dataset:
    """Curves (NaN where a run has no value), length and rate of each run, and the paper's errors.

    Args:
        runs: datasets of `fgvar.train` with ``network`` and ``algorithm`` in their attributes.
        order: of algorithms; others follow.
        paper: network → algorithm → test and train error, per cent.
        curves: which of the runs' variables, each over one dimension; not every run needs to have all.
        source: of the paper's errors.
        settings: further attributes to state.

    Raises:
        ValueError: two runs of one place, one network's runs on several data sets, or a curve that no run has.
    """
    networks, algorithms, seeds = _axes(runs, order)
    shape = (len(networks), len(algorithms), len(seeds))
    if lacking := [name for name in curves if not any(name in one for one in runs)]:
        raise ValueError(f"no run has {', '.join(lacking)}, expected one at least that has each of its curves")
    like = {name: next(one[name] for one in runs if name in one) for name in curves}
    along = {name: str(found.dims[0]) for name, found in like.items()}
    # By their numbers: of epochs that were not evaluated a run has none.
    sizes = {dim: max(1 + int(one[dim].max()) for one in runs if dim in one.dims) for dim in along.values()}
    found = {name: np.full((*shape, sizes[dim]), np.nan) for name, dim in along.items()}
    lengths, rates, commits = np.zeros(shape, int), np.full(shape, np.nan), np.full(shape, "", object)
    for one in runs:
        place = _place(one, networks, algorithms, seeds)
        if lengths[place]:
            which = f"{networks[place[0]]} {algorithms[place[1]]} {seeds[place[2]]}"
            raise ValueError(f"there are two runs of {which}, expected one; give each an --out of its own")
        for name in found:
            if name in one:
                found[name][*place, one[along[name]]] = one[name]
        lengths[place], rates[place] = one.attrs["train_epochs"], one.attrs["train_lr"]
        commits[place] = str(one.attrs.get("commit"))
    dims = ("network", "algorithm", "seed")
    return xr.Dataset(
        {
            **{name: ((*dims, along[name]), values, like[name].attrs) for name, values in found.items()},
            "epochs": (dims, lengths, {"long_name": "length of the run; 0: there is none", "units": "epochs"}),
            "lr": (dims, rates, {"long_name": "initial learning rate", "units": "1"}),
            "made_by": (dims, commits.astype(str), {"long_name": "commit of the code that made the run"}),
            **published(networks, algorithms, paper, source),
        },
        coords={
            "network": networks,
            "algorithm": algorithms,
            "seed": seeds,
            **{dim: range(size) for dim, size in sizes.items()},
            "data": ("network", _data(runs, networks)),
        },
        attrs=_attributes(runs, settings),
    )


def published(
    networks: Sequence[str], algorithms: Sequence[str], paper: Paper, source: str = TABLE3
) -> dict[str, xr.Variable]:
    """The paper's test and train errors over (network, algorithm), NaN where it has none."""
    return {
        f"paper_{split}_error": xr.Variable(
            ("network", "algorithm"),
            np.array([[paper.get(n, {}).get(a, (np.nan,) * 2)[i] / 100 for a in algorithms] for n in networks]),
            {"long_name": f"the paper's {split} error", "units": "1", "source": source},
        )
        for i, split in enumerate(("test", "train"))
    }


def validation(runs: Sequence[xr.Dataset], order: Sequence[str]) -> xr.DataArray:
    """Error on examples held out of the train split, by which learning rates were chosen, over (tried, rate)."""
    _, algorithms, _ = _axes(runs, order)
    rates = sorted({float(one.attrs["train_lr"]) for one in runs})
    found = np.full((len(algorithms), len(rates)), np.nan)
    for one in runs:
        place = algorithms.index(one.attrs["algorithm"]), rates.index(float(one.attrs["train_lr"]))
        found[place] = one["test_error"].isel(epoch=-1)
    first = runs[0].attrs
    attrs = {
        "long_name": "error on held-out training examples",
        "units": "1",
        "source": f"{first['network']}, {first['train_epochs']} epochs, seed {first['train_seed']}, "
        f"{first['validation']} examples",
    }
    return xr.DataArray(found, {"tried": algorithms, "rate": rates}, ("tried", "rate"), attrs=attrs)


def probes(runs: Sequence[xr.Dataset], order: Sequence[str]) -> xr.Dataset:
    """What was measured on the way, over (network, algorithm, probe): of each run's first seed that was probed.

    Layers that a network lacks are NaN; so are probes that a run has not.

    Raises:
        ValueError: one network's runs are on several data sets.
    """
    runs = sorted((one for one in runs if "step" in one.dims), key=lambda one: int(one.attrs["train_seed"]))
    chosen: dict[tuple[str, str], xr.Dataset] = {}
    for one in runs:
        chosen.setdefault((one.attrs["network"], one.attrs["algorithm"]), one)
    networks, algorithms, _ = _axes(list(chosen.values()), order)
    layers = list(dict.fromkeys(str(name) for one in runs for name in one["layer"].values))
    layers = [name for name in layers if name not in WHOLE] + list(WHOLE)
    number = max(one.sizes["step"] for one in runs)
    measured = [name for name in PROBED if all(name in one for one in runs)]  # older runs have no intervals
    nothing = runs[0].isel(step=slice(0))
    rows = [
        xr.concat(
            [_probes_of(chosen.get((network, name), nothing)[measured], number, layers) for name in algorithms],
            "algorithm",
        )
        for network in networks
    ]
    found = xr.concat(rows, "network").assign_coords(
        network=networks,
        algorithm=algorithms,
        data=("network", _data(runs, networks)),
    )
    for name, variable in found.data_vars.items():
        variable.attrs = runs[0][name].attrs if name in runs[0] else {"long_name": "updates made", "units": "1"}
        variable.encoding = {"zlib": True, "complevel": 6, "dtype": "float32"}
    found.attrs = _attributes(runs) | {
        name: runs[0].attrs[name] for name in ("draws", "route", "exact") if name in runs[0].attrs
    }
    found.attrs["batch_size"] = ", ".join(
        f"{network} {_of(runs, network)[0].attrs['batch_size']}" for network in networks
    )
    return found


WHOLE = ("perturbed", "total")


def _probes_of(one: xr.Dataset, number: int, layers: list[str]) -> xr.Dataset:
    """A run's probes, numbered, on the layers of all networks."""
    some = one.assign(step_number=("step", one["step"].values.astype(float)))
    some = some.drop_vars("step").rename(step="probe", step_number="step").reindex(layer=layers)
    return some.assign_coords(probe=range(some.sizes["probe"])).reindex(probe=range(number))


def _axes(runs: Sequence[xr.Dataset], order: Sequence[str]) -> tuple[list[str], list[str], list[int]]:
    """Networks by their number of patches and groups, algorithms in the given order, seeds."""
    networks = sorted({str(one.attrs["network"]) for one in runs}, key=size_of)
    found = {str(one.attrs["algorithm"]) for one in runs}
    algorithms = [name for name in order if name in found] + sorted(found - set(order))
    return networks, algorithms, sorted({int(one.attrs["train_seed"]) for one in runs})


def size_of(preset: str) -> tuple[list[int], str]:
    """S/1/1 before M/1/16 before M/8/16."""
    return [int(part) for part in preset.split("/") if part.isdigit()], preset


def _place(one: xr.Dataset, networks: list[str], algorithms: list[str], seeds: list[int]) -> tuple[int, int, int]:
    of = one.attrs
    return networks.index(of["network"]), algorithms.index(of["algorithm"]), seeds.index(int(of["train_seed"]))


def _of(runs: Sequence[xr.Dataset], network: str) -> list[xr.Dataset]:
    return [one for one in runs if one.attrs["network"] == network]


def _data(runs: Sequence[xr.Dataset], networks: Sequence[str]) -> list[str]:
    """The data of each network's runs."""
    found = []
    for network in networks:
        first, *others = dict.fromkeys(str(one.attrs["data"]) for one in _of(runs, network))
        if others:
            names = " and ".join((first, *others))
            raise ValueError(
                f"runs of {network} are on {names}, expected one data set; give each an --out of its own"
            )
        found.append(first)
    return found


def _attributes(runs: Sequence[xr.Dataset], settings: Sequence[str] = ()) -> dict[str, Any]:
    """What all runs have in common, and all that made them."""
    same = {f"train_{name}" for name in SCHEDULE} | {"study", *settings}
    found = {}
    for name in sorted(same):
        values = {str(one.attrs.get(name)) for one in runs}
        found[name] = ", ".join(sorted(values))
    # Older runs do not name it, and had none.
    found["train_autocast"] = ", ".join(sorted({one.attrs.get("train_autocast", "False") for one in runs}))
    for name in ("fgvar_version", "torch_version", "python_version", "commit", "device", "dtype", "threads"):
        found[name] = ", ".join(sorted({str(one.attrs.get(name)) for one in runs}))
    return found
