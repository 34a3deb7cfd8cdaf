"""Dataset checks: tell what a dataset lacks, whoever wrote it, before its numbers are taken by name."""

from collections.abc import Iterable, Mapping

import xarray as xr

REFERENCES = ("target", "backprop")
DIMS = ("estimator", "layer")  # of every number of a measurement; cosines and biases are to a reference, too
TO_A_REFERENCE = (*DIMS, "reference")
LABELS = {"estimator": (), "layer": (), "reference": REFERENCES}  # dim → labels that it has to have


def missing_from(dataset: xr.Dataset, needed: Mapping[str, Iterable[str]], text: Iterable[str] = ()) -> list[str]:
    """What a dataset lacks, in to_text, of these variables: name → dims that it has, among others.

    Args:
        dataset: anybody's.
        needed: those of ``text`` may hold anything, others have to hold numbers.
        text: names.

    Example:
        >>> missing_from(xr.Dataset({"loss": ("epoch", ["low", "high"])}), {"loss": ("seed", "epoch"), "cosine": ()})
        ["dims ['seed'] of 'loss'", "numbers in 'loss'", "variable 'cosine'"]
    """
    found = []
    for name, dims in needed.items():
        if name not in dataset:
            found.append(f"variable {name!r}")
            continue
        if missing := sorted({*dims} - {*dataset[name].dims}):
            found.append(f"dims {missing} of {name!r}")
        if name not in text and dataset[name].dtype.kind not in "fiub":
            found.append(f"numbers in {name!r}")
    used = dict.fromkeys(dim for name in needed if name in dataset for dim in dataset[name].dims)
    found += [f"values along {dim!r}" for dim in used if dim not in LABELS and not dataset.sizes[dim]]
    return found + [missing for dim in LABELS if dim in used for missing in _missing_labels(dataset, dim)]


def _missing_labels(dataset: xr.Dataset, dim: str) -> list[str]:
    """What the labels along a dim lack, to be chosen by name."""
    labels = dataset[dim].values.tolist()
    if dim not in dataset.coords or not labels or not all(isinstance(label, str) for label in labels):
        return [f"names along {dim!r}"]
    if len(set(labels)) < len(labels):
        return [f"a name of its own for each along {dim!r}"]
    absent = [label for label in LABELS[dim] if label not in labels]
    return [f"{', '.join(map(repr, absent))} along {dim!r}"] if absent else []


def missing_for_measurement(dataset: xr.Dataset) -> list[str]:
    """What a dataset lacks, in to_text, to be summed up as a measurement."""
    return missing_from(dataset, _needed(dataset))


def extra_dims(dataset: xr.Dataset) -> list[str]:
    """The dims over which a dataset holds several measurements."""
    every = dict.fromkeys(str(dim) for name in _needed(dataset) for dim in dataset[name].dims)
    return [dim for dim in every if dim not in (*TO_A_REFERENCE, "step")]


def _needed(dataset: xr.Dataset) -> dict[str, tuple[str, ...]]:
    """The variables that a summary shows, and their dims."""
    exact = str(dataset.attrs.get("route")) == "exact"
    found: dict[str, tuple[str, ...]] = {
        **({"sq_bias": TO_A_REFERENCE, "gradient_norm": ()} if exact else {}),
        **({} if exact else dict.fromkeys(("bias_z", "bias_p"), TO_A_REFERENCE)),
        **dict.fromkeys(("relative_variance", "relative_variance_se"), DIMS),
        **dict.fromkeys(("cosine", "cosine_se"), TO_A_REFERENCE),
    }
    if "baseline" in dataset.coords:
        differences = (f"{name}_difference" for name in ("slope", "relative_variance", "cosine"))
        found |= {f"{name}{end}": DIMS for name in differences for end in ("", "_se")}
    return found


def require_measurement(dataset: object) -> None:
    """Raise where this is not the dataset of one measurement, or of one at each step.

    Raises:
        TypeError: no dataset.
        ValueError: it lacks something, or is of several.
    """
    if not isinstance(dataset, xr.Dataset):
        raise TypeError(
            f"got a {type(dataset).__name__}, expected a dataset: of fgvar.measure, or run.dataset of one with probes"
        )
    if missing := missing_for_measurement(dataset):
        raise ValueError(
            f"the dataset is no measurement, as it lacks {', '.join(missing)}; give one of fgvar.measure, or a run's "
            "with probes (fgvar.train), or print this one"
        )
    if extra := extra_dims(dataset):
        one = ", ".join(f"{dim}=0" for dim in extra)
        raise ValueError(
            f"the dataset is of several measurements, over {', '.join(map(repr, extra))}; choose one, as "
            f"dataset.isel({one})"
        )
