"""Documentation as pages: every link leads somewhere, every formula is typeset, nothing is asked of a network."""

import re
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

import fgvar
from tests.docs import build, formulas
from tests.docs.docstrings import modules, names, parsed


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("docs")


@pytest.fixture(scope="module")
def pages(folder) -> dict[str, str]:
    """All pages, with one formula in place of each: typesetting all takes half a minute."""
    patch = pytest.MonkeyPatch()
    patch.setattr(formulas, "typeset", lambda latex, words: f'<svg aria-label="{words[:5]}"></svg>' if latex else "")
    docs = build.Docs(folder)
    assert docs.build() == []
    patch.undo()
    return docs.pages


def test_every_module_and_readme_has_a_page_without_a_network(pages) -> None:
    assert {f"{module}.html" for module in modules()} < set(pages)
    assert {"index.html", "studies.html", "fgvar-estimators.html", "schemes.html"} < set(pages)
    for text in pages.values():
        assert not re.search(r'(?:src|<link[^>]*href)="https?:|<script|@import', text)


def test_every_public_name_has_an_entry_with_what_its_docstring_says(pages) -> None:
    for module in modules():
        for one in names(module):
            assert f'id="{one.name}"' in pages[f"{module}.html"]
    assert "the largest length, in units of the gradient" in pages["fgvar.transforms.html"]
    assert '<a href="fgvar.combine.html#Normalised">' in pages["fgvar.guesses.html"]


@pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: pages are not opened")
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.usefixtures("pages")
def test_pages_fit_a_desk_and_a_phone(folder, tmp_path, width: int) -> None:
    """Signatures and sentences are whole, and figures large enough to be read: they scroll, not the page."""
    sideways = "[...document.querySelectorAll({})].filter((one) => one.scrollWidth > one.clientWidth).length"
    with Browser(tmp_path) as browser:
        for name in ("index.html", "fgvar.html", "schemes.html", "studies.html"):
            browser.open(folder / name, width=width, dark=width == 390)
            assert browser.value(sideways.format("'html, .signature, .sentence, dd'")) == 0, name
            least = browser.value("Math.min(...[...document.images].map((one) => one.width))")
            assert least is None or least >= 500, name  # JSON has no infinity, the least of none


def test_a_link_that_leads_nowhere_is_named(folder) -> None:
    docs = build.Docs(folder)
    docs.pages["a.html"] = '<a href="b.html">b</a> <a href="#c">c</a> <a href="https://example.org">ours to keep</a>'
    docs._check("a.html", docs.pages["a.html"])
    assert docs.broken == ["a.html: b.html", "a.html: #c"]


def test_every_scheme_and_word_has_a_formula() -> None:
    assert set(formulas.SCHEMES) == {one.name for one in fgvar.schemes()}
    words = {name for subject in fgvar._SUBJECTS.values() for name in subject}
    top = {"Estimator", "ExactGradient", "WeightSpace", "ActivitySpace", "GlobalLoss", "LocalLosses", "Gaussian"}
    top |= {"Rademacher", "Jvp", "Stochastic", "History", "Against"}
    assert {key.rpartition(".")[2] for key in formulas.WORDS} == words | top


@pytest.mark.parametrize("latex", [*formulas.SCHEMES.values(), *formulas.WORDS.values()])
def test_every_formula_parses(latex: str) -> None:
    from matplotlib.mathtext import MathTextParser

    assert MathTextParser("path").parse(f"${latex}$").width > 0


def test_a_formula_has_the_colour_of_its_text_and_words() -> None:
    svg = formulas.typeset(formulas.WORDS["Mean"], 'Mean: the "mean"')
    assert 'aria-label="Mean: the mean"' in svg
    assert "fill:" not in svg


def test_a_docstring_falls_into_parts() -> None:
    parts = parsed(
        "One.\n\nTwo.\n\nArgs:\n    x: a\n        b.\n    y: c.\n\nRaises:\n    ValueError: no.\n\nSource: me, 2020."
        "\n\nExample:\n    >>> 1\n    1"
    )
    assert (parts.identity, parts.text, parts.source) == ("One.", ["Two."], "me, 2020.")
    assert parts.entries == {"Args": {"x": "a b.", "y": "c."}, "Raises": {"ValueError": "no."}}
    assert parts.example == ">>> 1\n1\n"
