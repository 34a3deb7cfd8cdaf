"""The gallery of biases: rows made from the mutants, which README prints."""

from pathlib import Path

import pytest

from fgvar.cli import main
from fgvar.testing import gallery
from fgvar.testing.gallery import bias
from fgvar.testing.mutants import MUTANTS, Mutant

README = Path(__file__).resolve().parents[2] / "fgvar/testing/README.md"
REPORTED = [mutant for mutant in MUTANTS.values() if mutant.reported]
ROWS = [line for line in README.read_text().splitlines() if line.startswith("| ")]


def row(mutant: Mutant) -> str:
    """Its line in README. (What catches it, and with which sentence, is held beside the mutants.)"""
    start = "| ".join(["", mutant.defect.replace("|", r"\|") + " ", mutant.reported + " ", ""])
    (found,) = [line for line in ROWS if line.startswith(start)]
    return found


@pytest.mark.parametrize("mutant", REPORTED, ids=lambda mutant: mutant.name)
def test_the_readme_has_its_row_and_every_exact_bias(mutant: Mutant) -> None:
    cells = row(mutant).rstrip(" |").split(" | ")
    assert cells[-3] == f"{mutant.caught_by}, on {mutant.shows_on}"
    if not cells[-1].endswith("(drawn)"):
        assert cells[-1] == bias(mutant)


def test_the_readme_has_no_other_rows() -> None:
    table = ROWS[next(n for n, line in enumerate(ROWS) if line.startswith("| what the code did")) + 1 :]
    assert len(table) == len(REPORTED)


def test_a_drawn_bias_has_its_error() -> None:
    """Of examples by their losses without weights: 0.956 ± 0.006 by 20,000 draws, here 2,048 of a fixed seed."""
    value, error = bias(MUTANTS["unweighted-priorities"]).removesuffix(" (drawn)").split(" ± ")
    assert float(value) == pytest.approx(0.956, abs=4 * float(error))


def test_rows_are_made_of_chosen_mutants() -> None:
    (found,) = gallery(["times-workers"])
    assert found == {
        "what the code did": MUTANTS["times-workers"].defect, "reported": "NeMo Automodel#3846",
        "caught by": "scale, on linear", "bias": "1",
        "sentence": "the slope of 'weight' is 2, expected 1 (exact: all 4 values of its noise)",
    }  # fmt: skip


def test_an_unknown_mutant_is_named() -> None:
    with pytest.raises(ValueError, match="unknown mutant 'times-worker'; did you mean 'times-workers'"):
        gallery(["times-worker"])


@pytest.mark.parametrize("arguments", [[], ["FG-W", "--gallery"]])
def test_the_command_takes_one_or_the_other(arguments: list[str], capsys) -> None:
    assert main(["check", *arguments]) != 0
    assert "an estimator (a name of `fgvar schemes`, or yours), or --gallery alone" in capsys.readouterr().err
