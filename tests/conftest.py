"""Hypothesis draws structure here, never luck: the same examples in every run."""

import pytest
from hypothesis import settings

settings.register_profile("fgvar", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("fgvar")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Networks of torch.nn start from the global generator: the same in any order, whatever runs beside."""
    import torch

    torch.manual_seed(0)
