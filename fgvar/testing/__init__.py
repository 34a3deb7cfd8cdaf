"""The testing kit: prove or refute any gradient estimator.

`check_estimator` runs every check and reports; `parametrize_with_checks` is its pytest face; `expectation` and
`covariance` are exact; `unbiased` is the statistical verdict for what cannot be enumerated; `strategies` draws
problems and estimators for Hypothesis; `mutants` holds planted defects that the checks catch.
"""

from fgvar.lazy import lazy

_NAMES = {
    # every check of an estimator
    "check_estimator": "fgvar.testing.checks",
    "parametrize_with_checks": "fgvar.testing.checks",
    "CHECKS": "fgvar.testing.checks",
    "Check": "fgvar.testing.checks",
    "Report": "fgvar.testing.checks",
    "Row": "fgvar.testing.checks",
    "from_function": "fgvar.testing.black_box",
    "default_problems": "fgvar.testing.problems",
    "gallery": "fgvar.testing.gallery",
    # laws
    "expectation": "fgvar.testing.enumeration",
    "covariance": "fgvar.testing.enumeration",
    "unbiased": "fgvar.testing.statistical",
    "Verdict": "fgvar.testing.verdict",
    "DRAWS": "fgvar.testing.statistical",
    # tests of means from draws
    "mean_test": "fgvar.testing.mean_tests",
    "MeanTest": "fgvar.testing.mean_tests",
    # whole modules
    "strategies": "",
    "mutants": "",
}

__all__ = list(_NAMES)
__getattr__, __dir__ = lazy(__name__, _NAMES)
