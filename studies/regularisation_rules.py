"""The rules of `studies/regularisation.py`: each row at its best rate, and what its test errors say.

A rule holds where all of its differences of test errors are below 0, by their 95 % t-intervals over seeds.
"""

from typing import Any

DECAYED = "BP + decay"
MEASURED = ("test_error", "train_error", "gap", "held_out_error", "held_out_lowest", "noise", "loss")
# Differences of test errors between rows, each a sum with these factors.
DIFFERENCES = {
    "effect": {"LG-FG-A": 1.0, "BP": -1.0},
    "locality": {"LG-BP": 1.0, "BP": -0.5, "LG-FG-A": -0.5},
    "perturbation": {"LG-FG-A": 0.5, "LG-BP": -1.0, "BP": 0.5},
    "noise on BP": {"BP + noise": 1.0, "BP": -1.0, "LG-FG-A": -0.5, "LG-BP": 0.5},
    "noise on LG-BP": {"LG-BP + noise": 1.0, "LG-BP": -0.5, "LG-FG-A": -0.5},
    "weight decay": {DECAYED: 1.0, "BP": -0.5, "LG-FG-A": -0.5},
}
# What has to lie below 0 for each explanation.
RULES = {
    "effect": ("effect",),
    "locality": ("locality",),
    "noise": ("perturbation", "noise on BP", "noise on LG-BP"),
    "weight decay": ("weight decay",),
}
VERDICTS = {1: "holds", 0: "undecided", -1: "fails", -2: "nothing to explain"}


def gathered(plain: Any, decayed: Any) -> Any:
    """Errors of all rows at their rates and decays, the verdicts, and what these would be by other rates or seeds.

    A seed counts at a number of images once all of its cells there are done.
    """
    import xarray as xr

    both = [plain[[*MEASURED, "diverged"]], decayed[[*MEASURED, "diverged"]]]
    done = [one["diverged"].notnull().all(("row", "decay", "lr")) for one in both]
    both = [one.where(done[0] & done[1]) for one in both]
    found = xr.concat([best(one) for one in both], "row")
    found = found.merge(judged(found))
    found["seeds_done"] = (done[0] & done[1]).sum("seed").assign_attrs(long_name="seeds whose cells are all done")
    rates = [xr.concat([best(one.sel(lr=[rate])) for one in both], "row") for rate in plain["lr"].values]
    along = xr.IndexVariable("rate", plain["lr"].values, {"long_name": "learning rate of all rows", "units": "1"})
    found["test_error_at"] = xr.concat([one["test_error"] for one in rates], along, coords="minimal")
    found["test_error_at"].attrs = {"long_name": "test error at the end, one rate for all rows", "units": "1"}
    found["verdict_at"] = xr.concat([judged(one)["verdict"] for one in rates], along)
    names = xr.IndexVariable("left_out", found["seed"].values)
    found["verdict_without"] = xr.concat(
        [judged(found.drop_sel(seed=seed))["verdict"] for seed in found["seed"].values], names
    )
    found = found.merge(counted(plain, decayed))
    return found.assign_attrs(plain.attrs)


def counted(plain: Any, decayed: Any) -> Any:
    """How many cells each size has, how many are missing, and in how many the run diverged."""
    import xarray as xr

    each = [one["diverged"].stack(cell=[dim for dim in one.dims if dim != "images"]) for one in (plain, decayed)]
    each = xr.concat([one.reset_index("cell", drop=True) for one in each], "cell")
    found = xr.Dataset(
        {
            "cells": each.isnull().count("cell"),
            "missing": each.isnull().sum("cell"),
            "runs_diverged": (each == 1).sum("cell"),
        }
    )
    for name, words in (("cells", ""), ("missing", " that are missing"), ("runs_diverged", " whose run diverged")):
        found[name].attrs = {"long_name": f"cells of this number of images{words}", "units": "1"}
    return found


def best(dataset: Any) -> Any:
    """Each row at the rate and decay with the lowest mean error on held-out images; none at which a seed diverged."""
    import numpy as np

    flat = dataset.stack(setting=("decay", "lr")).reset_index("setting")
    score = flat["held_out_error"].mean("seed").where(~(flat["diverged"] == 1).any("seed"))
    chosen = flat.drop_vars("diverged").isel(setting=score.fillna(np.inf).argmin("setting"))
    nothing = score.isnull().all("setting")
    for name, long_name in (("lr", "rate"), ("decay", "weight decay")):
        label = {"long_name": f"{long_name} with the lowest mean error on held-out images", "units": "1"}
        chosen[f"best_{name}"] = chosen[name].where(~nothing).assign_attrs(label)
    chosen[[*MEASURED]] = chosen[[*MEASURED]].where(~nothing)
    return chosen.drop_vars(["lr", "decay"])


def judged(dataset: Any) -> Any:
    """The differences of the rules with their intervals over seeds, and the verdict of each rule at each size."""
    import numpy as np
    import xarray as xr
    from scipy import special

    errors = dataset["test_error"]
    each = xr.concat(
        [
            sum(factor * errors.sel(row=row, drop=True) for row, factor in rows.items())
            for rows in DIFFERENCES.values()
        ],
        xr.IndexVariable("difference_of", list(DIFFERENCES)),
    )
    count = each.notnull().sum("seed")
    more = count.where(count > 1)
    half = special.stdtrit(more - 1, 0.975) * each.std("seed", ddof=1) / np.sqrt(more)
    mean = each.mean("seed")
    found = xr.Dataset({"difference": mean, "difference_low": mean - half, "difference_high": mean + half})
    for end, words in (("", "mean over seeds"), ("_low", "its lower 95 % end"), ("_high", "its upper 95 % end")):
        found[f"difference{end}"].attrs = {"long_name": f"difference of test errors, {words}", "units": "1"}
    verdicts = [_verdict(found.sel(difference_of=list(rule))) for rule in RULES.values()]
    verdict = xr.concat(verdicts, xr.IndexVariable("rule", list(RULES)))
    effect = verdict.sel(rule="effect", drop=True)
    found["verdict"] = verdict.where((effect == 1) | (verdict["rule"] == "effect"), -2)
    meanings = ", ".join(f"{value}: {meaning}" for value, meaning in VERDICTS.items())
    found["verdict"].attrs = {"long_name": f"does the rule hold? {meanings}", "units": "1"}
    return found


def _verdict(differences: Any) -> Any:
    """Of one rule, at each size: holds (1), fails (−1) or undecided (0), which it also is with a single seed."""
    below = (differences["difference_high"] < 0).all("difference_of")
    above = (differences["difference_low"] > 0).any("difference_of")
    return below.astype(int) - above.astype(int)
