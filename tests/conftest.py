"""What holds for all tests: fixed examples, fixed seeds, and no CUDA test where there is no device."""

import signal

import pytest
from hypothesis import settings

# A shell's background jobs ignore Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis draws structure here, never luck: the same examples in every run.
settings.register_profile("fgvar", deadline=None, derandomize=True, max_examples=25, print_blob=True)
settings.load_profile("fgvar")


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Networks of torch.nn start from the global generator: the same in any order, whatever runs beside."""
    import torch

    torch.manual_seed(0)


def pytest_runtest_setup(item: pytest.Item) -> None:
    import torch

    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
