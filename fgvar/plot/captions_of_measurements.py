"""Captions of one measurement: layers, rankings, squared bias against variance, laws of draws."""

import numpy as np
import xarray as xr

from fgvar.plot import by_layer, datasets, intervals, limits, ranked, series, theory_lines, words
from fgvar.plot.bias_variance import split
from fgvar.plot.draw_laws import CALLED, kept, unmeasured

# ---- layers ----------------------------------------------------------------------------------------------------


def layers(dataset: xr.Dataset) -> list[str]:
    whole, data = datasets.one(dataset), by_layer.prepared(dataset)
    rows = datasets.names(data, "layer")
    exact = [name for name in datasets.names(whole, "layer") if name not in rows]
    where = f", step {data['step'].item()}" if "step" in data.coords else ""
    return [
        f"Gradient quality layer by layer{where}. {words.made(dataset)}",
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


def layers_found(dataset: xr.Dataset) -> str:
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


# ---- ranking, tradeoff, draws ----------------------------------------------------------------------------------


def ranking(
    dataset: xr.Dataset, by: str = "cosine", reference: str | None = None, layer: str = "perturbed"
) -> list[str]:
    data = ranked.ranked(dataset, by=by, reference=reference, layer=layer)
    hows = {
        "declared": "declared by the dataset",
        "exact": "by its closed form",
        "seen": "refuted by the test of no bias",
    }
    refuted = {name: str(data["refuted"].sel(estimator=name).values) for name in datasets.names(data, "estimator")}
    named = [f"{name} ({hows[why]})" for name, why in refuted.items() if why]
    null = f" Grey: within ±{float(data['cosine_null']):.2g}, where 95 % of single random directions lie; means over "
    null += "draws are told from 0 by their bars."
    return [
        f"Estimators ranked by {ranked.called(dataset[by], reference)}, in {words.of_layer(layer, dataset)}. "
        f"{words.made(dataset, by)}".strip(),
        f"Bars: {words.bars(data, by)}.{null if by == 'cosine' and 'cosine_null' in data else ''}",
        _biases(dataset, layer, named),
        words.missing(data, (by,)),
        words.unsure(data, by),
        _best(data, by),
    ]


def _biases(dataset: xr.Dataset, layer: str, named: list[str]) -> str:
    """Which estimators are biased, and how large a bias of the others may be."""
    data = datasets.one(dataset, layer=layer)
    hollow = f"Hollow: biased for its own target: {', '.join(named)}. " if named else ""
    none = "no other bias" if named else "no bias"
    if "biased" in data:
        return hollow or "None is declared to be biased."
    exact = series.is_exact(data)
    missing = data["relative_sq_bias" if exact else "relative_variance"].isnull()
    names = [name for name in datasets.names(data, "estimator") if bool(missing.sel(estimator=name))]
    more = f" Unknown: {words.listed(names)}." if names else ""
    if len(names) == data.sizes["estimator"]:
        return f"{hollow}{more}".strip()
    if exact:
        return f"{hollow}By closed forms there is {none}.{more}"
    if not {"sq_bias", "sq_bias_high", "bias_p"} <= set(map(str, data.data_vars)):
        return f"{hollow}How large another bias may be is not known." if named else "The bias is not known."
    of = split(dataset, layer)
    most = (of["bias_high"].where(of["limited"]) ** 0.5).dropna("estimator")
    if not most.size:
        untested = bool((data["bias_p"].sel(reference="target").isnull() & (data["relative_variance"] > 0)).any())
        return f"{hollow}{'There are too few draws to see a bias' if untested else f'There is {none}'}.{more}"
    worst = int(np.argmax(most.values))
    return (
        f"{hollow}The test sees {none}, which proves none absent: not excluded are biases up to "
        f"{most.values[worst]:.2g} of the target ({most['estimator'].values[worst]}).{more}"
    )


def _best(data: xr.Dataset, by: str) -> str:
    known = data.isel(estimator=data[by].notnull().values)
    if not known.sizes["estimator"]:
        return ""
    ends = [(str(one["estimator"].values), _written(one, by)) for one in (known.isel(estimator=i) for i in (0, -1))]
    return f"Best: {' '.join(ends[0])}; last: {' '.join(ends[1])}."


def _written(one: xr.Dataset, name: str) -> str:
    exact = series.made(one, name) == series.EXACT
    return f"{one[name].item():.3g}" if exact or not series.has_errors(one, name) else intervals.written(one, name)


def ranking_found(
    dataset: xr.Dataset, by: str = "cosine", reference: str | None = None, layer: str = "perturbed"
) -> str:
    data = ranked.ranked(dataset, by=by, reference=reference, layer=layer)
    order = f"{data.sizes['estimator']} estimators by {ranked.called(dataset[by], reference)}"
    return f"{order}. {_best(data, by) or 'None has a number.'}"


def tradeoff(dataset: xr.Dataset, layer: str = "perturbed") -> list[str]:
    data = split(dataset, layer)
    there = data["relative_variance"].notnull() & data["bias_drawn"].notnull()
    shown = data.isel(estimator=there.values)
    limited = [name for name in datasets.names(shown, "estimator") if bool(shown["limited"].sel(estimator=name))]
    zero = bool(((shown["bias_drawn"] == 0) | (shown["relative_variance"] < series.ROUNDING)).any())
    return [
        f"Squared bias against variance, both over ‖target‖², in {words.of_layer(layer, dataset)}: the expected "
        f"squared error of an estimate is their sum, equal along dashed lines. {words.made(dataset)}",
        f"Bars: {words.bars(data, 'relative_variance')}"
        + ("." if series.is_exact(data) else " (of the variance), and ±1.96 standard errors of a bias."),
        f"Hollow, with an arrow: the bias is not told from 0, and is at most so large: {words.listed(limited)}."
        if limited
        else "",
        "On an edge: 0." if zero else "",
        words.missing(data, ("relative_variance", "bias_drawn")),
    ]


def tradeoff_found(dataset: xr.Dataset, layer: str = "perturbed") -> str:
    data = split(dataset, layer)
    total = (data["relative_variance"] + data["bias_drawn"].where(~data["limited"], 0)).dropna("estimator")
    if not total.size:
        return "Squared bias against variance: no estimator has both."
    total = total.sortby(total)
    limits_left = " Biases that are not told from 0 count as 0." if bool(data["limited"].any()) else ""
    if total.size == 1:
        only = total["estimator"].values[0]
        return f"Squared bias plus variance, over ‖target‖², is {float(total[0]):.3g} of {only}.{limits_left}"
    one, last = (f"{total['estimator'].values[i]} ({float(total[i]):.3g})" for i in (0, -1))
    return f"Squared bias plus variance, over ‖target‖², is least of {one} and largest of {last}.{limits_left}"


def draws(dataset: xr.Dataset, of: str = "cosine_target", layer: str = "perturbed") -> list[str]:
    data = kept(dataset, of, layer)
    gaps = [f"{name} ({why})" for name, why in unmeasured(data).items()]
    more = " What lies beyond the central 99 % of all stands at the ends."
    if of.startswith("cosine") and bool(data["cosine_null"].notnull()):
        more = f" Grey: within ±{float(data['cosine_null']):.2g}, where 95 % of single random directions lie."
    return [
        f"Laws of {CALLED[of]}, in {words.of_layer(layer)}: histograms as high as their rows, with the mean (bar). "
        f"{words.measured(dataset)}{more}",
        f"Without draws: {words.listed(gaps)}." if gaps else "",
    ]


def draws_found(dataset: xr.Dataset, of: str = "cosine_target", layer: str = "perturbed") -> str:
    data = kept(dataset, of, layer)
    means = data[f"draw_{of}"].mean("draw").dropna("estimator")
    told = [
        f"{name} {float(means.sel(estimator=name)):.2g}" for name in words.ordered(data) if name in means["estimator"]
    ]
    return f"Means of {CALLED[of]}: {words.listed(told, 6) or 'no number'}."
