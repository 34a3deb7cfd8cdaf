"""READMEs: examples run and print what they show, links lead somewhere, stored pictures of examples are current."""

import re
from pathlib import Path

import pytest

from figures.__main__ import main as redraw
from figures.examples import EXAMPLES

ROOT = Path(__file__).resolve().parents[2]
READMES = [
    ROOT / "README.md",
    *(path for top in ("fgvar", "studies", "tests") for path in (ROOT / top).rglob("README.md")),
]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


NUMBER = r"-?\d[\d.]*(?:e-?\d+)?"


def masked(text: str) -> list[str]:
    """Its lines without numbers, whose last digits vary with the machine, and with single blanks."""
    return [" ".join(re.sub(NUMBER, "#", line).split()) for line in text.splitlines()]


@pytest.mark.filterwarnings("ignore:.*by plain calls:UserWarning", "ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_examples_of_a_readme_run_and_print_what_it_shows(path: Path, tmp_path, monkeypatch, capsys) -> None:
    """In order, and in one namespace: what an example defines the next one may use."""
    if path.parent.name == "nn":
        pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block, shown in re.findall(r"```python\n(.*?)```\n\n((?:    [^\n]*\n)*)", path.read_text(), flags=re.DOTALL):
        exec(compile(block, name_of(path), "exec"), names)
        assert set(masked(shown)) <= set(masked(capsys.readouterr().out)), name_of(path)
    if path.parent.name == "studies":
        examples_are_as_stored(tmp_path)


def examples_are_as_stored(folder: Path) -> None:
    """Captions are the stored ones, and what redraws stored datasets draws bit by bit what the examples drew."""
    for stored in (ROOT / "figures" / "data").glob("example_*.txt"):
        text, kept = (folder / stored.name).read_text(), stored.read_text()
        assert masked(text) == masked(kept), stored.name
        assert numbers(text) == pytest.approx(numbers(kept), rel=0.1), stored.name
    drawn = {path: path.read_bytes() for name in EXAMPLES for path in folder.glob(f"{name}.[pt]*")}
    assert len(drawn) == 3 * len(EXAMPLES)
    for path in drawn:
        path.unlink()
    redraw(folder)
    assert {path: path.read_bytes() for path in drawn} == drawn


def numbers(text: str) -> list[float]:
    return [float(found.rstrip(".")) for found in re.findall(NUMBER, text)]


def anchors(path: Path) -> set[str]:
    """Of a document's headings, as GitHub makes them."""
    headings = re.findall(
        r"^#+ (.*)$", re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL), flags=re.MULTILINE
    )
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", READMES, ids=name_of)
def test_links_of_a_readme_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        file, _, anchor = link.partition("#")
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), f"{name_of(path)}: {link}"
        assert not anchor or anchor in anchors(target), f"{name_of(path)}: {link}"


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12_000
