"""The audit: the rules of its verdicts, its stored dataset and what is said of it, its figure and table."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar.plot import venues
from figures import audit as figure
from figures import verdicts
from studies import audit as study
from studies.common import Options
from studies.published import claims, rows

STORED = Path(__file__).parents[2] / "figures/data/audit.nc"
README = Path(__file__).parents[2] / "studies/README.md"


# ---- verdicts -------------------------------------------------------------------------------------------------


def invented(**exact: list[float]) -> xr.Dataset:
    """Efficiencies of rows in two sets, of one query each; NaN: drawn, as 1 with an error of a tenth."""
    names, dims = list(exact), ("estimator", "trainable", "stage", "seed", "group")
    known = np.array(list(exact.values())).reshape(len(names), 2, 1, 1, 1)
    coords = {"estimator": names, "trainable": ["full", "LoRA 4"], "stage": ["late"], "seed": [0], "group": ["total"]}
    each = {"efficiency_exact": known, "efficiency": np.ones_like(known), "efficiency_se": np.full_like(known, 0.1)}
    found = xr.Dataset({name: (dims, value) for name, value in each.items()}, coords)
    for name in ("queries", "passes"):
        found[name] = dims[:-1], np.full(known.shape[:-1], 2.0 if name == "passes" else 1.0)
    found["claim_row"] = "claim", np.array(["a"])
    return found.assign_attrs(margin=1.05, no_bias=0.05)


@pytest.mark.parametrize(
    ("values", "sense", "expected"),
    [
        ([1.06, 2.0], "higher", "holds"),
        ([1.04, 0.5], "higher", "does not hold"),
        ([1.04, 1.06], "higher", "holds only in LoRA 4"),
        ([0.94, 0.9], "lower", "holds"),
        ([0.96, 0.94], "lower", "holds only in LoRA 4"),
        ([0.96, 5.0], "as good", "holds"),
        ([0.94, 0.95], "as good", "does not hold"),
        ([np.nan, np.nan], "higher", "undecided"),
        ([np.nan, 1.2], "higher", "holds only in LoRA 4"),
        ([np.inf, 1.2], "higher", "holds"),
    ],
)
def test_a_verdict_can_be_a_no(values: list[float], sense: str, expected: str) -> None:
    claim = {"row": "a", "against": "b", "measure": "direction per query", "sense": sense}
    assert verdicts.verdict(invented(a=values, b=[1.0, 1.0]), claim) == expected


def test_where_a_claim_holds_is_told_by_sets_stages_or_cells() -> None:
    dims, sets, stages = ("trainable", "stage", "seed"), ["full", "LoRA 4"], ["early", "late"]
    coords = {"trainable": sets, "stage": stages, "seed": [0, 1]}
    known = xr.DataArray(np.ones((2, 2, 2), bool), coords, dims)
    for cells, expected in (
        ([[[1, 1], [1, 1]], [[0, 0], [0, 0]]], "full"),
        ([[[1, 1], [0, 0]], [[0, 0], [1, 1]]], "full: early; LoRA 4: late"),
        ([[[1, 0], [1, 1]], [[0, 0], [0, 0]]], "full: 3 of 4 cells"),
    ):
        assert verdicts._where(xr.DataArray(np.array(cells, bool), coords, dims), known) == expected
    lacking = known.copy()
    lacking.loc[{"seed": 1}] = False
    assert verdicts._where(lacking, lacking) == "full; LoRA 4", "cells that are missing say nothing"


def test_untested_and_missing_claims_are_told() -> None:
    claim = {"row": "a", "against": "b", "measure": "", "sense": ""}
    found = invented(a=[1.0, 1.0], b=[1.0, 1.0])
    assert verdicts.verdict(found, claim) == verdicts.UNTESTED
    empty = found.assign(efficiency_exact=found["efficiency_exact"] * np.nan, efficiency=found["efficiency"] * np.nan)
    assert verdicts.verdict(empty, claim | {"measure": "direction", "sense": "higher"}) == verdicts.MISSING


def test_claims_name_rows_and_measures_that_there_are() -> None:
    for claim in claims.CLAIMS:
        assert {claim.row, claim.against} <= {*rows.ROWS, ""}, claim
        assert claim.sense in ("higher", "lower", "as good", "none", ""), claim
        assert claim.measure.partition(" per ")[0] in (*verdicts.QUANTITIES, ""), claim
    assert len(rows.ROWS) >= 14
    assert set(rows.PARTS) == set(study.PARTS)


def test_numbers_are_written_short() -> None:
    assert verdicts.ranged([1.0, 2.345]) == "1 to 2.35"
    assert verdicts.ranged([np.nan, 2.0, 2.0001]) == "2"
    assert verdicts.ranged([3.2e-7, np.inf]) == "3.2e−7 to ∞"
    assert verdicts.ranged([np.nan]) == "–"


# ---- the stored dataset ---------------------------------------------------------------------------------------

TRAINED = ("pretrained", "half fine-tuned", "fine-tuned")
SAID = (  # row, other row, measure, set, stages, and in which words the README has the number
    ("EGGROLL 1", "MeZO", "direction", "full", ("initial", *TRAINED), "EGGROLL 1 has {} of MeZO's efficiency"),
    ("EGGROLL 1", "MeZO", "direction", "LoRA 4", ("initial", *TRAINED), "on LoRA {}"),
    ("LOZO, 50 steps", "MeZO", "direction per query", "LoRA 4", ("initial", *TRAINED), "LOZO's lazy subspaces {}"),
    ("sign of MeZO", "MeZO", "direction", "full", ("initial", *TRAINED), "signs {}"),
    ("clipped MeZO", "MeZO", "direction", "full", ("initial", *TRAINED), "clipped derivatives {}"),
    ("QuZO", "rounded once", "direction", "full", ("initial", *TRAINED), "QuZO's second rounding {}"),
    ("FZOO, 8 signs", "MeZO", "direction per pass", "full", ("initial", *TRAINED), "FZOO's batches gain {} a pass"),
    ("SubZero 16", "MeZO", "variance", "full", TRAINED, "SubZero's variance is {} times"),
    ("SubZero 16", "MeZO", "direction", "full", TRAINED, "its efficiency {}. AGZO"),
    ("AGZO 16", "MeZO", "direction", "full", TRAINED, "AGZO of rank 16 has {} times"),
    ("random span 16", "MeZO", "direction", "full", TRAINED, "random spans of that shape {}"),
    ("MeZO-BCD", "MeZO", "direction", "full", TRAINED, "MeZO-BCD gains {}"),
    ("AdaLeZO, at best", "MeZO", "direction", "full", TRAINED, "the best layer sampling {};"),
    ("small quarter", "random quarter", "direction", "full", TRAINED, "small weights {} of a random quarter's"),
    ("MeZO-SVRG", "one example", "variance", "full", TRAINED, "MeZO-SVRG's variance is {} times"),
    ("SubZero 16", "MeZO", "direction", "full", ("initial",), "SubZero has {} times MeZO's efficiency"),
    ("AGZO 16", "MeZO", "direction", "full", ("initial",), "efficiency, AGZO {}, by a span"),
    ("AGZO 16", "random span 16", "direction", "full", ("initial",), "by a span {} times as good"),
    ("AdaLeZO, at best", "MeZO", "direction", "full", ("initial",), "one, layer sampling {}, MeZO-BCD"),
    ("MeZO-BCD", "MeZO", "direction", "full", ("initial",), "MeZO-BCD {}. On LoRA"),
    ("SubZero 16", "MeZO", "direction", "LoRA 4", ("initial", *TRAINED), "On LoRA SubZero has {}"),
    ("AGZO 16", "MeZO", "direction", "LoRA 4", ("initial", *TRAINED), "SubZero has 0.28 to 1.28, AGZO {} ("),
    ("random span 16", "MeZO", "direction", "LoRA 4", ("initial", *TRAINED), "(random spans {})"),
    ("AdaLeZO, at best", "MeZO", "direction", "LoRA 4", ("initial", *TRAINED), "best layer sampling {}, MeZO-BCD"),
    ("MeZO-BCD", "MeZO", "direction", "LoRA 4", ("initial", *TRAINED), "MeZO-BCD {}. Not reproduced"),
    ("4096 seeds", "", "bias", "full", ("initial", *TRAINED), "is biased by {} times the gradient"),
)  # fmt: skip


@pytest.fixture(scope="module")
def stored() -> xr.Dataset:
    return fgvar.open_dataset(STORED)


def said(dataset: xr.Dataset) -> list[str]:
    """What the README says of the dataset's numbers."""
    found = []
    for row, against, measure, trainable, stages, words in SAID:
        value = verdicts.ratio(dataset, row, against, measure).value.sel(trainable=trainable, stage=list(stages))
        assert value.notnull().all(), (row, measure)
        found.append(words.format(verdicts.ranged(value.values.ravel())))
    return found


