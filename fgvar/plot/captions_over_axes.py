"""Captions of what changes along an axis, training or a sweep, and of check reports."""

from typing import Any

import numpy as np
import xarray as xr

from fgvar.plot import (
    limits,
    runs,
    series,
    swept,
    theory_lines,
    words,
)

SHOWN = 6  # lines of a sweep that a sentence names

# ---- training --------------------------------------------------------------------------------------------------


def training(dataset: xr.Dataset, layer: str = "perturbed") -> list[str]:
    its = runs.of(dataset, layer)
    parts = [_curves(its)]
    if its.probed:
        data, steps = its.probes(None), its.data["step"].values
        parts += [
            f"Probes at {len(steps)} steps, {steps[0]} to {steps[-1]}, of {words.of_layer(layer)}. "
            f"{words.measured(dataset)} {words.seeds(dataset, 'They')}".strip(),
            f"{words.quantities()} Bands: {words.bars(data, 'cosine')}.",
            f"Axes of cosines are linear below {limits.cosine(data)[0]:g}, elsewhere logarithmic. Dotted: 95 % "
            "half-width of the cosine of one random direction.",
            theory_lines.words(data),
            words.noiseless(data),
            words.missing(data, ("cosine", "relative_variance")),
            words.unsure(data, "cosine"),
            words.unbiased(dataset) if "seed" not in dataset.dims else "",
        ]
    return parts


def _curves(its: runs.Runs) -> str:
    if not its.curves:
        return ""
    names = [name.replace("_", " ") for variables in its.curves.values() for name in variables]
    many = its.data.sizes.get("seed", 1)
    band = f"means of {many} seeds, in bands from the lowest to the highest" if many > 1 else "of one run: no band"
    which = f" of {words.listed([its.named(label) for label in its.labels], 8)}" if its.along else ""
    scale = " The axis of errors is linear below 1 %, elsewhere logarithmic." if "error" in its.curves else ""
    return f"{' and '.join(names).capitalize()} over training{which}, {band}.{scale}"


def training_found(dataset: xr.Dataset, layer: str = "perturbed") -> str:
    its = runs.of(dataset, layer)
    told = []
    for variable in [variables[-1] for variables in its.curves.values()][:1]:
        for label in its.labels[:4]:
            values = its.of(label)[variable]
            values = values.mean("seed") if "seed" in values.dims else values
            known = values.values[np.isfinite(values.values)]
            ends = f"from {known[0]:.3g} to {known[-1]:.3g}" if known.size else "unknown"
            told.append(f"{f'{its.named(label)}: ' if label else ''}{variable.replace('_', ' ')} {ends}")
    if not told:
        data = its.probes(its.labels[0] if its.along else None).sel(reference="target")
        for name in words.ordered(data)[:4]:
            cosine = data["cosine"].sel(estimator=name).values
            known = cosine[np.isfinite(cosine)]
            ends = f"from {known[0]:.3g} to {known[-1]:.3g}" if known.size else "unknown"
            told.append(f"{name}'s cosine to its target {ends}")
    return f"Curves of training: {'; '.join(told)}."


# ---- sweeps and checks -----------------------------------------------------------------------------------------


def sweep(dataset: xr.Dataset, **how: Any) -> list[str]:
    its = swept.of(dataset, **how)
    slopes = [
        (f"{title}: " if title else "")
        + ", ".join(f"{its.named(name) or its.y} {told}" for name, told in lines.items())
        for title, lines in its.slopes().items()
    ]
    on_edge = sum(int((one.value <= 0).sum()) for one in its.drawn()) if its.log_y else 0
    failed = int((dataset["status"] != "done").sum()) if "status" in dataset else 0
    names = [its.named(name) for name, _ in its.lines(its.data) if name]
    return [
        f"{its.called.capitalize()} over {its.x.replace('_', ' ')}{f' of {words.listed(names, 8)}' if names else ''}"
        f"{f', a panel for each {its.col}' if its.col else ''}. {words.made(dataset, its.y)}".strip(),
        f"Bands: {words.bars(its.data, its.y)}.",
        "Where there is a prediction it is the line, and what was measured are points with bars."
        if its.predicted
        else "",
        f"Slopes on log axes, with 95 % intervals where there are errors: {'; '.join(slopes)}." if slopes else "",
        f"On the edge of the log axis: {on_edge} value(s) of 0 or less." if on_edge else "",
        f"No place on the axis: {its.placeless}." if its.placeless else "",
        words.missing(its.data, (its.y,)),
        words.unsure(its.data, its.y),
        f"{failed} cell{'s' * (failed > 1)} failed or {'are' if failed > 1 else 'is'} missing." if failed else "",
    ]


def sweep_found(dataset: xr.Dataset, **how: Any) -> str:
    its = swept.of(dataset, **how)
    told = []
    for title, data in its.panels:
        for name, one in its.lines(data):
            known = series.of(one, its.y).value
            known = known[np.isfinite(known)]
            if known.size:
                which = " at ".join(filter(None, (its.named(name), title)))
                told.append(f"{which} from {known[0]:.3g} to {known[-1]:.3g}".strip())
    found = words.listed(told, SHOWN) or "no number"
    return f"{its.called.capitalize()} over {its.x.replace('_', ' ')}: {found}."


def check(report: Any) -> list[str]:
    counts: dict[str, int] = {}
    for row in report.rows:
        counts[row.outcome] = counts.get(row.outcome, 0) + 1
    failed = list(dict.fromkeys(row.check for row in report.rows if row.outcome == "failed"))
    return [
        f"Checks of {report.estimator}, on {len({row.problem for row in report.rows})} problem(s): "
        f"{', '.join(f'{count} {outcome}' for outcome, count in counts.items())}.",
        "Right: the smallest relative error that each check would have caught in every layer; bars reach to the "
        "layer where a smaller one is caught. Black edge: exact, by enumeration or comparison, for certain; white "
        "edge: drawn, with probability 0.95. Dotted: an error as large as what it is an error of. No point: what "
        "failed, compares bits, or was not tried.",
        f"Failed: {', '.join(failed)}." if failed else "",
    ]


def check_found(report: Any) -> str:
    failed = list(dict.fromkeys(row.check for row in report.rows if row.outcome == "failed"))
    exact = sum(row.exact for row in report.rows)
    verdict = f"failed {', '.join(failed)}" if failed else "no check failed"
    return f"Outcome of each check on each problem: {verdict}; {exact} of {len(report.rows)} outcomes are exact."
