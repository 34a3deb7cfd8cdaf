"""The calibration's verdicts: false alarms law by law, how often there is none, and power."""

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from numpy.typing import NDArray
from scipy import stats

from fgvar.plot import datasets, drawing, looks

NEEDED = {
    "alarm_rate": ("law", "tail", "nominal"),
    "undecided": ("law",),
    "family": ("law",),
    "law_route": ("law",),
    "verdict_p": ("run",),
    "coordinate_p": ("seed",),
    "coordinate_undecided": ("seed",),
    "caught": ("kind", "effect"),
}
# Rates and kinds of errors are no schemes: greys and Okabe & Ito's colours, with markers of their own.
LOOKS = (("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D"), ("#CC79A7", "v"))
KINDS = {"scale": ("#000000", "o", "-"), "bias": ("#0072B2", "s", (0, (3.5, 1.2)))}
MOST = 6.0  # of the axis of observed over nominal rates
FEW = 1.0  # expected alarms from which the rate of a drawn law is a point
ERRORS = 3  # binomial ones, above which a drawn rate counts as higher than the nominal one


def rows(dataset: xr.Dataset) -> dict[str, int]:
    """Law → its row from above, one before each family for its name."""
    found: dict[str, int] = {}
    exact = _of(dataset, "law_route", "exact")
    for family in dict.fromkeys(datasets.names(dataset, "family")):
        laws = _of(dataset, "family", family)
        for name in (f"{family}, exact" if set(laws) <= set(exact) else family, *laws):
            found[name] = len(found)
    return found


def alarms(axes: Axes, dataset: xr.Dataset) -> None:
    """Observed over nominal rate of alarms, a row for each law; grey above 1."""
    places, nominal = rows(dataset), dataset["nominal"].values
    axes.axvspan(1, MOST, color="0.95", linewidth=0, zorder=0)
    axes.axvline(1, **looks.NULL)
    for index, (rate, (color, marker)) in enumerate(zip(nominal, LOOKS, strict=False)):
        its = shown(dataset).sel(nominal=rate).dropna("law")
        y = [places[law] + 0.16 * (index - (len(nominal) - 1) / 2) for law in its["law"].values]
        bars = np.abs(ends(dataset).sel(nominal=rate, law=its["law"]) - its) / rate
        axes.errorbar(
            np.minimum(its.values / rate, MOST), y, xerr=bars.values, color=color, marker=marker, linestyle="none",
            markersize=2.2, markeredgewidth=0.2, markeredgecolor="white", elinewidth=0.6, label=f"{rate:g}",
        )  # fmt: skip
    axes.set(xlim=(-0.06, MOST), xlabel="observed / nominal", title="false alarms", ylim=(len(places) - 0.4, -0.6))
    drawing.ticks(axes.xaxis, range(int(MOST) + 1))
    axes.set_yticks(list(places.values()), list(places))
    axes.tick_params(axis="y", length=0, labelsize="xx-small", pad=1)
    for label in axes.get_yticklabels():
        label.set_fontstyle("normal" if label.get_text() in dataset["law"] else "italic")
    axes.legend(loc="lower right", fontsize="xx-small", title="nominal", title_fontsize="xx-small", handlelength=1)


def undecided(axes: Axes, dataset: xr.Dataset) -> None:
    """Share of runs without a verdict, in the rows of `alarms`."""
    places = rows(dataset)
    axes.barh([places[law] for law in datasets.names(dataset, "law")], dataset["undecided"], height=0.7, color="0.6")
    axes.set(xlim=(0, 1), title="undecided", xlabel="share", ylim=(len(places) - 0.4, -0.6))
    axes.set_yticks(list(places.values()), [])
    axes.tick_params(axis="y", length=0)
    drawing.ticks(axes.xaxis, [0, 1])


def power(axes: Axes, dataset: xr.Dataset) -> None:
    """Share of runs that catch an error, against its size; dotted are the sizes that the verdict prints."""
    axes.axhline(0.95, **looks.NULL)
    for kind, (color, marker, line) in KINDS.items():
        size = detectable(dataset)[kind]
        axes.axvline(size, **looks.NULL)
        axes.plot(
            dataset["effect"] * size, dataset["caught"].sel(kind=kind), color=color, marker=marker, linestyle=line,
            label=kind, markeredgecolor="white",
        )  # fmt: skip
    axes.set(xlabel="relative error", ylabel="caught", title="power", xlim=(-0.01, None), ylim=(-0.03, 1.05))
    axes.legend(loc="lower right", handlelength=2.0)


def detectable(dataset: xr.Dataset) -> dict[str, float]:
    """The relative errors that a verdict of one test prints, from the spread √2 of u² and 1 of the product u v."""
    n, level = dataset.attrs["verdict_draws"], dataset.attrs["level"]
    bias = float(stats.t.isf(level / 2, n - 1) + stats.norm.ppf(0.95)) / n**0.5
    error = 2**0.5 * bias
    return {"scale": error / (1 - error), "bias": bias}  # a wrong scale multiplies the spread, too


def whole(dataset: xr.Dataset) -> xr.DataArray:
    """Rate of alarms on either side together."""
    return dataset["alarm_rate"].sum("tail")


