"""Twenty estimators as they were reported or shipped: of each the right one passes."""

import pytest

from fgvar.testing import check_estimator
from fgvar.testing.mutants.mutant import Mutant
from fgvar.testing.mutants.published import PUBLISHED, UNDECIDED


@pytest.mark.parametrize("mutant", PUBLISHED, ids=lambda mutant: mutant.name)
def test_the_right_one_passes(mutant: Mutant) -> None:
    assert mutant.right is not None
    report = check_estimator(mutant.right, mutant.problem(), draws=mutant.draws)
    assert report.passed, report


def test_what_has_no_variance_is_undecided() -> None:
    report = check_estimator(UNDECIDED.estimator, UNDECIDED.problem(), draws=UNDECIDED.draws)
    assert not report.failures
    assert not report.passed
