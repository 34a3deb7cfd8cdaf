"""Twenty estimators as they were reported or shipped: the right one passes, the wrong one does not."""

from pathlib import Path

import pytest
from public_cases import CASES, verdict

README = Path(__file__).resolve().parents[2] / "fgvar" / "testing" / "README.md"


@pytest.mark.parametrize("name", CASES)
def test_the_right_one_is_passed(name: str) -> None:
    assert verdict(CASES[name].right, CASES[name]) == ("passed", ())


@pytest.mark.parametrize("name", CASES)
def test_the_wrong_one_is_caught_or_cannot_be_judged(name: str) -> None:
    case = CASES[name]
    word, checks = verdict(case.wrong, case)
    assert word == ("undecided" if case.caught_by == "?" else "caught")
    assert case.caught_by == "?" or case.caught_by in checks, checks


def test_the_readme_lists_them() -> None:
    text = README.read_text()
    for case in CASES.values():
        found = "undecided" if case.caught_by == "?" else f"`{case.caught_by}`"
        assert f"| {case.report} | {case.fault} | {found} |" in text, case.report
