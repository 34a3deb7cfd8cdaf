"""Rules of the house that no other tool holds: short files, and words that are asked what they are, never typed."""

import ast
from pathlib import Path

import pytest

import fgvar

ROOT = Path(fgvar.__file__).resolve().parents[1]
LONGEST = {"fgvar": 300, "studies": 300, "figures": 300, "tests": 400}
WORDS = {
    name for part in ("sampling", "points", "transforms", "streams", "targets") for name in fgvar._SUBJECTS[part]
}
ASKING = sorted(
    path
    for place in ("stochastic", "theory", "measurement", "testing", "training")
    for path in (ROOT / "fgvar" / place).rglob("*.py")
)


@pytest.mark.parametrize("folder", LONGEST)
def test_files_are_short(folder: str) -> None:
    lines = {str(path): len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {path: count for path, count in lines.items() if count > LONGEST[folder]} == {}


def asked_for_types(source: str) -> set[str]:
    """Names that something is compared with by its type."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("isinstance", "issubclass"):
            found |= names_in(node.args[1])
        if isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            found |= names_in(node)
        if isinstance(node, ast.MatchClass):
            found |= names_in(node.cls)
    return found


def names_in(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)} | {
        one.attr for one in ast.walk(node) if isinstance(one, ast.Attribute)
    }


@pytest.mark.parametrize("path", ASKING, ids=lambda path: str(path.relative_to(ROOT / "fgvar")))
def test_no_word_of_a_sampled_gradient_is_asked_for_its_type(path: Path) -> None:
    """A stranger's word would be none of them: what matters is what a word says of itself."""
    assert asked_for_types(path.read_text()) & WORDS == set()


@pytest.mark.parametrize(
    "line", ["isinstance(x, Draw)", "isinstance(x, int | sampling.Draw)", "type(x) is Draw", "type(x) in (Draw, str)"]
)
def test_asking_for_a_type_is_seen(line: str) -> None:
    assert asked_for_types(f"y = {line}") & WORDS == {"Draw"}


def thawed(source: str) -> list[str]:
    """Dataclasses that are not frozen, and make an object in a default, which all of them would share."""
    return [
        node.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ClassDef)
        and any("dataclass" in one and "frozen=True" not in one for one in map(ast.unparse, node.decorator_list))
        and any(
            isinstance(line, ast.AnnAssign) and isinstance(line.value, ast.Call) and "field(" not in ast.unparse(line)
            for line in node.body
        )
    ]


def test_objects_that_are_defaults_belong_to_frozen_classes() -> None:
    """Ruff's own rule does not tell these from others, and is off."""
    paths = [path for folder in LONGEST for path in (ROOT / folder).rglob("*.py")]
    assert {str(path): found for path in paths if (found := thawed(path.read_text()))} == {}
    assert thawed("@dataclass\nclass A:\n    x: B = B()\n    y: int = 0") == ["A"]
