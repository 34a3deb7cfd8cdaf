"""Pages: what they say of a dataset and of a report, that they need nothing else, and that they can be read."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import fgvar
from fgvar import plot
from fgvar.cli import main
from fgvar.pages import of_dataset, of_report
from fgvar.testing.report import Report, Row

STORED = Path(__file__).resolve().parents[2] / "figures" / "data"
VOID = {"meta", "br", "link", "img", "input", "hr"}


class Tree(HTMLParser):
    """Elements with their attributes, and whether all are closed in the order of their opening."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def checked(text: str) -> Tree:
    """The page as a tree, after what every page has to be."""
    tree = Tree(text)
    assert tree.open == []
    assert re.findall(r'(?:src|href|action|data)="(?!#)[^"]*"', text) == [], "nothing from elsewhere"
    assert not re.search(r"@import|url\((?!#)", text)
    names = [attrs["id"] for _, attrs in tree.elements if "id" in attrs]
    assert len(names) == len(set(names))
    asked = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)
    asked += [(one, "") for named in re.findall(r'aria-labelledby="([^"]+)"', text) for one in named.split()]
    assert {one or other for one, other in asked} <= set(names)
    assert all(attrs.get("scope") in ("col", "row") for attrs in tree.all("th"))
    assert len(tree.all("caption")) == len(tree.all("table"))
    for attrs in tree.all("svg"):
        assert attrs["role"] == "img"
        assert attrs["aria-labelledby"]
    return tree


def test_a_page_of_a_measurement_holds_the_summary_and_escapes_names(measured, page) -> None:
    tree, text = checked(page), page
    for line in fgvar.summary(measured).tables[0].rows:
        for cell in line[1:]:
            assert f"<td>{cell}</td>" in text
    assert "&lt;mine&gt; &amp; co" in text
    assert "<mine>" not in text
    assert len(tree.all("svg")) >= 2
    assert "What made it" in text
    assert measured.attrs["torch_version"] in text


