"""Pages in a headless Chromium: wide and narrow, light and dark, with and without script; skipped where none is."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import CHROMIUM, Browser

import fgvar
from fgvar.pages import of_report, write

pytestmark = pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: pages are not opened")
FITS = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
FIRST = "[...document.querySelectorAll('section:first-of-type tbody tr')].map((row) => row.cells[{}].textContent)"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory, page) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("pages")
    report = fgvar.testing.check_estimator(fgvar.scheme("FG-W"), checks=["unbiased", "scale"])
    return {
        "dataset": write(page, place / "dataset.html"),
        "report": write(of_report(report), place / "report.html"),
    }


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("name", ["dataset", "report"])
def test_a_page_opens_without_complaints_and_fits(browser, pages, name: str, width: int, dark: bool) -> None:
    browser.open(pages[name], width=width, dark=dark)
    assert browser.complaints == []
    assert browser.value(FITS)
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert paper == ("rgb(20, 23, 26)" if dark else "rgb(255, 255, 255)")


def test_a_heading_sorts_its_table_both_ways(browser, pages) -> None:
    """By the number in front, whatever stands beside it."""
    browser.open(pages["dataset"])
    before, heading = (
        browser.value(FIRST.format(0)),
        "document.querySelectorAll('section:first-of-type th button')[3]",
    )
    browser.value(f"{heading}.click()")
    rising = [float(one.split()[0]) for one in browser.value(FIRST.format(3))]
    browser.value(f"{heading}.click()")
    falling = [float(one.split()[0]) for one in browser.value(FIRST.format(3))]
    assert browser.value("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"
    assert rising == sorted(rising) != falling == sorted(falling, reverse=True)
    assert sorted(browser.value(FIRST.format(0))) == sorted(before)


def test_without_script_all_is_there(browser, pages) -> None:
    browser.open(pages["dataset"], script=False)
    assert browser.complaints == []
    assert "<th" in pages["dataset"].read_text()


def test_it_prints(browser, pages, tmp_path) -> None:
    browser.open(pages["report"])
    browser.pdf(tmp_path / "page.pdf")
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
