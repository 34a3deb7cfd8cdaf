"""Tables in LaTeX, compiled: what is written is what a reader sees. Skipped, with a word, where there is none."""

import re
import shutil
import subprocess
import unicodedata
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

import fgvar
from fgvar.measurement import tabular

SHOWN = {  # a name → what a page shows of it
    name: name
    for name in (
        "FG_W", "50 % & more", "a#b $5", "x^2 ~ {y}", "back\\slash", "[first]", "*star", "a--b", "<mine> | \"co\"",
        "café Øß “q” ’ …", "≤ 0 ≥ 1", "a → b × c ± 1", "⟨g⟩ ∂", "α β Σ", "‖g‖", "½ § ·",
    )
} | {"✓ ✗": "yes no", "∇L": "∇L", "σ² x₁ ᵀ": "σ2 x1 T", "ĝ": "ĝ", "日本 FG": "日本 FG"}  # fmt: skip
LATIN = [name for name in SHOWN if "日" not in name]


def missing() -> str:
    """Why tables cannot be compiled here."""
    for tool in ("pdflatex", "xelatex", "kpsewhich", "pdftotext"):
        if shutil.which(tool) is None:
            return f"no {tool} on this machine: tables are not compiled"
    for package in ("booktabs", "siunitx"):
        if subprocess.run(["kpsewhich", f"{package}.sty"], capture_output=True).returncode:
            return f"no LaTeX package {package} on this machine: tables are not compiled"
    return ""


pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())


def compiled(folder: Path, table: str, *, siunitx: bool, engine: str = "pdflatex", head: str = "") -> str:
    """The words of the page that a minimal document with this table makes."""
    packages = r"\usepackage{booktabs}" + (r"\usepackage{siunitx}" if siunitx else "")
    page = r"\usepackage[paperwidth=60cm, paperheight=40cm, margin=1cm]{geometry}\pagestyle{empty}\parindent0pt"
    text = rf"\documentclass{{article}}{packages}{page}{head}\begin{{document}}" + f"\n{table}\\end{{document}}\n"
    (folder / "table.tex").write_text(text)
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", "table.tex"]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
    told = "\n".join(line for line in made.stdout.splitlines() if line.startswith(("!", "l.")) or "Missing" in line)
    assert made.returncode == 0, told
    assert not told
    words = subprocess.run(["pdftotext", "-layout", "table.pdf", "-"], cwd=folder, capture_output=True, check=True)
    return words.stdout.decode()


# What a PDF calls otherwise: accents of the oldest font encoding, dashes, and an underscore, which is a rule.
SAME = str.maketrans(
    {"ˆ": "^", "˜": "~", "∼": "~", "”": '"', "“": '"', "−": "-", "–": "-", "‖": "∥", "_": "", "…": "..."}
)


def squeezed(text: str) -> str:
    return re.sub(r"\s", "", unicodedata.normalize("NFC", text)).translate(SAME)


@pytest.fixture(scope="module")
def measured() -> dict[str, xr.Dataset]:
    """Drawn, with intervals and with standard errors alone, exact, and the curves of a run."""
    problem = fgvar.testing.default_problems()["linear"]
    rows = {name: fgvar.scheme("FG-W") for name in LATIN} | {"BP": fgvar.scheme("BP")}
    drawn = fgvar.measure(rows, problem, draws=64)
    return {
        "drawn": drawn,
        "standard errors": drawn.drop_vars([name for name in drawn if str(name).endswith(("_low", "_high"))]),
        "exact": fgvar.measure(rows, problem, route="exact"),
        "run": xr.Dataset(
            {"test_error": (("run", "epoch"), [[0.9, 0.25]] * len(LATIN))}, {"run": LATIN, "epoch": [0, 1]}
        ),
    }


@pytest.mark.parametrize("siunitx", [False, True], ids=["plain", "siunitx"])
@pytest.mark.parametrize("kind", ["drawn", "standard errors", "exact", "run"])
def test_a_page_shows_names_and_numbers(measured, tmp_path, kind: str, siunitx: bool) -> None:
    table = fgvar.table(measured[kind], to="latex", siunitx=siunitx)
    page = compiled(tmp_path, table, siunitx=siunitx)
    lines = [squeezed(line) for line in page.splitlines() if line.strip()]
    rows = fgvar.table(measured[kind], to="markdown").splitlines()[2:]
    for name, row in zip(LATIN, rows, strict=kind == "run"):
        numbers = "".join(squeezed(cell) for cell in re.split(r"(?<!\\)\|", row)[-3:])
        found = [line for line in lines if line.startswith(squeezed(SHOWN[name]))]
        assert any(line.endswith(numbers) for line in found), f"{name!r} with {numbers} is not in\n{page}"


def test_headings_powers_and_signs(tmp_path) -> None:
    columns = pd.MultiIndex.from_tuples([("net_1", "error, %"), ("net_1", "cost"), ("other", "error, %")])
    cells = [["1.5 ± 0.2", "-2e-05", "–"], ["−12.25 ± 0.1", "3e+10", "few draws"]]
    for siunitx in (False, True):
        table = tabular.latex(pd.DataFrame(cells, ["a~b", "[c]"], columns), siunitx=siunitx)
        page = squeezed(compiled(tmp_path, table, siunitx=siunitx))
        for word in ("net_1", "error,%", "1.5±0.2", "a~b", "[c]", "fewdraws", "−12.25"):
            assert squeezed(word) in page, word


def test_other_scripts_take_a_unicode_engine(tmp_path) -> None:
    """Its font has to have them, of which nothing is known here: the page is made."""
    frame = pd.DataFrame([["1.0"]] * len(SHOWN), list(SHOWN), ["cost"])
    with pytest.raises(AssertionError, match="Unicode character 日"):
        compiled(tmp_path, tabular.latex(frame), siunitx=False)
    font = next((one for one in ("Noto Serif CJK JP", "IPAexMincho") if _known(one)), "")
    if not font:
        pytest.skip("no font for Japanese on this machine")
    head = rf"\usepackage{{fontspec}}\setmainfont{{{font}}}"
    page = squeezed(compiled(tmp_path, tabular.latex(frame), siunitx=False, engine="xelatex", head=head))
    assert "日本FG" in page


def _known(font: str) -> bool:
    if shutil.which("fc-list") is None:
        return False
    return bool(subprocess.run(["fc-list", font], capture_output=True).stdout)