def test_pictures_say_what_they_found(measured, page) -> None:
    found = re.findall(r"<desc[^>]*>(.*?)</desc>", page, flags=re.DOTALL)
    assert len(found) == len(plot.kinds(measured))
    assert all(len(one.split()) > 4 for one in found)


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Pages without figures, which take most of the time."""
    monkeypatch.setattr("fgvar.pages.dataset_page.pictures", lambda _: ((), ()))


@pytest.mark.usefixtures("undrawn")
def test_what_is_missing_is_flagged_with_its_reason(measured) -> None:
    dead = measured.copy(deep=True)
    dead["flag"].loc[{"estimator": "FG-A", "layer": "bias"}] = fgvar.measurement.FLAGS["dead"]
    text = of_dataset(dead)
    assert "<td>dead</td><td>bias</td><td>The reference is 0 within rounding" in text
    assert "<td>no noise</td>" in text  # of BP


@pytest.mark.usefixtures("undrawn")
def test_a_bias_that_is_seen_and_one_that_is_not_excluded_are_flagged(measured) -> None:
    biased = measured.copy(deep=True)
    biased["bias_p"].loc[{"estimator": "FG-A", "layer": "perturbed"}] = 1e-9
    for name in ("BP", "FG-W"):
        biased["sq_bias_high"].loc[{"estimator": name, "layer": "perturbed"}] = biased["gradient_norm"].max() ** 2
    text = of_dataset(biased)
    assert re.search(r'scope="row">FG-A</th><td>biased</td><td>perturbed</td><td>p = \de-0\d', text)
    assert re.search(r'scope="row">FG-W</th><td>bias unknown</td><td>perturbed</td><td>A bias of 1 of', text)
    assert re.search(r'scope="row">BP</th><td>biased</td><td>perturbed</td><td>Without noise', text)


@pytest.mark.usefixtures("undrawn")
def test_where_nothing_is_missing_it_says_so(measured) -> None:
    clean = measured.sel(estimator=["FG-W"]).copy(deep=True)
    clean["flag"][:] = 0
    clean["sq_bias_high"][:] = 0
    assert "Nothing: every number is there" in of_dataset(clean)


@pytest.mark.usefixtures("undrawn")
def test_a_long_table_is_cut_and_says_so() -> None:
    runs = xr.Dataset({"loss": (("seed", "epoch"), np.ones((600, 2)))}, {"seed": range(600), "epoch": [0, 1]})
    text = of_dataset(runs, "Runs")
    assert "The first 500 of 600 lines; `fgvar open` has all." in text


@pytest.mark.usefixtures("undrawn")
def test_estimators_stand_under_their_whole_names() -> None:
    lines = "FG-A: Mine(a={'b': 1})\nFG-A: replay: Mine(oracle=Replay())\nodd: Mine(':)')"
    text = of_dataset(xr.Dataset({"count": ("place", [1, 2])}, attrs={"estimators": lines}), "Counts")
    for name, words in (("FG-A", "Mine(a={"), ("FG-A: replay", "Mine(oracle"), ("odd", "Mine(")):
        assert re.search(rf'scope="row">{re.escape(name)}</th><td>{re.escape(words)}', text)


def test_another_dataset_has_its_variables_and_no_figure() -> None:
    text = of_dataset(xr.Dataset({"count": ("place", [1, 2])}), "Counts")
    tree = checked(text)
    assert tree.all("svg") == []
    assert "Figures" not in text
    assert "count" in text


def test_a_page_says_why_a_sweep_has_no_figure(measured) -> None:
    """Along three axes: no panel shows one of them; two of them are drawn."""
    axes = {"width": [1, 2, 3], "act": ["relu", "tanh"], "bias": ["with", "without"]}
    cells = measured.sel(estimator=["FG-W", "FG-A"]).expand_dims(axes)
    text = of_dataset(cells)
    assert checked(text).all("svg") == []
    why = "is along &#39;bias&#39;, too; give hue=&#39;bias&#39; or col=&#39;bias&#39;, or choose one"
    assert f"<p>No figure fits; as a sweep: &#39;relative_variance&#39; {why}" in text
    assert len(checked(of_dataset(cells.isel(bias=0))).all("svg")) == 1


def test_a_page_survives_a_figure_that_cannot_be_drawn(measured, monkeypatch) -> None:
    def broken(*_, **__) -> None:
        raise ValueError("an axis is odd")

    monkeypatch.setitem(plot.kinds_of.DRAW, "layers", broken)
    text = of_dataset(measured)
    assert "<p>Layer by layer: no figure, as an axis is odd.</p>" in text
    assert len(checked(text).all("svg")) == len(plot.kinds(measured)) - 1


@pytest.mark.parametrize("name", ["directions", "table3_probes"])
def test_a_page_of_a_stored_dataset(name: str) -> None:
    checked(of_dataset(fgvar.open_dataset(STORED / f"{name}.nc")))


def test_a_page_of_a_report_says_what_failed_and_why(report) -> None:
    text = of_report(report, "mine.py:mine")
    checked(text)
    assert "mine.py:mine failed unbiased." in text
    assert "<td><strong>NO</strong></td>" in text
    assert "unbiased, linear: E ĝ of &#x27;bias&#x27; is off its target" in text
    assert fgvar.testing.CHECKS["pure"].claim.split(":")[0] in text


@pytest.mark.parametrize(
    ("outcome", "required", "words"),
    [
        ("passed", True, "passed every check that applies: 1 passed"),
        ("undecided", True, "is not proved: undecided are noise."),
        ("undecided", False, "undecided, and not required: noise."),
    ],
)
def test_the_verdict_is_that_of_the_exit_status(outcome: str, required: bool, words: str) -> None:
    assert words in of_report(Report("Mine()", (Row("noise", "linear", outcome, "n", required),)))


def test_the_commands_write_pages(tmp_path, capsys) -> None:
    page, verdict = tmp_path / "new" / "page.html", tmp_path / "verdict.html"
    assert main(["report", str(STORED / "directions.nc"), "-o", str(page), "--title", "Mine"]) == 0
    assert capsys.readouterr().out == f"{page}\n"
    assert "<h1>Mine</h1>" in page.read_text()
    assert main(["check", "FG-W", "--checks", "scale", "--report", str(verdict)]) == 0
    assert "FG-W passed every check" in verdict.read_text()


# ---- to be read ------------------------------------------------------------------------------------------


def colours(block: str) -> dict[str, str]:
    return dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", block))


def luminance(colour: str) -> float:
    """Relative, of sRGB (WCAG 2.2)."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return float(
        np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
    )


def test_every_ink_has_a_contrast_of_four_and_a_half_on_every_paper() -> None:
    """In light, in the dark and in print; and no rule takes a colour beside them."""
    css = (Path(fgvar.__file__).parent / "pages" / "page.css").read_text()
    light, dark, printed = (colours(block) for block in re.findall(r":root \{(.*?)\}", css, flags=re.DOTALL))
    assert set(light) == set(dark) == set(printed) | {"card"}
    for palette in (light, dark, printed):
        papers = [colour for name, colour in palette.items() if name.startswith("paper")]
        inks = [colour for name, colour in palette.items() if name.startswith("ink")]
        assert (len(papers), len(inks)) == (3, 4)
        for bright, other in ((luminance(ink), luminance(paper)) for ink in inks for paper in papers):
            assert (max(bright, other) + 0.05) / (min(bright, other) + 0.05) >= 4.5
    rules = re.sub(r":root \{.*?\}", "", css, flags=re.DOTALL)
    assert not re.search(r"#[0-9a-f]{3}|rgb|hsl", rules)
