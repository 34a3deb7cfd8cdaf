"""The testing kit: exact expectations of estimators (and, with them, unbiasedness)."""

from fgvar.testing.exact import expectation

__all__ = ["expectation"]
