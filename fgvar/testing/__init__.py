"""The testing kit: prove or refute any gradient estimator.

`check_estimator` runs every check and reports; `parametrize_with_checks` is its pytest face; `expectation` and
`covariance` are exact; `unbiased` is the statistical verdict for what cannot be enumerated; `strategies` draws
problems and estimators for Hypothesis; `mutants` holds planted defects that the checks catch.
"""

import importlib
from typing import Any

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
    # laws
    "expectation": "fgvar.testing.enumeration",
    "covariance": "fgvar.testing.enumeration",
    "unbiased": "fgvar.testing.statistical",
    "Verdict": "fgvar.testing.verdict",
    "DRAWS": "fgvar.testing.statistical",
}
_MODULES = ("strategies", "mutants")

__all__ = [*_NAMES, *_MODULES]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fgvar.testing.{name}")
    if name not in _NAMES:
        from fgvar.errors import unknown

        raise AttributeError(f"module 'fgvar.testing': {unknown('name', name, __all__)}")
    return getattr(importlib.import_module(_NAMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