def test_the_text_says_what_the_stored_dataset_has(stored: xr.Dataset) -> None:
    text = " ".join(README.read_text().split())
    assert [words for words in said(stored) if words not in text] == []
    told = [verdicts.verdict(stored, claim) for claim in verdicts.claims(stored)]
    only = sum(one.startswith("holds only") for one in told)
    counts = f"{len(told)} claims, {told.count('holds')} hold, {only} hold only in some cells"
    refuted = told.count("does not hold")
    assert f"{counts}, {refuted} do not, {len(told) - told.count('holds') - only - refuted} are open" in text
    first, *others = (
        sum(verdicts.verdict(its, claim) == "holds" for claim in verdicts.claims(its))
        for its in (stored.isel(seed=[0]), *(stored.assign_attrs(margin=margin) for margin in (1.02, 1.1)))
    )
    assert f"in place of 1.05 {' and '.join(map(str, others))} would hold, by the first seed alone {first}" in text
    for stages, words in ((TRAINED, "with {} % of ‖∇‖²"), (("initial",), "where the embedding has {} %")):
        its = stored["gradient_norm"].sel(trainable="full", stage=list(stages))
        share = 100 * (its.sel(group="embeddings") / its.sel(group="total")) ** 2
        assert words.format(f"{share.min().item():.0f} to {share.max().item():.0f}") in text
    header = " ".join(str(study.__doc__).split())
    for row, name in (("AGZO 16", "AGZO 16"), ("random span 16", "random span"), ("MeZO-BCD", "MeZO-BCD")):
        value = verdicts.ratio(stored, row, "MeZO", "direction").value.sel(trainable="full", stage=list(TRAINED))
        assert f"{name} {verdicts.ranged(value.values.ravel())}" in header


