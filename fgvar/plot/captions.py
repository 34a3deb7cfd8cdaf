"""Captions: what a figure shows, in words and in numbers of its dataset, for print and for those who cannot see it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import xarray as xr

from fgvar.errors import unknown
from fgvar.plot import (
    by_layer,
    datasets,
    intervals,
    kinds_of,
    limits,
    ranked,
    runs,
    series,
    swept,
    theory_lines,
    words,
)
from fgvar.plot.bias_variance import split
from fgvar.plot.draw_laws import CALLED, kept


def caption(shown: Any, kind: str | None = None, **how: Any) -> str:
    """What a figure of `fgvar.plot` shows: how numbers came, what bars are, what is missing, and what was found.

    Args:
        shown: the dataset, or check report, of the figure.
        kind: the name of the function; default: the first of `fgvar.plot.kinds`.
        how: what the function was given, as ``by="efficiency"``.

    Returns:
        Sentences, a paragraph each line.

    Raises:
        ValueError: no such kind, or none that fits.

    Example:
        >>> import fgvar
        >>> problem = fgvar.testing.default_problems()["linear"]
        >>> rows = {name: fgvar.scheme(name) for name in ("FG-W", "FG-A")}
        >>> caption(fgvar.measure(rows, problem, route="exact"), "ranking", by="relative_variance").splitlines()[-1]
        'Best: FG-A 8.5; last: FG-W 25.'
    """
    kind = _kind(shown, kind)
    return "\n".join(part for part in PARTS[kind](shown, **_choices(shown, kind) | how) if part)


def alternative(shown: Any, kind: str | None = None, **how: Any) -> str:
    """What a figure found, in one sentence, for those who cannot see it.

    Args:
        shown, kind, how: as of `caption`.

    Example:
        >>> import xarray as xr
        >>> alternative(xr.Dataset({"test_error": ("epoch", [0.9, 0.1])}, {"epoch": [0, 1]}))
        'Curves of training: test error from 0.9 to 0.1.'
    """
    kind = _kind(shown, kind)
    return FINDINGS[kind](shown, **_choices(shown, kind) | how)


def _choices(shown: Any, kind: str) -> dict[str, Any]:
    return kinds_of.choices(shown, kind) if isinstance(shown, xr.Dataset) else {}


def _kind(shown: Any, kind: str | None) -> str:
    fitting = kinds_of.kinds(shown)
    if kind is None and fitting:
        return fitting[0]
    if kind not in fitting:
        raise ValueError(unknown("kind", kind, fitting) + "; these are the figures that fit")
    return kind


# ---- layers ----------------------------------------------------------------------------------------------------


def _layers(dataset: xr.Dataset) -> list[str]:
    whole, data = datasets.one(dataset), by_layer.prepared(dataset)
    rows = datasets.names(data, "layer")
    exact = [name for name in datasets.names(whole, "layer") if name not in rows]
    where = f", step {data['step'].item()}" if "step" in data.coords else ""
    return [
        f"Gradient quality layer by layer{where}. {words.measured(dataset)} {words.seeds(dataset)}".strip(),
        "perturbed: all parameters that an estimator estimates; total: with those learnt exactly."
        + (f" No row: {words.listed(exact, 12)} (learnt exactly by all)." if exact else ""),
        f"{words.quantities()} Bars: {words.bars(data, 'cosine')}.",
        _tested(data),
        f"Axes of cosines are linear within ±{limits.cosine(data)[0]:g}. Grey ticks: 95 % half-width of the cosine "
        "of one random direction in the layer's dimension.",
        theory_lines.words(data),
        words.noiseless(data),
        words.missing(data, ("cosine", "relative_variance")),
        words.unsure(data, "cosine"),
        words.unbiased(whole),
    ]


def _tested(data: xr.Dataset) -> str:
    if series.is_exact(data):
        return "Bias: ‖E ĝ − target‖/‖target‖, exact; 0, on the edge, where there is none but rounding."
    told = (
        f"p-value of bias: that an estimator is unbiased for its own target in that layer; dashed: the threshold "
        f"{limits.bias(data)[0]:.2g}, at which all cells together reject unbiased ones with probability "
        f"{series.LEVEL:g}."
    )
    return told + (
        f" Values below {limits.FLOOR:g} are drawn there." if (data["bias_p"] < limits.FLOOR).any() else ""
    )


def _layers_found(dataset: xr.Dataset) -> str:
    data = by_layer.prepared(dataset)
    noisy = data["relative_variance"].where(data["relative_variance"] > series.ROUNDING)
    if not bool(noisy.notnull().any()):
        return f"Layer by layer, {words.listed(words.ordered(data))} have no noise."
    least, most = (noisy.where(noisy == end, drop=True) for end in (noisy.min(), noisy.max()))
    named = [f"{one['estimator'].values[0]} at {one['layer'].values[0]}" for one in (least, most)]
    return (
        f"Layer by layer, relative variance reaches from {float(noisy.min()):.3g} ({named[0]}) to "
        f"{float(noisy.max()):.3g} ({named[1]})."
    )


# ---- training --------------------------------------------------------------------------------------------------


def _training(dataset: xr.Dataset, layer: str = "perturbed") -> list[str]:
    its = runs.of(dataset, layer)
    parts = [_curves(its)]
    if its.probed:
        data, steps = its.probes(None), its.data["step"].values
        parts += [
            f"Probes at {len(steps)} steps, {steps[0]} to {steps[-1]}, of {_named(layer)}. {words.measured(dataset)} "
            f"{words.seeds(dataset, 'They')}".strip(),
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
    which = f" of {words.listed(its.labels, 8)}" if its.along else ""
    scale = " The axis of errors is linear below 0.01, elsewhere logarithmic." if "error" in its.curves else ""
    return f"{' and '.join(names).capitalize()} over training{which}, {band}.{scale}"


def _named(layer: str) -> str:
    return "all parameters that an estimator estimates" if layer == "perturbed" else f"layer {layer!r}"


def _training_found(dataset: xr.Dataset, layer: str = "perturbed") -> str:
    its = runs.of(dataset, layer)
    told = []
    for variable in [variables[-1] for variables in its.curves.values()][:1]:
        for label in its.labels[:4]:
            values = its.of(label)[variable]
            values = values.mean("seed") if "seed" in values.dims else values
            known = values.values[np.isfinite(values.values)]
            ends = f"from {known[0]:.3g} to {known[-1]:.3g}" if known.size else "unknown"
            told.append(f"{f'{label}: ' if label else ''}{variable.replace('_', ' ')} {ends}")
    if not told:
        data = its.probes(its.labels[0] if its.along else None).sel(reference="target")
        for name in words.ordered(data)[:4]:
            ends = data["cosine"].sel(estimator=name).values[[0, -1]]
            told.append(f"{name}'s cosine to its target from {ends[0]:.3g} to {ends[1]:.3g}")
    return f"Curves of training: {'; '.join(told)}."


# ---- ranking, tradeoff, draws ----------------------------------------------------------------------------------


def _ranking(
    dataset: xr.Dataset, by: str = "cosine", reference: str = "backprop", layer: str = "perturbed"
) -> list[str]:
    data = ranked.ranked(dataset, by=by, reference=reference, layer=layer)
    how = {
        "declared": "declared by the dataset",
        "exact": "by its closed form",
        "seen": "refuted by the test of no bias",
    }
    refuted = {name: str(data["refuted"].sel(estimator=name).values) for name in datasets.names(data, "estimator")}
    named = [f"{name} ({how[why]})" for name, why in refuted.items() if why]
    null = f" Grey: within ±{float(data['cosine_null']):.2g}, where 95 % of single random directions lie; means over "
    null += "draws are told from 0 by their bars."
    return [
        f"Estimators ranked by {ranked.called(by, reference)}, in {_named(layer)}. {words.measured(dataset)} "
        f"{words.seeds(dataset)}".strip(),
        f"Bars: {words.bars(data, by)}.{null if by == 'cosine' and 'cosine_null' in data else ''}",
        f"Hollow: biased for its own target: {', '.join(named)}." if named else "None is known to be biased.",
        words.missing(data, (by,)),
        words.unsure(data, by),
        _best(data, by),
    ]


def _best(data: xr.Dataset, by: str) -> str:
    known = data.isel(estimator=data[by].notnull().values)
    if not known.sizes["estimator"]:
        return ""
    ends = [(str(one["estimator"].values), _written(one, by)) for one in (known.isel(estimator=i) for i in (0, -1))]
    return f"Best: {' '.join(ends[0])}; last: {' '.join(ends[1])}."


def _written(one: xr.Dataset, name: str) -> str:
    exact = series.made(one, name) == series.EXACT
    return f"{one[name].item():.3g}" if exact or not series.has_errors(one, name) else intervals.written(one, name)


def _ranking_found(
    dataset: xr.Dataset, by: str = "cosine", reference: str = "backprop", layer: str = "perturbed"
) -> str:
    data = ranked.ranked(dataset, by=by, reference=reference, layer=layer)
    order = f"{data.sizes['estimator']} estimators by {ranked.called(by, reference)}"
    return f"{order}. {_best(data, by) or 'None has a number.'}"


def _tradeoff(dataset: xr.Dataset, layer: str = "perturbed") -> list[str]:
    data = split(dataset, layer)
    limited = [name for name in datasets.names(data, "estimator") if bool(data["limited"].sel(estimator=name))]
    return [
        f"Squared bias against variance, both over ‖target‖², in {_named(layer)}: the expected squared error of an "
        f"estimate is their sum, equal along dashed lines. {words.measured(dataset)} {words.seeds(dataset)}".strip(),
        f"Bars: {words.bars(data, 'relative_variance')} of the variance, and ±1.96 standard errors of a bias.",
        f"Hollow, with an arrow: the bias is not told from 0, and is at most so large (97.5 %): {words.listed(limited)}."
        if limited
        else "",
        "On an edge: 0."
        if bool(((data["bias_drawn"] == 0) | (data["relative_variance"] < series.ROUNDING)).any())
        else "",
        words.missing(data, ("relative_variance", "sq_bias")),
    ]


def _tradeoff_found(dataset: xr.Dataset, layer: str = "perturbed") -> str:
    data = split(dataset, layer)
    total = (data["relative_variance"] + data["bias_drawn"].where(~data["limited"], 0)).dropna("estimator")
    if not total.size:
        return "Squared bias against variance: no estimator has both."
    total = total.sortby(total)
    one, last = (f"{total['estimator'].values[i]} ({float(total[i]):.3g})" for i in (0, -1))
    return f"Squared bias plus variance, over ‖target‖², is least of {one} and largest of {last}."


def _draws(dataset: xr.Dataset, of: str = "cosine_target", layer: str = "perturbed") -> list[str]:
    data = kept(dataset, of, layer)
    null = f" Grey: within ±{float(data['cosine_null']):.2g}, where 95 % of single random directions lie."
    return [
        f"Laws of {CALLED[of]}, in {_named(layer)}: histograms, each as high as its row, with the mean (bar). "
        f"{words.measured(dataset)}{null if of.startswith('cosine') else ' Beyond the central 99 % of all: at the ends.'}",
    ]


def _draws_found(dataset: xr.Dataset, of: str = "cosine_target", layer: str = "perturbed") -> str:
    data = kept(dataset, of, layer)
    means = data[f"draw_{of}"].mean("draw")
    told = [f"{name} {float(means.sel(estimator=name)):.2g}" for name in words.ordered(data)]
    return f"Means of {CALLED[of]}: {words.listed(told, 6)}."


# ---- sweeps and checks -----------------------------------------------------------------------------------------


def _sweep(dataset: xr.Dataset, **how: Any) -> list[str]:
    its = swept.of(dataset, **how)
    slopes = [f"{name or its.y} {told}" for name, told in its.slopes().items()] if len(its.panels) == 1 else []
    theory = any(its.theory(one) is not None for _, one in its.lines(its.panels[0][1]))
    failed = int((dataset["status"] != "done").sum()) if "status" in dataset else 0
    names = [name for name, _ in its.lines(its.data) if name]
    return [
        f"{its.called.capitalize()} over {its.x.replace('_', ' ')}{f' of {words.listed(names, 8)}' if names else ''}"
        f"{f', a panel for each {its.col}' if its.col else ''}. {words.measured(dataset)} {words.seeds(dataset)}".strip(),
        f"Bands: {words.bars(its.data, its.y)}.",
        "Lines: predicted; points: measured, with bars in place of bands." if theory else "",
        f"Slopes on log axes, with 95 % intervals where there are errors: {'; '.join(slopes)}." if slopes else "",
        words.missing(its.data, (its.y,)),
        words.unsure(its.data, its.y),
        f"{failed} cells failed or are missing." if failed else "",
    ]


def _sweep_found(dataset: xr.Dataset, **how: Any) -> str:
    its = swept.of(dataset, **how)
    told = []
    for name, one in list(its.lines(its.panels[0][1]))[:6]:
        known = series.of(one, its.y).value
        known = known[np.isfinite(known)]
        if known.size:
            told.append(f"{name} from {known[0]:.3g} to {known[-1]:.3g}".strip())
    return f"{its.called.capitalize()} over {its.x.replace('_', ' ')}: {'; '.join(told) or 'no number'}."


def _check(report: Any) -> list[str]:
    counts: dict[str, int] = {}
    for row in report.rows:
        counts[row.outcome] = counts.get(row.outcome, 0) + 1
    failed = list(dict.fromkeys(row.check for row in report.rows if row.outcome == "failed"))
    return [
        f"Checks of {report.estimator}, on {len({row.problem for row in report.rows})} problem(s): "
        f"{', '.join(f'{count} {outcome}' for outcome, count in counts.items())}.",
        "Right: the smallest relative error that each check would have caught in every layer; bars reach to the layer "
        "where a smaller one is caught. Black edge: exact, by enumeration or comparison, for certain; white edge: drawn, "
        "with probability 0.95. No point: what compares bits, or was not tried.",
        f"Failed: {', '.join(failed)}." if failed else "",
    ]


def _check_found(report: Any) -> str:
    failed = list(dict.fromkeys(row.check for row in report.rows if row.outcome == "failed"))
    exact = sum(row.exact for row in report.rows)
    verdict = f"failed {', '.join(failed)}" if failed else "no check failed"
    return f"Outcome of each check on each problem: {verdict}; {exact} of {len(report.rows)} outcomes are exact."


PARTS: dict[str, Callable[..., list[str]]] = {
    "layers": _layers, "training": _training, "ranking": _ranking, "tradeoff": _tradeoff, "draws": _draws,
    "sweep": _sweep, "check": _check,
}  # fmt: skip
FINDINGS: dict[str, Callable[..., str]] = {
    "layers": _layers_found, "training": _training_found, "ranking": _ranking_found, "tradeoff": _tradeoff_found,
    "draws": _draws_found, "sweep": _sweep_found, "check": _check_found,
}  # fmt: skip
