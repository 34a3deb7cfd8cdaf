"""Tables of datasets: numbers for pandas, text for Markdown and LaTeX, columns that siunitx reads."""

import re

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import fgvar
from fgvar.measurement import tabular


@pytest.fixture(scope="module")
def dataset() -> xr.Dataset:
    problem = fgvar.testing.default_problems()["linear"]
    return fgvar.measure({"FG_W & co": fgvar.scheme("FG-W"), "BP": fgvar.scheme("BP")}, problem, draws=64)


def test_pandas_has_numbers_with_their_ends(dataset: xr.Dataset) -> None:
    frame = fgvar.table(dataset)
    assert list(frame.index) == ["FG_W & co", "BP"]
    its = dataset.sel(estimator="FG_W & co", layer="perturbed", reference="target")
    for end, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
        assert frame.loc["FG_W & co", ("cosine to target", end)] == its[f"cosine{suffix}"].item()
    assert ("cost", "low") not in frame.columns


def test_markdown_has_values_with_intervals(dataset: xr.Dataset) -> None:
    head, rule, *rows = fgvar.table(dataset, to="markdown").splitlines()
    assert rule.count("---") == head.count("|") - 1
    assert [row.count("|") for row in rows] == 2 * [head.count("|")]
    assert re.search(r"`FG_W & co` \| [\d.]+ \| [\d.]+ \| [\d.]+ \[[\d.]+, [\d.]+\]", rows[0])


def test_latex_is_escaped_and_columns_of_siunitx_hold_numbers(dataset: xr.Dataset) -> None:
    plain = fgvar.table(dataset, to="latex")
    assert r"FG\_W \& co & " in plain
    assert [line for line in plain.splitlines() if line.endswith("rule")] == [
        r"\toprule",
        r"\midrule",
        r"\bottomrule",
    ]
    text = fgvar.table(dataset, to="latex", siunitx=True)
    spec, *_, first, second, _, _ = text.splitlines()
    kinds = re.findall(r"S\[table-format=-?(\d+)(?:\.(\d+))?(?:e-?\d+)?\]|@\{\\,\}l", spec)
    for row in (first, second):
        cells = [cell.strip(" \\") for cell in row.split("&")]
        cells = cells[2:] if r"\&" in row or "co" in row else cells[1:]  # the name has an ampersand of its own
        assert len(cells) == len(kinds)
        for cell, (whole, digits) in zip(cells, kinds, strict=True):
            if whole and not cell.startswith("{"):
                number = re.fullmatch(r"-?(\d+)(?:\.(\d+))?(?:e[+-]?\d+)?", cell)
                assert number, cell
                assert len(number[1]) <= int(whole)
                assert len(number[2] or "") <= int(digits or 0)


def test_few_draws_say_that_there_is_no_interval() -> None:
    problem = fgvar.testing.default_problems()["linear"]
    few = fgvar.measure({"FG-W": fgvar.scheme("FG-W")}, problem, draws=2)
    assert "[–]" in fgvar.table(few, to="markdown")


def test_what_is_missing_says_why() -> None:
    """In words in place of a number; a summary has dashes, and lines below it."""
    problem = fgvar.testing.default_problems()["linear"]
    top = fgvar.Stochastic(fgvar.scheme("FG-W"), then=(fgvar.transforms.TopK(3),))
    schemes = {"top": top, "FG-W": fgvar.scheme("FG-W"), "BP": fgvar.scheme("BP")}
    with pytest.warns(UserWarning, match="'top' has no closed form"):
        exact = fgvar.measure(schemes, problem, route="exact")
    *_, its, forward, backprop = fgvar.table(exact, to="markdown").splitlines()
    assert its.split(" | ")[1:-1] == 5 * ["no closed form"]
    assert [cell == "no closed form" for cell in forward.split(" | ")] == [False] * 3 + [True] * 2 + [False] * 2
    assert "no closed form" not in backprop
    assert fgvar.summary(exact).splitlines()[-2:] == ["–: top: no closed form", "–: cosines of FG-W: no closed form"]
    few = fgvar.table(fgvar.measure(schemes, problem, draws=2), to="markdown").splitlines()[2:]
    assert [row.split(" | ")[1:3] for row in few[1:]] == [2 * ["too few draws"], ["no noise", "0"]]


def test_cells_of_a_sweep_are_rows(dataset: xr.Dataset) -> None:
    grid = xr.concat([dataset, dataset], xr.DataArray([8, 16], dims="width", name="width"))
    assert list(fgvar.table(grid).index) == [f"width {w}, {name}" for w in (8, 16) for name in ("FG_W & co", "BP")]


def test_curves_have_their_last_epoch() -> None:
    run = xr.Dataset(
        {"test_error": (("algorithm", "epoch"), [[0.9, 0.25]])}, {"algorithm": ["mine"], "epoch": [0, 1]}
    )
    assert fgvar.table(run, to="markdown").splitlines()[-1] == "| `mine` | 1 | 0.25 |"
    assert fgvar.table(run)["test_error"].item() == 0.25


def test_headings_over_several_columns() -> None:
    columns = pd.MultiIndex.from_tuples([("net", "test"), ("net", "train"), ("other", "test")])
    frame = pd.DataFrame([["1.5 ± 0.2", "-2e-05", "–"]], ["a~b"], columns)
    text = tabular.latex(frame, siunitx=True)
    assert text.splitlines()[2:4] == [
        r" & \multicolumn{3}{c}{net} & other \\",
        r" & \multicolumn{2}{c}{test} & {train} & test \\",
    ]
    assert r"a\textasciitilde{}b & 1.5 & $\pm$ 0.2 & -2e-05 & -- \\" in text
    assert "S[table-format=-1e-2]" in text
    assert tabular.number(np.nan) == "–"