def test_the_stored_dataset_keeps_the_claim(stored: xr.Dataset) -> None:
    """Exact numbers are there for every stage; drawn ones lie on them, but for the skewed laws of few draws."""
    done = stored["status"].sel(part="exact") == "done"
    assert done.sel(seed=0).all()
    its = stored.sel(group="total")
    for name in ("relative_variance", "efficiency"):
        exact = its[f"{name}_exact"].where(its[f"{name}_exact"] != 0)
        z = (abs(its[name] - exact) / np.hypot(its[f"{name}_se"], 1e-4 * exact)).values
        z = z[np.isfinite(z)]
        assert z.size > 100
        assert np.quantile(z, 0.95) < 3
        assert z.max() < 6
    plain = its["efficiency_exact"].sel(estimator="MeZO") * (its["size"] + 2)
    np.testing.assert_allclose(plain.where(done, drop=True), 1, rtol=1e-6)


@pytest.mark.parametrize("columns", [2, 1])
def test_what_is_drawn(stored: xr.Dataset, columns: venues.Columns) -> None:
    drawn = figure.draw(stored, columns=columns)
    titles = list(figure.PANELS)
    assert [axes.get_title() for axes in drawn.axes] == (titles if columns == 2 else titles[1:2])
    labels = [label.get_text() for label in drawn.axes[0].get_yticklabels()]
    assert labels == list(rows.ROWS)
    table = figure.table(stored)
    assert list(table.columns) == ["measure", "full", "LoRA 4", "verdict"]
    assert len(table) == len(claims.CLAIMS)


def test_seeds_are_put_onto_what_is_stored(
    stored: xr.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exact numbers of another seed: those that were stored stay as they were, drawn ones too."""
    seen: list[xr.Dataset] = []
    monkeypatch.setattr("studies.common.publish", lambda dataset, *_: seen.append(dataset))
    run = Options(tmp_path / "a.nc", seed=(99,), smoke=True, collect=False)
    study.main(study.Config(trainable=("LoRA 4",), parts=(), onto=STORED, run=run))
    (found,) = seen
    assert found["seed"].values.tolist() == [*stored["seed"].values, 99]
    before = found.sel(seed=stored["seed"].values)
    for name in ("efficiency_exact", "cosine", "cosine_low", "status", "claim_row"):
        xr.testing.assert_equal(before[name].reindex_like(stored[name]), stored[name])
    new = found.sel(seed=99, trainable="LoRA 4", stage="pretrained")
    assert new["status"].sel(part="exact") == "done"
    assert float(new["efficiency_exact"].sel(estimator="MeZO", group="total")) > 0
    assert set(new["status"].drop_sel(part="exact").values.tolist()) == {"missing"}
    assert set(found["status"].sel(seed=99, trainable="full").values.ravel().tolist()) == {"missing"}
