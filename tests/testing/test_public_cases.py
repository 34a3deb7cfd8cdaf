"""Twenty estimators as they were reported or shipped: the right one passes, the wrong one does not."""

import re
from pathlib import Path

import pytest
from public_cases import CASES, verdict

from fgvar.testing import CHECKS

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


def test_the_readme_names_every_check() -> None:
    """Several in a row of its table, where what has to hold is the same."""
    assert set(CHECKS) <= set(re.findall(r"`(\w+)`", README.read_text()))


def test_the_readme_lists_them() -> None:
    text = README.read_text()
    for case in CASES.values():
        found = "undecided" if case.caught_by == "?" else f"`{case.caught_by}`"
        assert f"| {case.report} | {case.fault} | {found} |" in text, case.report
