"""The calibration's figure: false alarms, power, and the coverage of intervals.

Run   python -m figures.calibration results/check_calibration.nc [--venue iclr] [--columns 2] [--out FOLDER_OR_STEM]
writes <stem>.pdf, .png and .txt (the caption).
"""

from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from figures import command, style

NEEDED = {
    "alarms": ("law", "nominal"),
    "verdict_p": ("run",),
    "caught": ("kind", "effect"),
    **dict.fromkeys(("coverage", "reported"), ("case", "statistic", "reference", "draws")),
}
SHOWN = ("variance", "slope", "cosine", "sq_bias")
NAMES = {"sq_bias": "squared bias"}
ENOUGH = 0.95  # share of runs with an error from which a case counts as above the minimum of draws
# Laws and statistics are no schemes: greys and Okabe & Ito's colours, with markers of their own.
LAWS = (("#000000", "o"), ("#0072B2", "s"), ("#D55E00", "^"), ("#009E73", "D"))
KINDS = {"scale": ("#000000", "o", "-"), "bias": ("#0072B2", "s", (0, (3.5, 1.2)))}


def draw(dataset: xr.Dataset, *, venue: style.Venue = "iclr", columns: style.Columns = 2) -> Figure:
    """Two panels of verdicts and four of intervals: 2 × 3 over two columns, 3 × 2 in one.

    Raises:
        ValueError: not a calibration dataset, an unknown venue or number of columns.
    """
    style.require(dataset, NEEDED, "studies/check_calibration.py")
    shape = (2, 3) if columns == 2 else (3, 2)
    with style.context(venue):
        figure = Figure((style.width(venue, columns), 1.7 * shape[0]), layout="constrained")
        panels = list(figure.subplots(*shape).flat)
        _alarms(panels[0], dataset)
        _power(panels[1], dataset)
        for axes, statistic in zip(panels[2:], SHOWN, strict=True):
            _coverage(axes, dataset.sel(statistic=statistic))
            axes.set_title(f"coverage: {NAMES.get(statistic, statistic)}")
        style.settle(figure)
    return figure


def _alarms(axes: Axes, dataset: xr.Dataset) -> None:
    """Observed over nominal rate of alarms, a line for each law."""
    runs, nominal = dataset.attrs["alarm_runs"], dataset["nominal"].values
    axes.axhline(1, **style.NULL)
    for law, (color, marker) in zip(style.names(dataset, "law"), LAWS, strict=False):
        count = dataset["alarms"].sel(law=law).values
        low, high = (stats.beta.ppf(q, count + a, runs - count + 1 - a) for q, a in ((0.025, 0), (0.975, 1)))
        bars = np.nan_to_num(np.stack([count / runs - low, high - count / runs])) / nominal
        axes.errorbar(
            nominal, count / runs / nominal, bars, color=color, marker=marker, label=law, linewidth=0.8,
            markersize=2.6, markeredgecolor="white",
        )  # fmt: skip
    axes.set(xscale="log", xlabel="nominal rate", ylabel="observed / nominal", title="false alarms")
    axes.set_ylim(0, min(max(3.5, 1.05 * axes.get_ylim()[1]), 10))
    axes.invert_xaxis()
    axes.legend(loc="upper left", handlelength=1.2, fontsize="x-small")


def _power(axes: Axes, dataset: xr.Dataset) -> None:
    """Share of runs that catch an error, against its size; dotted are the sizes that the verdict prints."""
    axes.axhline(0.95, **style.NULL)
    for kind, (color, marker, line) in KINDS.items():
        size = detectable(dataset)[kind]
        axes.axvline(size, **style.NULL)
        axes.plot(
            dataset["effect"] * size, dataset["caught"].sel(kind=kind), color=color, marker=marker, linestyle=line,
            label=kind, markeredgecolor="white",
        )  # fmt: skip
    axes.set(xlabel="relative error", ylabel="caught", title="power", xlim=(-0.01, None), ylim=(-0.03, 1.05))
    axes.legend(loc="lower right", handlelength=2.0)


def detectable(dataset: xr.Dataset) -> dict[str, float]:
    """The relative errors that a verdict of one test prints, from the spread √2 of u² and 1 of the product u v."""
    n, level = dataset.attrs.get("verdict_draws", 4096), dataset.attrs.get("level", 1e-6)
    bias = float(stats.t.isf(level / 2, n - 1) + stats.norm.ppf(0.95)) / n**0.5
    error = 2**0.5 * bias
    return {"scale": error / (1 - error), "bias": bias}  # a wrong scale multiplies the spread, too