def shown(dataset: xr.Dataset) -> xr.DataArray:
    """Rates that are drawn as points: exact ones, and of drawn laws those that runs can tell."""
    seen = dataset["nominal"] * dataset.attrs["alarm_runs"] >= FEW
    return whole(dataset).where((dataset["law_route"] == "exact") | seen)


def ends(dataset: xr.Dataset) -> xr.DataArray:
    """95 % Clopper-Pearson interval of each rate [end, law, nominal]; of exact ones the rate."""
    runs, rate = dataset.attrs["alarm_runs"], whole(dataset)
    count = (rate * runs).round().values
    found: list[NDArray[np.float64]] = [
        np.where(count > 0, stats.beta.ppf(0.025, np.maximum(count, 1), runs - count + 1), 0.0),
        stats.beta.ppf(0.975, count + 1, np.maximum(runs - count, 1)),
    ]
    drawn = xr.concat([rate.copy(data=end) for end in found], "end")
    return drawn.where(dataset["law_route"] == "drawn", rate)


def caption(dataset: xr.Dataset) -> list[str]:
    """What these panels show, in words and in numbers."""
    level, p, rare = (dataset.attrs["level"], dataset["verdict_p"].values, dataset["coordinate_p"].values)
    n = dataset.attrs["verdict_draws"]
    sizes = " and ".join(f"{size:.2g} ({kind})" for kind, size in detectable(dataset).items())
    at = dataset["caught"].sel(effect=1.0)
    caught = " and ".join(f"{float(at.sel(kind=kind)):.3f} ({kind})" for kind in KINDS)
    return [
        f"False alarms: observed over nominal rate (colours) for a test of a right mean over {n} draws. Drawn, "
        f"{dataset.attrs['alarm_runs']} runs for each law, with 95 % Clopper-Pearson bars: u² − 1 (one perturbed "
        "number, Gaussian) and the product u v of two; coordinate noise in 10⁴ numbers, along the target and along a "
        "projection that 1 draw in 16 moves; laws with heavy tails. Exact, a binomial sum over the draws that it "
        f"comes in: 1/q with probability q. Ratios above {MOST:g} are drawn there. "
        f"{_higher(dataset)} {_lowest(dataset)}",
        "Undecided: share of runs without a verdict, and so without an alarm, as fewer than 30 draws moved the mean.",
        f"Whole verdicts at the default level {level:g}. On one weight: {_none(p, level)}; in {(p < 0.1).mean():.2g} "
        "of them the corrected p is below 0.1 (their three tests are one and the same here, which Bonferroni's "
        f"correction does not know). With coordinate noise in 10⁴ numbers: {_none(rare, level)}, and "
        f"{float(dataset['coordinate_undecided'].mean()):.2g} of the tests undecided.",
        "Power: share of runs that catch an error of scale (u²), or a bias along a projection (u v), at that level, "
        "against its size relative to the target. Dotted: 0.95, and the detectable sizes that the verdict prints, "
        f"{sizes}, of which {caught} are caught.",
    ]


def _higher(dataset: xr.Dataset) -> str:
    """Which laws exceed the nominal rate, and what the others reach."""
    nominal, ratio = dataset["nominal"], shown(dataset) / dataset["nominal"]
    error = (1 / (nominal * dataset.attrs["alarm_runs"])) ** 0.5 * (dataset["law_route"] == "drawn")
    excess = (ratio > 1 + ERRORS * error).any("nominal").values
    high = [f"{law} ({_sides(dataset.sel(law=law))})" for law in dataset["law"].values[excess]]
    parts = [f"Above the nominal rate by more than {ERRORS} binomial errors: {'; '.join(high)}."] if high else []
    if not excess.all():
        parts.append(f"{'Other' if high else 'All'} laws: at most {float(ratio[~excess].max()):.2f} times that rate.")
    return " ".join(parts)


def _sides(law: xr.Dataset) -> str:
    """Observed over nominal rates of one law, on either side of the truth."""
    ratio = (law["alarm_rate"] / law["nominal"]).where(shown(law).notnull(), drop=True)
    sides = zip(*(ratio.sel(tail=tail).values for tail in ("below", "above")), ratio["nominal"].values, strict=True)
    return ", ".join(f"{below:.2f} below + {above:.2f} above the truth at {rate:g}" for below, above, rate in sides)


def _lowest(dataset: xr.Dataset) -> str:
    """Alarms of drawn laws where too few are expected for a rate."""
    hidden = whole(dataset).where(shown(dataset).isnull()) * dataset.attrs["alarm_runs"]
    found = [
        f"{round(float(count))} of {law} at {rate:g}"
        for law in dataset["law"].values
        for rate, count in zip(dataset["nominal"].values, hidden.sel(law=law).values, strict=True)
        if count > 0
    ]
    return f"Alarms at rates too low to be told by runs: {', '.join(found) or 'none'}."


def _none(p: NDArray[np.float64], level: float) -> str:
    """Alarms among whole verdicts, and what their rate is below."""
    count = int((p < level).sum())
    bound = stats.beta.ppf(0.95, count + 1, max(len(p) - count, 1))
    return f"{count} alarms in {len(p)} seeded runs, a rate below {bound:.2g} with 95 % confidence"


def _of(dataset: xr.Dataset, name: str, value: str) -> list[str]:
    """The laws with this value."""
    return [str(law) for law in dataset["law"].values[dataset[name].values == value]]
