"""Memory that is freed and taken again within a run."""

import subprocess
import sys

import pytest

from fgvar import allocator

# Blocks of 24 MB are written and freed, as by a training step, in a main thread (pytest may run this in another one).
STEPS = """
import resource
from fgvar import allocator

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    held = [bytes([number]) * (24 << 20) for number in range(1, 5)]
    del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
without = faults()
with allocator.keep_freed_memory():
    with allocator.keep_freed_memory():
        faults()
    kept = faults()
with allocator.keep_freed_memory(allocator.MEGABYTE):
    faults()
    print(without, kept, faults())
"""


@pytest.mark.skipif(allocator._glibc() is None, reason="memory is kept by glibc alone")
def test_freed_memory_is_taken_again_without_page_faults() -> None:
    """Also after what was entered within has ended."""
    found = subprocess.run([sys.executable, "-c", STEPS], check=True, capture_output=True, text=True)
    without, kept, large = map(int, found.stdout.split())
    assert without > 10_000, "of the 24,576 pages: else there is nothing to keep"
    assert kept < 100
    assert large > 10_000, "blocks that are larger than what stays"


def test_elsewhere_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(allocator, "_glibc", lambda: asked.append("library"))
    with allocator.keep_freed_memory():
        assert asked == ["library"]


def test_an_error_passes() -> None:
    with pytest.raises(KeyError), allocator.keep_freed_memory():
        raise KeyError
