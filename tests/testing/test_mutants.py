"""Every planted defect is caught by the check that is meant for it; every right but odd twin passes."""

import re
from pathlib import Path

import pytest

import fgvar
from fgvar.testing import CHECKS, check_estimator
from fgvar.testing.mutants import LOOKALIKES, MUTANTS, Lookalike, Mutant

README = (Path(__file__).resolve().parents[2] / "fgvar/testing/README.md").read_text()
INSIDE = re.compile(r"Traceback|File \"|raised \w+(Error|Exception)")


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_every_mutant_is_caught_by_the_check_that_is_meant_for_it(mutant: Mutant) -> None:
    with pytest.raises(AssertionError, match=f"^{mutant.caught_by}, {mutant.shows_on}: ") as caught:
        CHECKS[mutant.caught_by](mutant.estimator, mutant.problem(), draws=mutant.draws)
    sentence = str(caught.value).splitlines()[0]
    assert not INSIDE.search(str(caught.value)), caught.value
    if mutant.reported:  # digits of what is drawn differ from CPU to CPU
        said = sentence.removeprefix(f"{mutant.caught_by}, {mutant.shows_on}: ").split("; drawn")[0].split(": z =")[0]
        assert f"| {said}" in README, said


@pytest.mark.parametrize("twin", LOOKALIKES.values(), ids=LOOKALIKES)
def test_every_twin_passes(twin: Lookalike) -> None:
    report = check_estimator(twin.estimator, twin.problem())
    assert report.passed, report
    assert {"structure", "unbiased", "scale"} <= {row.check for row in report.rows if row.outcome == "passed"}


def test_every_check_catches_a_mutant() -> None:
    assert {mutant.caught_by for mutant in MUTANTS.values()} == set(CHECKS)


@pytest.mark.parametrize("registry", [MUTANTS, LOOKALIKES], ids=["mutants", "twins"])
def test_every_entry_says_in_a_sentence_what_it_is(registry) -> None:
    for entry in registry.values():
        said = entry.defect if isinstance(entry, Mutant) else entry.suspicion
        assert said.endswith(".")
        assert isinstance(entry.estimator, fgvar.GradientEstimator)
