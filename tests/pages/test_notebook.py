"""In a notebook: summaries and check reports show themselves as HTML, and stay the text that they were."""

import copy
import pickle

import xarray as xr
from test_pages import Tree

import fgvar
from fgvar.measurement.html_tables import Table
from fgvar.testing.report import NOT_APPLICABLE, NOTHING_CHECKED, Report, Row
from fgvar.testing.under_test import MISFIT


def test_a_summary_is_its_text_and_shows_the_same_cells(measured) -> None:
    found = fgvar.summary(measured)
    assert isinstance(found, str)
    assert repr(found) == str(found) == f"{found}"
    assert found.splitlines()[0] == "layer 'perturbed': drawn, 64 draws, 95 % intervals"
    html = found._repr_html_()
    assert Tree(html).open == []
    for row in found.tables[0].rows:
        assert all(cell in found for cell in row)
        assert all(f"<td>{cell}</td>" in html for cell in row[1:])


def test_a_summary_survives_copies(measured) -> None:
    found = fgvar.summary(measured)
    for other in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert other == found
        assert other.tables == found.tables


def test_a_paired_summary_has_two_tables() -> None:
    problem = fgvar.testing.default_problems()["linear"]
    pair = {"FG-W": fgvar.scheme("FG-W"), "FG-A": fgvar.scheme("FG-A")}
    found = fgvar.summary(fgvar.measure(pair, problem, draws=64, paired=True))
    assert found._repr_html_().count("<table>") == 2
    assert "less those of &#x27;FG-W&#x27;, by common noise" in found._repr_html_()


def test_a_dataset_keeps_its_own_repr(measured) -> None:
    assert type(measured) is xr.Dataset


def test_a_report_shows_marks_sentences_and_what_does_not_fit(report) -> None:
    assert Tree(report._repr_html_()).open == []
    refused = Report("Mine()", (Row("unbiased", "conv", NOT_APPLICABLE, f"{MISFIT}: no sites"),))
    table = refused.table
    assert table.rows == ()
    assert table.notes == (
        f"conv: {MISFIT}: no sites",
        NOTHING_CHECKED,
    )
    assert str(refused).splitlines() == ["Mine()", *table.notes]


def test_what_a_foreign_file_brings_is_shown_not_obeyed() -> None:
    html = Table("<b>", ("\x1b[2J",), (("<script>",),)).to_html()
    assert "<b>" not in html
    assert "<script>" not in html
    assert "\x1b" not in html
