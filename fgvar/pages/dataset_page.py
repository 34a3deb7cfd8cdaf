"""The page of a dataset: what it found, what is flagged, figures, how to read each number, and what made it."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from fgvar.measurement.dataset import ENDS, FLAGS, VARIABLES
from fgvar.measurement.dataset_checks import missing_for_measurement
from fgvar.measurement.html_tables import Table
from fgvar.measurement.report import overview, provenance_line, tables
from fgvar.measurement.stored import UNMEASURED, bias_over_target, descriptions, explained, joined
from fgvar.measurement.text_tables import visible
from fgvar.pages.page import Section, html
from fgvar.pages.pictures import pictures

MOST = 500  # lines of a table
ROUNDING = 1e-9  # relative variances below it are of what has no noise
LARGE_BIAS = 0.5  # of the target: where draws exclude less than that, a page says so

WHY = {
    "dead": "The reference is 0 within rounding: nothing is relative to it, and it has no angle.",
    "few_draws": "Too few draws for an interval (32) or for a test of the bias (64).",
    "no_noise": "Every draw is the same: the variance is 0, and there is no test of the bias.",
    "no_closed_form": "No closed form is known: measure it by draws.",
    "one_number": "A layer of one number: its cosine is 1 or −1, which has no interval.",
    "lost_digits": "Estimates of less than 10⁻⁵ of the target's norm: summed about it they have no digits left.",
    "not_measured": "A cell of the sweep did not measure it.",
    "not_in_this_network": "The network of a cell has no such layer.",
    "cell_failed": "A cell of the sweep failed; its traceback says how.",
    "cell_timed_out": "A cell of the sweep took longer than it was given.",
    "cell_died": "The process of a cell ended before it answered.",
    "cell_missing": "A cell of the sweep has not been computed.",
}
COLUMNS = (
    ("bias z (p)", "Largest standardised bias over 16 random projections, and the p-value that there is none."),
    ("bias, of the target", "‖E ĝ − target‖ / ‖target‖ is at most so much, in 97.5 % of runs; not how large it is."),
    ("relative bias", "‖E ĝ − target‖ / ‖target‖, exactly."),
    ("relative variance", "tr Cov(ĝ) / ‖target‖²: one estimate's noise; n draws have an n-th of it."),
    ("cosine to target", "Mean cosine of one estimate to the gradient that it should be unbiased for."),
    ("cosine to backprop", "Mean cosine of one estimate to the end-to-end gradient."),
    ("[low, high]", "95 % interval given the batch; without brackets the number is exact."),
    ("–", "Missing; what is flagged says why."),
)


def of_dataset(dataset: xr.Dataset, title: str = "") -> str:
    """A self-contained HTML page of a dataset: of `fgvar.measure`, of training runs, of a sweep, or any other.

    Args:
        title: default: the study that made it.

    Raises:
        ImportError: the extra "plot" is not installed.

    Example:
        >>> import torch, fgvar
        >>> problem = fgvar.Problem(torch.nn.Linear(3, 2), "mse", (torch.ones(4, 3), torch.ones(4, 2)))
        >>> ds = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=2)
        >>> of_dataset(ds, "Weight perturbation").count("<h1>Weight perturbation</h1>")
        1
    """
    measured = not missing_for_measurement(dataset)
    found = tuple(map(_cut, tables(dataset)))
    every = tuple(map(_cut, tables(dataset, ("all",)))) if measured and dataset.sizes["layer"] > 1 else ()
    drawn, undrawn = pictures(dataset)
    sections = (
        Section("Summary", tables=found),
        Section("What is flagged, and why", *_flagged(dataset)) if measured else Section("What is flagged, and why"),
        Section("Figures", undrawn, pictures=drawn),
        Section("How to read each number", tables=tuple(_glossary(dataset, found if measured else ()))),
        Section("What made it", tables=tuple(_provenance(dataset))),
        Section("Every layer", tables=every, folded=True),
        Section(
            "Every variable", tables=(Table.of("its range, over all of its dims", overview(dataset)),), folded=True
        ),
    )
    name = title or visible(str(dataset.attrs.get("study", ""))) or "Measured gradients"
    return html(name, provenance_line(dataset), sections)


def _cut(table: Table) -> Table:
    """A page that no browser could show helps nobody."""
    if len(table.rows) <= MOST:
        return table
    note = f"The first {MOST} of {len(table.rows)} lines; `fgvar open` has all."
    return Table(table.caption, table.heading, table.rows[:MOST], (*table.notes, note))


def _flagged(dataset: xr.Dataset) -> tuple[tuple[str, ...], tuple[Table, ...]]:
    """Sentences and tables: numbers that are missing, and biases that few draws cannot exclude."""
    dataset = explained(dataset)
    flags = [row for kind in ("flag", "difference_flag") if kind in dataset for row in _flags(dataset, kind)]
    named = dict[tuple[str, ...], list[str]]()
    for estimator, *same in [*flags, *_biases(dataset)]:
        named.setdefault(tuple(same), []).append(estimator)
    if not named:
        return ("Nothing: every number is there, with its interval, and no bias is seen.",), ()
    rows = [(", ".join(its), *same) for same, its in named.items()]
    return (), (Table("what is missing or unknown", ("estimators", "what", "where", "why"), tuple(rows)),)


def _flags(dataset: xr.Dataset, kind: str) -> Iterator[tuple[str, str, str, str]]:
    """What is missing of an estimator, in which layers."""
    _, flags = xr.broadcast(dataset["relative_variance"], dataset[kind])
    flags = joined(flags, [str(dim) for dim in flags.dims if dim not in ("estimator", "layer")])
    for estimator in flags["estimator"].values:
        for name, bit in (FLAGS | UNMEASURED).items():
            layers = (flags.sel(estimator=estimator) & bit) > 0
            if layers.any():
                what = ("difference: " if kind != "flag" else "") + name.replace("_", " ")
                yield visible(str(estimator)), what, _named(layers), WHY[name]


def _named(chosen: xr.DataArray) -> str:
    """The layers that are true, by name where they are few."""
    names = [visible(str(name)) for name in chosen["layer"].values[chosen.values]]
    if len(names) == chosen.size:
        return f"all {len(names)} layers" if len(names) > 1 else names[0]
    return ", ".join(names) if len(names) <= 4 else f"{len(names)} of {chosen.size} layers: {', '.join(names[:3])}, …"


def _biases(dataset: xr.Dataset) -> Iterator[tuple[str, str, str, str]]:
    """Of what all schemes estimate together: a bias that is seen, or a large one that is not excluded."""
    layer = "perturbed" if "perturbed" in dataset["layer"] else dataset["layer"].values[-1]
    its = dataset.sel(layer=layer, reference="target")
    if "bias_p" not in its or "sq_bias_high" not in its:
        return
    exact = dataset.attrs.get("route") == "exact"
    others = [str(dim) for dim in its["bias_p"].dims if dim != "estimator"]
    least = xr.DataArray(-np.expm1(its["bias_p"].notnull().sum() * np.log1p(-its["bias_p"].clip(max=1 - 1e-16))))
    share = bias_over_target(its, "sq_bias_high")
    noisy = (its["relative_variance"] > ROUNDING).any(others)
    for name, p, most, noise in zip(
        its["estimator"].values, least.min(others).values, share.max(others).values, noisy.values, strict=True
    ):
        if p < 0.01:
            yield visible(str(name)), "biased", str(layer), f"p = {p:.2g}, over all tests of this layer together."
        elif np.isnan(p) and most > 1e-6 and (exact or not noise):
            why = f"{'It' if noise else 'Without noise, it'} is off by {most:.2g} of the target, exactly."
            yield visible(str(name)), "biased", str(layer), why
        elif np.isfinite(p) and most >= LARGE_BIAS:
            why = f"A bias of {most:.2g} of the target is not excluded; more draws would exclude it."
            yield visible(str(name)), "bias unknown", str(layer), why


def _glossary(dataset: xr.Dataset, summaries: tuple[Table, ...]) -> Iterator[Table]:
    """Columns of the summaries, then variables, with units and identity."""
    if summaries:
        shown = {name for table in summaries for name in table.heading} | {"[low, high]", "–"}
        yield Table(
            "columns of the summary", ("column", "what it says"), tuple(one for one in COLUMNS if one[0] in shown)
        )
    rows = []
    for name, variable in dataset.data_vars.items():
        if str(name).endswith((*ENDS, "sq_bias_high")):
            continue
        known = VARIABLES.get(str(name), ("", "", ""))
        said = (variable.attrs.get(key, known[i]) for i, key in enumerate(("long_name", "units", "source")))
        what, units, source = (visible(str(one)) for one in said)
        rows.append((visible(str(name)), what or "–", units or "–", source or "–"))
    ends = "".join(f" …{end} is the {what.removesuffix(' of the')};" for end, what in ENDS.items()).rstrip(";")
    heading = ("variable", "what it is", "units", "identity or source")
    yield Table("variables", heading, tuple(rows), (f"Beside a drawn number{ends}.",) if summaries else ())


def _provenance(dataset: xr.Dataset) -> Iterator[Table]:
    """Attributes of the dataset; the estimators' have a line each."""
    rows = [(visible(str(k)), visible(str(v))) for k, v in dataset.attrs.items() if k != "estimators"]
    yield Table("attributes of the dataset", ("attribute", "value"), tuple(rows))
    named = [(visible(name), visible(words)) for name, words in descriptions(dataset).items()]
    if named:
        yield Table("estimators, as they were composed", ("estimator", "words"), tuple(named))