def _coverage(axes: Axes, data: xr.Dataset) -> None:
    """A point for each case, reference and number of draws: filled above the minimum, hollow below."""
    draws = data["draws"].values
    axes.axhspan(0.94, 0.96, color="0.9", linewidth=0, zorder=0)
    axes.axhline(0.95, **style.NULL)
    spread = np.exp(np.linspace(-0.22, 0.22, data.sizes["case"] * data.sizes["reference"]))
    coverage = data["coverage"].stack(cell=("case", "reference")).transpose("cell", "draws").values
    reported = data["reported"].stack(cell=("case", "reference")).transpose("cell", "draws").values
    for place, inside, share in zip(spread, coverage, reported, strict=True):
        sure = share >= ENOUGH
        clipped = np.clip(inside, 0.855, 1)
        some: Any = {"linestyle": "none", "marker": "o", "markersize": 1.9}
        axes.plot(draws[sure] * place, clipped[sure], color="black", markeredgewidth=0, zorder=3, **some)
        low = ~sure & (share >= 0.05)
        axes.plot(draws[low] * place, clipped[low], color="none", markeredgecolor=style.GREY, zorder=2, **some)
    axes.set(xscale="log", ylim=(0.85, 1.005), xlim=(draws.min() / 1.5, draws.max() * 1.5), xlabel="draws")
    style.ticks(axes.xaxis, draws, set(draws[::2]))


def caption(dataset: xr.Dataset) -> str:
    """What the figure shows, in words and in numbers from the dataset."""
    style.require(dataset, NEEDED, "studies/check_calibration.py")
    get = dataset.attrs.get
    runs, alarm_runs, level = get("runs", 0), get("alarm_runs", 0), get("level", 1e-6)
    p = dataset["verdict_p"].values
    count = int((p < level).sum())
    bound = stats.beta.ppf(0.95, count + 1, len(p) - count)
    margin = 1.96 * np.sqrt(0.95 * 0.05 / max(runs, 1))
    sizes = " and ".join(f"{size:.2g} ({kind})" for kind, size in detectable(dataset).items())
    parts = [
        "Calibration of the statistical verdicts (fgvar.testing) and of the errors of fgvar.measure. All values are "
        "drawn: shares of simulated runs.",
        f"False alarms: observed over nominal rate for a test of a mean over 4096 draws, {alarm_runs} runs for each "
        "law: u² − 1 (one perturbed number, Gaussian: the most skewed perturbation), the product of two normals, and "
        "rare large values (coordinate noise in 10 and 50 dimensions). Bars: 95 % Clopper-Pearson.",
        f"Whole verdicts at the default level {level:g} on one weight: {count} alarms in {len(p)} seeded runs, so "
        f"the rate is below {bound:.2g} with 95 % confidence; in {(p < 0.1).mean():.2g} of them the corrected p is "
        "below 0.1 (their three tests are one and the same here, which Bonferroni's correction does not know).",
        "Power: share of runs that catch an error of scale, or a bias along a projection, at that level, against its "
        f"size relative to the target. Dotted: 0.95, and the detectable sizes that the verdict prints, {sizes}.",
        f"Coverage of ± 1.96 errors: a point is a case ({'; '.join(style.names(dataset, 'case'))}) with one "
        f"reference, over {runs} runs (binomial 95 % margin ± {margin:.2g}). Filled: at least 95 % of the runs are "
        "above the stated minimum of draws and give an error; hollow: 5 to 95 % do. Values below 0.855 are drawn "
        "there. Grey: 94 to 96 %.",
        *(_spread(dataset.sel(statistic=name), name) for name in style.names(dataset, "statistic")),
    ]
    return style.text(dataset, parts)


def _spread(data: xr.Dataset, name: str) -> str:
    sure = data["coverage"].where(data["reported"] >= ENOUGH).values
    cells = sure[np.isfinite(sure)]
    if not len(cells):
        return f"{NAMES.get(name, name)}: no case above the minimum."
    inside = int(((cells >= 0.94) & (cells <= 0.96)).sum())
    span = f"{cells.min():.3f} to {cells.max():.3f} above the minimum"
    return f"{NAMES.get(name, name)}: {span}, {inside} of {len(cells)} points within 94 to 96 %."


FIGURES: command.Figures = {"": (draw, caption)}

if __name__ == "__main__":
    command.run("figures.calibration", __doc__, FIGURES)
