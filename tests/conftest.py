"""Hypothesis draws structure here, never luck: the same examples in every run."""

from hypothesis import settings

settings.register_profile("fgvar", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("fgvar")
